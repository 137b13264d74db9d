//! At which frames of a zstd stream a span begins, and where one has to begin inside a frame. Pure.
//!
//! From a cut at stream offset S, with spans of B bytes wanted: a frame that starts at S + B or later is the next entry; where none does up
//! to S + 2B, the last frame that started on the way is; where none did, the stream is cut right at S + 2B, as a chained span: the rest of
//! a big frame, which ends at the next frame however near. Of a frame that is known to reach beyond S + 2B nothing is waited for: it is an
//! entry where it starts, and cut at S + B; and so is the rest of one that has taken B bytes before S, for what may follow soon is little.

use clip_format::{checkpoints::SpanStart, units::CompressedOffset};

use super::spans::SpanDraft;

/// Spans of a zstd stream.
pub(super) struct FrameCuts {
    span_bytes: u64,
    drafts: Vec<SpanDraft>,
    /// The last frame that started in the last span, where that can still be cut in two.
    candidate: Option<SpanDraft>,
    /// Where the block begins that is being decoded.
    block_start: u64,
    /// The last frame that started.
    frame: Frame,
}

/// Where a frame stands in the stream.
#[derive(Clone, Copy, Default)]
struct Frame {
    start: u64,
    /// It reaches so far at the least: what its header says, if it says it. A frame of another length is an error.
    end_min: u64,
}

impl FrameCuts {
    pub(super) fn new(span_bytes: u64) -> Self {
        Self { span_bytes, drafts: Vec::new(), candidate: None, block_start: 0, frame: Frame::default() }
    }

    /// The last span may not reach further than this.
    pub(super) fn span_end_max(&self) -> u64 {
        let start = self.drafts.last().map_or(0, |draft| draft.stream);
        let (end, end_max) = (start + self.span_bytes, start + 2 * self.span_bytes);
        let goes_on = self.frame.end_min > end_max || self.frame.start + self.span_bytes <= start;
        if self.candidate.is_none() && goes_on { end } else { end_max }
    }

    /// The first place before which it is not decided yet whether a span begins there.
    pub(super) fn undecided(&self) -> Option<u64> {
        self.candidate.map(|candidate| candidate.stream)
    }

    /// A block begins at byte `compressed` of the blob.
    pub(super) fn block_start(&mut self, compressed: u64) {
        self.block_start = compressed;
    }

    /// A frame begins at `stream` and at byte `compressed` of the blob: where a new span does, if that begins with it. Its header may say that it
    /// has `content_bytes`.
    pub(super) fn frame_start(&mut self, stream: u64, compressed: u64, window_log: u8, content_bytes: Option<u64>) -> Option<u64> {
        self.frame = Frame { start: stream, end_min: stream.saturating_add(content_bytes.unwrap_or(0)) };
        let draft = SpanDraft { start: SpanStart::Frame { window_log }, compressed: CompressedOffset(compressed), stream };
        let Some(last) = self.drafts.last_mut() else {
            self.drafts.push(draft);
            return None;
        };
        if stream == last.stream {
            if last.start == SpanStart::Chained {
                *last = draft;
            } else {
                // What was between had no bytes.
                needs(last, window_log);
            }
            return None;
        }
        let is_long = stream >= last.stream + self.span_bytes;
        if is_long || last.start == SpanStart::Chained {
            self.drop_candidate();
            self.drafts.push(draft);
            return Some(stream);
        }
        let end_max = last.stream + 2 * self.span_bytes;
        match &mut self.candidate {
            Some(candidate) if candidate.stream == stream => needs(candidate, window_log),
            _ => {
                self.drop_candidate();
                self.candidate = Some(draft);
            }
        }
        // No other will start before that is full.
        let entry = self.candidate.take_if(|_| self.frame.end_min > end_max)?;
        self.drafts.push(entry);
        Some(stream)
    }

    /// The stream has come to [`Self::span_end_max`]: where a span begins now.
    pub(super) fn full(&mut self) -> u64 {
        let chained = SpanDraft { start: SpanStart::Chained, compressed: CompressedOffset(self.block_start), stream: self.span_end_max() };
        let draft = self.candidate.take().unwrap_or(chained);
        self.drafts.push(draft);
        draft.stream
    }

    /// The spans; the last may be of no bytes.
    pub(super) fn finish(mut self) -> Vec<SpanDraft> {
        self.drop_candidate();
        self.drafts
    }

    /// The candidate becomes a part of the span that it stands in.
    fn drop_candidate(&mut self) {
        if let (Some(SpanDraft { start: SpanStart::Frame { window_log }, .. }), Some(last)) =
            (self.candidate.take(), self.drafts.last_mut())
        {
            needs(last, window_log);
        }
    }
}

/// Who enters at `draft` needs room for windows of `log`, too.
fn needs(draft: &mut SpanDraft, log: u8) {
    if let SpanStart::Frame { window_log } = &mut draft.start {
        *window_log = log.max(*window_log);
    }
}
