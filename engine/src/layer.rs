//! A layer as the node has it, shared by every image whose spans are the same.

mod doubt;

use std::{
    collections::HashMap,
    ops::Range,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use clip_format::{
    checkpoints::{SpanStart, SpanTable},
    digest::Digest,
    units::SpanIndex,
};
use crossbeam::utils::CachePadded;

use crate::{
    backlog::Backlog,
    buffers::Buffers,
    cache::{layer_file::LayerFile, lease::Standing},
    chain::Chains,
    core::connections,
    error::{EngineError, ErrorKind},
    line_limit::LineLimit,
    metrics::{Counters, count},
    neighbour::Neighbours,
    progress::Progress,
    quota::Quota,
    read::PendingRead,
    span::{SPAN_LEN_MAX, SpanState, SpanStates, VerifiedSpan},
    tend::Tended,
    unread::Unread,
};

/// Turns of one span's state that a reader follows before it gives up. Each turn means that another thread, or damage on the disk,
/// changed the state meanwhile. Source: two are ordinary (damaged, then claimed by another); the rest is room.
const TURNS_MAX: usize = 16;
/// Locks that verification from disk is spread over, so that one span is not hashed by many readers at once. Source: judgement,
/// not measured: a mount has four session threads by default, so that two with different spans seldom share one.
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
    /// Requests under way to the blob.
    pub(crate) connections: Arc<Quota>,
    /// Background requests under way, where a reader finds the spans that it waits for.
    pub(crate) backlog: Backlog,
    /// Spans that nobody has read yet though they were brought.
    pub(crate) unread: Unread,
    /// Those of them that were brought as neighbours of what was missed.
    neighbours: Neighbours,
    /// Where bytes of spans are decoded to, and read to.
    pub(crate) buffers: Arc<Buffers>,
    pub(crate) progress: Progress,
    /// Requests that failed, of whatever image: what was to be read ahead before that is left to readers.
    pub(crate) failed_fetches: AtomicU64,
    /// Why the latest of them did, and when.
    failure: Mutex<Option<(Instant, EngineError)>>,
    in_flight: Mutex<HashMap<SpanIndex, InFlight>>,
    /// The chains of zstd layers, by the digest of the table that says where they are.
    chains: Mutex<Vec<([u8; 32], Weak<Chains>)>>,
    verifying: [Mutex<()>; VERIFY_LOCKS],
    mending: Mutex<()>,
    /// Rises by one when the file is found changed by somebody else, and again when that is mended: odd meanwhile. Read by every read.
    doubts: CachePadded<AtomicU64>,
    lines: LineLimit,
    counters: Arc<Counters>,
}

/// A span in flight: who waits, then its bytes until they are on disk.
///
/// Invariant: from when a job has taken it until that job lets go of it, nobody else ends its flight.
#[derive(Default)]
struct InFlight {
    waiters: Vec<Arc<PendingRead>>,
    /// A job answers for it; else the first that takes it will, be that its claimant's or one that passes it before.
    is_taken: bool,
    verified: Option<VerifiedSpan>,
}

