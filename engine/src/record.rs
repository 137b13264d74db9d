//! Which spans readers needed first, and when: what an access profile is made of.

use std::{
    ops::Range,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use clip_format::{
    checkpoints::{Checkpoints, SpanTable},
    error::FormatError,
    limits::PROFILE_RUNS_MAX,
    profile::{Profile, ProfileLayer, Run},
    storage_info::StorageInfo,
    units::{LayerIndex, SpanIndex},
};

/// Neighbours that were needed within this time are one run. Source: a replay sorts tens of milliseconds of work anew anyway
/// (`replay::WINDOW_BYTES`), so a finer time tells it nothing.
const RUN_MS_MAX: u32 = 100;
/// Spans of one word of a bitmap.
const WORD_BITS: u32 = 64;

/// Remembers, for each span of one image, the first time that a reader needed it.
///
/// Cost of a span that was needed before: one load of a word that nobody writes any more. Of a first need: a lock and a push.
pub(crate) struct Recorder {
    /// One bitmap a layer.
    needed: Vec<Box<[AtomicU64]>>,
    course: Mutex<Course>,
}

#[derive(Default)]
struct Course {
    started: Option<Instant>,
    first_needs: Vec<FirstNeed>,
}

/// A span and the milliseconds since the first of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FirstNeed {
    layer: u16,
    span: u32,
    ms: u32,
}

impl Recorder {
    /// Nothing was needed yet.
    pub(crate) fn new(checkpoints: &Checkpoints) -> Self {
        let bitmap = |table: &SpanTable| (0..table.len().div_ceil(WORD_BITS)).map(|_| AtomicU64::new(0)).collect();
        Self { needed: checkpoints.layers().iter().map(bitmap).collect(), course: Mutex::default() }
    }

    /// A reader needs `spans`, which the layer has.
    pub(crate) fn note(&self, layer: LayerIndex, spans: Range<u32>) {
        let Some(bitmap) = self.needed.get(usize::from(layer.get())) else { return };
        for span in spans {
            let Some(word) = bitmap.get((span / WORD_BITS) as usize) else { return };
            let bit = 1 << (span % WORD_BITS);
            if word.load(Ordering::Relaxed) & bit == 0 && word.fetch_or(bit, Ordering::Relaxed) & bit == 0 {
                self.push(layer, span);
            }
        }
    }

    fn push(&self, layer: LayerIndex, span: u32) {
        let mut course = self.course.lock().unwrap_or_else(PoisonError::into_inner);
        let started = *course.started.get_or_insert_with(Instant::now);
        let ms = u32::try_from(started.elapsed().as_millis()).unwrap_or(u32::MAX);
        course.first_needs.push(FirstNeed { layer: layer.get(), span, ms });
    }

    /// Spans that were needed so far.
    pub(crate) fn spans(&self) -> u64 {
        self.course.lock().unwrap_or_else(PoisonError::into_inner).first_needs.len() as u64
    }

    /// What was needed so far. Cost: a copy of the record; readers wait for nothing else.
    ///
    /// # Errors
    /// Those of [`Profile::new`]; none is known that a checked index can cause.
    pub(crate) fn profile(&self, info: &StorageInfo, checkpoints: &Checkpoints) -> Result<Profile, FormatError> {
        let first_needs = self.course.lock().unwrap_or_else(PoisonError::into_inner).first_needs.clone();
        let layer = |(table, layer): (&SpanTable, &clip_format::storage_info::LayerInfo)| ProfileLayer {
            digest: layer.digest,
            stream_size: layer.stream_size,
            spans_digest: table.spans_digest(),
        };
        let layers = checkpoints.layers().iter().zip(&info.layers).map(layer).collect();
        let mut runs = to_runs(&first_needs, checkpoints);
        runs.truncate(PROFILE_RUNS_MAX as usize);
        Profile::new(info.manifest_digest, layers, runs)
    }
}

/// `needs` as ranges of the streams, neighbours in one.
fn to_runs(needs: &[FirstNeed], checkpoints: &Checkpoints) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for need in needs {
        let stream = checkpoints.layer(LayerIndex(need.layer)).stream_range(SpanIndex(need.span));
        match runs.last_mut() {
            Some(run) if run.layer == need.layer && run.stream.end == stream.start && need.ms - run.ms <= RUN_MS_MAX => {
                run.stream.end = stream.end;
            }
            _ => runs.push(Run { layer: need.layer, stream, ms: need.ms }),
        }
    }
    runs
}
