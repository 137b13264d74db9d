//! Background requests under way, and how a reader gets at what they have claimed.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use clip_format::units::SpanIndex;
use tokio::sync::Notify;

use crate::{
    claims::Claims,
    image_layer::{ImageLayer, Work},
};

/// The background requests of one layer, whichever image's.
#[derive(Default)]
pub(crate) struct Backlog(Mutex<Vec<Weak<Course>>>);

impl Backlog {
    /// `course` can be found from now on. A reader that came to wait for one of its spans before has not found it.
    pub(crate) fn enter(&self, course: &Arc<Course>) {
        let mut courses = self.lock();
        courses.retain(|course| course.strong_count() > 0);
        courses.push(Arc::downgrade(course));
    }

    /// Those under way. Not to be dropped under a lock: the last holder of a course may fail its claims.
    pub(crate) fn courses(&self) -> Vec<Arc<Course>> {
        self.lock().iter().filter_map(Weak::upgrade).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Course>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How far one request is: the work that it has not started.
pub(crate) struct Course {
    pub(crate) layer: Arc<ImageLayer>,
    state: Mutex<State>,
    /// A reader waits for what has not come: the bytes before it are received without regard to how many jobs they make.
    is_hurried: AtomicBool,
    hurried: Notify,
}

struct State {
    /// Not started.
    works: VecDeque<Work>,
    started: Vec<Weak<Claims>>,
    /// The blob's next byte, once the request is made.
    position: Option<u64>,
}

impl State {
    /// The work that has claimed `span` and not brought it. Works ascend, and none comes to what the next one begins with.
    fn place_of(&self, span: SpanIndex) -> Option<usize> {
        let place = self.works.partition_point(|work| work.group.from <= span).checked_sub(1)?;
        self.works[place].claims.holds(span).then_some(place)
    }

    /// Not to be dropped under the lock: the last holder of claims may call back.
    fn started(&self) -> Vec<Arc<Claims>> {
        self.started.iter().filter_map(Weak::upgrade).collect()
    }
}

impl Course {
    pub(crate) fn new(layer: Arc<ImageLayer>, works: VecDeque<Work>) -> Self {
        let state = Mutex::new(State { works, started: Vec::new(), position: None });
        Self { layer, state, is_hurried: AtomicBool::new(false), hurried: Notify::new() }
    }

    pub(crate) fn is_hurried(&self) -> bool {
        self.is_hurried.load(Ordering::SeqCst)
    }

    fn hurry_on(&self) {
        self.is_hurried.store(true, Ordering::SeqCst);
        self.hurried.notify_waiters();
    }

    /// Waits until a reader waits for what this request will come to.
    pub(crate) async fn hurried(&self) {
        let hurried = self.hurried.notified();
        if !self.is_hurried() {
            hurried.await;
        }
    }

    /// Waits until a reader waits for something that is not started.
    pub(crate) async fn wanted_later(&self) {
        loop {
            let hurried = self.hurried.notified();
            let is_wanted = self.lock().works.iter().any(|work| !work.claims.urgency().get().is_background());
            if is_wanted {
                return;
            }
            hurried.await;
        }
    }

    /// A reader waits for `span`. What this request decodes or will come to within `bytes_max` bytes becomes urgent here. What it would come
    /// to later is given back, to be fetched at once.
    pub(crate) fn hurry(&self, span: SpanIndex, bytes_max: u64) -> Option<Work> {
        let mut state = self.lock();
        let Some(place) = state.place_of(span) else {
            let started = state.started();
            drop(state);
            if let Some(claims) = started.iter().find(|claims| claims.holds(span)) {
                claims.urgency().raise();
                // It may be the one that waits for its turn.
                self.hurry_on();
            }
            return None;
        };
        let is_near = state.position.is_some_and(|at| state.works[place].group.compressed.start.saturating_sub(at) <= bytes_max);
        if is_near {
            state.works[place].claims.urgency().raise();
            drop(state);
            // What comes before it is in its way, but need not be decoded first.
            self.hurry_on();
            return None;
        }
        let work = state.works.remove(place)?;
        drop(state);
        work.claims.urgency().raise();
        Some(work)
    }

    /// The blob's bytes from the first group's start to the last one's end.
    pub(crate) fn range(&self) -> Option<std::ops::Range<u64>> {
        let state = self.lock();
        Some(state.works.front()?.group.compressed.start..state.works.back()?.group.compressed.end)
    }

    /// The spans that what is not started has claimed and not brought, those on the way to what was asked for among them.
    pub(crate) fn claimed(&self) -> Vec<SpanIndex> {
        self.lock().works.iter().flat_map(|work| work.claims.open()).collect()
    }

    /// What is not started begins here, and needs bytes or not.
    pub(crate) fn next(&self) -> Option<std::ops::Range<u64>> {
        self.lock().works.front().map(|work| work.group.compressed.clone())
    }

    /// Takes the next work to start it; those who look for its spans find it still.
    pub(crate) fn start(&self) -> Option<Work> {
        let mut state = self.lock();
        let work = state.works.pop_front()?;
        state.started.retain(|claims| claims.strong_count() > 0);
        state.started.push(Arc::downgrade(&work.claims));
        Some(work)
    }

    /// The request has come to byte `position` of the blob.
    pub(crate) fn note_position(&self, position: u64) {
        self.lock().position = Some(position);
    }

    pub(crate) fn has_more(&self) -> bool {
        !self.lock().works.is_empty()
    }

    /// Takes all that is not started, which the caller fails.
    pub(crate) fn take(&self) -> VecDeque<Work> {
        std::mem::take(&mut self.lock().works)
    }

    /// The stream's bytes from the first group's first span to the last group's last.
    pub(crate) fn stream(&self) -> std::ops::Range<u64> {
        let state = self.lock();
        let range = |span| self.layer.table.stream_range(span);
        let start = state.works.front().map_or(0, |work| range(work.group.from).start);
        let end = state.works.back().map_or(0, |work| range(work.group.last).end);
        start..end
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
