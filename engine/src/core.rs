//! What the shards, the images and the readers share: nothing else is.

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use clip_format::{digest::Digest, units::SpanIndex};

use crate::{
    background::{BackgroundHandle, Purpose, Run, Task, Ticket, UnderWay},
    backlog::Course,
    cache::lock::OwnerLock,
    config::EngineConfig,
    decoder_memory::DecoderMemory,
    error::EngineError,
    fetch::Flow,
    image_layer::{ImageLayer, Work},
    job::Job,
    jobs::{Jobs, Takes},
    layer::LayerStore,
    line_limit::LineLimit,
    metrics::{Counters, count},
    plan,
    priority::Priority,
    progress::Progress,
    quota::Quota,
    read::Deadline,
    registry::Client,
    shard::{Request, ShardHandle},
    source::BlobSource,
};

/// How much one request may bring.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    /// Compressed bytes, gaps included.
    pub(crate) request_bytes_max: u64,
    /// The widest gap within it.
    pub(crate) bridge_bytes_max: u64,
}

/// What a decode job could not bring, since wrong bytes came.
pub(crate) struct Wrong {
    /// Ascending, the fetch's own claims.
    pub(crate) claimed: Vec<SpanIndex>,
    pub(crate) priority: Priority,
    pub(crate) ticket: Option<Arc<Ticket>>,
    /// Their failure is in the log.
    pub(crate) said: Arc<AtomicBool>,
}

/// The shared state of one engine.
pub(crate) struct Core {
    pub(crate) config: EngineConfig,
    pub(crate) client: Client,
    pub(crate) counters: Arc<Counters>,
    /// Groups to decode, for any idle shard.
    pub(crate) jobs: Arc<Jobs>,
    /// Decoded bytes that may be in memory.
    pub(crate) budget: Arc<Quota>,
    /// Compressed bytes that may wait for decoders.
    pub(crate) compressed: Arc<Quota>,
    /// What decoders hold whose windows are large.
    pub(crate) decoders: DecoderMemory,
    /// Requests under way from this node.
    pub(crate) connections: Arc<Quota>,
    pub(crate) progress: Progress,
    /// When somebody last got a part of the budget.
    pub(crate) room: Progress,
    failures: LineLimit,
    repeats: LineLimit,
    /// A write to the cache failed and that was said.
    pub(crate) warned_disk: AtomicBool,
    shards: Vec<ShardHandle>,
    next_shard: AtomicUsize,
    stopping: AtomicBool,
    /// Read-ahead that waits for a shard; more is dropped.
    read_aheads: Arc<AtomicUsize>,
    lock: Mutex<Option<Arc<OwnerLock>>>,
}

/// Read-ahead requests that may wait; a reader that outruns them fetches on demand. Source: judgement, not measured: four for each of the 16
/// connections, so that none idles; what waits behind more would come after its reader.
const READ_AHEADS_MAX: usize = 64;
/// The part of the read-ahead setting that is left while read-ahead waits for memory is one in so many. Source: judgement, not measured: 8 MiB
/// of the default 32 keep a few requests ahead of a reader, and four readers then fit where one did.
const SHORT_OF_MEMORY: u64 = 4;

impl Core {
    pub(crate) fn new(config: EngineConfig, client: Client, shards: Vec<ShardHandle>, lock: OwnerLock) -> Self {
        Self {
            client,
            counters: Arc::default(),
            jobs: Arc::default(),
            // Half is kept for readers: background buffers are written to a disk that may be slow.
            budget: Quota::new(config.bytes_in_flight_max, config.bytes_in_flight_max / 2),
            compressed: Quota::new(config.compressed_bytes_max, config.compressed_bytes_max / 2),
            decoders: DecoderMemory::new(config.decoder_bytes_max),
            connections: connections(config.connections_max),
            progress: Progress::default(),
            room: Progress::default(),
            failures: LineLimit::default(),
            repeats: LineLimit::default(),
            warned_disk: AtomicBool::new(false),
            shards,
            next_shard: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            read_aheads: Arc::default(),
            lock: Mutex::new(Some(Arc::new(lock))),
            config,
        }
    }

    /// Starts the fetches that bring `claimed` (ascending, claimed by the caller) to a reader.
    pub(crate) fn fetch(&self, layer: &Arc<ImageLayer>, claimed: Vec<SpanIndex>) {
        self.jobs.note_miss();
        let taken_along = claimed.clone();
        for flow in self.flows(layer, claimed, self.limits(layer), Priority::Demand) {
            self.send_flow(flow);
        }
        // A background request that has not begun may have taken some along.
        self.hurry(&layer.store, &taken_along);
    }

