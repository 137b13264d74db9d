//! An opened image: its index, its layers, and the two ways to read them.

use std::{
    ops::Range,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
};

use bytes::Bytes;
use clip_format::{
    checkpoints::Checkpoints,
    digest::Digest,
    erofs::Index,
    error::FormatError,
    profile::{Fit, Profile},
    storage_info::StorageInfo,
    units::LayerIndex,
};

use crate::{
    background::{BackgroundHandle, FillOptions, Purpose, Run},
    cache::image_dir::{Damage, ExpandedImage},
    core::Core,
    engine::Threads,
    error::EngineError,
    image_layer::ImageLayer,
    metrics::count,
    neighbour::Reader,
    plan,
    read::{self, Answer, Pieces},
    readahead::{History, Limits},
    record::Recorder,
    replay,
    source::BlobSource,
    span::SpanState,
};

/// Bytes of one parked read. Source: the kernel's requests are at most 1 MiB, our own 4 MiB; the rest is room.
pub const READ_BYTES_MAX: u64 = 64 << 20;
/// Bytes that [`Image::read_exact_at`] reads at a time. Source: four default spans, so that a cold read has several in flight while
/// the copy stays small.
const BLOCKING_READ_BYTES: usize = 4 << 20;

/// How an image is opened, beyond its `.clip`.
#[derive(Clone, Debug, Default)]
pub struct ImageOptions {
    /// Where a local source is now (`--source`); for messages, the blobs are in `local_blobs`.
    pub source: Option<PathBuf>,
    /// Registry reference to read from instead of the recorded one.
    pub store_ref: Option<crate::registry::Reference>,
    /// One a layer, in manifest order: where the layers of a local source are, as the indexer's `local_blobs` finds them.
    pub local_blobs: Option<Vec<BlobSource>>,
    /// Remember the order in which readers first need spans, for [`Image::recorded`]. An image that is opened so is shared with nobody.
    pub record: bool,
}

impl PartialEq for ImageOptions {
    fn eq(&self, other: &Self) -> bool {
        let same_blobs = match (&self.local_blobs, &other.local_blobs) {
            (None, None) => true,
            (Some(ours), Some(theirs)) => ours.len() == theirs.len() && ours.iter().zip(theirs).all(|(one, two)| one.is_same(two)),
            _ => false,
        };
        same_blobs && self.source == other.source && self.store_ref == other.store_ref && self.record == other.record
    }
}

impl Eq for ImageOptions {}

/// What answers a parked read: exactly the bytes asked for, or why not. Called once, from an engine thread or from within
/// [`Image::read`]; must not block.
pub type ReadDone = Box<dyn FnOnce(Result<Bytes, EngineError>) + Send>;

/// An image that can be read. Shared by every mount of it.
pub struct Image {
    id: [u8; 32],
    options: ImageOptions,
    index: Index,
    storage_info: StorageInfo,
    checkpoints: Checkpoints,
    layers: Vec<Arc<ImageLayer>>,
    damage: Damage,
    recorder: Option<Recorder>,
    /// A profile says what will be needed.
    guided: AtomicBool,
    threads: Arc<Threads>,
}

/// One reader's history: who reads sequentially earns read-ahead. One per inode that is being read; cheap.
#[derive(Default)]
pub struct ReadStream(Mutex<History>);

impl Image {
    pub(crate) fn new(
        id: [u8; 32],
        options: ImageOptions,
        expanded: ExpandedImage,
        layers: Vec<Arc<ImageLayer>>,
        threads: Arc<Threads>,
    ) -> Self {
        let ExpandedImage { index, storage_info, checkpoints, windows: _, damage } = expanded;
        let recorder = options.record.then(|| Recorder::new(&checkpoints));
        Self { id, options, index, storage_info, checkpoints, layers, damage, recorder, guided: AtomicBool::new(false), threads }
    }

