//! A layer as the node has it, shared by every image whose spans are the same.

use std::{
    collections::HashMap,
    ops::Range,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use clip_format::{checkpoints::SpanTable, digest::Digest, units::SpanIndex};
use tokio::sync::Semaphore;

use crate::{
    cache::layer_file::{LayerFile, note_presence},
    error::EngineError,
    line_limit::LineLimit,
    metrics::{Counters, count},
    needed::Needed,
    progress::Progress,
    read::PendingRead,
    span::{SPAN_LEN_MAX, SpanState, SpanStates, VerifiedSpan},
};

/// Turns of one span's state that a reader follows before it gives up. Each turn means that another thread, or damage on the disk,
/// changed the state meanwhile. Source: two are ordinary (damaged, then claimed by another); the rest is room.
const TURNS_MAX: usize = 16;
/// Locks that verification from disk is spread over, so that one span is not hashed by many readers at once.
const VERIFY_LOCKS: usize = 16;

/// The node's copy of a layer: its file, the state of each span, and who waits for spans in flight.
///
/// Invariant: a span's state is in flight exactly while it has an entry in `in_flight`; both change under its lock.
pub(crate) struct LayerStore {
    /// The layer's own digest, for messages.
    pub(crate) digest: Digest,
    /// Its stream offsets and span digests; entries and compressed offsets are each image's own.
    pub(crate) table: SpanTable,
    pub(crate) file: LayerFile,
    pub(crate) states: SpanStates,
    needed: Needed,
    pub(crate) connections: Arc<Semaphore>,
    /// The part of them that read-ahead may use.
    pub(crate) prefetch_connections: Arc<Semaphore>,
    pub(crate) progress: Progress,
    /// Requests that failed, of whatever image: what was to be read ahead before that is left to readers.
    pub(crate) failed_fetches: AtomicU64,
    in_flight: Mutex<HashMap<SpanIndex, InFlight>>,
    verifying: [Mutex<()>; VERIFY_LOCKS],
    mending: Mutex<()>,
    /// Rises by one when the file is found changed by somebody else, and again when that is mended: odd meanwhile.
    doubts: AtomicU64,
    lines: LineLimit,
    counters: Arc<Counters>,
}

/// A span in flight: who waits, then its bytes until they are on disk.
#[derive(Default)]
struct InFlight {
    waiters: Vec<Arc<PendingRead>>,
    verified: Option<VerifiedSpan>,
}

/// What became of a read's wish for one span.
pub(crate) enum Obtained {
    /// The bytes were copied.
    Copied,
    /// They will be delivered.
    Waiting,
    /// They will be delivered once the caller has started a fetch: the span is claimed.
    Claimed,
}

impl LayerStore {
    pub(crate) fn open(
        dir: PathBuf,
        digest: Digest,
        table: &SpanTable,
        connections_max: usize,
        counters: Arc<Counters>,
    ) -> Result<Self, EngineError> {
        let file = LayerFile::open(dir, table)?;
        Ok(Self {
            digest,
            table: table.clone(),
            needed: Needed::new(table.len()),
            states: SpanStates::new(table.len(), |span| file.presence().get(span)),
            file,
            connections: Arc::new(Semaphore::new(connections_max.max(1))),
            prefetch_connections: Arc::new(Semaphore::new(connections_max.max(1).div_ceil(2))),
            progress: Progress::default(),
            failed_fetches: AtomicU64::new(0),
            in_flight: Mutex::default(),
            verifying: Default::default(),
            mending: Mutex::default(),
            doubts: AtomicU64::new(0),
            lines: LineLimit::default(),
            counters,
        })
    }

    /// Counts those of `spans` that no reader has asked for before.
    pub(crate) fn note_needed(&self, spans: Range<u32>) {
        for span in spans.map(SpanIndex).filter(|span| self.needed.is_first(*span)) {
            let stream = self.table.stream_range(span);
            let next = SpanIndex(span.get() + 1);
            let end = if next.get() < self.table.len() { self.table.span(next).compressed.get() } else { self.table.compressed_size() };
            count(&self.counters.spans_needed, 1);
            count(&self.counters.bytes_needed, stream.end - stream.start);
            count(&self.counters.bytes_needed_compressed, end.saturating_sub(self.table.span(span).compressed.get()));
        }
    }

    /// Gives `read` its part of `span`, now or later.
    pub(crate) fn obtain(&self, span: SpanIndex, read: &Arc<PendingRead>) -> Result<Obtained, EngineError> {
        for _ in 0..TURNS_MAX {
            let doubts = self.doubts();
            match self.states.get(span) {
                SpanState::Present => {
                    if !read.copy_from_file(span, &self.file) {
                        self.doubt_file();
                        self.states.change(span, SpanState::Present, SpanState::Unverified);
                    } else if self.undoubted_since(doubts) {
                        return Ok(Obtained::Copied);
                    }
                }
                SpanState::Unverified => {
                    if let Some(verified) = self.verify(span) {
                        read.copy(span, verified.bytes());
                        return Ok(Obtained::Copied);
                    }
                }
                SpanState::Absent | SpanState::InFlight => {
                    if let Some(obtained) = self.join(span, read) {
                        return Ok(obtained);
                    }
                }
            }
        }
        Err(self.bad(span, "a cache file that stays as it was written", "one that keeps changing"))
    }

    /// Waits for `span` or claims it; `None` when its state changed meanwhile.
    fn join(&self, span: SpanIndex, read: &Arc<PendingRead>) -> Option<Obtained> {
        let mut in_flight = self.lock();
        if let Some(entry) = in_flight.get_mut(&span) {
            match entry.verified.clone() {
                None => {
                    entry.waiters.push(read.clone());
                    return Some(Obtained::Waiting);
                }
                Some(verified) => {
                    drop(in_flight);
                    read.copy(span, verified.bytes());
                    return Some(Obtained::Copied);
                }
            }
        }
        if !self.states.change(span, SpanState::Absent, SpanState::InFlight) {
            return None;
        }
        in_flight.insert(span, InFlight { waiters: vec![read.clone()], verified: None });
        Some(Obtained::Claimed)
    }

    /// Claims `span` for a fetch that nobody waits for yet. False when it is not absent.
    pub(crate) fn claim(&self, span: SpanIndex) -> bool {
        let mut in_flight = self.lock();
        let claimed = self.states.change(span, SpanState::Absent, SpanState::InFlight);
        if claimed {
            in_flight.insert(span, InFlight::default());
        }
        claimed
    }

    /// Hashes an unverified span from disk. `None` when it was damaged and is absent now, or when its state changed meanwhile.
    pub(crate) fn verify(&self, span: SpanIndex) -> Option<VerifiedSpan> {
        let _one_at_a_time = self.verifying[span.get() as usize % VERIFY_LOCKS].lock().unwrap_or_else(PoisonError::into_inner);
        if self.states.get(span) != SpanState::Unverified {
            return None;
        }
        let doubts = self.doubts();
        let verified = self.read_verified(span);
        if verified.is_some() {
            self.trust(span, SpanState::Unverified, doubts);
        } else if self.states.change(span, SpanState::Unverified, SpanState::Absent) {
            note_presence(&self.file, span, false);
            count(&self.counters.spans_repaired, 1);
            if let Some(unsaid) = self.lines.next() {
                let path = self.file.dir().display();
                tracing::warn!(layer = %self.digest, span = span.get(), %path, unsaid, "a cached span is damaged and is fetched again");
            }
        }
        verified
    }

    fn read_verified(&self, span: SpanIndex) -> Option<VerifiedSpan> {
        let range = self.table.stream_range(span);
        let len = Some(range.end - range.start).filter(|&len| len <= SPAN_LEN_MAX)?;
        let mut bytes = vec![0; len as usize];
        self.file.read_exact_at(&mut bytes, range.start).ok()?;
        VerifiedSpan::verify(bytes, &self.table.span(span).digest).ok()
    }

    /// After a sign that the file was changed by somebody else: if its length is wrong, no span is trusted before it is hashed, and then
    /// the length is right again.
    pub(crate) fn doubt_file(&self) {
        let _one_at_a_time = self.mending.lock().unwrap_or_else(PoisonError::into_inner);
        if self.file.is_intact() {
            return;
        }
        if let Some(unsaid) = self.lines.next() {
            let path = self.file.dir().display();
            tracing::warn!(layer = %self.digest, %path, unsaid, "a cache file was changed by another process; its spans are verified again");
        }
        self.doubts.fetch_add(1, Ordering::AcqRel);
        self.states.doubt_all();
        let mended = self.file.restore_length();
        self.doubts.fetch_add(1, Ordering::AcqRel);
        if let Err(error) = mended
            && let Some(unsaid) = self.lines.next()
        {
            tracing::warn!(%error, unsaid, "a cache file could not be mended");
        }
    }

    /// How often the file was found changed and mended, to be asked for again after it was used.
    pub(crate) fn doubts(&self) -> u64 {
        self.doubts.load(Ordering::Acquire)
    }

    /// Whether bytes of present spans, used since there were so many `doubts` and before the file was seen intact, are right. A cut file
    /// is either still cut when it is looked at, or was mended, which counts; the state alone may be trusted anew by then.
    pub(crate) fn undoubted_since(&self, doubts: u64) -> bool {
        doubts.is_multiple_of(2) && self.doubts() == doubts
    }

    /// Makes `span`, whose bytes were seen or written when there were so many `doubts`, present; unverified when the file was found
    /// changed since.
    fn trust(&self, span: SpanIndex, from: SpanState, doubts: u64) {
        let _nobody_mends = self.mending.lock().unwrap_or_else(PoisonError::into_inner);
        if self.undoubted_since(doubts) {
            self.states.change(span, from, SpanState::Present);
        } else if from == SpanState::InFlight {
            self.states.change(span, from, SpanState::Unverified);
        }
    }

    /// Hands verified bytes to all who wait for `span`; who comes before [`Self::settle`] gets them from memory too.
    pub(crate) fn deliver(&self, span: SpanIndex, verified: &VerifiedSpan) {
        let waiters = match self.lock().get_mut(&span) {
            Some(entry) => {
                entry.verified = Some(verified.clone());
                std::mem::take(&mut entry.waiters)
            }
            None => Vec::new(),
        };
        for waiter in waiters {
            waiter.copy(span, verified.bytes());
            waiter.part_done();
        }
    }

    /// Ends a delivered span's flight: it was written when [`Self::doubts`] was so many, or it could not be kept and is absent again.
    pub(crate) fn settle(&self, span: SpanIndex, written: Option<u64>) {
        if written.is_some() {
            note_presence(&self.file, span, true);
        }
        let mut in_flight = self.lock();
        match written {
            Some(doubts) => self.trust(span, SpanState::InFlight, doubts),
            None => drop(self.states.change(span, SpanState::InFlight, SpanState::Absent)),
        }
        in_flight.remove(&span);
    }

    /// Ends a flight that failed; gives those who waited.
    pub(crate) fn abandon(&self, span: SpanIndex) -> Vec<Arc<PendingRead>> {
        let mut in_flight = self.lock();
        self.states.change(span, SpanState::InFlight, SpanState::Absent);
        in_flight.remove(&span).map(|entry| entry.waiters).unwrap_or_default()
    }

    /// An error about `span`, in words.
    pub(crate) fn bad(&self, span: SpanIndex, expected: impl Into<String>, found: impl Into<String>) -> EngineError {
        let range = self.table.stream_range(span);
        let place = format!("span {span} (stream bytes {}..{})", range.start, range.end);
        EngineError::Layer { layer: self.digest, place, expected: expected.into(), found: found.into() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SpanIndex, InFlight>> {
        self.in_flight.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
