//! What a span is before its digest and window are known, and the spans of a stream that is not compressed.

use bytes::Bytes;
use clip_format::{checkpoints::SpanStart, digest::Digest, error::FormatError, limits::STREAM_BYTES_MAX, units::CompressedOffset};

use super::{blocks::StreamSink, stream::BlockBytes};
use crate::error::IndexError;

/// A span without its digest and window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SpanDraft {
    pub(super) start: SpanStart,
    pub(super) compressed: CompressedOffset,
    pub(super) stream: u64,
}

/// Spans of a stream that is not compressed: cut at multiples of the span size.
pub(super) struct PlainSpans {
    layer: Digest,
    span_bytes: u64,
    stream: u64,
    drafts: Vec<SpanDraft>,
}

impl PlainSpans {
    pub(super) fn new(layer: Digest, span_bytes: u64) -> Self {
        Self { layer, span_bytes, stream: 0, drafts: Vec::new() }
    }

    pub(super) fn push(&mut self, bytes: Bytes, sink: &mut impl StreamSink) -> Result<(), IndexError> {
        let end = self.stream + bytes.len() as u64;
        check_stream_size(self.layer, end)?;
        let mut cuts = Vec::new();
        let mut next = self.drafts.len() as u64 * self.span_bytes;
        while next < end {
            if next > 0 {
                cuts.push((next - self.stream) as usize);
            }
            self.drafts.push(SpanDraft { start: SpanStart::Plain, compressed: CompressedOffset(next), stream: next });
            next += self.span_bytes;
        }
        self.stream = end;
        sink.block(BlockBytes::Shared(bytes), cuts, end)
    }

    pub(super) fn finish(self) -> (Vec<SpanDraft>, u64) {
        (self.drafts, self.stream)
    }
}

/// # Errors
/// `Limit` past `STREAM_BYTES_MAX`.
pub(super) fn check_stream_size(layer: Digest, found: u64) -> Result<(), IndexError> {
    if found <= STREAM_BYTES_MAX {
        return Ok(());
    }
    Err(IndexError::Format(FormatError::Limit { what: format!("layer {layer}: stream bytes"), max: STREAM_BYTES_MAX, found }))
}
