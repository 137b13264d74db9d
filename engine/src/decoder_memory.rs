//! Memory of decoders whose windows are large: what one may hold before it begins, and whose is taken for it.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use crate::{
    chain::Chains,
    error::EngineError,
    priority::{Priority, Urgency},
    quota::{Held, Quota},
};

/// A limit on what all decoders hold, those that stand still among them. They give way to who is about to decode.
pub(crate) struct DecoderMemory {
    quota: Arc<Quota>,
    /// The chains of layers that have decoders which stand still and hold memory, the oldest first.
    standing: Mutex<VecDeque<Weak<Chains>>>,
}

impl DecoderMemory {
    /// `bytes_max` in all, half of it at most for background work.
    pub(crate) fn new(bytes_max: u64) -> Self {
        Self { quota: Quota::new(bytes_max, bytes_max / 2), standing: Mutex::default() }
    }

    /// Waits for `bytes`. Where they are not free, decoders that stand still are let go of; those at work are waited for.
    ///
    /// # Errors
    /// `Stopped` once it is closed.
    pub(crate) async fn acquire(&self, bytes: u64, urgency: &Urgency) -> Result<Held, EngineError> {
        tokio::select! {
            biased;
            held = self.quota.acquire_as(bytes, urgency) => held,
            // Only when the first has begun to wait, so that who stops meanwhile sees that (`note_standing`).
            held = async {
                self.free();
                std::future::pending().await
            } => held,
        }
    }

    /// `bytes` for what a decoder that stands still keeps beside itself; `None` where they are not free at once.
    pub(crate) fn try_acquire(&self, bytes: u64) -> Option<Held> {
        self.quota.try_acquire(bytes)
    }

    /// A decoder in `chains` that holds memory stands still. It is let go of at once if somebody waits.
    pub(crate) fn note_standing(&self, chains: &Arc<Chains>) {
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        standing.retain(|other| other.strong_count() > 0 && !std::ptr::eq(other.as_ptr(), Arc::as_ptr(chains)));
        standing.push_back(Arc::downgrade(chains));
        drop(standing);
        self.free();
    }

    /// The most that was held at once.
    pub(crate) fn held_max(&self) -> u64 {
        self.quota.held_max()
    }

    /// Nobody gets anything any more; who waits is told.
    pub(crate) fn close(&self) {
        self.quota.close();
    }

    /// Lets go of decoders that stand still until nobody waits.
    fn free(&self) {
        let is_waited_for =
            || [Priority::Demand, Priority::Ahead, Priority::Fill].iter().any(|&priority| self.quota.is_waited_for(priority));
        while is_waited_for() {
            let Some(chains) = self.standing.lock().unwrap_or_else(PoisonError::into_inner).pop_front() else { return };
            if let Some(chains) = chains.upgrade() {
                chains.forget();
            }
        }
    }
}
