//! One read that waits for spans: the pieces of it, and the answer when all are there.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use bytes::Bytes;
use clip_format::units::SpanIndex;

use crate::{
    cache::layer_file::LayerFile,
    core::Core,
    error::{EngineError, ErrorKind},
    image::ReadDone,
    image_layer::ImageLayer,
    layer::Obtained,
    metrics::count,
    neighbour::Reader,
};

/// Times that a read starts over, for each of its spans, with its own source after another image's fetch of it failed.
const RETRIES_MAX: usize = 8;
/// Read timeouts after which a read does not start over: it has waited for another image's dead registry and for one more.
const TIMEOUTS_MAX: u32 = 2;
/// A piece that waits for others keeps its span in memory when it is this part of it or more; a smaller one is copied. So a waiting read
/// holds five times its length at most, for buffers are a quarter too long at most. Source: judgement, not measured; a read of 1 MiB holds
/// 2.5 MiB then, with spans of 1.26 MiB.
const KEPT_SPAN_PART_MIN: usize = 4;
/// How often the watch of a deadline looks whether its read is over. Source: a second of a small task and a few hundred bytes each.
const DEADLINE_LOOK: Duration = Duration::from_secs(1);

/// A read of `range` of a layer's stream.
///
/// Invariant: each span of `range` is answered exactly once, by [`Self::part_done`] or [`Self::part_failed`].
pub(crate) struct PendingRead {
    core: Arc<Core>,
    layer: Arc<ImageLayer>,
    range: Range<u64>,
    started: Instant,
    progress: Mutex<Progress>,
}

struct Progress {
    pieces: Pieces,
    /// Spans without an answer.
    missing: usize,
    /// Starts over that are left.
    retries: usize,
    waited: bool,
    /// Why the first part that failed did.
    failed: Option<EngineError>,
    /// `None` once it was called.
    answer: Option<Answer>,
}

/// What was asked for, by its offset there: slices of decoded spans (which keep their span in memory), copies, and what was read from the
/// cache.
pub(crate) type Pieces = BTreeMap<usize, Bytes>;

/// Copies `pieces` to their places in `buffer`, which is as long as what was asked for; each is let go of once it is copied.
pub(crate) fn gather(pieces: Pieces, buffer: &mut [u8]) {
    for (at, piece) in pieces {
        buffer[at..at + piece.len()].copy_from_slice(&piece);
    }
}

/// What takes the answer of a read.
pub(crate) enum Answer {
    /// All in one.
    Whole(ReadDone),
    /// As it came, for who copies it anyway.
    Pieces(PiecesDone),
}

/// As [`ReadDone`], without the copy that puts the pieces together.
pub(crate) type PiecesDone = Box<dyn FnOnce(Result<Pieces, EngineError>) + Send>;

impl Answer {
    /// `whole` puts pieces together.
    pub(crate) fn give(self, result: Result<Pieces, EngineError>, whole: impl FnOnce(Pieces) -> Bytes) {
        match self {
            Answer::Whole(done) => done(result.map(whole)),
            Answer::Pieces(done) => done(result),
        }
    }
}

/// Starts a read of `range`, which lies in the stream and in `spans`; the answer may be given before this returns.
pub(crate) fn start(core: &Arc<Core>, layer: &Arc<ImageLayer>, reader: Reader, range: Range<u64>, spans: Range<u32>, answer: Answer) {
    let (missing, retries) = (spans.len(), RETRIES_MAX * spans.len());
    let progress = Progress { pieces: Pieces::new(), missing, retries, waited: false, failed: None, answer: Some(answer) };
    let read = PendingRead { core: core.clone(), layer: layer.clone(), range, started: Instant::now(), progress: Mutex::new(progress) };
    let read = Arc::new(read);
    read.request(spans.map(SpanIndex), reader);
    read.watch_deadline();
}

