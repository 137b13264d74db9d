//! A number of things (bytes in memory, connections) that readers and background work share, readers first.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

use crate::{
    error::EngineError,
    priority::{Priority, Urgency},
};

/// A limit on what may be held at once. Whoever waits gets its part in order of priority, then of coming. Background work never holds
/// more than its share, so that a reader finds room whatever it does.
pub(crate) struct Quota {
    limit: u64,
    /// What background work may hold of it. `1..=limit`
    background_max: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    held: u64,
    held_by_background: u64,
    held_max: u64,
    waiting: [VecDeque<Waiter>; Priority::COUNT],
    closed: bool,
}

struct Waiter {
    count: u64,
    answer: oneshot::Sender<Held>,
}

/// A part of a quota. Dropping it gives it to whoever is next.
pub(crate) struct Held {
    quota: Arc<Quota>,
    count: u64,
    background: bool,
}

impl Quota {
    /// `limit` in all (at least 1), of which background work may hold `background_max`.
    pub(crate) fn new(limit: u64, background_max: u64) -> Arc<Self> {
        let limit = limit.max(1);
        Arc::new(Self { limit, background_max: background_max.clamp(1, limit), state: Mutex::default() })
    }

    /// Waits for `count`. More than there may ever be takes all there is, and so passes alone.
    ///
    /// # Errors
    /// `Stopped` once the quota is closed.
    pub(crate) async fn acquire(self: &Arc<Self>, count: u64, priority: Priority) -> Result<Held, EngineError> {
        let wait = {
            let mut state = self.lock();
            if state.closed {
                return Err(EngineError::Stopped);
            }
            let count = count.min(if priority.is_background() { self.background_max } else { self.limit });
            let is_first = state.waiting[..=priority as usize].iter().all(VecDeque::is_empty);
            if is_first && let Some(held) = self.grant(&mut state, count, priority.is_background()) {
                return Ok(held);
            }
            let (answer, wait) = oneshot::channel();
            state.waiting[priority as usize].push_back(Waiter { count, answer });
            wait
        };
        // Those who gave up before are passed over only when something is given back, or somebody asks.
        self.pass_on();
        wait.await.map_err(|_| EngineError::Stopped)
    }

    /// `count` for a reader, if it is free and nobody waits.
    pub(crate) fn try_acquire(self: &Arc<Self>, count: u64) -> Option<Held> {
        let mut state = self.lock();
        let is_first = !state.closed && state.waiting.iter().all(VecDeque::is_empty);
        if is_first { self.grant(&mut state, count, false) } else { None }
    }

    /// As [`Self::acquire`], with a priority that may rise meanwhile.
    pub(crate) async fn acquire_as(self: &Arc<Self>, count: u64, urgency: &Urgency) -> Result<Held, EngineError> {
        let priority = urgency.get();
        if !priority.is_background() {
            return self.acquire(count, priority).await;
        }
        tokio::select! {
            biased;
            held = self.acquire(count, priority) => held,
            () = urgency.raised() => self.acquire(count, Priority::Demand).await,
        }
    }

    /// The most that was held at once.
    pub(crate) fn held_max(&self) -> u64 {
        self.lock().held_max
    }

    /// Whether somebody of `priority` waits.
    pub(crate) fn is_waited_for(&self, priority: Priority) -> bool {
        !self.lock().waiting[priority as usize].is_empty()
    }

    /// Nobody gets anything any more; who waits is told.
    pub(crate) fn close(&self) {
        let waiting = {
            let mut state = self.lock();
            state.closed = true;
            std::mem::take(&mut state.waiting)
        };
        drop(waiting);
    }

    fn grant(self: &Arc<Self>, state: &mut State, count: u64, background: bool) -> Option<Held> {
        if count > self.limit - state.held || background && count > self.background_max.saturating_sub(state.held_by_background) {
            return None;
        }
        state.held += count;
        state.held_by_background += if background { count } else { 0 };
        state.held_max = state.held_max.max(state.held);
        Some(Held { quota: self.clone(), count, background })
    }

