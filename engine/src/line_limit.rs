//! How many log lines one cause of trouble may write: the first ones all, of a flood a few and a count.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Lines in one [`WINDOW`]. Source: more than a person reads of one failure; without it a reader that loops over a registry that refuses
/// at once writes a line for each read.
const LINES_MAX: u32 = 20;
/// Source: two lines a second on average are too few to fill a disk in a night (20 MB).
const WINDOW: Duration = Duration::from_secs(10);

/// How long one cause is said once. Source: requests that fail together do so within a scheduling delay of each other; a reader who tries
/// again gets a line of its own after the shortest timeout that makes sense.
const SAME: Duration = Duration::from_secs(1);

/// Counts lines.
#[derive(Default)]
pub(crate) struct LineLimit(Mutex<Count>);

#[derive(Default)]
struct Count {
    began: Option<Instant>,
    lines: u32,
    unsaid: u64,
    /// What was said last, and when.
    last: Option<(Instant, String)>,
}

impl LineLimit {
    /// `Some` when a line may be written now: inside it how many were not since the last that was, if any, for the line to say.
    pub(crate) fn next(&self) -> Option<Option<u64>> {
        self.next_at(Instant::now())
    }

    /// As [`Self::next`], of a line that says `cause`: several requests that fail for one cause at a time are one line and a count.
    pub(crate) fn next_of(&self, cause: &str) -> Option<Option<u64>> {
        self.next_of_at(cause, Instant::now())
    }

    fn next_of_at(&self, cause: &str, now: Instant) -> Option<Option<u64>> {
        let mut count = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if count.last.as_ref().is_some_and(|(at, said)| said == cause && now.saturating_duration_since(*at) < SAME) {
            count.unsaid += 1;
            return None;
        }
        drop(count);
        let next = self.next_at(now)?;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).last = Some((now, cause.to_owned()));
        Some(next)
    }

    fn next_at(&self, now: Instant) -> Option<Option<u64>> {
        let mut count = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if count.began.is_none_or(|began| now.saturating_duration_since(began) >= WINDOW) {
            (count.began, count.lines) = (Some(now), 0);
        }
        if count.lines == LINES_MAX {
            count.unsaid += 1;
            return None;
        }
        count.lines += 1;
        Some(Some(std::mem::take(&mut count.unsaid)).filter(|&unsaid| unsaid > 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Claim: what fails for one cause in one moment is one line and a count; another cause and another moment have their own.
    #[test]
    fn one_cause_is_one_line() {
        let (limit, start) = (LineLimit::default(), Instant::now());
        assert_eq!(limit.next_of_at("refused", start), Some(None));
        assert_eq!(limit.next_of_at("refused", start), None);
        assert_eq!(limit.next_of_at("refused", start + SAME / 2), None);
        assert_eq!(limit.next_of_at("reset", start), Some(Some(2)));
        assert_eq!(limit.next_of_at("reset", start + SAME), Some(None));
    }

    /// Claim: the first lines are written, a flood is counted, and the next line after it says the count.
    #[test]
    fn a_flood_becomes_a_count() {
        let (limit, start) = (LineLimit::default(), Instant::now());
        let written = (0..1000).filter(|_| limit.next_at(start).is_some()).count();
        assert_eq!(written, LINES_MAX as usize);
        assert_eq!(limit.next_at(start + WINDOW), Some(Some(1000 - u64::from(LINES_MAX))));
        assert_eq!(limit.next_at(start + WINDOW), Some(None));
    }
}
