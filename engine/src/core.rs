//! What the shards, the images and the readers share: nothing else is.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use clip_format::{digest::Digest, units::SpanIndex};
use crossbeam::queue::SegQueue;
use tokio::sync::{Notify, Semaphore};

use crate::{
    background::{BackgroundHandle, Course, Purpose, Run, Task},
    cache::lock::OwnerLock,
    config::EngineConfig,
    error::EngineError,
    fetch::Flow,
    image_layer::{ImageLayer, Work},
    job::DecodeJob,
    line_limit::LineLimit,
    metrics::Counters,
    plan,
    prefetch::Prefetch,
    progress::Progress,
    read::Deadline,
    registry::Client,
    shard::{Request, ShardHandle},
};

/// Bytes that one permit of the budget stands for, so that the semaphore's 32-bit counts reach over 4 GiB.
pub(crate) const BUDGET_UNIT: u64 = 4096;

/// The shared state of one engine.
pub(crate) struct Core {
    pub(crate) config: EngineConfig,
    pub(crate) client: Client,
    pub(crate) counters: Arc<Counters>,
    /// Groups to decode, for any idle shard.
    pub(crate) jobs: SegQueue<DecodeJob>,
    pub(crate) job_ready: Notify,
    /// Decoded bytes that may be in memory, in units of [`BUDGET_UNIT`].
    pub(crate) budget: Arc<Semaphore>,
    pub(crate) budget_units: u32,
    /// Requests under way from this node.
    pub(crate) connections: Arc<Semaphore>,
    /// The part of them that read-ahead may use.
    pub(crate) prefetch_connections: Arc<Semaphore>,
    pub(crate) progress: Progress,
    /// When somebody last got a part of the budget.
    pub(crate) room: Progress,
    failures: LineLimit,
    /// A write to the cache failed and that was said.
    pub(crate) warned_disk: AtomicBool,
    shards: Vec<ShardHandle>,
    next_shard: AtomicUsize,
    stopping: AtomicBool,
    /// Read-ahead that waits for a shard; more is dropped.
    pub(crate) prefetches_waiting: AtomicUsize,
    _lock: Mutex<Option<OwnerLock>>,
}

/// Read-ahead requests that may wait; a reader that outruns them fetches on demand.
const PREFETCHES_MAX: usize = 64;

impl Core {
    pub(crate) fn new(config: EngineConfig, client: Client, shards: Vec<ShardHandle>, lock: OwnerLock) -> Self {
        let units = u32::try_from(config.bytes_in_flight_max / BUDGET_UNIT).unwrap_or(u32::MAX).clamp(1, Semaphore::MAX_PERMITS as u32);
        let connections = config.connections_max.max(1);
        Self {
            client,
            counters: Arc::default(),
            jobs: SegQueue::new(),
            job_ready: Notify::new(),
            budget: Arc::new(Semaphore::new(units as usize)),
            budget_units: units,
            connections: Arc::new(Semaphore::new(connections)),
            prefetch_connections: Arc::new(Semaphore::new(connections.div_ceil(2))),
            progress: Progress::default(),
            room: Progress::default(),
            failures: LineLimit::default(),
            warned_disk: AtomicBool::new(false),
            shards,
            next_shard: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            prefetches_waiting: AtomicUsize::new(0),
            _lock: Mutex::new(Some(lock)),
            config,
        }
    }

    /// Starts the fetches that bring `claimed` (ascending, claimed by the caller).
    pub(crate) fn fetch(&self, layer: &Arc<ImageLayer>, claimed: Vec<SpanIndex>) {
        for flow in flows(layer, claimed, self.config.request_bytes_max) {
            self.send(Request::Flow(flow));
        }
    }

    /// Reads ahead what of `spans` is absent when its turn comes; dropped when too much waits already.
    pub(crate) fn prefetch(&self, prefetch: Prefetch) {
        if self.prefetches_waiting.fetch_add(1, Ordering::Relaxed) >= PREFETCHES_MAX {
            self.prefetches_waiting.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        self.send(Request::Prefetch(prefetch));
    }

    /// Brings what of `runs` is absent, in their order and in joined requests, whenever readers leave room; `rate` is in compressed bytes a
    /// second. Cost: returns at once; nothing is claimed before its turn comes.
    pub(crate) fn background(&self, purpose: Purpose, runs: Vec<Run>, rate: Option<u64>) -> BackgroundHandle {
        let course = Arc::new(Course::new(&runs));
        self.send(Request::Background(Task { purpose, runs, rate, course: course.clone() }));
        BackgroundHandle { course }
    }

    pub(crate) fn watch_read(&self, deadline: Deadline) {
        self.send(Request::Deadline(deadline));
    }

    /// Gives a request to the next shard in turn. A request to a stopped engine is dropped, which fails what it had claimed.
    fn send(&self, request: Request) {
        let shard = self.next_shard.fetch_add(1, Ordering::Relaxed) % self.shards.len();
        self.shards[shard].send(request);
    }

    pub(crate) fn push_job(&self, job: DecodeJob) {
        self.jobs.push(job);
        self.job_ready.notify_one();
    }

    /// Writes the one log line of a failed fetch, which `said` remembers; nothing while stopping, and a count instead of a flood.
    pub(crate) fn say_fetch_failed(&self, said: &AtomicBool, layer: &Digest, error: &EngineError) {
        if !self.is_stopping()
            && !said.swap(true, Ordering::Relaxed)
            && let Some(unsaid) = self.failures.next()
        {
            tracing::warn!(%layer, %error, unsaid, "a fetch failed");
        }
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Tells every shard to leave.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.shards.iter().for_each(ShardHandle::wake);
    }

    /// After the shards have left: what they left behind fails, and the directory is free.
    pub(crate) fn clear(&self) {
        while let Some(job) = self.jobs.pop() {
            drop(job);
        }
        *self._lock.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// The requests that bring `claimed`: groups by entry, neighbours joined.
pub(crate) fn flows(layer: &Arc<ImageLayer>, claimed: Vec<SpanIndex>, request_bytes_max: u64) -> Vec<Flow> {
    let mut works: VecDeque<Work> = plan::by_entry(&layer.table, &claimed).into_iter().filter_map(|wanted| layer.work(wanted)).collect();
    let groups: Vec<plan::Group> = works.iter().map(|work| work.group.clone()).collect();
    let mut flows = Vec::new();
    while !works.is_empty() {
        let rest = works.split_off(plan::joined(&groups[groups.len() - works.len()..], request_bytes_max));
        flows.push(Flow { layer: layer.clone(), works: std::mem::replace(&mut works, rest) });
    }
    flows
}
