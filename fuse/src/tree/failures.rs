//! A short memory of failed reads, so that one failure is waited for once.
//!
//! When the pages of a read-ahead fail, the kernel asks again for each page that somebody waits for, one after the other
//! (linux mm/filemap.c, `filemap_update_page`): a dead registry would cost every reader twice the read timeout, and readers of one
//! page that many timeouts in a row. These second questions come at once, so they get the same answer at once.

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use clip_format::units::Nid;
use rustix::io::Errno;

/// How long a failure answers for its range. Source: the kernel's second question follows within a scheduling delay; a user who tries
/// again by hand is slower than this.
const REMEMBERED: Duration = Duration::from_millis(500);
/// Failures kept. Reaching it forgets the oldest. Source: `max_background` (see the adapter) bounds the reads that can fail together.
const FAILURES_MAX: usize = 128;

struct Failure {
    nid: Nid,
    range: Range<u64>,
    errno: Errno,
    at: Instant,
}

/// Reads that failed just now.
pub(super) struct Failures {
    recent: Mutex<VecDeque<Failure>>,
    /// False means that `recent` is empty; reads then take no lock.
    any: AtomicBool,
}

impl Failures {
    pub(super) fn new() -> Self {
        Self { recent: Mutex::new(VecDeque::new()), any: AtomicBool::new(false) }
    }

    /// Remembers that `range` of the file `nid` failed with `errno`.
    pub(super) fn note(&self, nid: Nid, range: Range<u64>, errno: Errno) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.len() >= FAILURES_MAX {
            recent.pop_front();
        }
        recent.push_back(Failure { nid, range, errno, at: Instant::now() });
        self.any.store(true, Ordering::Release);
    }

    /// What a read that shares bytes with `range` failed with a moment ago.
    pub(super) fn recent(&self, nid: Nid, range: &Range<u64>) -> Option<Errno> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        while recent.front().is_some_and(|failure| failure.at.elapsed() > REMEMBERED) {
            recent.pop_front();
        }
        self.any.store(!recent.is_empty(), Ordering::Release);
        recent
            .iter()
            .rev()
            .find(|failure| failure.nid == nid && failure.range.start < range.end && range.start < failure.range.end)
            .map(|failure| failure.errno)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A failure answers for what overlaps it, for a moment only.
    #[test]
    fn answers_for_a_moment() {
        let failures = Failures::new();
        assert_eq!(failures.recent(Nid(7), &(0..10)), None);
        failures.note(Nid(7), 4096..8192, Errno::IO);
        assert_eq!(failures.recent(Nid(7), &(8000..9000)), Some(Errno::IO));
        assert_eq!(failures.recent(Nid(7), &(8192..9000)), None);
        assert_eq!(failures.recent(Nid(8), &(4096..8192)), None);
        std::thread::sleep(REMEMBERED + Duration::from_millis(20));
        assert_eq!(failures.recent(Nid(7), &(4096..8192)), None);
        assert!(!failures.any.load(Ordering::Relaxed));
    }

    /// The memory is bounded.
    #[test]
    fn forgets_the_oldest() {
        let failures = Failures::new();
        for nid in 0..1000 {
            failures.note(Nid(nid), 0..1, Errno::IO);
        }
        assert_eq!(failures.recent(Nid(0), &(0..1)), None);
        assert_eq!(failures.recent(Nid(999), &(0..1)), Some(Errno::IO));
    }
}
