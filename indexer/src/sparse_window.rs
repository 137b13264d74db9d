//! Which bytes of the history the data after a checkpoint refers to.
//!
//! The matches of the 32 KiB after the checkpoint say it (`token_walk.rs`): one at output offset p that refers d > p back copies bytes of
//! the window. After 32 KiB of output nothing can reach back before the checkpoint (RFC 1951 section 2).
//!
//! Two runs of inflate over windows whose bytes name their own places say the same, and the tests hold the matches against them; these
//! runs and their comparison took 15 % of the processor time of indexing (a 1.28 GB layer of Python packages), the matches alone take 5 %.

mod token_walk;

use clip_engine::inflate::InflateError;
use clip_format::limits::WINDOW_BYTES;

use token_walk::{Matches, TokenWalk};

/// The matches after one checkpoint, fed with the compressed bytes that the main decoder uses meanwhile.
///
/// Shape: about 30 KiB; `start` keeps the allocations.
pub(crate) struct WindowProbe {
    walk: TokenWalk,
    /// Output bytes that are looked at: every match that begins before is known once the walk is there, whatever pieces the input came in.
    looked_at: usize,
    used: UsedPlaces,
}

/// How much of a window was referred to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Used {
    pub(crate) bytes: usize,
    /// Runs of neighbours among them. `<= bytes`
    pub(crate) pieces: usize,
}

/// The places of a window that were referred to, a bit each; place 0 is the lowest bit of the first word.
struct UsedPlaces {
    words: Box<[u64; WINDOW_BYTES / 64]>,
}

impl WindowProbe {
    /// One that must be started.
    pub(crate) fn new() -> Self {
        Self { walk: TokenWalk::new(), looked_at: 0, used: UsedPlaces::none() }
    }

    /// Begins at a checkpoint, and looks at `bytes` bytes of output; `bit_offset` and `first_byte` as
    /// [`clip_engine::inflate::Inflate::raw`] takes them.
    pub(crate) fn start(&mut self, bit_offset: u8, first_byte: u8, bytes: usize) {
        self.looked_at = bytes.min(WINDOW_BYTES);
        self.walk.start(bit_offset, first_byte, self.looked_at);
        self.used.words.fill(0);
    }

    /// True when no more input is needed for the output that is to be looked at.
    pub(crate) fn is_done(&self) -> bool {
        self.walk.is_done()
    }

    /// True when it is done and nothing after it can refer to the window.
    pub(crate) fn knows_all(&self) -> bool {
        self.walk.has_ended() || (self.looked_at >= WINDOW_BYTES && self.walk.is_done())
    }

    /// Looks at `bytes` bytes of output more.
    ///
    /// # Errors
    /// As `feed`.
    pub(crate) fn look_on(&mut self, bytes: usize) -> Result<(), InflateError> {
        self.looked_at = (self.looked_at + bytes).min(WINDOW_BYTES);
        self.walk.go_on(self.looked_at, &mut self.used)
    }

    /// Takes the next compressed bytes after the checkpoint, all of them.
    ///
    /// # Errors
    /// Data that is no deflate stream (the main decoder will have said so first).
    pub(crate) fn feed(&mut self, input: &[u8]) -> Result<(), InflateError> {
        self.walk.feed(input, &mut self.used)
    }

    /// What of the window was referred to so far.
    ///
    /// Cost: a pass over 512 words.
    pub(crate) fn used(&self) -> Used {
        self.used.count()
    }

    /// Sets every byte of `window`, the real one, that was not referred to to zero.
    pub(crate) fn clear_unused(&self, window: &mut [u8; WINDOW_BYTES]) {
        for (bytes, word) in window.chunks_exact_mut(64).zip(*self.used.words) {
            match word {
                0 => bytes.fill(0),
                u64::MAX => {}
                word => bytes.iter_mut().enumerate().filter(|(place, _)| word >> place & 1 == 0).for_each(|(_, byte)| *byte = 0),
            }
        }
    }
}

impl Matches for UsedPlaces {
    fn found(&mut self, at: usize, length: usize, distance: usize) {
        if distance > at {
            let start = WINDOW_BYTES - (distance - at);
            self.mark(start, length.min(WINDOW_BYTES - start));
        }
    }
}

impl UsedPlaces {
    fn none() -> Self {
        Self { words: Box::new([0; WINDOW_BYTES / 64]) }
    }

    /// Marks `length` places from `start` on. `start + length <= WINDOW_BYTES`
    fn mark(&mut self, start: usize, length: usize) {
        let mut place = start;
        while place < start + length {
            let bits = (64 - place % 64).min(start + length - place);
            self.words[place / 64] |= (u64::MAX >> (64 - bits)) << (place % 64);
            place += bits;
        }
    }

    fn count(&self) -> Used {
        let (mut used, mut before) = (Used { bytes: 0, pieces: 0 }, 0);
        for word in *self.words {
            used.bytes += word.count_ones() as usize;
            // A piece begins at a place whose neighbour before it is not in use.
            used.pieces += (word & !(word << 1 | before)).count_ones() as usize;
            before = word >> 63;
        }
        used
    }
}

#[cfg(test)]
mod tests;
