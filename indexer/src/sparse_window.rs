//! Which bytes of the history the data after a checkpoint refers to.
//!
//! The 32 KiB after the checkpoint are decoded twice, with windows whose bytes encode their own position p: run A holds the low 8 bits
//! of p, run B its high 7 bits under a top bit opposite to A's. An output byte that differs between the runs came from the window, and
//! the two values name its place. After 32 KiB of output nothing can reach back before the checkpoint (RFC 1951 section 2).

use clip_engine::inflate::{Inflate, InflateError, Stop, Until};
use clip_format::limits::WINDOW_BYTES;

/// The windows of run A and run B.
static MARKERS: [[u8; WINDOW_BYTES]; 2] = markers();
/// Output bytes compared at once before they are looked at one by one: nearly all are equal.
const COMPARED_BYTES: usize = 64;

/// The two runs at one checkpoint, fed with the compressed bytes that the main decoder uses meanwhile.
///
/// Shape: about 200 KiB; `start` keeps the allocations.
pub(crate) struct WindowProbe {
    runs: [Run; 2],
    used: UsedPlaces,
    compared: usize,
}

struct Run {
    inflate: Inflate,
    output: Box<[u8; WINDOW_BYTES]>,
    produced: usize,
    ended: bool,
}

/// The places of a window that were referred to.
struct UsedPlaces {
    marks: Box<[bool; WINDOW_BYTES]>,
    bytes: usize,
    /// Runs of neighbours. `<= bytes`
    pieces: usize,
}

impl WindowProbe {
    /// One that must be started.
    pub(crate) fn new() -> Self {
        let runs = MARKERS.each_ref().map(|markers| Run {
            inflate: Inflate::raw(Some(markers), 0, 0),
            output: Box::new([0; WINDOW_BYTES]),
            produced: 0,
            ended: false,
        });
        let used = UsedPlaces { marks: Box::new([false; WINDOW_BYTES]), bytes: 0, pieces: 0 };
        Self { runs, used, compared: 0 }
    }

    /// Begins at a checkpoint; `bit_offset` and `first_byte` as [`Inflate::raw`] takes them.
    pub(crate) fn start(&mut self, bit_offset: u8, first_byte: u8) {
        for (run, markers) in self.runs.iter_mut().zip(&MARKERS) {
            run.inflate.reset_raw(Some(markers), bit_offset, first_byte);
            (run.produced, run.ended) = (0, false);
        }
        self.used.clear();
        self.compared = 0;
    }

    /// True when more input cannot change what is known.
    pub(crate) fn is_done(&self) -> bool {
        self.runs.iter().all(|run| run.ended || run.produced == WINDOW_BYTES)
    }

    /// Takes the next compressed bytes after the checkpoint.
    ///
    /// # Errors
    /// Data that is no deflate stream (the main decoder will have said so first).
    pub(crate) fn feed(&mut self, input: &[u8]) -> Result<(), InflateError> {
        for run in &mut self.runs {
            run.feed(input)?;
        }
        self.compare();
        Ok(())
    }

    /// Bytes of the window that were referred to so far.
    pub(crate) fn used_bytes(&self) -> usize {
        self.used.bytes
    }

    /// Runs of neighbours among them; fewer again where a byte joins two.
    pub(crate) fn used_pieces(&self) -> usize {
        self.used.pieces
    }

    /// Sets every byte of `window`, the real one, that was not referred to to zero.
    pub(crate) fn clear_unused(&self, window: &mut [u8; WINDOW_BYTES]) {
        for (byte, used) in window.iter_mut().zip(self.used.marks.iter()) {
            if !used {
                *byte = 0;
            }
        }
    }

    fn compare(&mut self) {
        let [a, b] = &self.runs;
        let until = a.produced.min(b.produced);
        let [a, b] = [a, b].map(|run| run.output[self.compared..until].chunks(COMPARED_BYTES));
        for (low, high) in a.zip(b).filter(|(low, high)| low != high) {
            for (low, high) in low.iter().zip(high).filter(|(low, high)| low != high) {
                self.used.mark(usize::from(*low) | usize::from(high & 0x7f) << 8);
            }
        }
        self.compared = until;
    }
}

impl Run {
    fn feed(&mut self, mut input: &[u8]) -> Result<(), InflateError> {
        while !self.ended && self.produced < WINDOW_BYTES && !input.is_empty() {
            let step = self.inflate.step(input, &mut self.output[self.produced..], Until::Full)?;
            input = &input[step.consumed..];
            self.produced += step.produced;
            self.ended = step.stop == Stop::End;
            if step.consumed == 0 && step.produced == 0 {
                break;
            }
        }
        Ok(())
    }
}

impl UsedPlaces {
    fn mark(&mut self, place: usize) {
        if self.marks[place] {
            return;
        }
        self.marks[place] = true;
        self.bytes += 1;
        let before = place > 0 && self.marks[place - 1];
        let after = self.marks.get(place + 1).is_some_and(|used| *used);
        self.pieces = self.pieces + 1 - usize::from(before) - usize::from(after);
    }

    fn clear(&mut self) {
        self.marks.fill(false);
        (self.bytes, self.pieces) = (0, 0);
    }
}

const fn markers() -> [[u8; WINDOW_BYTES]; 2] {
    let mut markers = [[0; WINDOW_BYTES]; 2];
    let mut place = 0;
    while place < WINDOW_BYTES {
        markers[0][place] = place as u8;
        markers[1][place] = (place >> 8) as u8 & 0x7f | !(place as u8) & 0x80;
        place += 1;
    }
    markers
}

#[cfg(test)]
mod tests;
