//! The spans that one decode job has claimed, how far it is, and what happens to them whatever becomes of it.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use clip_format::units::SpanIndex;

use crate::{error::EngineError, image_layer::ImageLayer, layer::LayerStore, span::VerifiedSpan};

/// The spans that one decode job has claimed. Whatever is still open when the last holder lets go fails: no claim is ever lost.
pub(crate) struct Claims {
    layer: Arc<ImageLayer>,
    course: Mutex<Course>,
    error: OnceLock<EngineError>,
}

/// How far a decode job is and has to go.
struct Course {
    /// Claimed, not yet settled.
    open: Vec<SpanIndex>,
    /// The span that comes out next, or is coming out.
    next: SpanIndex,
    /// The last one that is wanted.
    last: SpanIndex,
    /// The job takes no more spans along.
    ended: bool,
}

impl Claims {
    /// The claims of a job that decodes from span `from` on: `wanted`, which the caller has claimed, and what is absent on the way.
    pub(crate) fn new(layer: Arc<ImageLayer>, from: SpanIndex, wanted: Vec<SpanIndex>) -> Self {
        let mut course = Course { open: Vec::new(), next: from, last: from, ended: false };
        course.add(&layer.store, &wanted);
        Self { layer, course: Mutex::new(course), error: OnceLock::new() }
    }

    /// Takes `wanted` along, which the caller has claimed. False when the job is past them or has ended.
    pub(crate) fn extend(&self, wanted: &[SpanIndex]) -> bool {
        let mut course = self.lock();
        let possible = !course.ended && course.next <= wanted[0];
        if possible {
            course.add(&self.layer.store, wanted);
        }
        possible
    }

    /// The span to decode now; `None` for ever once all that is wanted has come out.
    pub(crate) fn next_span(&self) -> Option<SpanIndex> {
        let mut course = self.lock();
        course.ended |= course.next > course.last;
        (!course.ended).then_some(course.next)
    }

    /// `span` has come out; whether anybody wants it.
    pub(crate) fn passed(&self, span: SpanIndex) -> bool {
        let mut course = self.lock();
        course.next = SpanIndex(span.get() + 1);
        course.open.contains(&span)
    }

    /// Answers all who wait for `span`.
    pub(crate) fn deliver(&self, span: SpanIndex, verified: &VerifiedSpan) {
        self.layer.store.deliver(span, verified);
    }

    /// Ends the flight of a delivered span.
    pub(crate) fn settle(&self, span: SpanIndex, written: Option<u64>) {
        self.lock().open.retain(|&open| open != span);
        self.layer.store.settle(span, written);
    }

    /// Why what is open will fail. The first error stays.
    pub(crate) fn fail(&self, error: EngineError) {
        let _ = self.error.set(error);
        self.lock().ended = true;
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.error.get().is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Course> {
        self.course.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Course {
    /// Adds `wanted` (ascending, claimed) and claims what is absent before its last.
    fn add(&mut self, store: &LayerStore, wanted: &[SpanIndex]) {
        self.open.extend(wanted);
        self.last = self.last.max(wanted[wanted.len() - 1]);
        let on_the_way = (self.next.get()..self.last.get()).map(SpanIndex);
        self.open.extend(on_the_way.filter(|&span| store.claim(span)));
    }
}

impl Drop for Claims {
    fn drop(&mut self) {
        let error = self.error.get().cloned().unwrap_or(EngineError::Stopped);
        let open = std::mem::take(&mut self.lock().open);
        for span in open {
            for waiter in self.layer.store.abandon(span) {
                waiter.part_failed(span, &error, &self.layer);
            }
        }
    }
}