/// What became of a read's wish for one span.
pub(crate) enum Obtained {
    /// The read has them.
    Taken,
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
        tended: &Tended,
    ) -> Result<Self, EngineError> {
        let file = LayerFile::open(dir, table, tended.watcher())?;
        Ok(Self {
            digest,
            table: table.clone(),
            states: SpanStates::new(table.len(), |span| file.presence().get(span)),
            file,
            connections: connections(connections_max),
            backlog: Backlog::default(),
            unread: Unread::new(table.len()),
            neighbours: Neighbours::new(table.len()),
            buffers: tended.buffers.clone(),
            progress: Progress::default(),
            failed_fetches: AtomicU64::new(0),
            failure: Mutex::default(),
            in_flight: Mutex::default(),
            chains: Mutex::default(),
            verifying: Default::default(),
            mending: Mutex::default(),
            doubts: CachePadded::new(AtomicU64::new(0)),
            lines: LineLimit::default(),
            counters,
        })
    }

    /// The chains of an image whose index is `table`. Images share them where they cannot mislead each other: a zstd layer needs nothing but
    /// its table to be decoded, while another image's windows may be wrong.
    pub(crate) fn chains_of(&self, table: &SpanTable) -> Arc<Chains> {
        if table.is_empty() || !matches!(table.span(SpanIndex(0)).start, SpanStart::Frame { .. }) {
            return Arc::default();
        }
        let digest = table.records_digest();
        let mut known = self.chains.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|(_, chains)| chains.strong_count() > 0);
        if let Some(chains) = known.iter().find(|(of, _)| *of == digest).and_then(|(_, chains)| chains.upgrade()) {
            return chains;
        }
        let chains = Arc::<Chains>::default();
        known.push((digest, Arc::downgrade(&chains)));
        chains
    }

    /// Gives `read` its part of `span`, now or later.
    pub(crate) fn obtain(&self, span: SpanIndex, read: &Arc<PendingRead>) -> Result<Obtained, EngineError> {
        for _ in 0..TURNS_MAX {
            let doubts = self.doubts();
            match self.states.get(span) {
                SpanState::Present => {
                    if self.take_present(span, read, doubts) {
                        return Ok(Obtained::Taken);
                    }
                }
                SpanState::Unverified => {
                    if let Some(verified) = self.verify(span) {
                        read.take(span, verified.bytes());
                        return Ok(Obtained::Taken);
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

    /// Takes it from the file. False when that was not the span's bytes for sure; its state has changed then, or what is known of the file.
    fn take_present(&self, span: SpanIndex, read: &PendingRead, doubts: u64) -> bool {
        let taken = if self.file.standing() == Standing::Shared {
            self.read_verified(span).map(|verified| read.take(span, verified.bytes())).is_some()
        } else if read.take_from_file(span, &self.file) {
            return self.is_sure(doubts);
        } else {
            false
        };
        if !taken {
            self.doubt_file();
            self.states.change(span, SpanState::Present, SpanState::Unverified);
        }
        taken
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
                    read.take(span, verified.bytes());
                    return Some(Obtained::Taken);
                }
            }
        }
        if !self.states.change(span, SpanState::Absent, SpanState::InFlight) {
            return None;
        }
        in_flight.insert(span, InFlight { waiters: vec![read.clone()], ..InFlight::default() });
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

    /// As [`Self::claim`], of a span that no reader has asked for.
    pub(crate) fn claim_ahead(&self, span: SpanIndex) -> bool {
        let claimed = self.claim(span);
        if claimed {
            self.unread.add(span);
            count(&self.counters.spans_prefetched, 1);
        }
        claimed
    }

    /// Makes `span`, which somebody has claimed, the caller's to bring or to fail. False when it is another's already, or in flight no more:
    /// then its claimant has nothing left to do for it.
    pub(crate) fn take(&self, span: SpanIndex) -> bool {
        self.lock().get_mut(&span).is_some_and(|entry| !std::mem::replace(&mut entry.is_taken, true))
    }

    /// Gives `span`, which the caller has taken and not brought, to whoever takes it next.
    pub(crate) fn let_go(&self, span: SpanIndex) {
        if let Some(entry) = self.lock().get_mut(&span) {
            entry.is_taken = false;
        }
    }

    /// Those of `spans` that are claimed and that no job has taken.
    pub(crate) fn untaken(&self, spans: &[SpanIndex]) -> Vec<SpanIndex> {
        let in_flight = self.lock();
        let is_untaken = |span: &SpanIndex| in_flight.get(span).is_some_and(|entry| !entry.is_taken);
        spans.iter().copied().filter(is_untaken).collect()
    }

    /// Spans in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.lock().len()
    }

    /// Those of `spans` that readers wait for.
    pub(crate) fn waited_for(&self, spans: &[SpanIndex]) -> Vec<SpanIndex> {
        let in_flight = self.lock();
        let is_waited_for = |span: &SpanIndex| in_flight.get(span).is_some_and(|entry| !entry.waiters.is_empty());
        spans.iter().copied().filter(is_waited_for).collect()
    }

    /// A reader uses `spans`: what of them was brought before anybody asked is needed after all.
    ///
    /// True when a neighbour that was brought with a missed span is among them.
    ///
    /// Cost: one load where nothing of the layer waits to be read.
    pub(crate) fn note_used(&self, spans: Range<u32>) -> bool {
        if self.unread.is_empty() {
            return false;
        }
        let mut was_guessed = false;
        for span in spans.map(SpanIndex).filter(|&span| self.unread.remove(span)) {
            count(&self.counters.spans_prefetched_used, 1);
            self.note_needed(span);
            was_guessed |= self.neighbours.note_used(span);
        }
        was_guessed
    }

    /// The absent neighbour of `spans` that is worth bringing now, which counts as brought.
    pub(crate) fn neighbour_of(&self, spans: &Range<u32>) -> Option<SpanIndex> {
        let is_absent = |span: SpanIndex| span.get() < self.table.len() && self.states.get(span) == SpanState::Absent;
        let span = self.neighbours.of(spans, is_absent)?;
        self.neighbours.note_brought(span);
        Some(span)
    }

    /// A reader has asked for `span`, which was absent.
    pub(crate) fn note_needed(&self, span: SpanIndex) {
        let (stream, next) = (self.table.stream_range(span), SpanIndex(span.get() + 1));
        let compressed_end =
            if next.get() < self.table.len() { self.table.span(next).compressed.get() } else { self.table.compressed_size() };
        count(&self.counters.spans_needed, 1);
        count(&self.counters.bytes_needed, stream.end - stream.start);
        count(&self.counters.bytes_needed_compressed, compressed_end.saturating_sub(self.table.span(span).compressed.get()));
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
            self.file.presence().set(span, false);
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
        let mut bytes = self.buffers.take(len as usize);
        self.file.read_exact_at(&mut bytes, range.start).ok()?;
        VerifiedSpan::verify(bytes, &self.table.span(span).digest).ok()
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
            waiter.take(span, verified.bytes());
            waiter.part_done();
        }
    }

    /// Ends a delivered span's flight: it was written when [`Self::doubts`] was so many, or it could not be kept and is absent again.
    pub(crate) fn settle(&self, span: SpanIndex, written: Option<u64>) {
        if written.is_some() {
            self.file.presence().set(span, true);
        }
        let mut in_flight = self.lock();
        match written {
            Some(doubts) => self.trust(span, SpanState::InFlight, doubts),
            None => self.not_brought(span),
        }
        in_flight.remove(&span);
    }

    /// `span` is absent again. That was not its reader's doing: it does not count as brought in vain. Under the lock, before somebody
    /// can claim it again.
    fn not_brought(&self, span: SpanIndex) {
        self.unread.remove(span);
        self.neighbours.take_back(span);
        self.states.change(span, SpanState::InFlight, SpanState::Absent);
    }

    /// Ends a flight that failed; gives those who waited.
    pub(crate) fn abandon(&self, span: SpanIndex) -> Vec<Arc<PendingRead>> {
        let mut in_flight = self.lock();
        self.not_brought(span);
        in_flight.remove(&span).map(|entry| entry.waiters).unwrap_or_default()
    }

    /// A request for the layer failed.
    pub(crate) fn note_fetch_failed(&self, error: &EngineError) {
        self.failed_fetches.fetch_add(1, Ordering::Relaxed);
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), error.clone()));
    }

    /// Why a request for the layer failed within `time`, where that was nobody's bytes but the registry's absence.
    pub(crate) fn unavailable_since(&self, time: Duration) -> Option<EngineError> {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = failure.as_ref().filter(|(at, error)| at.elapsed() < time && error.kind() == ErrorKind::Unavailable);
        recent.map(|(_, error)| error.clone())
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
