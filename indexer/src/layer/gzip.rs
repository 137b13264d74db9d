//! Where a gzip stream is cut into spans, and where decoding can start again.
//!
//! From a cut at stream offset S, with spans of B bytes wanted: inflate runs freely to S + B; from there it stops at each deflate block,
//! and the boundaries are candidates for the next entry; a member start from there on is one at once. Where there is none before the last
//! 32 KiB up to S + 2B (a probe would end too late), the stream is cut right at S + 2B, as a chained span: the rest of a giant block,
//! which ends at the next boundary or member start however near.

use std::time::Duration;

use bytes::Bytes;
use clip_engine::inflate::{Inflate, InflateError, Stop, Until, checkpoint_place};
use clip_format::{checkpoints::SpanStart, digest::Digest, units::CompressedOffset};

use super::{
    blocks::{Blocks, StreamSink},
    candidates::{Candidates, Judged},
    jury::Boundary,
    spans::{SpanDraft, check_stream_size},
};
use crate::error::IndexError;

/// What an empty stored block (a sync or full flush) ends with. Source: RFC 1951 section 3.2.4.
const FLUSH_MARK: [u8; 4] = [0, 0, 0xff, 0xff];

/// Where decoding stands between two steps.
enum Place {
    InMember,
    /// A member ended: the next byte begins another, or the padding.
    BetweenMembers,
    /// Only zeros may follow, as gzip itself accepts them.
    Padding,
}

/// Spans of a gzip stream of any number of members.
pub(super) struct GzipSpans {
    layer: Digest,
    span_bytes: u64,
    inflate: Inflate,
    place: Place,
    /// Blob bytes used.
    consumed: u64,
    last_bytes: [u8; 4],
    blocks: Blocks,
    /// Stream offset of the member's first byte.
    member_start: u64,
    drafts: Vec<SpanDraft>,
    candidates: Candidates,
}

impl GzipSpans {
    pub(super) fn new(layer: Digest, span_bytes: u64, judged: Judged) -> Self {
        let first = SpanDraft { start: SpanStart::Member, compressed: CompressedOffset(0), stream: 0 };
        Self {
            layer,
            span_bytes,
            inflate: Inflate::gzip(),
            place: Place::InMember,
            consumed: 0,
            last_bytes: [0xff; 4],
            blocks: Blocks::new(),
            member_start: 0,
            drafts: vec![first],
            candidates: Candidates::new(layer, span_bytes, judged),
        }
    }

    /// Takes the next bytes of the blob.
    pub(super) fn push(&mut self, chunk: &Bytes, sink: &mut impl StreamSink) -> Result<(), IndexError> {
        let mut at = 0;
        let mut output_waits = false;
        while at < chunk.len() || output_waits {
            let input = &chunk[at..];
            match self.place {
                Place::InMember => {
                    let (used, full) = self.step(chunk, at, sink)?;
                    at += used;
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
                    at = chunk.len();
                }
            }
        }
        Ok(())
    }

    /// Processor time that the choice of checkpoints took on this thread.
    pub(super) fn windows_cpu(&self) -> Duration {
        self.candidates.cpu()
    }

    /// The drafts and the stream's length; the last draft may be of no bytes.
    pub(super) fn finish(mut self, sink: &mut impl StreamSink) -> Result<(Vec<SpanDraft>, u64), IndexError> {
        if matches!(self.place, Place::InMember) {
            return Err(self.error("the rest of a gzip member", "the end of the blob"));
        }
        self.blocks.finish(self.consumed, sink)?;
        Ok((self.drafts, self.blocks.stream()))
    }

    /// One call of inflate on `chunk` from `at`: blob bytes used, and whether output may wait although the input is used up.
    fn step(&mut self, chunk: &Bytes, at: usize, sink: &mut impl StreamSink) -> Result<(usize, bool), IndexError> {
        self.blocks.advance(self.candidates.first(), self.consumed, sink)?;
        let before = self.blocks.stream();
        if self.candidates.first().is_none() && before == self.span_end_max() {
            self.cut_chained();
        }
        let (limit, until) = self.next_stop();
        let output = self.blocks.room(limit);
        let room = output.len();
        let step = self.inflate.step(&chunk[at..], output, until).map_err(|error| self.inflate_error(&error))?;
        self.blocks.note_filled(step.produced);
        let stream = self.blocks.stream();
        check_stream_size(self.layer, stream)?;
        let used = at..at + step.consumed;
        self.note_consumed(&chunk[used.clone()]);
        self.candidates.feed(before, || chunk.slice(used))?;
        let chosen = match step.stop {
            Stop::End => self.candidates.choose_at_member_end(stream)?,
            Stop::More | Stop::Block { .. } => self.candidates.choose(stream)?,
        };
        if let Some(draft) = chosen {
            self.cut(draft);
        }
        match step.stop {
            Stop::More => {}
            Stop::Block { unused_bits } => self.block_boundary(unused_bits),
            Stop::End => self.place = Place::BetweenMembers,
        }
        Ok((step.consumed, step.produced == room || step.stop != Stop::More))
    }

