//! Memory of the zstd decoders of layers that are indexed side by side.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use clip_engine::zstd::decoder_bytes;
use clip_format::limits::FRAME_WINDOW_LOG_MAX;

use super::Cancel;

/// What all decoders of an image take together: two with the largest windows, 257 MiB. Source: judgement, not measured: what a mount's decoders
/// may take by default, and layers with usual windows (8 MiB at most) go on thirty at a time.
fn bytes_max() -> u64 {
    2 * decoder_bytes(FRAME_WINDOW_LOG_MAX)
}

/// How often who waits looks whether the work has been stopped. Source: judgement, not measured: nobody notices a tenth of a second.
const LOOK: Duration = Duration::from_millis(100);

/// What the decoders of an image's layers hold, [`bytes_max`] at most. One that needs more than is left waits until others have let go; a single
/// one always gets what it needs.
#[derive(Default)]
pub(crate) struct DecoderMemory {
    held: Mutex<u64>,
    let_go: Condvar,
}

impl DecoderMemory {
    fn lock(&self) -> MutexGuard<'_, u64> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one decoder holds. Dropping it lets go of it.
pub(super) struct DecoderShare<'a> {
    memory: &'a DecoderMemory,
    cancel: &'a Cancel,
    bytes: u64,
}

impl<'a> DecoderShare<'a> {
    /// Of nothing yet.
    pub(super) fn new(memory: &'a DecoderMemory, cancel: &'a Cancel) -> Self {
        Self { memory, cancel, bytes: 0 }
    }

    /// Holds at least `bytes`, once they are free: what the decoder held before is let go of first, so that who waits holds nothing and no two
    /// wait for each other. False when the work was stopped while it waited.
    #[must_use = "without it the decoder must not go on"]
    pub(super) fn grow(&mut self, bytes: u64) -> bool {
        if bytes <= self.bytes {
            return true;
        }
        self.release();
        let mut held = self.memory.lock();
        while *held > 0 && held.saturating_add(bytes) > bytes_max() {
            if self.cancel.is_stopped() {
                return false;
            }
            held = self.memory.let_go.wait_timeout(held, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
        *held = held.saturating_add(bytes);
        self.bytes = bytes;
        true
    }

    fn release(&mut self) {
        let mut held = self.memory.lock();
        *held = held.saturating_sub(std::mem::take(&mut self.bytes));
        drop(held);
        self.memory.let_go.notify_all();
    }
}

impl Drop for DecoderShare<'_> {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Claim: decoders hold no more than the limit together, who waits gets what others let go of or sees the stop, and one alone gets all.
    #[test]
    fn who_needs_more_than_is_left_waits() {
        let (memory, cancel) = (DecoderMemory::default(), Cancel::new());
        let share = || DecoderShare::new(&memory, &cancel);
        let large = decoder_bytes(FRAME_WINDOW_LOG_MAX);
        let (mut first, mut second) = (share(), share());
        assert!(first.grow(1) && first.grow(large) && second.grow(large) && second.grow(1));
        assert_eq!(*memory.lock(), bytes_max());
        std::thread::scope(|scope| {
            let (sender, grown) = mpsc::channel();
            scope.spawn(move || {
                let mut third = share();
                let _ = sender.send(third.grow(1));
                // What it holds does not stand in its own way.
                let _ = sender.send(third.grow(large));
            });
            assert!(grown.recv_timeout(Duration::from_millis(30)).is_err());
            drop(first);
            assert_eq!((grown.recv(), grown.recv()), (Ok(true), Ok(true)));
        });
        assert!(share().grow(large));
        let mut alone = share();
        let waits = std::thread::scope(|scope| {
            let alone = scope.spawn(|| alone.grow(bytes_max() + 1));
            std::thread::sleep(Duration::from_millis(30));
            cancel.stop();
            alone.join()
        });
        assert!(matches!(waits, Ok(false)) && *memory.lock() == large);
        drop(second);
        assert!(alone.grow(bytes_max() + 1));
        drop(alone);
        assert_eq!(*memory.lock(), 0);
    }
}
