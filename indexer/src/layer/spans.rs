//! Where a layer stream is cut into spans, and where decoding can start again.
//!
//! From a cut at stream offset S, with spans of B bytes wanted: inflate runs freely to S + B; from there it stops at each deflate block,
//! and the first boundary (or member start) is the next entry. A block that goes on to S + 2B is cut right there, as a chained span,
//! which ends at the first boundary however near.

use bytes::Bytes;
use clip_engine::inflate::{Inflate, InflateError, Stop, Until, checkpoint_place};
use clip_format::{
    checkpoints::{SpanStart, WindowRange},
    digest::Digest,
    error::FormatError,
    limits::{STREAM_BYTES_MAX, WINDOW_BYTES},
    units::CompressedOffset,
};

use super::hash::BlockBytes;
use crate::{error::IndexError, options::Windows, sparse_window::WindowProbe};

/// Stream bytes handed on at a time. Source: fits the second-level cache beside inflate's own state.
pub(super) const BLOCK_BYTES: usize = 256 << 10;
/// What an empty stored block (a sync or full flush) ends with. Source: RFC 1951 section 3.2.4.
const FLUSH_MARK: [u8; 4] = [0, 0, 0xff, 0xff];

/// Takes the stream as it is decoded.
pub(super) trait StreamSink {
    /// The next stream bytes; a span begins at each of the places `cuts`; `compressed` bytes of the blob are used.
    fn block(&mut self, bytes: BlockBytes, cuts: Vec<usize>, compressed: u64) -> Result<(), IndexError>;
    /// The window that span number `span` needs.
    fn window(&mut self, span: usize, window: Box<[u8; WINDOW_BYTES]>);
    /// A buffer of `BLOCK_BYTES`.
    fn buffer(&mut self) -> Vec<u8>;
}

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

/// Where decoding stands between two steps.
enum Place {
    InMember,
    /// A member ended: the next byte begins another, or the padding.
    BetweenMembers,
    /// Only zeros may follow, as gzip itself accepts them.
    Padding,
}

/// A checkpoint whose window is being found out.
struct Probing {
    span: usize,
    probe: WindowProbe,
    window: Box<[u8; WINDOW_BYTES]>,
}

/// Spans of a gzip stream of any number of members.
pub(super) struct GzipSpans {
    layer: Digest,
    span_bytes: u64,
    windows: Windows,
    inflate: Inflate,
    place: Place,
    /// Blob bytes used.
    consumed: u64,
    last_bytes: [u8; 4],
    /// Stream bytes produced.
    stream: u64,
    member_start: u64,
    span_start: u64,
    drafts: Vec<SpanDraft>,
    buffer: Vec<u8>,
    filled: usize,
    cuts: Vec<usize>,
    /// The last 32 KiB before the buffer.
    tail: Box<[u8; WINDOW_BYTES]>,
    probing: Option<Probing>,
}

impl GzipSpans {
    pub(super) fn new(layer: Digest, span_bytes: u64, windows: Windows) -> Self {
        let first = SpanDraft { start: SpanStart::Member, compressed: CompressedOffset(0), stream: 0 };
        Self {
            layer,
            span_bytes,
            windows,
            inflate: Inflate::gzip(),
            place: Place::InMember,
            consumed: 0,
            last_bytes: [0xff; 4],
            stream: 0,
            member_start: 0,
            span_start: 0,
            drafts: vec![first],
            buffer: Vec::new(),
            filled: 0,
            cuts: Vec::new(),
            tail: Box::new([0; WINDOW_BYTES]),
            probing: None,
        }
    }

    /// Takes the next bytes of the blob.
    pub(super) fn push(&mut self, mut input: &[u8], sink: &mut impl StreamSink) -> Result<(), IndexError> {
        let mut output_waits = false;
        while !input.is_empty() || output_waits {
            match self.place {
                Place::InMember => {
                    let (used, full) = self.step(input, sink)?;
                    input = &input[used..];
                    output_waits = full;
                }
                Place::BetweenMembers => {
                    output_waits = false;
                    if !input.is_empty() {
                        self.next_member(input[0])?;
                    }
                }
                Place::Padding => {
                    output_waits = false;
                    if let Some(place) = input.iter().position(|byte| *byte != 0) {
                        self.consumed += place as u64;
                        return Err(self.error("zeros or nothing after the last gzip member", format!("byte {:#04x}", input[place])));
                    }
                    self.consumed += input.len() as u64;
                    input = &[];
                }
            }
        }
        Ok(())
    }

