//! The queue of decode jobs: whichever shard is idle takes the most urgent one. It gives way to what is more urgent after any step of 256 KiB,
//! to its equals after each span.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;

use crate::{job::Job, priority::Priority, progress::Progress};

/// How long after a reader's miss a fill leaves one shard alone. Source: misses of a starting program come milliseconds apart; a fill that
/// goes on at full speed a second after the last is in nobody's way.
const QUIET: Duration = Duration::from_secs(1);

/// Jobs that can go on now: they have input, or have not begun.
pub(crate) struct Jobs {
    /// By priority. A job that was raised while it waited stands in two; the second that is met is passed over.
    queues: Mutex<[VecDeque<Arc<Job>>; Priority::COUNT]>,
    /// A shard that has nothing to decode waits here.
    ready: Notify,
    /// As that, for the jobs of a fill.
    fill_ready: Notify,
    /// When a reader last missed.
    missed: Progress,
}

impl Default for Jobs {
    fn default() -> Self {
        Self { queues: Mutex::default(), ready: Notify::new(), fill_ready: Notify::new(), missed: Progress::still() }
    }
}

/// Which jobs a shard takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Takes {
    All,
    /// A fill's only while no reader misses. A thread that is always busy is made to wait by the kernel when a core is wanted by many; one
    /// that sleeps until a reader comes is run at once.
    FillWhenQuiet,
}

impl Jobs {
    /// A reader waits for something to be fetched.
    pub(crate) fn note_miss(&self) {
        self.missed.touch();
    }

    pub(crate) fn push(&self, job: Arc<Job>) {
        let priority = job.priority();
        self.lock()[priority as usize].push_back(job);
        self.wake(priority);
    }

    /// Puts back a job that gives way, to go on before its equals.
    pub(crate) fn push_front(&self, job: Arc<Job>) {
        let priority = job.priority();
        self.lock()[priority as usize].push_front(job);
        self.wake(priority);
    }

    /// The next job to run, taken; another shard is woken when there are more.
    pub(crate) fn pop(&self, takes: Takes) -> Option<Arc<Job>> {
        let last = if self.is_barred(takes) { Priority::Ahead } else { Priority::Fill };
        loop {
            let mut queues = self.lock();
            let job = queues[..=last as usize].iter_mut().find_map(VecDeque::pop_front)?;
            let left = queues.iter().position(|queue| !queue.is_empty());
            drop(queues);
            if job.take() {
                match left {
                    Some(queue) if queue == Priority::Fill as usize => self.wake(Priority::Fill),
                    Some(_) => self.wake(Priority::Demand),
                    None => {}
                }
                return Some(job);
            }
        }
    }

    /// Waits until there may be a job.
    pub(crate) async fn ready(&self, takes: Takes) {
        if !self.is_barred(takes) {
            tokio::select! {
                () = self.ready.notified() => {}
                () = self.fill_ready.notified() => {}
            }
            return;
        }
        // It may have been woken for a job that it does not take.
        if !self.lock()[Priority::Fill as usize].is_empty() {
            self.fill_ready.notify_one();
        }
        drop(tokio::time::timeout(QUIET.saturating_sub(self.missed.idle()), self.ready.notified()).await);
    }

    /// Whether a job waits that goes before one of `priority`, or is its equal where `or_equal`.
    pub(crate) fn has_before(&self, priority: Priority, or_equal: bool) -> bool {
        self.lock()[..priority as usize + usize::from(or_equal)].iter().any(|queue| !queue.is_empty())
    }

    /// Whether a shard that takes `takes` leaves a fill alone now.
    pub(crate) fn is_barred(&self, takes: Takes) -> bool {
        takes == Takes::FillWhenQuiet && self.missed.idle() < QUIET
    }

    fn wake(&self, priority: Priority) {
        if priority == Priority::Fill { &self.fill_ready } else { &self.ready }.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, [VecDeque<Arc<Job>>; Priority::COUNT]> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
