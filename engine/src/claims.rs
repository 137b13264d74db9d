//! The spans that one decode job has claimed, how far it is, and what happens to them whatever becomes of it.
//!
//! A reader claims a span first and looks for a job then. A job that passes the span between these two takes it, so that the reader need not
//! begin again for it. Both look at it under the lock of the job's course: the job takes the reader's span, or the reader's find says
//! that the job can have it no more, never neither.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use clip_format::units::SpanIndex;

use crate::{
    error::EngineError,
    image_layer::ImageLayer,
    layer::LayerStore,
    priority::{Priority, Urgency},
    read::PendingRead,
    span::{SpanState, VerifiedSpan},
};

/// What lies on the way to what is wanted is claimed so many spans ahead of the job, and not to the end of a chain that may have millions.
/// Source: 2 GiB of stream at the default span size; a thousand claims take 0.1 ms. Who wants what lies further claims it and finds the job.
const ON_THE_WAY_MAX: u32 = 1024;

/// The spans that one decode job has taken. Whatever is still open when the last holder lets go fails: no claim is ever lost.
pub(crate) struct Claims {
    layer: Arc<ImageLayer>,
    urgency: Arc<Urgency>,
    course: Mutex<Course>,
    error: OnceLock<EngineError>,
}

/// How far a decode job is and has to go.
struct Course {
    /// Taken by this job, not yet delivered.
    open: BTreeSet<SpanIndex>,
    /// What was absent before this span is claimed, be that here.
    claimed_to: SpanIndex,
    /// The span that comes out next, or is coming out.
    next: SpanIndex,
    /// The last one that is wanted.
    last: SpanIndex,
    /// The job takes no more spans along.
    ended: bool,
}

impl Claims {
    /// The claims of a job that decodes from span `from` on: `wanted`, where nobody has taken it, and what is absent on the way as the job
    /// comes near.
    pub(crate) fn new(layer: Arc<ImageLayer>, from: SpanIndex, wanted: &[SpanIndex], priority: Priority) -> Self {
        let mut course = Course { open: BTreeSet::new(), claimed_to: from, next: from, last: from, ended: false };
        course.add(&layer.store, wanted);
        Self { layer, urgency: Arc::new(Urgency::new(priority)), course: Mutex::new(course), error: OnceLock::new() }
    }

    /// How urgent they are.
    pub(crate) fn urgency(&self) -> &Arc<Urgency> {
        &self.urgency
    }

    /// Whether `span` is claimed here and has not come out.
    pub(crate) fn holds(&self, span: SpanIndex) -> bool {
        self.lock().open.contains(&span)
    }

    /// The spans that are claimed here and have not come out, in order.
    pub(crate) fn open(&self) -> Vec<SpanIndex> {
        self.lock().open.iter().copied().collect()
    }

    /// Takes along what nobody has taken of `wanted`, which the caller has claimed. False when the job is past one of those, or has
    /// ended, or nothing is left.
    pub(crate) fn extend(&self, wanted: &[SpanIndex]) -> bool {
        let mut course = self.lock();
        let wanted = self.layer.store.untaken(wanted);
        let possible = wanted.first().is_some_and(|&first| !course.ended && course.next <= first);
        if possible {
            course.add(&self.layer.store, &wanted);
        }
        possible
    }

    /// The last span that is wanted so far.
    pub(crate) fn last(&self) -> SpanIndex {
        self.lock().last
    }

    /// The span to decode now; `None` once all that is wanted has come out, until more is, or the job has ended.
    pub(crate) fn next_span(&self) -> Option<SpanIndex> {
        let course = self.lock();
        (!course.ended && course.next <= course.last).then_some(course.next)
    }

    /// The span behind what has come out; `None` once the job has ended.
    pub(crate) fn next(&self) -> Option<SpanIndex> {
        let course = self.lock();
        (!course.ended).then_some(course.next)
    }

    /// All that was wanted has come out: the job takes no more along, unless something is absent up to `ahead`, which it claims.
    pub(crate) fn end(&self, ahead: Option<SpanIndex>) -> Reached {
        let mut course = self.lock();
        if !course.ended && course.next <= course.last {
            return Reached::More;
        }
        if let Some(ahead) = ahead.filter(|_| !course.ended) {
            course.add_ahead(&self.layer.store, ahead);
            if course.next <= course.last {
                return Reached::Ahead;
            }
        }
        course.ended = true;
        Reached::End(course.next)
    }

    /// The job takes no more spans along.
    pub(crate) fn close(&self) {
        self.lock().ended = true;
    }

    /// `span` has come out; whether anybody wants it. A reader that has claimed it and not come to any job yet has it from this one.
    pub(crate) fn passed(&self, span: SpanIndex) -> bool {
        let mut course = self.lock();
        course.next = SpanIndex(span.get() + 1);
        course.claim_on_the_way(&self.layer.store);
        course.open.contains(&span) || self.layer.store.take(span) && course.open.insert(span)
    }

