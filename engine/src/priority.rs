//! What goes first: a reader who waits, then what a reader or a profile will want soon, then the rest of an image.

use std::sync::{
    OnceLock, Weak,
    atomic::{AtomicU8, Ordering},
};

use tokio::sync::Notify;

use crate::job::Job;

/// Whose work it is. The smaller goes first, everywhere: for a connection, for memory and for a core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Priority {
    /// A reader waits.
    Demand = 0,
    /// Read-ahead, and the replay of a profile.
    Ahead = 1,
    /// The fill of an image.
    Fill = 2,
}

impl Priority {
    /// How many there are.
    pub(crate) const COUNT: usize = 3;

    pub(crate) fn is_background(self) -> bool {
        self != Priority::Demand
    }
}

/// The priority of some claims, which rises when a reader comes to wait for one of them.
pub(crate) struct Urgency {
    priority: AtomicU8,
    raised: Notify,
    /// The job that decodes them, once there is one.
    job: OnceLock<Weak<Job>>,
}

impl Urgency {
    pub(crate) fn new(priority: Priority) -> Self {
        Self { priority: AtomicU8::new(priority as u8), raised: Notify::new(), job: OnceLock::new() }
    }

    pub(crate) fn get(&self) -> Priority {
        match self.priority.load(Ordering::SeqCst) {
            0 => Priority::Demand,
            1 => Priority::Ahead,
            _ => Priority::Fill,
        }
    }

    /// A reader waits: whatever holds these claims back takes them first.
    pub(crate) fn raise(&self) {
        if self.priority.swap(Priority::Demand as u8, Ordering::SeqCst) == Priority::Demand as u8 {
            return;
        }
        self.raised.notify_waiters();
        if let Some(job) = self.job.get().and_then(Weak::upgrade) {
            job.raise();
        }
    }

    /// Nobody waits any more: what was for readers goes on as read-ahead, until the next one waits.
    pub(crate) fn lower(&self) {
        self.priority.store(Priority::Ahead as u8, Ordering::SeqCst);
    }

    /// Waits until a reader waits.
    pub(crate) async fn raised(&self) {
        let raised = self.raised.notified();
        // A `Notified` is woken by what happens after its making, polled or not.
        if self.get().is_background() {
            raised.await;
        }
    }

    /// `job` decodes these claims; it moves up when they do.
    pub(crate) fn set_job(&self, job: Weak<Job>) {
        drop(self.job.set(job));
    }
}
