//! What is remembered of a host that others can stand in for: that it does not answer, and which blobs it lacks or has wrong.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use clip_format::digest::Digest;

/// A host that does not answer is not asked again for so long, then twice as long each time, up to [`DEAD_MAX`]. Source: with a mirror that
/// drops every packet, the one request that looks again waits 5 s (half of the connect deadline) and the others nothing: at most a third
/// of one connection's time at first, 2 % later (`a_mirror_that_hangs_costs_one_wait` in engine/tests/registry_hosts.rs).
const DEAD_MIN: Duration = Duration::from_secs(10);
/// Source: a mirror that came back serves after so long at the latest; a person who repairs one waits that long.
const DEAD_MAX: Duration = Duration::from_secs(5 * 60);
/// A blob that a host did not have is not asked for there for so long. Source: a pull-through mirror may have it by then; a span costs one
/// request then, and asking in vain each time would double that.
const LACKS_FOR: Duration = Duration::from_secs(60);
/// A blob that a host served with wrong bytes is not asked for there for so long. Source: judgement: damage stays until somebody mends it,
/// and each look costs a reader a fetch.
const WRONG_FOR: Duration = Duration::from_secs(10 * 60);
/// Blobs remembered; past it all are forgotten, which costs a request each. Source: a hundred images of forty layers, none of which a host
/// has; half a MiB.
const BLOBS_MAX: usize = 4096;

/// Why a host is passed over for a blob, the lighter reason first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in super::super) enum Passed {
    /// It does not have it.
    Lacks,
    /// It has other bytes under its name.
    Wrong,
}

/// How one host stands.
#[derive(Default)]
pub(super) struct Standing {
    dead: Mutex<Option<Dead>>,
    blobs: Mutex<HashMap<(String, Digest), Mark>>,
}

/// Something that is held against a host.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    pub why: Passed,
    pub since: Instant,
}

impl Mark {
    fn is_in_force(&self) -> bool {
        let wait = match self.why {
            Passed::Lacks => LACKS_FOR,
            Passed::Wrong => WRONG_FOR,
        };
        self.since.elapsed() < wait
    }
}

struct Dead {
    /// When it was found to be.
    noted: Instant,
    until: Instant,
    /// The latest wait.
    wait: Duration,
}

impl Standing {
    fn dead(&self) -> MutexGuard<'_, Option<Dead>> {
        self.dead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is not to be asked now.
    pub fn is_dead(&self) -> bool {
        self.dead().as_ref().is_some_and(|dead| Instant::now() < dead.until)
    }

    /// Whether the caller may ask it. When a dead host's time is over, one caller may, and the others still may not until that one knows more.
    pub fn claim(&self) -> bool {
        let now = Instant::now();
        match self.dead().as_mut() {
            None => true,
            Some(dead) if now < dead.until => false,
            Some(dead) => {
                dead.until = now + dead.wait;
                true
            }
        }
    }

    /// It answered. True when it was dead before.
    pub fn note_alive(&self) -> bool {
        self.dead().take().is_some()
    }

    /// It did not answer a caller who asked at `asked`. For how long it is not asked now, when that is news: whoever asked before its
    /// rest was over, together with others or for want of another host, has met the same outage.
    pub fn note_dead(&self, asked: Instant) -> Option<Duration> {
        let mut dead = self.dead();
        let wait = match dead.as_ref() {
            None => DEAD_MIN,
            Some(known) if asked < known.noted + known.wait => return None,
            Some(known) => (known.wait * 2).min(DEAD_MAX),
        };
        let now = Instant::now();
        *dead = Some(Dead { noted: now, until: now + wait, wait });
        Some(wait)
    }

    /// The blob is not asked for here for a while.
    pub fn pass_over(&self, repository: &str, blob: &Digest, why: Passed) {
        let mut blobs = self.blobs.lock().unwrap_or_else(PoisonError::into_inner);
        if blobs.len() >= BLOBS_MAX {
            blobs.clear();
        }
        blobs.insert((repository.to_owned(), *blob), Mark { why, since: Instant::now() });
    }

    /// Why the blob is asked for elsewhere first, if it is.
    pub fn mark(&self, repository: &str, blob: &Digest) -> Option<Mark> {
        let blobs = self.blobs.lock().unwrap_or_else(PoisonError::into_inner);
        blobs.get(&(repository.to_owned(), *blob)).copied().filter(Mark::is_in_force)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Claim: all who find a host dead before its rest is over count once; later finds double the wait up to its limit; an answer ends it.
    #[test]
    fn a_dead_host_rests_longer_each_time() {
        let standing = Standing::default();
        let asked = Instant::now();
        assert!(standing.claim() && !standing.is_dead());
        assert_eq!(standing.note_dead(asked), Some(DEAD_MIN));
        assert_eq!(standing.note_dead(asked), None);
        assert_eq!(standing.note_dead(Instant::now()), None);
        assert!(standing.is_dead() && !standing.claim());
        let mut wait = DEAD_MIN;
        for _ in 0..8 {
            wait = (wait * 2).min(DEAD_MAX);
            let rested = Instant::now() + DEAD_MAX;
            assert_eq!(standing.note_dead(rested), Some(wait));
        }
        assert_eq!(wait, DEAD_MAX);
        assert!(standing.note_alive() && !standing.note_alive());
        assert!(standing.claim());
        assert_eq!(standing.note_dead(Instant::now()), Some(DEAD_MIN));
    }

    /// Claim: when the time of a dead host is over, one caller asks it and the others do not.
    #[test]
    fn one_looks_whether_a_dead_host_is_back() {
        let standing = Standing::default();
        standing.note_dead(Instant::now());
        if let Some(dead) = standing.dead().as_mut() {
            dead.until = Instant::now();
        }
        assert!(!standing.is_dead());
        assert!(standing.claim());
        assert!(!standing.claim());
    }

    /// Claim: a blob is passed over for its repository only.
    #[test]
    fn blobs_are_passed_over() {
        let standing = Standing::default();
        let blob = Digest::Sha256([1; 32]);
        standing.pass_over("a/b", &blob, Passed::Lacks);
        let why = |repository: &str, blob: &Digest| standing.mark(repository, blob).map(|mark| mark.why);
        assert_eq!(why("a/b", &blob), Some(Passed::Lacks));
        assert_eq!((why("a/c", &blob), why("a/b", &Digest::Sha256([2; 32]))), (None, None));
        standing.pass_over("a/b", &blob, Passed::Wrong);
        assert_eq!(why("a/b", &blob), Some(Passed::Wrong));
    }
}
