//! Which of several deflate block boundaries becomes the next checkpoint.
//!
//! What a boundary's window takes in the index varies by a hundred times within a layer, so a few boundaries are probed and the
//! cheapest is taken, or the first cheap one at once. Without windows only a boundary that needs none may be taken: the others drop
//! out as soon as data after them refers back.
//!
//! The choice is a function of the stream alone: candidates are judged in their order, whatever pieces the blob comes in.

use std::{collections::VecDeque, ops::RangeInclusive};

use clip_engine::inflate::InflateError;
use clip_format::{
    checkpoints::{SpanStart, WindowRange},
    limits::WINDOW_BYTES,
    units::CompressedOffset,
};

use super::spans::SpanDraft;
use crate::{options::Windows, sparse_window::WindowProbe};

// Source of the constants below: a Debian base with python3-minimal, 186 MiB of tar in Go's gzip, spans of 1 MiB. With the first
// boundary after each MiB: 337 KB of windows (2,045 bytes each on average, 53 to 8,348). With these: 128 KB, 4 % more CPU time in all
// (mean of four interleaved runs). With 4 boundaries: 146 KB; with 8 at half the distance: 122 KB; with a third of a span as reach: 161 KB.

/// Boundaries compared for one checkpoint.
const CANDIDATES_MAX: usize = 6;
/// Stream bytes from the first to the last, as a part of the span size.
const REACH_SPAN_PARTS: u64 = 2;
/// The same, however large the spans are: the decoder holds back what comes after the first. Source: what a layer's channels hold.
const REACH_BYTES_MAX: u64 = 4 << 20;
/// Stream bytes between neighbours, as a part of the reach.
const STEP_REACH_PARTS: u64 = 8;
/// A window of this cost is not worth another probe.
const COST_ACCEPTED: usize = 1000;
/// What used bytes and their pieces add to a window's frame, in quarters of a byte. Source: least squares over 538 boundaries of that
/// image: 0.22 bytes a byte and 4.8 a piece explain 85 % of the variance of the frames' lengths, the bytes alone 41 %.
const BYTE_QUARTERS: usize = 1;
/// See `BYTE_QUARTERS`.
const PIECE_QUARTERS: usize = 20;

/// A deflate block boundary inside a member.
pub(super) struct Boundary {
    pub(super) stream: u64,
    pub(super) compressed: CompressedOffset,
    /// Bits of the byte at `compressed` that belong to the block before. `< 8`
    pub(super) bit_offset: u8,
    /// The byte at `compressed`; of no meaning where `bit_offset` is 0.
    pub(super) first_byte: u8,
    /// The history at `stream`.
    pub(super) window: Box<[u8; WINDOW_BYTES]>,
}

/// A checkpoint, and its sparse window unless it needs none.
pub(super) struct Chosen {
    pub(super) draft: SpanDraft,
    pub(super) window: Option<Box<[u8; WINDOW_BYTES]>>,
}

/// A boundary, and what is known of the window that it needs.
struct Candidate {
    boundary: Boundary,
    probe: WindowProbe,
}

impl Candidate {
    /// About the bytes that the window takes in the index.
    fn cost(&self) -> usize {
        self.cost_min() + self.probe.used_pieces() * PIECE_QUARTERS / 4
    }

    /// What `cost` cannot fall below, whatever comes.
    fn cost_min(&self) -> usize {
        self.probe.used_bytes() * BYTE_QUARTERS / 4
    }
}

/// The boundaries that the next checkpoint is chosen from.
pub(super) struct Candidates {
    windows: Windows,
    /// Stream bytes from the first to the last.
    reach: u64,
    /// How many were added since the last choice.
    admitted: usize,
    first: u64,
    /// Stream offsets where another may follow.
    admissible: RangeInclusive<u64>,
    /// The cheapest of those that are judged.
    best: Option<Candidate>,
    /// Those that are not, in order.
    running: VecDeque<Candidate>,
    idle: Vec<WindowProbe>,
}

impl Candidates {
    pub(super) fn new(span_bytes: u64, windows: Windows) -> Self {
        Self {
            windows,
            reach: (span_bytes / REACH_SPAN_PARTS).min(REACH_BYTES_MAX),
            admitted: 0,
            first: 0,
            admissible: 0..=0,
            best: None,
            running: VecDeque::new(),
            idle: Vec::new(),
        }
    }

