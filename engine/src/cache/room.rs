//! Memory for indexes that are being expanded: several small ones at a time, a large one alone, each in its turn.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Bytes of indexes, and of the files that they come from, that are expanded at a time. An index may be 4 GiB however short its `.clip` is:
/// that of a million files with regular names is 7,800 times as long as its residue, so that no ratio tells a hostile one. Source: twice the
/// index of a million files.
const BYTES_MAX: u64 = 256 << 20;

/// Given in the order of asking, so that small ones do not keep a large one waiting for ever.
pub(crate) struct Room {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    left: u64,
    /// How many have asked, and how many of them have got it.
    asked: u64,
    served: u64,
}

/// A part of the room, given back when dropped.
pub(crate) struct Taken<'a> {
    room: &'a Room,
    bytes: u64,
}

impl Default for Room {
    fn default() -> Self {
        Self { state: Mutex::new(State { left: BYTES_MAX, asked: 0, served: 0 }), changed: Condvar::new() }
    }
}

impl Room {
    /// Waits for room for `bytes`; more than there may ever be takes all there is, and so passes alone.
    pub(crate) fn take(&self, bytes: u64) -> Taken<'_> {
        let bytes = bytes.min(BYTES_MAX);
        let mut state = self.lock();
        let turn = state.asked;
        state.asked += 1;
        let waits = |state: &mut State| state.served < turn || state.left < bytes;
        let mut state = self.changed.wait_while(state, waits).unwrap_or_else(PoisonError::into_inner);
        state.served += 1;
        state.left -= bytes;
        drop(state);
        self.changed.notify_all();
        Taken { room: self, bytes }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.room.lock().left += self.bytes;
        self.room.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{sync::mpsc, thread, time::Duration};

    use super::*;

    /// Claim: what fits is given side by side; what does not waits for its turn, and who comes after it too.
    #[test]
    fn small_ones_pass_together_and_a_large_one_alone() {
        let room = Room::default();
        let (first, second) = (room.take(BYTES_MAX / 2), room.take(BYTES_MAX / 2));
        let (sender, given) = mpsc::channel();
        thread::scope(|scope| {
            for (number, bytes) in [(1, u64::MAX), (2, 1)] {
                let (room, sender) = (&room, sender.clone());
                scope.spawn(move || {
                    let taken = room.take(bytes);
                    sender.send(number).unwrap();
                    drop(taken);
                });
                while room.lock().asked < 2 + number {
                    thread::yield_now();
                }
            }
            drop(first);
            assert!(given.recv_timeout(Duration::from_millis(50)).is_err(), "there is room for the small one only, whose turn it is not");
            drop(second);
            assert_eq!([given.recv().unwrap(), given.recv().unwrap()], [1, 2]);
        });
        assert_eq!(room.lock().left, BYTES_MAX);
    }
}