    /// The drafts and the stream's length; the last draft may be of no bytes.
    pub(super) fn finish(mut self, sink: &mut impl StreamSink) -> Result<(Vec<SpanDraft>, u64), IndexError> {
        if matches!(self.place, Place::InMember) {
            return Err(self.error("the rest of a gzip member", "the end of the blob"));
        }
        self.flush(sink)?;
        Ok((self.drafts, self.stream))
    }

    /// One call of inflate: blob bytes used, and whether output may wait although the input is used up.
    fn step(&mut self, input: &[u8], sink: &mut impl StreamSink) -> Result<(usize, bool), IndexError> {
        if self.filled == self.buffer.len() {
            self.flush(sink)?;
            self.buffer = sink.buffer();
        }
        if self.stream == self.span_start + 2 * self.span_bytes {
            self.cut_chained();
        }
        let (limit, until) = self.next_stop();
        let room = usize::try_from(limit - self.stream).unwrap_or(usize::MAX).min(self.buffer.len() - self.filled);
        let output = &mut self.buffer[self.filled..self.filled + room];
        let step = self.inflate.step(input, output, until).map_err(|error| self.inflate_error(&error))?;
        self.filled += step.produced;
        self.stream += step.produced as u64;
        check_stream_size(self.layer, self.stream)?;
        self.note_consumed(&input[..step.consumed], sink)?;
        match step.stop {
            Stop::More => {}
            Stop::Block { unused_bits } => self.block_boundary(unused_bits),
            Stop::End => self.member_end(sink),
        }
        Ok((step.consumed, step.produced == room || step.stop != Stop::More))
    }

    /// Up to where inflate may produce now, and whether block boundaries on the way matter.
    fn next_stop(&self) -> (u64, Until) {
        let wanted = self.span_start + self.span_bytes;
        match self.stream < wanted {
            true if self.ends_at_any_block() => (wanted, Until::Block),
            true => (wanted, Until::Full),
            false => (wanted + self.span_bytes, Until::Block),
        }
    }

    /// True for a chained span: the block that it continues is a giant, so its end is the next entry however near. Without windows every
    /// span is chained and hardly a boundary an entry: there only one right at the cut counts.
    fn ends_at_any_block(&self) -> bool {
        self.last().start == SpanStart::Chained && (self.windows == Windows::Sparse || self.stream == self.span_start)
    }

    /// A block ended inside a member: an entry, where one is wanted.
    fn block_boundary(&mut self, unused_bits: u8) {
        if self.stream < self.span_start + self.span_bytes && !self.ends_at_any_block() {
            return;
        }
        if self.windows == Windows::None && (unused_bits != 0 || self.last_bytes != FLUSH_MARK) {
            return;
        }
        let (compressed, bit_offset) = checkpoint_place(self.consumed, unused_bits);
        let start = SpanStart::Deflate { bit_offset, window: WindowRange::default() };
        self.cut(SpanDraft { start, compressed, stream: self.stream });
        let probe = WindowProbe::new(bit_offset, self.last_bytes[3]);
        self.probing = Some(Probing { span: self.drafts.len() - 1, probe, window: self.window() });
    }

    fn member_end(&mut self, sink: &mut impl StreamSink) {
        self.end_probe(sink);
        self.place = Place::BetweenMembers;
    }

    /// Begins the member (or the padding) at the next byte; a cut only where the span before is long enough.
    fn next_member(&mut self, first_byte: u8) -> Result<(), IndexError> {
        match first_byte {
            0x1f => {}
            0 => {
                self.place = Place::Padding;
                return Ok(());
            }
            other => return Err(self.error("another gzip member, zeros or the end of the blob", format!("byte {other:#04x}"))),
        }
        let just_cut = self.stream == self.span_start && self.stream > 0;
        if just_cut || self.stream >= self.span_start + self.span_bytes {
            self.cut(SpanDraft { start: SpanStart::Member, compressed: CompressedOffset(self.consumed), stream: self.stream });
        }
        self.inflate.reset_gzip();
        self.member_start = self.stream;
        self.place = Place::InMember;
        Ok(())
    }

