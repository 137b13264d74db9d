//! The queue of decode jobs: whichever shard is idle takes the most urgent one, for one span at a time.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use crate::{job::Job, priority::Priority};

/// Jobs that can go on now: they have input, or have not begun.
#[derive(Default)]
pub(crate) struct Jobs {
    /// By priority. A job that was raised while it waited stands in two; the second that is met is passed over.
    queues: Mutex<[VecDeque<Arc<Job>>; Priority::COUNT]>,
    /// A shard that has nothing to decode waits here.
    pub(crate) ready: Notify,
}

impl Jobs {
    pub(crate) fn push(&self, job: Arc<Job>) {
        self.lock()[job.priority() as usize].push_back(job);
        self.ready.notify_one();
    }

    /// Puts back a job that gives way, to go on before its equals.
    pub(crate) fn push_front(&self, job: Arc<Job>) {
        self.lock()[job.priority() as usize].push_front(job);
        self.ready.notify_one();
    }

    /// The next job to run, taken; another shard is woken when there are more.
    pub(crate) fn pop(&self) -> Option<Arc<Job>> {
        loop {
            let mut queues = self.lock();
            let job = queues.iter_mut().find_map(VecDeque::pop_front)?;
            let more = queues.iter().any(|queue| !queue.is_empty());
            drop(queues);
            if job.take() {
                if more {
                    self.ready.notify_one();
                }
                return Some(job);
            }
        }
    }

    /// Whether a job waits that goes before one of `priority`, or is its equal where `or_equal`.
    pub(crate) fn has_before(&self, priority: Priority, or_equal: bool) -> bool {
        self.lock()[..priority as usize + usize::from(or_equal)].iter().any(|queue| !queue.is_empty())
    }

    fn lock(&self) -> MutexGuard<'_, [VecDeque<Arc<Job>>; Priority::COUNT]> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