    /// Up to where inflate may produce now, and whether block boundaries on the way matter.
    fn next_stop(&self) -> (u64, Until) {
        let (stream, wanted) = (self.blocks.stream(), self.wanted());
        self.candidates.next_stop(stream).unwrap_or_else(|| match stream + 1 < wanted {
            true => (wanted - 1, Until::Full),
            false => (self.span_end_max(), Until::Block),
        })
    }

    /// Stream offset from which block boundaries are looked for: right after the span size, since whether inflate stops at a boundary
    /// where its output ends depends on the input that it has. After a cut inside a giant block it is the cut itself; but without windows
    /// nearly every span is chained and hardly a boundary an entry, so there is no haste.
    fn wanted(&self) -> u64 {
        let span = self.last();
        let hastens = span.start == SpanStart::Chained && !self.candidates.windowless();
        if hastens { span.stream } else { span.stream + self.span_bytes + 1 }
    }

    fn span_end_max(&self) -> u64 {
        self.last().stream + 2 * self.span_bytes
    }

    /// A block ended inside a member: perhaps an entry, where one is wanted.
    fn block_boundary(&mut self, unused_bits: u8) {
        let stream = self.blocks.stream();
        if stream < self.wanted() || !self.candidates.admits(stream, self.span_end_max()) {
            return;
        }
        if self.candidates.windowless() && (unused_bits != 0 || self.last_bytes != FLUSH_MARK) {
            return;
        }
        let (compressed, bit_offset) = checkpoint_place(self.consumed, unused_bits);
        let (end_max, first_byte) = (self.span_end_max(), self.last_bytes[3]);
        let window = || self.blocks.window(stream - self.member_start);
        self.candidates.add(stream, end_max, || Boundary { stream, compressed, bit_offset, first_byte, window: window() });
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
        let (span, stream) = (self.last(), self.blocks.stream());
        let just_cut = stream == span.stream && stream > 0;
        if just_cut || span.start == SpanStart::Chained || stream >= span.stream + self.span_bytes {
            self.cut(SpanDraft { start: SpanStart::Member, compressed: CompressedOffset(self.consumed), stream });
        }
        self.inflate.reset_gzip();
        self.member_start = stream;
        self.place = Place::InMember;
        Ok(())
    }

    fn cut_chained(&mut self) {
        let compressed = self.last().compressed;
        self.cut(SpanDraft { start: SpanStart::Chained, compressed, stream: self.blocks.stream() });
    }

    /// A span begins. One that has no bytes yet gets the better start.
    fn cut(&mut self, draft: SpanDraft) {
        if draft.stream == self.last().stream && draft.stream > 0 {
            self.drafts.pop();
        } else {
            self.blocks.cut(draft.stream);
        }
        self.drafts.push(draft);
    }

    fn last(&self) -> SpanDraft {
        *self.drafts.last().expect("the first draft is made in new, and cut puts one back for each it takes")
    }

    fn note_consumed(&mut self, input: &[u8]) {
        self.consumed += input.len() as u64;
        let kept = input.len().min(4);
        self.last_bytes.rotate_left(kept);
        self.last_bytes[4 - kept..].copy_from_slice(&input[input.len() - kept..]);
    }

    fn inflate_error(&self, error: &InflateError) -> IndexError {
        self.error("valid gzip data", error.reason.clone())
    }

    fn error(&self, expected: &str, found: impl Into<String>) -> IndexError {
        IndexError::Layer {
            layer: self.layer,
            place: format!("blob offset {}, stream offset {}", self.consumed, self.blocks.stream()),
            expected: expected.to_owned(),
            found: found.into(),
        }
    }
}
