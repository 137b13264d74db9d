//! Which deflate block boundaries are candidates for the next checkpoint, and how the decoder learns which is taken.
//!
//! What a boundary's window takes in the index varies by a hundred times within a layer, so a few boundaries are probed and the
//! cheapest is taken, or the first cheap one at once. Without windows only a boundary that needs none may be taken: the others drop
//! out as soon as data after them refers back.
//!
//! The decoder does not wait for the probes, which run on a thread of their own (`jury.rs`): it goes on to where the span after the
//! earliest candidate would be over, and only there it needs the verdict. Candidates that are added meanwhile change no verdict.

use std::{ops::RangeInclusive, time::Duration};

use bytes::Bytes;
use clip_engine::inflate::Until;
use clip_format::{digest::Digest, limits::WINDOW_BYTES};
use crossbeam::channel::{Receiver, Sender};

use super::{
    jury::{Boundary, Evidence, Jury, Told, Verdict, probe_error},
    spans::SpanDraft,
};
use crate::{cpu_clock::CpuMeter, error::IndexError};

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
/// Stream bytes that the decoder may go past the last candidate's probe before it waits for the verdict: it holds them back, too.
/// Source: as `REACH_BYTES_MAX`; at the default span size the end of the span comes first.
const LEAD_BYTES_MAX: u64 = 4 << 20;
/// Compressed bytes of a round from which the probes are fed, beside as many as the stream bytes from the first candidate to the last.
/// Source: data that cannot be compressed takes a thousandth more; but blocks of no output may stand in it in any number.
const FED_BEYOND_BYTES_MAX: usize = 1 << 20;

/// Who judges the candidates.
pub(super) enum Judged {
    /// The decoder itself, and only those that need no window: nothing is decided late.
    Windowless(Box<Jury>),
    /// A thread that runs `judge_rounds`.
    Beside { told: Sender<Told>, verdicts: Receiver<Verdict> },
}

/// The boundaries that the next checkpoint is chosen from.
pub(super) struct Candidates {
    layer: Digest,
    judged: Judged,
    span_bytes: u64,
    /// Stream bytes from the first to the last.
    reach: u64,
    /// Rounds so far: a round is from the first candidate to the verdict.
    round: u64,
    /// How many were added in this round.
    admitted: usize,
    first: u64,
    last: u64,
    /// Compressed bytes from which this round's probes may yet be fed.
    feed_left: usize,
    /// Stream offsets where another may follow.
    admissible: RangeInclusive<u64>,
    /// No more can follow, and the jury knows.
    is_complete: bool,
    /// What the probes and the windows cost on the decoder's own thread.
    meter: CpuMeter,
}

impl Candidates {
    pub(super) fn new(layer: Digest, span_bytes: u64, judged: Judged) -> Self {
        Self {
            layer,
            judged,
            span_bytes,
            reach: (span_bytes / REACH_SPAN_PARTS).min(REACH_BYTES_MAX),
            round: 0,
            admitted: 0,
            first: 0,
            last: 0,
            feed_left: 0,
            admissible: 0..=0,
            is_complete: false,
            meter: CpuMeter::default(),
        }
    }

    /// Stream offset of the first candidate: blocks from there on may yet be cut.
    pub(super) fn first(&self) -> Option<u64> {
        (self.admitted > 0).then_some(self.first)
    }

    /// True where only boundaries that need no window are taken.
    pub(super) fn windowless(&self) -> bool {
        matches!(self.judged, Judged::Windowless(_))
    }

    /// Processor time that the decoder's thread spent on candidates.
    pub(super) fn cpu(&self) -> Duration {
        self.meter.spent()
    }

    /// Up to where the decoder may go now from stream offset `at`, and whether block boundaries on the way matter; `None` without
    /// candidates. A boundary just where a `Full` stretch ends might be passed over, so these end a byte earlier.
    pub(super) fn next_stop(&self, at: u64) -> Option<(u64, Until)> {
        if self.admitted == 0 {
            return None;
        }
        if self.windowless() {
            return Some((self.probed(), Until::Block));
        }
        let (start, end) = (*self.admissible.start(), *self.admissible.end());
        Some(match self.is_complete {
            true => (self.due(), Until::Full),
            false if at + 1 < start => (start - 1, Until::Full),
            false => (end + 1, Until::Block),
        })
    }

    /// True when a boundary at stream offset `at` is worth a probe, which is over before the span must end at `end_max`.
    pub(super) fn admits(&self, at: u64, end_max: u64) -> bool {
        match self.admitted {
            0 => at + WINDOW_BYTES as u64 <= end_max,
            admitted => admitted < CANDIDATES_MAX && self.admissible.contains(&at),
        }
    }