    /// Gives what is free to those who wait. One who is first and does not fit keeps the others waiting, except that a background one who
    /// has used up its share keeps back background only.
    fn pass_on(self: &Arc<Self>) {
        let mut unwanted = Vec::new();
        let mut state = self.lock();
        for priority in 0..Priority::COUNT {
            while let Some(waiter) = state.waiting[priority].front() {
                let count = waiter.count;
                if waiter.answer.is_closed() {
                    state.waiting[priority].pop_front();
                    continue;
                }
                let Some(held) = self.grant(&mut state, count, priority > 0) else { break };
                let Some(waiter) = state.waiting[priority].pop_front() else { break };
                if let Err(held) = waiter.answer.send(held) {
                    // It gives itself back when it is dropped, which must not happen under the lock.
                    unwanted.push(held);
                }
            }
            if !state.waiting[priority].is_empty() {
                break;
            }
        }
        drop(state);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut state = self.quota.lock();
        state.held -= self.count;
        state.held_by_background -= if self.background { self.count } else { 0 };
        drop(state);
        self.quota.pass_on();
    }
}

#[cfg(test)]
mod tests {
    use std::{pin::pin, task::Poll};

    use super::*;

    /// Polls once.
    async fn now<T>(future: std::pin::Pin<&mut (impl Future<Output = T> + ?Sized)>) -> Option<T> {
        let mut future = future;
        std::future::poll_fn(|context| {
            Poll::Ready(match future.as_mut().poll(context) {
                Poll::Ready(value) => Some(value),
                Poll::Pending => None,
            })
        })
        .await
    }

    /// Claim: background work holds its share at most, a reader gets the rest at once, and goes before background that came earlier.
    #[tokio::test]
    async fn readers_go_first() {
        let quota = Quota::new(4, 3);
        let ahead = [quota.acquire(2, Priority::Ahead).await.expect("open"), quota.acquire(1, Priority::Fill).await.expect("open")];
        let mut late = pin!(quota.acquire(1, Priority::Ahead));
        assert!(now(late.as_mut()).await.is_none(), "the share is used up");
        let reader = quota.acquire(1, Priority::Demand).await;
        assert!(reader.is_ok(), "what is kept for readers is there");
        let mut waiting = pin!(quota.acquire(1, Priority::Demand));
        assert!(now(waiting.as_mut()).await.is_none());
        let [two, one] = ahead;
        drop(one);
        assert!(now(late.as_mut()).await.is_none(), "the reader came later and goes first");
        assert!(now(waiting.as_mut()).await.is_some());
        drop(two);
        assert!(now(late.as_mut()).await.is_some());
        assert_eq!(quota.held_max(), 4);
    }

    /// Claim: one that waits as background gets a reader's part once it is raised; one who gave up costs nothing; closing tells all.
    #[tokio::test]
    async fn waiters_rise_give_up_and_are_told() {
        let quota = Quota::new(2, 1);
        let _held = quota.acquire(1, Priority::Fill).await.expect("open");
        let urgency = Urgency::new(Priority::Fill);
        let mut rising = pin!(quota.acquire_as(1, &urgency));
        assert!(now(rising.as_mut()).await.is_none());
        urgency.raise();
        let risen = now(rising.as_mut()).await;
        assert!(risen.is_some_and(|held| held.is_ok()));
        let all = quota.acquire(1, Priority::Demand).await.expect("open");
        {
            let mut given_up = pin!(quota.acquire(5, Priority::Demand));
            assert!(now(given_up.as_mut()).await.is_none());
        }
        let mut next = pin!(quota.acquire(1, Priority::Demand));
        assert!(now(next.as_mut()).await.is_none());
        drop(all);
        assert!(now(next.as_mut()).await.is_some());
        let mut last = pin!(quota.acquire(2, Priority::Demand));
        assert!(now(last.as_mut()).await.is_none());
        quota.close();
        assert!(now(last.as_mut()).await.is_some_and(|held| held.is_err()));
    }
}
