//! Work that no reader waits for: the replay of a profile, the fill of a whole image. It takes what readers leave.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use crate::image_layer::ImageLayer;

/// Neighbouring spans of one layer, to be brought if they are absent when their turn comes.
#[derive(Clone)]
pub(crate) struct Run {
    pub(crate) layer: Arc<ImageLayer>,
    /// Numbers of spans, half-open; those past the layer's end are ignored.
    pub(crate) spans: Range<u32>,
}

/// Why spans are brought before anybody asks for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A recorded profile runs ahead of the workload.
    Replay,
    /// The rest of an image, last of all work.
    Fill,
}

/// How an image is filled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FillOptions {
    /// Compressed bytes that are asked for in a second, on average; `None` is no limit. At least one request is always made.
    pub bytes_per_second: Option<u64>,
}

/// Background work under way. Dropping it cancels what has not been asked for yet; what is on its way is still kept.
pub struct BackgroundHandle {
    pub(crate) course: Arc<Course>,
}

/// How far background work is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackgroundProgress {
    /// Spans that it was asked for.
    pub spans: u64,
    /// Those that are done with: brought, found present or in flight, or given up. `<= spans`
    pub spans_done: u64,
    /// Nothing more will come: all is done, or the rest was given up after failures (one warning in the log says why).
    pub is_finished: bool,
}

impl BackgroundHandle {
    /// How far it is now.
    #[must_use]
    pub fn progress(&self) -> BackgroundProgress {
        let spans_done = self.course.done.load(Ordering::Acquire);
        BackgroundProgress { spans: self.course.spans, spans_done, is_finished: self.course.finished.load(Ordering::Acquire) }
    }
}

impl Drop for BackgroundHandle {
    fn drop(&mut self) {
        self.course.cancelled.store(true, Ordering::Release);
    }
}

/// What the work and its handle share.
pub(crate) struct Course {
    spans: u64,
    done: AtomicU64,
    finished: AtomicBool,
    cancelled: AtomicBool,
}

impl Course {
    pub(crate) fn new(runs: &[Run]) -> Self {
        let spans = runs.iter().map(|run| run.spans.len() as u64).sum();
        Self { spans, done: AtomicU64::new(0), finished: AtomicBool::new(spans == 0), cancelled: AtomicBool::new(false) }
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    /// So many more spans are done with.
    pub(crate) fn add_done(&self, spans: u64) {
        self.done.fetch_add(spans, Ordering::AcqRel);
    }

    pub(crate) fn finish(&self) {
        self.finished.store(true, Ordering::Release);
    }
}

/// One piece of background work on its way to a shard.
pub(crate) struct Task {
    pub(crate) purpose: Purpose,
    /// In the order in which they are to be brought.
    pub(crate) runs: Vec<Run>,
    /// Compressed bytes a second.
    pub(crate) rate: Option<u64>,
    pub(crate) course: Arc<Course>,
}