    /// The requests that bring `claimed`: groups by entry, neighbours joined. What a job under way takes along is in none.
    pub(crate) fn flows(&self, layer: &Arc<ImageLayer>, claimed: Vec<SpanIndex>, limits: Limits, priority: Priority) -> Vec<Flow> {
        let wanted = plan::by_entry(&layer.table, &claimed);
        let works = wanted.into_iter().filter_map(|wanted| layer.work(wanted, priority)).collect();
        self.flows_of(layer, works, limits, priority)
    }

    /// Starts the last try to bring what `wrong` has claimed: over connections of its own, and not from where a redirect led before.
    pub(crate) fn fetch_again(&self, layer: &Arc<ImageLayer>, wrong: Wrong, error: &EngineError) {
        if let Some(unsaid) = self.repeats.next() {
            tracing::info!(layer = %layer.store.digest, %error, unsaid, "wrong bytes came; they are fetched once more over a new connection");
        }
        match &layer.source {
            BlobSource::Registry { repository, digest, .. } => self.client.forget_target(repository, digest),
            BlobSource::Foreign(blob) => {
                blob.repository().into_iter().for_each(|repository| self.client.forget_target(repository, &layer.store.digest));
            }
            BlobSource::File { .. } => {}
        }
        let flows = self.flows(layer, wrong.claimed.clone(), self.limits(layer), wrong.priority);
        if wrong.priority.is_background() {
            flows.iter().for_each(|flow| layer.store.backlog.enter(&flow.course));
            // Who came to wait since the claim has not found the course.
            self.hurry(&layer.store, &layer.store.waited_for(&wrong.claimed));
        }
        for mut flow in flows {
            (flow.is_repeated, flow.ticket, flow.said) = (true, wrong.ticket.clone(), wrong.said.clone());
            self.send_flow(flow);
        }
    }

    /// The requests that bring `works` (ascending).
    fn flows_of(&self, layer: &Arc<ImageLayer>, mut works: VecDeque<Work>, limits: Limits, priority: Priority) -> Vec<Flow> {
        let groups: Vec<plan::Group> = works.iter().map(|work| work.group.clone()).collect();
        let mut flows = Vec::new();
        while !works.is_empty() {
            let joined = plan::joined(&groups[groups.len() - works.len()..], limits.request_bytes_max, limits.bridge_bytes_max);
            count(&self.counters.requests_joined, joined as u64 - 1);
            let rest = works.split_off(joined);
            let course = Arc::new(Course::new(layer.clone(), std::mem::replace(&mut works, rest)));
            flows.push(Flow::new(course, priority));
        }
        flows
    }

    /// What one request to `layer`'s blob may bring.
    pub(crate) fn limits(&self, layer: &ImageLayer) -> Limits {
        Limits { request_bytes_max: self.config.request_bytes_max, bridge_bytes_max: layer.source.bridge_bytes_max(&self.client) }
    }

    /// Readers wait for `spans`, which are claimed: where background work has claimed them it becomes urgent, or they are fetched at once.
    ///
    /// Cost: next to nothing where no background request to the layer is under way.
    pub(crate) fn hurry(&self, store: &LayerStore, spans: &[SpanIndex]) {
        if spans.is_empty() {
            return;
        }
        self.jobs.note_miss();
        for course in store.backlog.courses() {
            let limits = self.limits(&course.layer);
            let works: VecDeque<Work> = spans.iter().filter_map(|&span| course.hurry(span, limits.bridge_bytes_max)).collect();
            for flow in self.flows_of(&course.layer, works, limits, Priority::Demand) {
                self.send_flow(flow);
            }
        }
    }

    /// How far a reader may be read ahead for now: a part of the setting while read-ahead waits for memory, since more would wait too.
    pub(crate) fn read_ahead_bytes_max(&self) -> u64 {
        let is_short = self.budget.is_waited_for(Priority::Ahead) || self.compressed.is_waited_for(Priority::Ahead);
        self.config.read_ahead_bytes_max / if is_short { SHORT_OF_MEMORY } else { 1 }
    }

    /// Reads ahead what of `spans` is absent when its turn comes; dropped when too much waits already.
    pub(crate) fn read_ahead(&self, layer: &Arc<ImageLayer>, spans: Range<u32>) {
        let before = self.read_aheads.fetch_add(1, Ordering::Relaxed);
        let under_way = UnderWay(self.read_aheads.clone());
        if before < READ_AHEADS_MAX {
            self.send(Request::Background(Task::read_ahead(layer.clone(), spans, under_way)));
        }
    }

