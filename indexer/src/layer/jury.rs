//! Which of the candidates for one checkpoint is taken, judged beside the decoder.
//!
//! The decoder tells of each candidate and hands on the compressed bytes after it, as it uses them; probes over these bytes find what
//! window each needs. The first cheap candidate is taken at once, else the cheapest. The verdict is a function of the candidates and
//! their order alone: what is told of a round after its verdict changes nothing.

use std::collections::VecDeque;

use bytes::Bytes;
use clip_engine::inflate::InflateError;
use clip_format::{
    checkpoints::{SpanStart, WindowRange},
    digest::Digest,
    limits::WINDOW_BYTES,
    units::CompressedOffset,
    windows::compress_window,
};
use crossbeam::channel::{Receiver, Sender};

use super::spans::SpanDraft;
use crate::{error::IndexError, sparse_window::WindowProbe};

/// A window of this cost is not worth another probe. Source: judgement, not measured: bytes of its frame, near the average of a window
/// (740-1300), so that what is left to win is a few hundred bytes a MiB.
const COST_ACCEPTED: usize = 1000;
/// What used bytes and their pieces add to a window's frame, in quarters of a byte. Source: least squares over 538 boundaries of the
/// image of `candidates.rs`: 0.22 bytes a byte and 4.8 a piece explain 85 % of the variance of the frames' lengths, the bytes alone 41 %.
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
        let used = self.probe.used();
        used.bytes * BYTE_QUARTERS / 4 + used.pieces * PIECE_QUARTERS / 4
    }
}

/// The candidates of one round that are not out yet.
#[derive(Default)]
pub(super) struct Jury {
    /// No candidate will be added.
    complete: bool,
    /// The cheapest of those that are judged, and its cost.
    best: Option<(usize, Candidate)>,
    /// Those that are not, in order.
    running: VecDeque<Candidate>,
    idle: Vec<WindowProbe>,
}

impl Jury {
    pub(super) fn add(&mut self, boundary: Boundary) {
        let mut probe = self.idle.pop().unwrap_or_else(WindowProbe::new);
        probe.start(boundary.bit_offset, boundary.first_byte);
        self.running.push_back(Candidate { boundary, probe });
    }

    /// Takes the next compressed bytes after the last candidate.
    ///
    /// # Errors
    /// Data that is no deflate stream (the decoder will have said so first).
    pub(super) fn feed(&mut self, input: &[u8]) -> Result<(), InflateError> {
        self.running.iter_mut().try_for_each(|candidate| candidate.probe.feed(input))
    }

    /// No candidate will be added in this round.
    pub(super) fn complete(&mut self) {
        self.complete = true;
    }

    /// Drops the candidates whose data refers to any history; true when none is left.
    pub(super) fn drop_dependent(&mut self) -> bool {
        for candidate in std::mem::take(&mut self.running) {
            match candidate.probe.used().bytes > 0 {
                true => self.idle.push(candidate.probe),
                false => self.running.push_back(candidate),
            }
        }
        self.running.is_empty()
    }

    /// The verdict, once nothing can change it; the round is over then.
    pub(super) fn choose(&mut self) -> Option<Chosen> {
        while self.running.front().is_some_and(|candidate| candidate.probe.is_done()) {
            let chosen = self.running.pop_front().and_then(|candidate| self.judge(candidate));
            if chosen.is_some() {
                return chosen;
            }
        }
        let is_over = self.complete && self.running.is_empty();
        let (_, best) = self.best.take_if(|_| is_over)?;
        Some(self.chosen(best))
    }

    /// The verdict when no more data can change it, which is of no candidate where one more could have been added; the round is over.
    pub(super) fn choose_now(&mut self) -> Option<Chosen> {
        debug_assert!(self.running.iter().all(|candidate| candidate.probe.is_done()), "the decoder is 32 KiB further, or at the end");
        let chosen = self.choose();
        self.clear();
        chosen
    }

    /// The candidate, when it is good enough; otherwise it is compared with the best.
    fn judge(&mut self, candidate: Candidate) -> Option<Chosen> {
        let cost = candidate.cost();
        if cost <= COST_ACCEPTED {
            return Some(self.chosen(candidate));
        }
        match &self.best {
            Some((best, _)) if *best <= cost => self.idle.push(candidate.probe),
            _ => self.idle.extend(self.best.replace((cost, candidate)).map(|(_, worse)| worse.probe)),
        }
        None
    }

    fn chosen(&mut self, candidate: Candidate) -> Chosen {
        let Candidate { boundary: Boundary { stream, compressed, bit_offset, mut window, .. }, probe } = candidate;
        probe.clear_unused(&mut window);
        let window = (probe.used().bytes > 0).then_some(window);
        self.idle.push(probe);
        self.clear();
        let start = SpanStart::Deflate { bit_offset, window: WindowRange::default() };
        Chosen { draft: SpanDraft { start, compressed, stream }, window }
    }

    fn clear(&mut self) {
        let left = self.best.take().map(|(_, best)| best).into_iter().chain(self.running.drain(..));
        self.idle.extend(left.map(|candidate| candidate.probe));
        self.complete = false;
    }
}

/// What the decoder tells of one round.
pub(super) enum Evidence {
    Candidate(Boundary),
    /// The next compressed bytes after the last candidate.
    Bytes(Bytes),
    /// No candidate will be added.
    Complete,
    /// The member is at its end, or the decoder has put out 32 KiB after the last candidate: see [`Jury::choose_now`].
    Over,
}

/// Each with the number of its round; ascending.
pub(super) type Told = (u64, Evidence);

/// The chosen checkpoint, or none: a member's end came first. One a round.
pub(super) type Verdict = Option<SpanDraft>;

/// Compressed windows, each with the stream offset of its checkpoint; ascending. Of zeros alone: no bytes.
pub(super) type Frames = Vec<(u64, Vec<u8>)>;

/// Judges rounds until the decoder is gone; the chosen windows, compressed.
///
/// # Errors
/// zstd's own; `Layer` when a probe finds an error that the decoder has not.
pub(super) fn judge_rounds(layer: Digest, told: &Receiver<Told>, verdicts: &Sender<Verdict>) -> Result<Frames, IndexError> {
    let mut jury = Jury::default();
    let mut frames = Frames::new();
    let mut decided = None;
    for (round, evidence) in told {
        if decided == Some(round) {
            continue;
        }
        let (chosen, is_over) = match evidence {
            Evidence::Candidate(boundary) => {
                jury.add(boundary);
                (None, false)
            }
            Evidence::Bytes(bytes) => {
                jury.feed(&bytes).map_err(|error| probe_error(layer, &error))?;
                (jury.choose(), false)
            }
            Evidence::Complete => {
                jury.complete();
                (jury.choose(), false)
            }
            Evidence::Over => (jury.choose_now(), true),
        };
        if chosen.is_none() && !is_over {
            continue;
        }
        decided = Some(round);
        // The decoder reads a verdict a round; one that is gone has failed, and says why itself.
        let _ = verdicts.send(chosen.as_ref().map(|chosen| chosen.draft));
        if let Some((draft, window)) = chosen.and_then(|chosen| chosen.window.map(|window| (chosen.draft, window))) {
            frames.push((draft.stream, compress_window(&window)?));
        }
    }
    Ok(frames)
}

/// What a probe says of bytes that the decoder has been through.
pub(super) fn probe_error(layer: Digest, error: &InflateError) -> IndexError {
    let expected = "data that decodes again from a block boundary".to_owned();
    IndexError::Layer { layer, place: "the 32 KiB after a checkpoint".to_owned(), expected, found: error.reason.clone() }
}