impl PendingRead {
    /// Obtains `spans` and starts the fetches of those that nobody has or fetches.
    fn request(self: &Arc<Self>, spans: impl Iterator<Item = SpanIndex>, reader: Reader) {
        let (mut claimed, mut waited_for, mut guessed) = (Vec::new(), Vec::new(), None);
        let store = &self.layer.store;
        for span in spans {
            match store.obtain(span, self) {
                Ok(Obtained::Taken) => {
                    guessed = store.note_used(span.get()..span.get() + 1).then_some(span).or(guessed);
                    self.part_done();
                }
                Ok(Obtained::Waiting) => {
                    guessed = store.note_used(span.get()..span.get() + 1).then_some(span).or(guessed);
                    self.lock().waited = true;
                    waited_for.push(span);
                }
                Ok(Obtained::Claimed) => {
                    store.unread.remove(span);
                    store.note_needed(span);
                    self.lock().waited = true;
                    claimed.push(span);
                }
                Err(error) => self.part_answered(Some(error)),
            }
        }
        if reader == Reader::Loading {
            self.bring_neighbour(&mut claimed);
        }
        if let Some(span) = guessed {
            self.core.guess_beside(&self.layer, &(span.get()..span.get() + 1));
        }
        if !claimed.is_empty() {
            self.core.fetch(&self.layer, claimed);
        }
        self.core.hurry(store, &waited_for);
    }

    /// Adds the span behind `claimed` to them, so that one request brings both, or has the one before them read ahead.
    fn bring_neighbour(&self, claimed: &mut Vec<SpanIndex>) {
        let store = &self.layer.store;
        let (Some(first), Some(last)) = (claimed.first(), claimed.last()) else { return };
        let (start, end) = (first.get(), last.get() + 1);
        match store.neighbour_of(&(start..end)) {
            Some(next) if next.get() == end => claimed.extend(store.claim_ahead(next).then_some(next)),
            Some(before) => self.core.read_ahead(&self.layer, before.get()..before.get() + 1),
            None => {}
        }
    }

    /// Takes the part of `span` that this read covers from the span's bytes. Cost: a copy of a small part of a span, if others are to come.
    pub(crate) fn take(&self, span: SpanIndex, bytes: &Bytes) {
        let (part, at) = self.part(span);
        let start = (part.start - self.layer.store.table.stream_range(span).start) as usize;
        let slice = bytes.slice(start..start + at.len());
        let is_kept = at.len() == self.len() || at.len() >= bytes.len() / KEPT_SPAN_PART_MIN;
        self.note(at.start, if is_kept { slice } else { Bytes::copy_from_slice(&slice) });
    }

    /// As `take`, by pread. False when the file could not be read.
    pub(crate) fn take_from_file(&self, span: SpanIndex, file: &LayerFile) -> bool {
        let (part, at) = self.part(span);
        let mut bytes = self.layer.store.buffers.take(at.len());
        let is_read = file.read_exact_at(&mut bytes, part.start).is_ok();
        if is_read {
            self.note(at.start, bytes.into());
        }
        is_read
    }

    fn note(&self, at: usize, piece: Bytes) {
        let mut progress = self.lock();
        // Nobody wants the bytes once the read has been answered.
        if progress.answer.is_some() {
            progress.pieces.insert(at, piece);
        }
    }

    /// Cost: a copy, unless there is one piece.
    fn whole(&self, pieces: Pieces) -> Bytes {
        if let (1, Some((0, only))) = (pieces.len(), pieces.first_key_value()) {
            return only.clone();
        }
        let mut whole = self.layer.store.buffers.take(self.len());
        gather(pieces, &mut whole);
        whole.into()
    }

    /// Bytes asked for.
    fn len(&self) -> usize {
        (self.range.end - self.range.start) as usize
    }

    /// What this read covers of `span`: in the stream, and in the buffer.
    fn part(&self, span: SpanIndex) -> (Range<u64>, Range<usize>) {
        let whole = self.layer.store.table.stream_range(span);
        let part = whole.start.max(self.range.start)..whole.end.min(self.range.end);
        let at = (part.start - self.range.start) as usize..(part.end - self.range.start) as usize;
        (part, at)
    }