    /// Has the neighbour of `spans` read ahead that is worth a guess, if one is.
    pub(crate) fn guess_beside(&self, layer: &Arc<ImageLayer>, spans: &Range<u32>) {
        if let Some(span) = layer.store.neighbour_of(spans) {
            self.read_ahead(layer, span.get()..span.get() + 1);
        }
    }

    /// Brings what of `runs` is absent, in their order and in joined requests, whenever readers leave room; `rate` is in compressed bytes a
    /// second. Cost: returns at once; nothing is claimed before its turn comes.
    pub(crate) fn background(&self, purpose: Purpose, runs: Vec<Run>, rate: Option<u64>) -> BackgroundHandle {
        let (task, handle) = Task::new(self, purpose, runs, rate);
        self.send(Request::Background(task));
        handle
    }

    pub(crate) fn watch_read(&self, deadline: Deadline) {
        self.send(Request::Deadline(deadline));
    }

    /// Gives a request to the next shard in turn. A request to a stopped engine is dropped, which fails what it had claimed.
    fn send(&self, request: Request) {
        let shard = self.next_shard.fetch_add(1, Ordering::Relaxed) % self.shards.len();
        self.shards[shard].send(request);
    }

    /// Gives `flow` to a shard that has an idle connection, so that no new one is opened beside it, or else to the one with the fewest.
    pub(crate) fn send_flow(&self, mut flow: Flow) {
        let turn = self.next_shard.fetch_add(1, Ordering::Relaxed);
        // A fill leaves the last shard to readers, its sockets too.
        let count = if flow.priority == Priority::Fill { self.shards.len().max(2) - 1 } else { self.shards.len() };
        let by_turn = (0..count).map(|step| (turn + step) % count);
        let Some(best) = by_turn.min_by_key(|&shard| (self.shards[shard].client.idle_connections() == 0, self.shards[shard].flows.count()))
        else {
            return;
        };
        flow.on = Some(self.shards[best].flows.weigh(1));
        self.shards[best].send(Request::Flow(flow));
    }

    /// Gives `flow`, which is about to open a connection, to another shard than `own` that has an idle one; gives it back where there is none.
    pub(crate) fn pass_on(&self, mut flow: Flow, own: usize) -> Option<Flow> {
        let Some(other) = (0..self.shards.len()).find(|&shard| shard != own && self.shards[shard].client.idle_connections() > 0) else {
            return Some(flow);
        };
        flow.on = Some(self.shards[other].flows.weigh(1));
        self.shards[other].send(Request::Flow(flow));
        None
    }

    /// Which jobs shard `index` takes: the last one, where there are several, leaves a fill to the others while readers miss.
    pub(crate) fn takes(&self, index: usize) -> Takes {
        if index > 0 && index + 1 == self.shards.len() { Takes::FillWhenQuiet } else { Takes::All }
    }

    /// The client of shard `index`, with its own connections.
    pub(crate) fn client_of(&self, index: usize) -> &Client {
        &self.shards[index].client
    }

    /// A span was decoded by shard `index`.
    pub(crate) fn note_decoded(&self, index: usize) {
        self.shards[index].spans.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn spans_by_shard(&self) -> Vec<u64> {
        self.shards.iter().map(|shard| shard.spans.load(Ordering::Relaxed)).collect()
    }

    /// Writes the one log line of a failed fetch, which `said` remembers; nothing while stopping, and a count instead of a flood.
    pub(crate) fn say_fetch_failed(&self, said: &AtomicBool, layer: &Digest, error: &EngineError) {
        if !self.is_stopping()
            && !said.swap(true, Ordering::Relaxed)
            && let Some(unsaid) = self.failures.next_of(&error.cause())
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

    /// After the shards have left: what they left behind fails.
    pub(crate) fn clear(&self) {
        // Jobs that wait for room are woken by this, so that the queue has them all: those that waited for bytes lost their flow before.
        self.budget.close();
        self.compressed.close();
        self.decoders.close();
        self.connections.close();
        while let Some(job) = self.jobs.pop(Takes::All) {
            Job::abandon(&job);
        }
    }

    /// What keeps the directory ours: a write that may hang holds it too.
    pub(crate) fn owner_lock(&self) -> Option<Arc<OwnerLock>> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The directory is free for another owner, once no write to it hangs any more.
    pub(crate) fn unlock(&self) {
        *self.lock.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// A limit on requests under way, a quarter of which (one at least, where there are two) is kept for readers.
pub(crate) fn connections(max: usize) -> Arc<Quota> {
    let max = max.max(1) as u64;
    Quota::new(max, max - max.div_ceil(4))
}
