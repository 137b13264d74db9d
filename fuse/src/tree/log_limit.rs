//! At most one line a second about a damaged index, however many files a `find` meets.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

/// Lets one line a second through and counts the others.
pub(super) struct LogLimit {
    start: Instant,
    /// Seconds since `start` of the last line, plus 1; 0 before the first.
    last: AtomicU64,
    suppressed: AtomicU64,
}

impl LogLimit {
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), last: AtomicU64::new(0), suppressed: AtomicU64::new(0) }
    }

    /// How many lines were suppressed since the last one, if this one may be written.
    pub(super) fn admit(&self) -> Option<u64> {
        let now = self.start.elapsed().as_secs() + 1;
        let last = self.last.load(Ordering::Relaxed);
        if now > last && self.last.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            return Some(self.suppressed.swap(0, Ordering::Relaxed));
        }
        self.suppressed.fetch_add(1, Ordering::Relaxed);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A flood is one line a second, and the next line says how many there were.
    #[test]
    fn one_line_a_second() {
        let limit = LogLimit::new();
        let lines = (0..1000).filter_map(|_| limit.admit()).count();
        assert!((1..=2).contains(&lines), "{lines}");
        std::thread::sleep(std::time::Duration::from_millis(1050));
        assert!(limit.admit().is_some_and(|suppressed| suppressed >= 990));
    }
}