    /// Adds the boundary at stream offset `at`, which was admitted.
    pub(super) fn add(&mut self, at: u64, end_max: u64, boundary: impl FnOnce() -> Boundary) {
        if self.admitted == 0 {
            self.round += 1;
            (self.first, self.is_complete) = (at, false);
            self.feed_left = self.reach as usize + FED_BEYOND_BYTES_MAX;
            self.admissible = at..=(at + self.reach).min(end_max - WINDOW_BYTES as u64);
        }
        self.admitted += 1;
        self.last = at;
        self.admissible = at + (self.reach / STEP_REACH_PARTS).max(1)..=*self.admissible.end();
        let (judged, round) = (&mut self.judged, self.round);
        self.meter.count(|| match judged {
            Judged::Windowless(jury) => jury.add(boundary()),
            // Here and below: a channel that is closed means that the jury failed, and it says why itself.
            Judged::Beside { told, .. } => drop(told.send((round, Evidence::Candidate(boundary())))),
        });
        self.note_complete(at);
    }

    /// Takes the next compressed bytes after the last candidate; the decoder was at stream offset `before` when it began with them. Of a
    /// round so many and no more: which these are does not depend on how the blob comes in.
    ///
    /// # Errors
    /// Data that is no deflate stream.
    pub(super) fn feed(&mut self, before: u64, input: impl FnOnce() -> Bytes) -> Result<(), IndexError> {
        if self.admitted == 0 || self.feed_left == 0 {
            return Ok(());
        }
        let mut input = input();
        input.truncate(self.feed_left);
        self.feed_left -= input.len();
        if before >= self.last + WINDOW_BYTES as u64 {
            return Ok(());
        }
        match &mut self.judged {
            Judged::Beside { told, .. } => drop(told.send((self.round, Evidence::Bytes(input)))),
            Judged::Windowless(jury) => {
                let dropped = self.meter.count(|| {
                    jury.feed(&input);
                    jury.drop_dependent()
                });
                if dropped.map_err(|error| probe_error(self.layer, &error))? {
                    self.admitted = 0;
                }
            }
        }
        Ok(())
    }

    /// The choice, where it is known; there are no candidates then. Waits for it where the decoder, at stream offset `at`, may not go on.
    ///
    /// # Errors
    /// When the jury is gone.
    pub(super) fn choose(&mut self, at: u64) -> Result<Option<SpanDraft>, IndexError> {
        if self.admitted == 0 {
            return Ok(None);
        }
        self.note_complete(at);
        let is_over = at >= self.due();
        self.verdict(is_over)
    }

    /// The member is at its end, and so are all probes: the choice, unless the place after it may still be the better one.
    ///
    /// # Errors
    /// When the jury is gone.
    pub(super) fn choose_at_member_end(&mut self, at: u64) -> Result<Option<SpanDraft>, IndexError> {
        if self.admitted == 0 {
            return Ok(None);
        }
        self.note_complete(at);
        let verdict = self.verdict(true);
        self.admitted = 0;
        verdict
    }

    fn verdict(&mut self, is_over: bool) -> Result<Option<SpanDraft>, IndexError> {
        let chosen = match &mut self.judged {
            Judged::Windowless(jury) => {
                // What is not looked at may need a window.
                let is_cut = self.feed_left == 0;
                let chosen = if is_over && !is_cut { jury.choose_now() } else { jury.choose() };
                let chosen = chosen.map_err(|error| probe_error(self.layer, &error))?.map(|chosen| chosen.draft);
                if chosen.is_none() && is_cut {
                    jury.clear();
                    self.admitted = 0;
                }
                chosen
            }
            Judged::Beside { told, verdicts } => {
                let verdict = if is_over {
                    drop(told.send((self.round, Evidence::Over)));
                    Some(verdicts.recv().map_err(|_| jury_gone(self.layer))?)
                } else {
                    verdicts.try_recv().ok()
                };
                verdict.flatten()
            }
        };
        if chosen.is_some() {
            self.admitted = 0;
        }
        Ok(chosen)
    }

    /// Tells the jury once that nothing can be added any more.
    fn note_complete(&mut self, at: u64) {
        let may_grow = self.admitted < CANDIDATES_MAX && !self.admissible.is_empty() && at <= *self.admissible.end();
        if may_grow || self.is_complete {
            return;
        }
        self.is_complete = true;
        match &mut self.judged {
            Judged::Windowless(jury) => jury.complete(),
            Judged::Beside { told, .. } => drop(told.send((self.round, Evidence::Complete))),
        }
    }

    /// Stream offset where every probe is over.
    fn probed(&self) -> u64 {
        self.admissible.end() + WINDOW_BYTES as u64
    }

    /// Stream offset where the decoder needs the verdict: not before every probe is over, and not after the next checkpoint may be wanted.
    fn due(&self) -> u64 {
        match self.judged {
            Judged::Windowless(_) => self.probed(),
            Judged::Beside { .. } => self.probed().max((self.first + self.span_bytes - 1).min(self.probed() + LEAD_BYTES_MAX)),
        }
    }
}

/// What the decoder says when the jury has failed; its own error is the one that is told.
fn jury_gone(layer: Digest) -> IndexError {
    let place = "the choice of a checkpoint".to_owned();
    IndexError::Layer { layer, place, expected: "a verdict".to_owned(), found: "none".to_owned() }
}
