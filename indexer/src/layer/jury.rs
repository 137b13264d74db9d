//! Which of the candidates for one checkpoint is taken, judged beside the decoder.
//!
//! The decoder tells of each candidate and hands on the compressed bytes after it, as it uses them; probes over these bytes find what
//! window each needs. The first cheap candidate is taken at once, else the cheapest. They are looked at one after another, and a look ends
//! where a candidate costs more than the best one did in all. The verdict is a function of the candidates and their order alone: what is
//! told of a round after its verdict changes nothing.

use std::collections::VecDeque;

use bytes::Bytes;
use clip_engine::inflate::InflateError;
use clip_format::{
    checkpoints::{SpanStart, WindowRange},
    digest::Digest,
    limits::WINDOW_BYTES,
    units::CompressedOffset,
    windows::WindowCompressor,
};
use crossbeam::channel::{Receiver, Sender};

use super::spans::SpanDraft;
use crate::{error::IndexError, sparse_window::WindowProbe};

/// A window of this cost is not worth another probe. Source: judgement, not measured: bytes of its frame, near the average of a window
/// (740-1300), so that what is left to win is a few hundred bytes a MiB.
const COST_ACCEPTED: usize = 1000;
/// Compressed bytes given to a probe at a time. Source: what 4 KiB of output come from in most layers.
const PIECE_BYTES: usize = 4 << 10;
/// Output bytes after a candidate that are looked at between two comparisons with the best. Source: judgement, not measured: an eighth of
/// a whole look, at 512 words counted each.
const LOOK_BYTES: usize = 4 << 10;
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

impl Boundary {
    /// A span that begins here.
    fn draft(&self) -> SpanDraft {
        let start = SpanStart::Deflate { bit_offset: self.bit_offset, window: WindowRange::default() };
        SpanDraft { start, compressed: self.compressed, stream: self.stream }
    }
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
    /// The compressed bytes after the boundary that the probe has not taken.
    input: VecDeque<Bytes>,
}

/// What became of a candidate.
enum Standing {
    /// More compressed bytes must come.
    Open,
    /// It costs more than the best, so far as it was looked at.
    Out,
    /// All of its window is known.
    Known,
}

impl Candidate {
    /// Looks at the data after the boundary, until all is known or more than `best` is.
    fn advance(&mut self, best: Option<usize>) -> Result<Standing, InflateError> {
        loop {
            while !self.probe.is_done() {
                let Some(mut input) = self.input.pop_front() else { return Ok(Standing::Open) };
                self.probe.feed(&input.split_to(input.len().min(PIECE_BYTES)))?;
                if !input.is_empty() {
                    self.input.push_front(input);
                }
            }
            if self.probe.knows_all() {
                return Ok(Standing::Known);
            }
            if best.is_some_and(|best| self.cost() > best) {
                return Ok(Standing::Out);
            }
            self.probe.look_on(LOOK_BYTES)?;
        }
    }

    /// About the bytes that the window takes in the index, so far as it is known.
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
    /// Those that are not, in order. Only the first is looked at: what is found of it may put out the next one early.
    running: VecDeque<Candidate>,
    idle: Vec<WindowProbe>,
}

impl Jury {
    pub(super) fn add(&mut self, boundary: Boundary) {
        let mut probe = self.idle.pop().unwrap_or_else(WindowProbe::new);
        probe.start(boundary.bit_offset, boundary.first_byte, LOOK_BYTES);
        self.running.push_back(Candidate { boundary, probe, input: VecDeque::new() });
    }

    /// Takes the next compressed bytes after the last candidate.
    pub(super) fn feed(&mut self, input: &Bytes) {
        self.running.iter_mut().for_each(|candidate| candidate.input.push_back(input.clone()));
    }

    /// No candidate will be added in this round.
    pub(super) fn complete(&mut self) {
        self.complete = true;
    }

    /// Drops the candidates whose data refers to any history, up to one whose does not so far; true when none is left.
    ///
    /// # Errors
    /// Data that is no deflate stream (the decoder will have said so first).
    pub(super) fn drop_dependent(&mut self) -> Result<bool, InflateError> {
        while let Some(first) = self.running.front_mut() {
            first.advance(Some(0))?;
            if first.probe.used().bytes == 0 {
                return Ok(false);
            }
            self.idle.extend(self.running.pop_front().map(|candidate| candidate.probe));
        }
        Ok(true)
    }

    /// The verdict, once nothing can change it; the round is over then.
    ///
    /// # Errors
    /// Data that is no deflate stream (the decoder will have said so first).
    pub(super) fn choose(&mut self) -> Result<Option<Chosen>, InflateError> {
        while let Some(mut candidate) = self.running.pop_front() {
            match candidate.advance(self.best.as_ref().map(|(cost, _)| *cost))? {
                Standing::Open => {
                    self.running.push_front(candidate);
                    return Ok(None);
                }
                Standing::Out => self.idle.push(candidate.probe),
                Standing::Known => {
                    if let Some(chosen) = self.judge(candidate) {
                        return Ok(Some(chosen));
                    }
                }
            }
        }
        let best = self.best.take_if(|_| self.complete);
        Ok(best.map(|(_, best)| self.chosen(best)))
    }

    /// The verdict when no more data comes, which is of no candidate where one more could have been added; the round is over. A candidate
    /// of which too little was seen is taken with its whole window, unless another is known.
    ///
    /// # Errors
    /// As `choose`.
    pub(super) fn choose_now(&mut self) -> Result<Option<Chosen>, InflateError> {
        let mut chosen = self.choose()?;
        if let Some(Candidate { boundary, .. }) = self.running.pop_front() {
            chosen = Some(match self.best.take() {
                Some((_, best)) => self.chosen(best),
                None => Chosen { draft: boundary.draft(), window: Some(boundary.window) },
            });
        }
        self.clear();
        Ok(chosen)
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
        let Candidate { mut boundary, probe, .. } = candidate;
        probe.clear_unused(&mut boundary.window);
        let is_used = probe.used().bytes > 0;
        self.idle.push(probe);
        self.clear();
        Chosen { draft: boundary.draft(), window: is_used.then_some(boundary.window) }
    }

    /// The round is over.
    pub(super) fn clear(&mut self) {
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
    /// The member is at its end, or the decoder has come to where it needs the verdict: see [`Jury::choose_now`].
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
    let failed = |error: InflateError| probe_error(layer, &error);
    let (mut jury, mut compressor) = (Jury::default(), WindowCompressor::new()?);
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
                jury.feed(&bytes);
                (jury.choose().map_err(failed)?, false)
            }
            Evidence::Complete => {
                jury.complete();
                (jury.choose().map_err(failed)?, false)
            }
            Evidence::Over => (jury.choose_now().map_err(failed)?, true),
        };
        if chosen.is_none() && !is_over {
            continue;
        }
        decided = Some(round);
        // The decoder reads a verdict a round; one that is gone has failed, and says why itself.
        let _ = verdicts.send(chosen.as_ref().map(|chosen| chosen.draft));
        if let Some((draft, window)) = chosen.and_then(|chosen| chosen.window.map(|window| (chosen.draft, window))) {
            frames.push((draft.stream, compressor.compress(&window)?));
        }
    }
    Ok(frames)
}

/// What a probe says of bytes that the decoder has been through.
pub(super) fn probe_error(layer: Digest, error: &InflateError) -> IndexError {
    let expected = "data that decodes again from a block boundary".to_owned();
    IndexError::Layer { layer, place: "the 32 KiB after a checkpoint".to_owned(), expected, found: error.reason.clone() }
}
