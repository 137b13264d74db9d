//! When something last moved.

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// The time that all progress is counted from.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The last time that bytes arrived; one for each flow, layer and node.
pub(crate) struct Progress(AtomicU64);

impl Default for Progress {
    fn default() -> Self {
        Self(AtomicU64::new(now()))
    }
}

impl Progress {
    pub(crate) fn touch(&self) {
        self.0.fetch_max(now(), Ordering::Relaxed);
    }

    /// As if the last movement had been no earlier than that of `other`.
    pub(crate) fn inherit(&self, other: &Self) {
        self.0.fetch_max(other.0.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Time since the last movement.
    pub(crate) fn idle(&self) -> Duration {
        Duration::from_millis(now().saturating_sub(self.0.load(Ordering::Relaxed)))
    }
}

fn now() -> u64 {
    u64::try_from(EPOCH.elapsed().as_millis()).unwrap_or(u64::MAX)
}