    /// Answers all who wait for `span`, which is no longer a claim: its flight ends with what is given back, so that a disk that hangs
    /// does not keep those waiting whose spans fail. `None` when the span has failed meanwhile and may be somebody else's claim.
    pub(crate) fn deliver(&self, span: SpanIndex, verified: &VerifiedSpan) -> Option<Delivered> {
        let mut course = self.lock();
        if !course.open.remove(&span) {
            return None;
        }
        drop(course);
        let delivered = Delivered { store: self.layer.store.clone(), span, written: None };
        delivered.store.deliver(span, verified);
        Some(delivered)
    }

    /// Fails what is open; the first error stays. Its spans can be claimed again before those who wait are told, which happens when the
    /// answer is dropped: whoever asks again at once gets a fetch of its own, not the end of this one.
    pub(crate) fn fail(&self, error: EngineError) -> Failed {
        let error = self.error.get_or_init(|| error).clone();
        let mut course = self.lock();
        course.ended = true;
        let open = std::mem::take(&mut course.open);
        drop(course);
        let waiters = open.into_iter().map(|span| (span, self.layer.store.abandon(span))).collect();
        Failed { layer: self.layer.clone(), error, waiters }
    }

    /// Ends the job for what is open, which the caller has to find a job for: those who wait for it wait on.
    pub(crate) fn hand_over(&self) -> Vec<SpanIndex> {
        let mut course = self.lock();
        course.ended = true;
        let open: Vec<SpanIndex> = std::mem::take(&mut course.open).into_iter().collect();
        drop(course);
        open.iter().for_each(|&span| self.layer.store.let_go(span));
        open
    }

    /// The bytes that are missing will not come; the job fails with this once it has used those that it has.
    pub(crate) fn note_failed(&self, error: EngineError) {
        drop(self.error.set(error));
    }

    /// Why they failed, or will.
    pub(crate) fn error(&self) -> Option<&EngineError> {
        self.error.get()
    }

    fn lock(&self) -> MutexGuard<'_, Course> {
        self.course.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Course {
    /// Takes what nobody has taken of `wanted` (ascending, claimed); its last is to come out.
    fn add(&mut self, store: &LayerStore, wanted: &[SpanIndex]) {
        self.open.extend(wanted.iter().copied().filter(|&span| store.take(span)));
        self.last = wanted.last().copied().unwrap_or(self.last).max(self.last);
        self.claim_on_the_way(store);
    }

    /// The last absent span from the next one through `ahead` is to come out, if there is one.
    fn add_ahead(&mut self, store: &LayerStore, ahead: SpanIndex) {
        let is_absent = |span: &SpanIndex| store.states.get(*span) == SpanState::Absent;
        self.last = (self.next.get()..=ahead.get()).rev().map(SpanIndex).find(is_absent).unwrap_or(self.last);
        self.claim_on_the_way(store);
    }

    /// Claims what is absent up to the last span, as far as the job is near. Cost: each span is looked at once, but for those that were
    /// passed before anything behind them was wanted.
    fn claim_on_the_way(&mut self, store: &LayerStore) {
        let end = self.next.get().saturating_add(ON_THE_WAY_MAX).min(self.last.get() + 1);
        for span in (self.claimed_to.max(self.next).get()..end).map(SpanIndex) {
            let is_absent = store.states.get(span) == SpanState::Absent;
            if is_absent && store.claim_ahead(span) && store.take(span) {
                self.open.insert(span);
            }
        }
        self.claimed_to = self.claimed_to.max(SpanIndex(end));
    }
}

/// How far a job is whose last wanted span has come out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reached {
    /// More is wanted now.
    More,
    /// It goes on although nobody asked for that.
    Ahead,
    /// The job has ended before this span.
    End(SpanIndex),
}

/// A delivered span on its way to the disk. Dropping it ends the span's flight.
pub(crate) struct Delivered {
    pub(crate) store: Arc<LayerStore>,
    pub(crate) span: SpanIndex,
    written: Option<u64>,
}

impl Delivered {
    /// The span is on disk; the writing began when the file had been found changed `doubts` times.
    pub(crate) fn written(mut self, doubts: u64) {
        self.written = Some(doubts);
    }
}

impl Drop for Delivered {
    fn drop(&mut self) {
        self.store.settle(self.span, self.written);
    }
}

impl Drop for Claims {
    fn drop(&mut self) {
        drop(self.fail(EngineError::Stopped));
    }
}

/// Those who waited for spans that have failed. Dropping it tells them.
#[must_use = "dropping it tells those who wait"]
pub(crate) struct Failed {
    layer: Arc<ImageLayer>,
    error: EngineError,
    waiters: Vec<(SpanIndex, Vec<Arc<PendingRead>>)>,
}

impl Drop for Failed {
    fn drop(&mut self) {
        for (span, waiters) in std::mem::take(&mut self.waiters) {
            for waiter in waiters {
                waiter.part_failed(span, &self.error, &self.layer);
            }
        }
    }
}
