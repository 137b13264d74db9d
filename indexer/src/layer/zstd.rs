//! Where a zstd stream is cut into spans: at frames, and inside those that are too big for that (`frame_cuts.rs`).

use clip_engine::zstd::{Zstd, ZstdError, ZstdStop, decoder_bytes};
use clip_format::{digest::Digest, limits::FRAME_WINDOW_LOG_MAX};

use super::{
    blocks::{Blocks, StreamSink},
    decoder_memory::DecoderShare,
    frame_cuts::FrameCuts,
    spans::{SpanDraft, check_stream_size},
};
use crate::error::IndexError;

/// Spans of a stream of zstd frames. Cost: a window of up to 128 MiB, and at most two spans of the stream where it is undecided which
/// frame begins a span.
pub(super) struct ZstdSpans<'a> {
    layer: Digest,
    zstd: Zstd,
    /// The decoder's part of the memory for decoders.
    share: DecoderShare<'a>,
    /// The work was stopped while it waited for that.
    is_stopped: bool,
    /// Blob bytes used.
    consumed: u64,
    blocks: Blocks,
    cuts: FrameCuts,
}

impl<'a> ZstdSpans<'a> {
    pub(super) fn new(layer: Digest, span_bytes: u64, share: DecoderShare<'a>) -> Self {
        let (zstd, cuts) = (Zstd::new(FRAME_WINDOW_LOG_MAX), FrameCuts::new(span_bytes));
        Self { layer, zstd, share, is_stopped: false, consumed: 0, blocks: Blocks::new(), cuts }
    }

    /// The work was stopped; what comes is not looked at any more.
    pub(super) fn is_stopped(&self) -> bool {
        self.is_stopped
    }

    /// Takes the next bytes of the blob. Waits where a frame needs memory that other layers' decoders hold.
    pub(super) fn push(&mut self, chunk: &[u8], sink: &mut impl StreamSink) -> Result<(), IndexError> {
        let (mut at, mut output_waits) = (0, false);
        while !self.is_stopped && (at < chunk.len() || output_waits) {
            let (used, more) = self.step(&chunk[at..], sink)?;
            at += used;
            output_waits = more;
        }
        Ok(())
    }

    /// The drafts and the stream's length; the last draft may be of no bytes.
    pub(super) fn finish(mut self, sink: &mut impl StreamSink) -> Result<(Vec<SpanDraft>, u64), IndexError> {
        if let Some(place) = self.zstd.is_within() {
            return Err(self.error(format!("the rest of {place}"), "the end of the blob"));
        }
        self.blocks.finish(self.consumed, sink)?;
        Ok((self.cuts.finish(), self.blocks.stream()))
    }

    /// One call of the decoder: blob bytes used, and whether output may wait although the input is used up.
    fn step(&mut self, input: &[u8], sink: &mut impl StreamSink) -> Result<(usize, bool), IndexError> {
        self.blocks.advance(self.cuts.undecided(), self.consumed, sink)?;
        let output = self.blocks.room(self.cuts.span_end_max());
        let room = output.len();
        let step = self.zstd.step(input, output).map_err(|error| self.zstd_error(&error))?;
        self.blocks.note_filled(step.produced);
        self.consumed += step.consumed as u64;
        let stream = self.blocks.stream();
        check_stream_size(self.layer, stream)?;
        // Before anything that begins here: whether it is seen in this step depends on how the blob came in.
        if stream == self.cuts.span_end_max() {
            let cut = self.cuts.full();
            self.blocks.cut(cut);
        }
        match step.stop {
            ZstdStop::FrameStart { header_len, window_log, content_bytes } => {
                let start = self.consumed - u64::from(header_len);
                if let Some(cut) = self.cuts.frame_start(stream, start, window_log, content_bytes) {
                    self.blocks.cut(cut);
                }
                self.cuts.block_start(self.consumed);
                // Nothing of the window is written before the frame's first block.
                self.is_stopped = !self.share.grow(decoder_bytes(window_log));
            }
            ZstdStop::BlockEnd => self.cuts.block_start(self.consumed),
            ZstdStop::FrameEnd | ZstdStop::Skipped | ZstdStop::More => {}
        }
        Ok((step.consumed, step.produced == room))
    }

    fn zstd_error(&self, error: &ZstdError) -> IndexError {
        match error {
            ZstdError::Dictionary { .. } | ZstdError::Window { .. } => IndexError::Unsupported {
                what: format!("layer {}, {}", self.layer, self.place()),
                found: error.to_string(),
                hint: format!("clip reads {}; compress the layer again", error.expected()),
            },
            ZstdError::Magic { .. } | ZstdError::Data { .. } => self.error(error.expected(), error.to_string()),
        }
    }

    fn error(&self, expected: String, found: impl Into<String>) -> IndexError {
        IndexError::Layer { layer: self.layer, place: self.place(), expected, found: found.into() }
    }

    fn place(&self) -> String {
        format!("blob offset {}, stream offset {}", self.consumed, self.blocks.stream())
    }
}
