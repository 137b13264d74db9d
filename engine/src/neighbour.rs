//! Files that are used together lie together in a layer, so what stands beside a missed span is often missed next. It is brought along
//! as long as that proves right.
//!
//! Source of the constants: recorded first runs of two images, their misses counted anew under these rules: `import numpy, scipy, pandas`
//! (170 spans needed) misses 82 spans instead of 170 and decodes 1.24 times what is needed, `import torch` (650 spans) 214 instead of
//! 650 at 1.18. With a start of 8 they miss 139 and 431, with the later span alone 82 and 323.

use std::{
    ops::Range,
    sync::atomic::{AtomicU32, Ordering},
};

use clip_format::units::SpanIndex;

use crate::unread::Unread;

/// Neighbours of one layer that may be there in vain before any has been of use: what a reader without a pattern costs at most.
const UNUSED_START: u32 = 24;
/// For so many that were of use, one more may be there in vain.
const USED_A_VAIN_ONE: u32 = 3;
/// A shorter read that does not reach its file's end is that of a random reader. Source: the kernel asks for 4 KiB to 16 KiB then, for at
/// least 128 KiB around a page fault or behind a sequential reader, and for a small file as a whole.
const LOADING_BYTES_MIN: u64 = 64 << 10;

/// Who reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reader {
    /// Something that loads files: what stands beside is worth a guess.
    Loading,
    /// Nothing is known, or it picks bytes here and there.
    Other,
}

impl Reader {
    /// Who reads `range`, of a file that ends at `file_end` of the stream.
    pub(crate) fn of(range: &Range<u64>, file_end: u64) -> Self {
        let is_loading = range.end.saturating_sub(range.start) >= LOADING_BYTES_MIN || range.end >= file_end;
        if is_loading { Self::Loading } else { Self::Other }
    }
}

/// The neighbours that one layer's readers were brought.
pub(crate) struct Neighbours {
    brought: AtomicU32,
    used: AtomicU32,
    /// Those that nobody has asked for yet.
    guesses: Unread,
}

impl Neighbours {
    pub(crate) fn new(spans: u32) -> Self {
        Self { brought: AtomicU32::new(0), used: AtomicU32::new(0), guesses: Unread::new(spans) }
    }

    /// The neighbour of `spans` to bring now: the next one, or the one before them; `None` where neither is absent or too many were in vain.
    pub(crate) fn of(&self, spans: &Range<u32>, is_absent: impl Fn(SpanIndex) -> bool) -> Option<SpanIndex> {
        let (brought, used) = (self.brought.load(Ordering::Relaxed), self.used.load(Ordering::Relaxed));
        if !may_bring(brought, used) {
            return None;
        }
        let before = spans.start.checked_sub(1);
        [Some(spans.end), before].into_iter().flatten().map(SpanIndex).find(|&span| is_absent(span))
    }

    /// `span` is brought as a guess.
    pub(crate) fn note_brought(&self, span: SpanIndex) {
        self.guesses.add(span);
        self.brought.fetch_add(1, Ordering::Relaxed);
    }

    /// `span`, if it is a guess that nobody has asked for, could not be brought: it says nothing about guesses.
    pub(crate) fn take_back(&self, span: SpanIndex) {
        if !self.guesses.is_empty() && self.guesses.remove(span) {
            self.brought.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// A reader asks for `span`; whether it was a guess.
    pub(crate) fn note_used(&self, span: SpanIndex) -> bool {
        let was_guessed = !self.guesses.is_empty() && self.guesses.remove(span);
        if was_guessed {
            self.used.fetch_add(1, Ordering::Relaxed);
        }
        was_guessed
    }
}

fn may_bring(brought: u32, used: u32) -> bool {
    brought.saturating_sub(used) <= UNUSED_START + used / USED_A_VAIN_ONE
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Claim: whole small files and large pieces are loading, a few pages in the middle are not.
    #[test]
    fn loading_is_told_from_picking() {
        assert_eq!(Reader::of(&(1000..3000), 3000), Reader::Loading);
        assert_eq!(Reader::of(&(0..(128 << 10)), 1 << 30), Reader::Loading);
        assert_eq!(Reader::of(&(1 << 20..(1 << 20) + 4096), 1 << 30), Reader::Other);
    }

    /// Claim: a reader without a pattern costs its layer 25 guesses in all; one that uses three of four goes on for ever.
    #[test]
    fn guesses_end_when_they_are_in_vain() {
        let vain = Neighbours::new(10_000);
        let absent = |_: SpanIndex| true;
        let guesses = (0..1000).filter_map(|step: u32| {
            let span = vain.of(&(step * 10..step * 10 + 1), absent)?;
            vain.note_brought(span);
            Some(span)
        });
        assert_eq!(guesses.count(), UNUSED_START as usize + 1);
        let good = Neighbours::new(10_000);
        for step in 0..1000 {
            let span = good.of(&(step * 10..step * 10 + 1), absent).expect("enough were of use");
            good.note_brought(span);
            assert!(step % 4 == 3 || good.note_used(span) && !good.note_used(span));
        }
    }

    /// Claim: guesses that could not be brought do not end guessing, and one that was of use stays so.
    #[test]
    fn failed_guesses_are_taken_back() {
        let failing = Neighbours::new(10_000);
        for step in 0..1000 {
            let span = failing.of(&(step * 10..step * 10 + 1), |_| true).expect("none was in vain");
            failing.note_brought(span);
            failing.take_back(span);
            failing.take_back(span);
        }
        let used = failing.of(&(3..4), |_| true).expect("none was in vain");
        failing.note_brought(used);
        assert!(failing.note_used(used));
        failing.take_back(used);
        assert_eq!((failing.brought.into_inner(), failing.used.into_inner()), (1, 1));
    }

    /// Claim: the next span comes first, the one before when that is there, and none beyond the layer's ends.
    #[test]
    fn the_next_comes_before_the_one_before() {
        let neighbours = Neighbours::new(8);
        let absent_of = |all: &'static [u32]| move |span: SpanIndex| all.contains(&span.get());
        assert_eq!(neighbours.of(&(3..5), absent_of(&[2, 5])), Some(SpanIndex(5)));
        assert_eq!(neighbours.of(&(3..5), absent_of(&[2, 6])), Some(SpanIndex(2)));
        assert_eq!(neighbours.of(&(0..8), absent_of(&[])), None);
    }
}