    /// A span's bytes have been copied. The last one completes the read.
    pub(crate) fn part_done(&self) {
        self.part_answered(None);
    }

    /// One part has its answer. The read has its own with the last, an error too: else who asks again after it would join what is still
    /// in flight for the same reason.
    fn part_answered(&self, error: Option<EngineError>) {
        let mut progress = self.lock();
        progress.missing = progress.missing.saturating_sub(1);
        if let Some(error) = error {
            progress.failed.get_or_insert(error);
        }
        if progress.missing == 0 {
            let pieces = std::mem::take(&mut progress.pieces);
            let failed = progress.failed.take();
            drop(progress);
            self.finish(failed.map_or(Ok(pieces), Err));
        }
    }

    /// The fetch of a span by `failed` failed. When that was another image, this read tries its own source, unless that is the same one
    /// and did not answer: wrong bytes may be the fault of the other's index.
    pub(crate) fn part_failed(self: &Arc<Self>, span: SpanIndex, error: &EngineError, failed: &Arc<ImageLayer>) {
        let same_source =
            Arc::ptr_eq(&self.layer, failed) || error.kind() != ErrorKind::Corrupt && self.layer.source.is_same(&failed.source);
        // Of several hosts one sent wrong bytes: another may have the right ones.
        let elsewhere = error.kind() == ErrorKind::Corrupt && self.layer.source.has_untried_host(&self.core.client);
        let in_time = self.started.elapsed() < self.core.config.read_timeout.saturating_mul(TIMEOUTS_MAX);
        let mut progress = self.lock();
        let again = (elsewhere || !same_source) && in_time && progress.retries > 0 && progress.answer.is_some();
        progress.retries = progress.retries.saturating_sub(1);
        drop(progress);
        if again && !self.core.is_stopping() {
            self.request(std::iter::once(span), Reader::Other);
        } else {
            self.part_answered(Some(error.clone()));
        }
    }

    /// Answers the read, once.
    fn finish(&self, result: Result<Pieces, EngineError>) {
        let mut progress = self.lock();
        let Some(answer) = progress.answer.take() else { return };
        let (unwanted, waited) = (std::mem::take(&mut progress.pieces), progress.waited);
        drop(progress);
        drop(unwanted);
        let counters = &self.core.counters;
        match &result {
            Ok(_) => counters.bytes_read.add(self.len() as u64),
            Err(_) => count(&counters.reads_failed, 1),
        }
        if waited {
            count(&counters.reads_waited, 1);
            counters.read_took(self.started.elapsed(), || format!("{} {}", self.layer.store.digest, self.range.start));
        }
        answer.give(result, |pieces| self.whole(pieces));
    }

    fn watch_deadline(self: &Arc<Self>) {
        let Some(after) = self.core.config.read_deadline else { return };
        // A time that the clock cannot hold never comes.
        let Some(at) = self.started.checked_add(after) else { return };
        if self.lock().answer.is_some() {
            self.core.watch_read(Deadline { read: Arc::downgrade(self), at, after });
        }
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A read that fails at `at` if it has not been answered.
pub(crate) struct Deadline {
    read: Weak<PendingRead>,
    at: Instant,
    after: Duration,
}

/// A read that nobody will answer any more (a panic in an engine thread lost it) is answered all the same.
impl Drop for PendingRead {
    fn drop(&mut self) {
        self.finish(Err(EngineError::Stopped));
    }
}

impl Deadline {
    /// Waits for the deadline, or until the read is over.
    pub(crate) async fn watch(self) {
        while Instant::now() < self.at {
            if self.read.strong_count() == 0 {
                return;
            }
            tokio::time::sleep_until(self.at.min(Instant::now() + DEADLINE_LOOK).into()).await;
        }
        self.expire();
    }

    fn expire(self) {
        if let Some(read) = self.read.upgrade() {
            let what = format!("read of stream bytes {}..{} of layer {}", read.range.start, read.range.end, read.layer.store.digest);
            read.finish(Err(EngineError::Deadline { what, waited: self.after }));
        }
    }
}