    /// BLAKE3 of the `.clip`'s header, which holds the BLAKE3 of every section.
    #[must_use]
    pub fn id(&self) -> [u8; 32] {
        self.id
    }

    /// Where each layer is read from.
    pub(crate) fn sources(&self) -> impl Iterator<Item = &BlobSource> {
        self.layers.iter().map(|layer| &layer.source)
    }

    pub(crate) fn options(&self) -> &ImageOptions {
        &self.options
    }

    /// The file tree.
    #[must_use]
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Source, config and layers.
    #[must_use]
    pub fn storage_info(&self) -> &StorageInfo {
        &self.storage_info
    }

    /// The tables of spans.
    #[must_use]
    pub fn checkpoints(&self) -> &Checkpoints {
        &self.checkpoints
    }

    /// Whether the expanded index is what the `.clip` says, as far as is known: a large one is hashed while it is in use already.
    ///
    /// # Errors
    /// `Format`, naming the damaged file; nothing of this image can be relied on then, and every read of it fails.
    pub fn undamaged(&self) -> Result<(), EngineError> {
        self.damage.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    /// The bytes `range` of a layer's stream, straight from the map of the cache file, when every span of them is present and
    /// verified (an unverified one is verified here). No shard is entered. The slice's pages may be gone (a truncated file): pass it
    /// to a system call, never touch it otherwise.
    ///
    /// They are the right bytes as long as nobody else can have the file open (`cache/lease.rs`); a reply that takes longer than the grace
    /// that another gets the file after may see what that one does.
    ///
    /// Cost: an atomic load a span and a few more, of cache lines that are seldom written; no lock, no allocation, no system call (one
    /// fstat, 0.4 µs on the development machine, where the cache's file system has no leases).
    #[must_use]
    pub fn present(&self, layer: LayerIndex, range: Range<u64>) -> Option<&[u8]> {
        if self.damage.get().is_some() {
            return None;
        }
        if range.start == range.end {
            return Some(&[]);
        }
        let store = &self.layers.get(usize::from(layer.get()))?.store;
        let spans = plan::spans_of(&store.table, &range)?;
        if let Some(recorder) = &self.recorder {
            recorder.note(layer, spans.clone());
        }
        let doubts = store.doubts();
        for span in spans.clone().map(clip_format::units::SpanIndex) {
            match store.states.get(span) {
                SpanState::Present => {}
                SpanState::Unverified => drop(store.verify(span)?),
                SpanState::Absent | SpanState::InFlight => return None,
            }
        }
        if !store.is_sure(doubts) {
            return None;
        }
        let bytes = store.file.mapped(range.start, range.end)?;
        if store.note_used(spans.clone()) {
            self.bring_neighbour(layer, &spans);
        }
        self.core().counters.reads_present.add(1);
        self.core().counters.bytes_read.add(bytes.len() as u64);
        Some(bytes)
    }

    /// Fetches, decodes and verifies what of `range` is absent, then calls `done`, which may happen before this returns.
    ///
    /// Errors, through `done`: `Layer` for a layer or range that the image does not have; every kind from the fetch.
    pub fn read(self: &Arc<Self>, layer: LayerIndex, range: Range<u64>, done: ReadDone) {
        self.read_for(Reader::Other, layer, range, Answer::Whole(done));
    }

    /// As [`Self::read`], for a reader of a file that ends at `file_end` of the stream. One that loads whole files or large pieces of them
    /// is also brought what stands beside what it misses, as long as that proves useful.
    pub fn read_in_file(self: &Arc<Self>, layer: LayerIndex, range: Range<u64>, file_end: u64, done: ReadDone) {
        let guesses = !self.guided.load(Ordering::Relaxed) && self.core().config.read_ahead_bytes_max > 0;
        let reader = if guesses { Reader::of(&range, file_end) } else { Reader::Other };
        self.read_for(reader, layer, range, Answer::Whole(done));
    }

    fn read_for(self: &Arc<Self>, reader: Reader, layer: LayerIndex, range: Range<u64>, answer: Answer) {
        if range.start == range.end {
            return answer.give(Ok(Pieces::new()), |_| Bytes::new());
        }
        match self.undamaged().and_then(|()| self.checked(layer, &range)) {
            Ok((of, spans)) => {
                if let Some(recorder) = &self.recorder {
                    recorder.note(layer, spans.clone());
                }
                read::start(self.core(), of, reader, range, spans, answer);
            }
            Err(error) => {
                count(&self.core().counters.reads_failed, 1);
                answer.give(Err(error), |_| Bytes::new());
            }
        }
    }

    /// Fills `buffer` from `offset` of the layer's stream, waiting for the network. Reads the cache by pread. Not for engine threads
    /// (within a [`ReadDone`]): they would wait for themselves.
    ///
    /// # Errors
    /// Every kind.
    pub fn read_exact_at(self: &Arc<Self>, layer: LayerIndex, offset: u64, buffer: &mut [u8]) -> Result<(), EngineError> {
        let mut at = offset;
        for part in buffer.chunks_mut(BLOCKING_READ_BYTES) {
            let end = at.checked_add(part.len() as u64).ok_or_else(|| out_of_range(layer, &(at..u64::MAX)))?;
            let (answer, answered) = mpsc::sync_channel(1);
            self.read_for(Reader::Other, layer, at..end, Answer::Pieces(Box::new(move |result| drop(answer.send(result)))));
            // An answer is dropped without being given only by an engine that is gone.
            read::gather(answered.recv().unwrap_or(Err(EngineError::Stopped))?, part);
            at = end;
        }
        Ok(())
    }

    /// Whether a reader of `range`, of a file that ends at `file_end` of the stream, may be worth a [`Self::note_read`]: something is
    /// absent not far behind. A reader in a file that is all there need not be remembered.
    ///
    /// Cost: a load for each span within twice the largest read-ahead; no lock.
    #[must_use]
    pub fn may_read_ahead(&self, layer: LayerIndex, range: &Range<u64>, file_end: u64) -> bool {
        let window_bytes_max = self.core().config.read_ahead_bytes_max;
        let Some(of) = self.layers.get(usize::from(layer.get())).filter(|_| window_bytes_max > 0) else { return false };
        // Twice: a window that was asked for whole must not look like the end, where its reader is forgotten.
        let end = range.end.saturating_add(window_bytes_max.saturating_mul(2)).min(file_end).min(of.store.table.stream_size());
        let spans = plan::spans_of(&of.store.table, &(range.start..end));
        spans.is_some_and(|mut spans| spans.any(|span| of.store.states.get(clip_format::units::SpanIndex(span)) == SpanState::Absent))
    }

    /// Tells the engine that a reader of `range` (of a file that ends at `file_end` of the stream) came by, so that it may read ahead.
    pub fn note_read(self: &Arc<Self>, stream: &ReadStream, layer: LayerIndex, range: Range<u64>, file_end: u64) {
        let core = self.core();
        let window_bytes_max = core.read_ahead_bytes_max();
        let Some(of) = self.layers.get(usize::from(layer.get())).filter(|_| window_bytes_max > 0) else { return };
        let Some(spans) = plan::spans_of(&of.store.table, &range) else { return };
        let first = of.store.table.stream_range(clip_format::units::SpanIndex(spans.start));
        let limits = Limits { window_bytes_min: first.end - first.start, window_bytes_max };
        let file_end = file_end.min(of.store.table.stream_size());
        let asked = stream.0.lock().unwrap_or_else(PoisonError::into_inner).note(layer.get(), &range, file_end, limits);
        let Some(spans) = asked.and_then(|asked| plan::spans_of(&of.store.table, &asked)) else { return };
        let absent = |span: &u32| of.store.states.get(clip_format::units::SpanIndex(*span)) == SpanState::Absent;
        if spans.clone().any(|span| absent(&span)) {
            core.read_ahead(of, spans);
        }
    }

    /// A reader has used a neighbour that was brought with a missed span: the next one is worth a guess, too.
    fn bring_neighbour(&self, layer: LayerIndex, spans: &Range<u32>) {
        if !self.guided.load(Ordering::Relaxed) {
            self.core().guess_beside(&self.layers[usize::from(layer.get())], spans);
        }
    }

    /// Brings everything of the image that is absent, layer by layer in stream order, whenever readers leave room.
    ///
    /// Cost: returns at once. Cancelled by dropping what is given back.
    #[must_use = "dropping it cancels the fill"]
    pub fn fill(self: &Arc<Self>, options: FillOptions) -> BackgroundHandle {
        let run = |layer: &Arc<ImageLayer>| Run { layer: layer.clone(), spans: 0..layer.table.len() };
        self.core().background(Purpose::Fill, self.layers.iter().map(run).collect(), options.bytes_per_second)
    }

    /// Which layers of this image `profile` speaks of.
    ///
    /// # Errors
    /// `OtherImage`, naming both, when no layer that it needs is this image's.
    pub fn useful_fit(&self, profile: &Profile) -> Result<Fit, FormatError> {
        profile.useful_fit(&self.storage_info.manifest_digest, &self.digests())
    }

    fn digests(&self) -> Vec<Digest> {
        self.storage_info.layers.iter().map(|layer| layer.digest).collect()
    }

    /// Brings what `profile` says will be needed and is absent, in that order, ahead of the readers and behind their misses. A profile
    /// of other layers brings nothing: see [`Self::useful_fit`].
    ///
    /// Cost: returns at once. Cancelled by dropping what is given back.
    #[must_use = "dropping it cancels the replay"]
    pub fn replay(self: &Arc<Self>, profile: &Profile) -> BackgroundHandle {
        let parts = replay::parts(profile, &profile.fit(&self.digests()), self.checkpoints.layers());
        // What the profile does not name was not needed: no guesses beside it.
        self.guided.store(!parts.is_empty(), Ordering::Relaxed);
        let run = |part: replay::Part| Run { layer: self.layers[usize::from(part.layer.get())].clone(), spans: part.spans };
        self.core().background(Purpose::Replay, parts.into_iter().map(run).collect(), None)
    }

    /// What readers have needed so far; `None` when the image was not opened to be recorded. What the engine reads ahead is not in it,
    /// what the kernel reads ahead is: to the engine that is a reader like any other.
    ///
    /// # Errors
    /// `Format` kinds, by which a profile is refused; none is known that a checked index can cause.
    pub fn recorded(&self) -> Option<Result<Profile, FormatError>> {
        self.recorder.as_ref().map(|recorder| recorder.profile(&self.storage_info, &self.checkpoints))
    }

    /// Spans that readers have needed so far; 0 when the image was not opened to be recorded.
    #[must_use]
    pub fn recorded_spans(&self) -> u64 {
        self.recorder.as_ref().map_or(0, Recorder::spans)
    }

    fn checked(&self, layer: LayerIndex, range: &Range<u64>) -> Result<(&Arc<ImageLayer>, Range<u32>), EngineError> {
        let found =
            self.layers.get(usize::from(layer.get())).filter(|_| range.start < range.end && range.end - range.start <= READ_BYTES_MAX);
        let found = found.and_then(|found| Some((found, plan::spans_of(&found.store.table, range)?)));
        found.ok_or_else(|| out_of_range(layer, range))
    }

    fn core(&self) -> &Arc<Core> {
        &self.threads.core
    }
}

fn out_of_range(layer: LayerIndex, range: &Range<u64>) -> EngineError {
    EngineError::Invalid {
        what: format!("a read of layer {layer}"),
        expected: format!("a range inside the layer's stream, of at most {READ_BYTES_MAX} bytes"),
        found: format!("{}..{}", range.start, range.end),
    }
}