    fn cut_chained(&mut self) {
        let compressed = self.last().compressed;
        self.cut(SpanDraft { start: SpanStart::Chained, compressed, stream: self.stream });
    }

    /// A span begins here. One that has no bytes yet gets the better start.
    fn cut(&mut self, draft: SpanDraft) {
        if self.stream == self.span_start && self.stream > 0 {
            self.drafts.pop();
        } else {
            self.cuts.push(self.filled);
        }
        self.drafts.push(draft);
        self.span_start = self.stream;
    }

    fn last(&self) -> SpanDraft {
        *self.drafts.last().expect("the first draft is made in new, and cut puts one back for each it takes")
    }

    fn note_consumed(&mut self, input: &[u8], sink: &mut impl StreamSink) -> Result<(), IndexError> {
        let fed = self.probing.as_mut().map_or(Ok(false), |probing| probing.probe.feed(input).map(|()| probing.probe.is_done()));
        if fed.map_err(|error| self.inflate_error(&error))? {
            self.end_probe(sink);
        }
        self.consumed += input.len() as u64;
        let kept = input.len().min(4);
        self.last_bytes.rotate_left(kept);
        self.last_bytes[4 - kept..].copy_from_slice(&input[input.len() - kept..]);
        Ok(())
    }

    /// The window of the last checkpoint is known: hand it on, or take the checkpoint back where none may be kept.
    fn end_probe(&mut self, sink: &mut impl StreamSink) {
        let Some(Probing { span, probe, window }) = self.probing.take() else { return };
        if !probe.any_used() {
            return;
        }
        match self.windows {
            Windows::Sparse => sink.window(span, probe.sparse(&window)),
            Windows::None => {
                let compressed = self.drafts[span.saturating_sub(1)].compressed;
                self.drafts[span] = SpanDraft { start: SpanStart::Chained, compressed, ..self.drafts[span] };
            }
        }
    }

    /// The 32 KiB of this member before the next stream byte; zeros where it has fewer.
    fn window(&self) -> Box<[u8; WINDOW_BYTES]> {
        let mut window = joined_tail(&self.tail, &self.buffer[..self.filled]);
        let known = usize::try_from(self.stream - self.member_start).unwrap_or(usize::MAX).min(WINDOW_BYTES);
        window[..WINDOW_BYTES - known].fill(0);
        window
    }

    fn flush(&mut self, sink: &mut impl StreamSink) -> Result<(), IndexError> {
        if self.filled == 0 && self.cuts.is_empty() {
            return Ok(());
        }
        self.tail = joined_tail(&self.tail, &self.buffer[..self.filled]);
        let bytes = BlockBytes::Own(std::mem::take(&mut self.buffer), self.filled);
        self.filled = 0;
        sink.block(bytes, std::mem::take(&mut self.cuts), self.consumed)
    }

    fn inflate_error(&self, error: &InflateError) -> IndexError {
        self.error("valid gzip data", error.reason.clone())
    }

    fn error(&self, expected: &str, found: impl Into<String>) -> IndexError {
        IndexError::Layer {
            layer: self.layer,
            place: format!("blob offset {}, stream offset {}", self.consumed, self.stream),
            expected: expected.to_owned(),
            found: found.into(),
        }
    }
}

/// The last 32 KiB of `tail` and then `bytes`.
fn joined_tail(tail: &[u8; WINDOW_BYTES], bytes: &[u8]) -> Box<[u8; WINDOW_BYTES]> {
    let mut joined = Box::new([0; WINDOW_BYTES]);
    let new = bytes.len().min(WINDOW_BYTES);
    joined[..WINDOW_BYTES - new].copy_from_slice(&tail[new..]);
    joined[WINDOW_BYTES - new..].copy_from_slice(&bytes[bytes.len() - new..]);
    joined
}

fn check_stream_size(layer: Digest, found: u64) -> Result<(), IndexError> {
    if found <= STREAM_BYTES_MAX {
        return Ok(());
    }
    Err(IndexError::Format(FormatError::Limit { what: format!("layer {layer}: stream bytes"), max: STREAM_BYTES_MAX, found }))
}