    /// Stream offset of the first candidate: blocks from there on may yet be cut.
    pub(super) fn first(&self) -> Option<u64> {
        (self.admitted > 0).then_some(self.first)
    }

    /// Stream offset where the choice is made at the latest.
    pub(super) fn deadline(&self) -> Option<u64> {
        (self.admitted > 0).then(|| self.admissible.end() + WINDOW_BYTES as u64)
    }

    /// True when a boundary at stream offset `at` is worth a probe, which is over before the span must end at `end_max`.
    pub(super) fn admits(&self, at: u64, end_max: u64) -> bool {
        match self.admitted {
            0 => at + WINDOW_BYTES as u64 <= end_max,
            admitted => admitted < CANDIDATES_MAX && self.admissible.contains(&at),
        }
    }

    /// Adds a boundary that was admitted.
    pub(super) fn add(&mut self, boundary: Boundary, end_max: u64) {
        let at = boundary.stream;
        if self.admitted == 0 {
            self.first = at;
            self.admissible = at..=(at + self.reach).min(end_max - WINDOW_BYTES as u64);
        }
        self.admitted += 1;
        self.admissible = at + (self.reach / STEP_REACH_PARTS).max(1)..=*self.admissible.end();
        let mut probe = self.idle.pop().unwrap_or_else(WindowProbe::new);
        probe.start(boundary.bit_offset, boundary.first_byte);
        self.running.push_back(Candidate { boundary, probe });
    }

    /// Takes the next compressed bytes after the last candidate.
    ///
    /// # Errors
    /// Data that is no deflate stream.
    pub(super) fn feed(&mut self, input: &[u8]) -> Result<(), InflateError> {
        for candidate in &mut self.running {
            candidate.probe.feed(input)?;
        }
        if self.windows == Windows::None && self.admitted > 0 {
            self.drop_running(|candidate| candidate.probe.used_bytes() > 0);
            self.admitted = if self.running.is_empty() { 0 } else { self.admitted };
        }
        Ok(())
    }

    /// The choice, once nothing after stream offset `stream` can change it; there are no candidates then.
    pub(super) fn choose(&mut self, stream: u64) -> Option<Chosen> {
        let is_over = self.deadline()? <= stream;
        while self.running.front().is_some_and(|candidate| is_over || candidate.probe.is_done()) {
            let candidate = self.running.pop_front()?;
            debug_assert!(candidate.probe.is_done(), "the main decoder has put out 32 KiB after it");
            if candidate.cost() <= COST_ACCEPTED {
                return Some(self.chosen(candidate));
            }
            let (better, worse) = match self.best.take() {
                Some(best) if best.cost() <= candidate.cost() => (best, Some(candidate)),
                worse => (candidate, worse),
            };
            self.best = Some(better);
            self.idle.extend(worse.map(|candidate| candidate.probe));
        }
        if let Some(cost) = self.best.as_ref().map(Candidate::cost) {
            self.drop_running(|candidate| candidate.cost_min() >= cost);
        }
        let may_grow = self.admitted < CANDIDATES_MAX && !self.admissible.is_empty() && stream <= *self.admissible.end();
        if may_grow || !self.running.is_empty() {
            return None;
        }
        self.best.take().map(|best| self.chosen(best))
    }

    /// The member is at its end, and so are all probes: the choice, unless the place after it may still be the better one.
    pub(super) fn choose_at_member_end(&mut self, stream: u64) -> Option<Chosen> {
        let chosen = self.choose(stream);
        self.clear();
        chosen
    }

    fn chosen(&mut self, candidate: Candidate) -> Chosen {
        let Candidate { boundary: Boundary { stream, compressed, bit_offset, mut window, .. }, probe } = candidate;
        probe.clear_unused(&mut window);
        let window = (probe.used_bytes() > 0).then_some(window);
        self.idle.push(probe);
        self.clear();
        let start = SpanStart::Deflate { bit_offset, window: WindowRange::default() };
        Chosen { draft: SpanDraft { start, compressed, stream }, window }
    }

    fn drop_running(&mut self, is_lost: impl Fn(&Candidate) -> bool) {
        for candidate in std::mem::take(&mut self.running) {
            match is_lost(&candidate) {
                true => self.idle.push(candidate.probe),
                false => self.running.push_back(candidate),
            }
        }
    }

    fn clear(&mut self) {
        let left = self.best.take().into_iter().chain(self.running.drain(..));
        self.idle.extend(left.map(|candidate| candidate.probe));
        self.admitted = 0;
    }
}
