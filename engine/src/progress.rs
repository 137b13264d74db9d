//! When something last moved.

use std::{
    pin::pin,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::time::timeout;

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
    /// Nothing has moved yet.
    pub(crate) fn still() -> Self {
        Self(AtomicU64::new(0))
    }

    pub(crate) fn touch(&self) {
        self.0.fetch_max(now(), Ordering::Relaxed);
    }

    /// As if the last movement had been no earlier than that of `other`.
    pub(crate) fn inherit(&self, other: &Self) {
        self.0.fetch_max(other.0.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Time since the last movement.
    pub(crate) fn idle(&self) -> Duration {
        match self.0.load(Ordering::Relaxed) {
            0 => Duration::MAX,
            moved => Duration::from_millis(now().saturating_sub(moved)),
        }
    }
}

/// What `future` gives, waited for as long as one of `moving` has moved within `idle_max`; `None` after that.
pub(crate) async fn while_moving<T>(future: impl Future<Output = T>, moving: &[&Progress], idle_max: Duration) -> Option<T> {
    let mut future = pin!(future);
    loop {
        let idle = moving.iter().map(|progress| progress.idle()).min().unwrap_or_default();
        // A timeout of zero still takes what is there already.
        if let Ok(value) = timeout(idle_max.saturating_sub(idle), future.as_mut()).await {
            return Some(value);
        }
        if moving.iter().all(|progress| progress.idle() >= idle_max) {
            return None;
        }
    }
}

/// Milliseconds, from 1.
fn now() -> u64 {
    u64::try_from(EPOCH.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Claim: something is waited for as long as anything moves, then no longer; what is there is had at once even so.
    #[tokio::test]
    async fn waiting_ends_when_nothing_moves() {
        let (still, moving, idle_max) = (Progress::default(), Progress::default(), Duration::from_millis(200));
        let started = Instant::now();
        let mover = async {
            for _ in 0..10 {
                tokio::time::sleep(Duration::from_millis(50)).await;
                moving.touch();
            }
        };
        let progresses = [&still, &moving];
        let ((), given) = tokio::join!(mover, while_moving(std::future::pending::<()>(), &progresses, idle_max));
        assert!(given.is_none() && started.elapsed() >= Duration::from_millis(690), "{:?}", started.elapsed());
        assert_eq!(while_moving(async { 1 }, &[&still], idle_max).await, Some(1));
    }
}
