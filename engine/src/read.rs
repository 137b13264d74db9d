//! One read that waits for spans: its buffer, and the answer when all parts are there.

use std::{
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use bytes::Bytes;
use clip_format::units::SpanIndex;

use crate::{
    buffers::Buffer,
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
    bytes: Gathered,
    /// Spans without an answer.
    missing: usize,
    /// Starts over that are left.
    retries: usize,
    waited: bool,
    /// Why the first part that failed did.
    failed: Option<EngineError>,
    /// `None` once it was called.
    done: Option<ReadDone>,
}

/// What a read has got so far.
#[derive(Default)]
enum Gathered {
    /// Nothing yet, or it was given away.
    #[default]
    Nothing,
    /// All of it, as a part of the one span that it lies in.
    Slice(Bytes),
    /// Parts of several spans, or what was read from the cache.
    Parts(Buffer),
}

impl From<Gathered> for Bytes {
    fn from(gathered: Gathered) -> Bytes {
        match gathered {
            Gathered::Nothing => Bytes::new(),
            Gathered::Slice(slice) => slice,
            Gathered::Parts(buffer) => buffer.into(),
        }
    }
}

/// Starts a read of `range`, which lies in the stream and in `spans`; `done` may be called before this returns.
pub(crate) fn start(core: &Arc<Core>, layer: &Arc<ImageLayer>, reader: Reader, range: Range<u64>, spans: Range<u32>, done: ReadDone) {
    let (missing, retries) = (spans.len(), RETRIES_MAX * spans.len());
    let progress = Progress { bytes: Gathered::Nothing, missing, retries, waited: false, failed: None, done: Some(done) };
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
                Ok(Obtained::Copied) => {
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

    /// Takes the part of `span` that this read covers from the span's bytes. Cost: no copy when that is all that was asked for.
    pub(crate) fn copy(&self, span: SpanIndex, bytes: &Bytes) {
        let (part, at) = self.part(span);
        let start = (part.start - self.layer.store.table.stream_range(span).start) as usize;
        let mut progress = self.lock();
        // Nobody wants the bytes once the read has been answered.
        if progress.done.is_none() {
            return;
        }
        if at == (0..self.len()) {
            progress.bytes = Gathered::Slice(bytes.slice(start..start + at.len()));
        } else {
            self.parts(&mut progress)[at.clone()].copy_from_slice(&bytes[start..start + at.len()]);
        }
    }

    /// As `copy`, by pread. False when the file could not be read.
    pub(crate) fn copy_from_file(&self, span: SpanIndex, file: &LayerFile) -> bool {
        let (part, at) = self.part(span);
        let mut progress = self.lock();
        progress.done.is_none() || file.read_exact_at(&mut self.parts(&mut progress)[at], part.start).is_ok()
    }

    /// The buffer that parts are put together in.
    fn parts<'a>(&self, progress: &'a mut Progress) -> &'a mut [u8] {
        if !matches!(progress.bytes, Gathered::Parts(_)) {
            progress.bytes = Gathered::Parts(self.layer.store.buffers.take(self.len()));
        }
        match &mut progress.bytes {
            Gathered::Parts(buffer) => buffer,
            Gathered::Nothing | Gathered::Slice(_) => &mut [],
        }
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
            let bytes = std::mem::take(&mut progress.bytes);
            let failed = progress.failed.take();
            drop(progress);
            self.finish(failed.map_or_else(|| Ok(bytes.into()), Err));
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
        let again = (elsewhere || !same_source) && in_time && progress.retries > 0 && progress.done.is_some();
        progress.retries = progress.retries.saturating_sub(1);
        drop(progress);
        if again && !self.core.is_stopping() {
            self.request(std::iter::once(span), Reader::Other);
        } else {
            self.part_answered(Some(error.clone()));
        }
    }

    /// Answers the read, once.
    fn finish(&self, result: Result<Bytes, EngineError>) {
        let mut progress = self.lock();
        let Some(done) = progress.done.take() else { return };
        progress.bytes = Gathered::Nothing;
        let waited = progress.waited;
        drop(progress);
        let counters = &self.core.counters;
        match &result {
            Ok(bytes) => counters.bytes_read.add(bytes.len() as u64),
            Err(_) => count(&counters.reads_failed, 1),
        }
        if waited {
            count(&counters.reads_waited, 1);
            counters.read_took(self.started.elapsed(), || format!("{} {}", self.layer.store.digest, self.range.start));
        }
        done(result);
    }

    fn watch_deadline(self: &Arc<Self>) {
        let Some(after) = self.core.config.read_deadline else { return };
        // A time that the clock cannot hold never comes.
        let Some(at) = self.started.checked_add(after) else { return };
        if self.lock().done.is_some() {
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
