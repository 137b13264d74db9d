//! Which spans readers have asked for, so that what was fetched and decoded can be held against what was needed.

use std::sync::atomic::{AtomicBool, Ordering};

use clip_format::units::SpanIndex;

/// One flag a span of a layer: a reader has asked for a byte of it since this process began.
pub(crate) struct Needed(Box<[AtomicBool]>);

impl Needed {
    pub(crate) fn new(spans: u32) -> Self {
        Self((0..spans).map(|_| AtomicBool::new(false)).collect())
    }

    /// True for the first who asks for `span`, of however many threads. Cost: a load of a byte that is written once.
    pub(crate) fn is_first(&self, span: SpanIndex) -> bool {
        let asked = &self.0[span.get() as usize];
        !asked.load(Ordering::Relaxed) && !asked.swap(true, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Claim: a span is needed for the first time once, whoever asks.
    #[test]
    fn a_span_is_first_needed_once() {
        let needed = Needed::new(3);
        let firsts: usize = std::thread::scope(|scope| {
            let asks = || (0..3).filter(|span| needed.is_first(SpanIndex(*span))).count();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(asks)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap_or_default()).sum()
        });
        assert_eq!(firsts, 3);
    }
}
