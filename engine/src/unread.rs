//! Which spans were brought before anybody asked for them and have not been read since.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use clip_format::units::SpanIndex;

/// One bit a span of a layer, and how many are set.
pub(crate) struct Unread {
    left: AtomicU32,
    bits: Box<[AtomicU64]>,
}

impl Unread {
    pub(crate) fn new(spans: u32) -> Self {
        Self { left: AtomicU32::new(0), bits: (0..spans.div_ceil(64)).map(|_| AtomicU64::new(0)).collect() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.left.load(Ordering::Relaxed) == 0
    }

    pub(crate) fn add(&self, span: SpanIndex) {
        let (word, bit) = self.place(span);
        if word.fetch_or(bit, Ordering::Relaxed) & bit == 0 {
            self.left.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// True for one of those who remove it.
    pub(crate) fn remove(&self, span: SpanIndex) -> bool {
        let (word, bit) = self.place(span);
        // Most spans are not there, and a look costs less than a write.
        let removed = word.load(Ordering::Relaxed) & bit != 0 && word.fetch_and(!bit, Ordering::Relaxed) & bit != 0;
        if removed {
            self.left.fetch_sub(1, Ordering::Relaxed);
        }
        removed
    }

    fn place(&self, span: SpanIndex) -> (&AtomicU64, u64) {
        (&self.bits[span.get() as usize / 64], 1 << (span.get() % 64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Claim: each span is removed once for each time it was added, whoever else is there.
    #[test]
    fn what_is_added_is_removed_once() {
        let unread = Unread::new(130);
        for span in [0, 63, 64, 129, 129] {
            unread.add(SpanIndex(span));
        }
        assert!(!unread.is_empty());
        assert!(!unread.remove(SpanIndex(1)));
        for span in [0, 63, 64, 129] {
            assert!(unread.remove(SpanIndex(span)) && !unread.remove(SpanIndex(span)));
        }
        assert!(unread.is_empty());
    }
}
