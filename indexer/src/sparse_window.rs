//! Which bytes of the history the data after a checkpoint refers to.
//!
//! The 32 KiB after the checkpoint are decoded twice, with windows whose bytes encode their own position p: run A holds the low 8 bits
//! of p, run B its high 7 bits under a top bit opposite to A's. An output byte that differs between the runs came from the window, and
//! the two values name its place. After 32 KiB of output nothing can reach back before the checkpoint (RFC 1951 section 2).

use clip_engine::inflate::{Inflate, InflateError, Stop, Until};
use clip_format::limits::WINDOW_BYTES;

/// The two runs at one checkpoint, fed with the compressed bytes that the main decoder uses meanwhile.
pub(crate) struct WindowProbe {
    runs: [Run; 2],
    used: Box<[bool; WINDOW_BYTES]>,
    compared: usize,
}

struct Run {
    inflate: Inflate,
    output: Box<[u8; WINDOW_BYTES]>,
    produced: usize,
    ended: bool,
}

impl WindowProbe {
    /// At a checkpoint; `bit_offset` and `first_byte` as [`Inflate::raw`] takes them.
    pub(crate) fn new(bit_offset: u8, first_byte: u8) -> Self {
        let windows = marker_windows();
        let runs = windows.map(|window| Run {
            inflate: Inflate::raw(Some(&window), bit_offset, first_byte),
            output: Box::new([0; WINDOW_BYTES]),
            produced: 0,
            ended: false,
        });
        Self { runs, used: Box::new([false; WINDOW_BYTES]), compared: 0 }
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

    /// True when some byte of the window was referred to.
    pub(crate) fn any_used(&self) -> bool {
        self.used.iter().any(|used| *used)
    }

    /// `window` with every byte that was not referred to set to zero.
    pub(crate) fn sparse(&self, window: &[u8; WINDOW_BYTES]) -> Box<[u8; WINDOW_BYTES]> {
        let mut sparse = Box::new([0; WINDOW_BYTES]);
        for (place, used) in self.used.iter().enumerate() {
            if *used {
                sparse[place] = window[place];
            }
        }
        sparse
    }

    fn compare(&mut self) {
        let [a, b] = &self.runs;
        let until = a.produced.min(b.produced);
        for (low, high) in a.output[self.compared..until].iter().zip(&b.output[self.compared..until]) {
            if low != high {
                self.used[usize::from(*low) | usize::from(high & 0x7f) << 8] = true;
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

fn marker_windows() -> [[u8; WINDOW_BYTES]; 2] {
    let low = std::array::from_fn(|place| place as u8);
    let high = std::array::from_fn(|place| (place >> 8) as u8 & 0x7f | !(place as u8) & 0x80);
    [low, high]
}

#[cfg(test)]
mod tests;
