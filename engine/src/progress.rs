//! When something last moved.

use std::{
    pin::pin,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use crate::error::EngineError;

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

/// `count` permits, waited for as long as one of `moving` has moved within `idle_max`; `None` after that.
pub(crate) async fn acquire(
    semaphore: &Arc<Semaphore>,
    count: u32,
    moving: &[&Progress],
    idle_max: Duration,
) -> Option<Result<OwnedSemaphorePermit, EngineError>> {
    let mut acquire = pin!(semaphore.clone().acquire_many_owned(count));
    loop {
        let idle = moving.iter().map(|progress| progress.idle()).min().unwrap_or_default();
        // A timeout of zero still takes a permit that is free.
        if let Ok(permit) = timeout(idle_max.saturating_sub(idle), acquire.as_mut()).await {
            return Some(permit.map_err(|_| EngineError::Stopped));
        }
        if moving.iter().all(|progress| progress.idle() >= idle_max) {
            return None;
        }
    }
}

fn now() -> u64 {
    u64::try_from(EPOCH.elapsed().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Claim: a permit is waited for as long as something moves, then no longer; one that is free is had at once even so.
    #[tokio::test]
    async fn waiting_ends_when_nothing_moves() {
        let (none, one) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(1)));
        let (still, moving, idle_max) = (Progress::default(), Progress::default(), Duration::from_millis(200));
        let started = Instant::now();
        let mover = async {
            for _ in 0..10 {
                tokio::time::sleep(Duration::from_millis(50)).await;
                moving.touch();
            }
        };
        let progresses = [&still, &moving];
        let ((), permit) = tokio::join!(mover, acquire(&none, 1, &progresses, idle_max));
        assert!(permit.is_none() && started.elapsed() >= Duration::from_millis(690), "{:?}", started.elapsed());
        assert!(acquire(&one, 1, &[&still], idle_max).await.is_some_and(|permit| permit.is_ok()));
        one.close();
        assert!(acquire(&one, 1, &[&still], idle_max).await.is_some_and(|permit| permit.is_err()));
    }
}
