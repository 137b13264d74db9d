//! Work that no reader waits for: the replay of a profile, the fill of a whole image. It takes what readers leave.

use std::{
    ops::Range,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use clip_format::units::SpanIndex;

use crate::{
    core::{Core, Limits},
    fetch::Slots,
    image_layer::ImageLayer,
    priority::Priority,
    shard::Shard,
    span::SpanState,
};

/// Compressed bytes of one background request. Source: with three requests at once a long read-ahead uses three connections, and 4 MiB
/// take a tenth of a second or so to decode, so that the cost of a request (0.3 ms on loopback, 20 ms to a far registry) stays small beside.
const REQUEST_BYTES_MAX: u64 = 4 << 20;
/// How much of a second's bytes a limited task asks for at once. Source: judgement, not measured: a quarter of a second of a rate that is worth
/// setting is far more than a request costs, and a link that others share sees no longer burst.
const REQUESTS_A_SECOND_MIN: u64 = 4;
/// Requests that may fail in a row before the rest is given up. Source: judgement: each has been tried for a read timeout by then.
const FAILURES_MAX: u32 = 4;
/// How long a task that waits for its rate does so without a look at whether it is still wanted. Source: judgement, not measured: a
/// task that was cancelled ends before anybody notices, and ten looks a second cost nothing.
const SLEEP_MAX: Duration = Duration::from_millis(100);
/// Spans that one request claims: of a chain nothing else bounds them. Source: 32 GiB of stream at the default span size.
const CLAIMS_MAX: usize = 16_384;
/// A task claims no more while so many spans of the layer are in flight, of which each takes 100 bytes or so. Source: two requests' worth.
const IN_FLIGHT_MAX: usize = 2 * CLAIMS_MAX;

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
    pub(crate) tally: Arc<Tally>,
}

/// How far background work is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackgroundProgress {
    /// Spans that it was asked for.
    pub spans: u64,
    /// Those that are there: brought, or found present or in flight. `<= spans`; less than that at the end where a request failed for good.
    pub spans_done: u64,
    /// Nothing more will come: all is done, or the rest was given up after failures (one warning in the log says why).
    pub is_finished: bool,
}

impl BackgroundHandle {
    /// How far it is now.
    #[must_use]
    pub fn progress(&self) -> BackgroundProgress {
        let spans_done = self.tally.done.load(Ordering::Acquire);
        BackgroundProgress { spans: self.tally.spans, spans_done, is_finished: self.tally.finished.load(Ordering::Acquire) }
    }
}

impl Drop for BackgroundHandle {
    fn drop(&mut self) {
        self.tally.cancelled.store(true, Ordering::Release);
    }
}

/// What background work and its handle share.
pub(crate) struct Tally {
    spans: u64,
    done: AtomicU64,
    failed_in_a_row: AtomicU32,
    finished: AtomicBool,
    cancelled: AtomicBool,
}

impl Tally {
    pub(crate) fn new(runs: &[Run]) -> Self {
        let spans = runs.iter().map(|run| run.spans.len() as u64).sum();
        Self {
            spans,
            done: AtomicU64::new(0),
            failed_in_a_row: AtomicU32::new(0),
            finished: AtomicBool::new(spans == 0),
            cancelled: AtomicBool::new(false),
        }
    }

    fn add_done(&self, spans: u64) {
        self.done.fetch_add(spans, Ordering::AcqRel);
    }
}

/// Finishes a task when the last who works on it lets go.
struct Finish(Arc<Tally>);

impl Drop for Finish {
    fn drop(&mut self) {
        self.0.finished.store(true, Ordering::Release);
    }
}

/// Held by whatever works on one request of a task; with the last of them the request's spans are done, or given up and absent again.
pub(crate) struct Ticket {
    layer: Arc<ImageLayer>,
    spans: Range<u32>,
    finish: Arc<Finish>,
}

impl Ticket {
    /// The request has failed, or brought all its bytes.
    pub(crate) fn note_fetched(&self, fetched: bool) {
        let failed = &self.finish.0.failed_in_a_row;
        match fetched {
            true => failed.store(0, Ordering::Relaxed),
            false => _ = failed.fetch_add(1, Ordering::Relaxed),
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let is_there = |span: &u32| self.layer.store.states.get(SpanIndex(*span)) != SpanState::Absent;
        self.finish.0.add_done(self.spans.clone().filter(is_there).count() as u64);
    }
}

/// One piece of background work on its way to a shard.
pub(crate) struct Task {
    priority: Priority,
    /// In the order in which they are to be brought.
    runs: Vec<Run>,
    pacer: Pacer,
    tally: Arc<Tally>,
    finish: Arc<Finish>,
    gives_up: GivesUp,
}

/// When the rest of a task is left to readers.
enum GivesUp {
    /// After any failure of the layer since there were so many: the registry may be dead, and to find out once more for each read-ahead
    /// would keep other layers waiting. It counts among those under way until it is dropped.
    AfterOne { failed_fetches: u64, _under_way: UnderWay },
    /// After several failures in a row, or once the disk is full: spans that could not be kept when it began.
    AfterSeveral { spans_not_cached: u64 },
}

/// One of a limited number of read-aheads.
pub(crate) struct UnderWay(pub(crate) Arc<AtomicUsize>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Task {
    /// The read-ahead of one reader.
    pub(crate) fn read_ahead(layer: Arc<ImageLayer>, spans: Range<u32>, under_way: UnderWay) -> Self {
        let failed_fetches = layer.store.failed_fetches.load(Ordering::Relaxed);
        let runs = vec![Run { layer, spans }];
        let tally = Arc::new(Tally::new(&runs));
        let gives_up = GivesUp::AfterOne { failed_fetches, _under_way: under_way };
        let finish = Arc::new(Finish(tally.clone()));
        Self { priority: Priority::Ahead, runs, pacer: Pacer::new(None), tally, finish, gives_up }
    }

    /// Work with a handle.
    pub(crate) fn new(core: &Core, purpose: Purpose, runs: Vec<Run>, rate: Option<u64>) -> (Self, BackgroundHandle) {
        let tally = Arc::new(Tally::new(&runs));
        let handle = BackgroundHandle { tally: tally.clone() };
        let priority = match purpose {
            Purpose::Replay => Priority::Ahead,
            Purpose::Fill => Priority::Fill,
        };
        let gives_up = GivesUp::AfterSeveral { spans_not_cached: core.counters.spans_not_cached.load(Ordering::Relaxed) };
        let finish = Arc::new(Finish(tally.clone()));
        (Self { priority, runs, pacer: Pacer::new(rate), tally, finish, gives_up }, handle)
    }

    fn goes_on(&self, core: &Core, layer: &ImageLayer) -> bool {
        if core.is_stopping() || self.tally.cancelled.load(Ordering::Acquire) {
            return false;
        }
        match self.gives_up {
            GivesUp::AfterOne { failed_fetches, .. } => layer.store.failed_fetches.load(Ordering::Relaxed) == failed_fetches,
            GivesUp::AfterSeveral { spans_not_cached } => {
                let disk_is_full = core.counters.spans_not_cached.load(Ordering::Relaxed) > spans_not_cached;
                let is_dead = self.tally.failed_in_a_row.load(Ordering::Relaxed) >= FAILURES_MAX;
                if disk_is_full || is_dead {
                    let left = self.tally.spans - self.tally.done.load(Ordering::Acquire);
                    tracing::warn!(layer = %layer.store.digest, left, disk_is_full, "background work was given up; readers fetch what they need");
                }
                !disk_is_full && !is_dead
            }
        }
    }

    /// Waits until the rate, and what is in flight, allow one more request.
    async fn wait_for_rate(&self, core: &Core, layer: &ImageLayer) -> bool {
        loop {
            if !self.goes_on(core, layer) {
                return false;
            }
            let is_full = layer.store.in_flight() >= IN_FLIGHT_MAX;
            match self.pacer.wait(Instant::now()) {
                _ if is_full => tokio::time::sleep(SLEEP_MAX).await,
                Duration::ZERO => return true,
                wait => tokio::time::sleep(wait.min(SLEEP_MAX)).await,
            }
        }
    }
}

/// Runs `task`: one request after another as connections come free, each on the shard that suits it. What the next request does not bring
/// stays unclaimed, free for readers who cannot wait.
pub(crate) async fn run(mut task: Task, shard: Rc<Shard>) {
    let core = &shard.core;
    for Run { layer, spans } in std::mem::take(&mut task.runs) {
        let end = spans.end.min(layer.table.len());
        task.tally.add_done(u64::from(spans.end.saturating_sub(end.max(spans.start))));
        let mut spans = spans.start..end;
        while skip_present(&layer, &mut spans, &task.tally) {
            if !task.wait_for_rate(core, &layer).await {
                return;
            }
            let Ok(slots) = Slots::acquire(core, &layer, task.priority).await else { return };
            if !task.goes_on(core, &layer) {
                return;
            }
            send_request(&layer, &mut spans, &mut task, slots, core);
        }
    }
}

/// Leaves out what is there or on its way already; false when nothing is left.
fn skip_present(layer: &ImageLayer, spans: &mut Range<u32>, tally: &Tally) -> bool {
    let before = spans.start;
    while spans.start < spans.end && layer.store.states.get(SpanIndex(spans.start)) != SpanState::Absent {
        spans.start += 1;
    }
    tally.add_done(u64::from(spans.start - before));
    spans.start < spans.end
}

/// Claims what the next request brings, and sends that.
fn send_request(layer: &Arc<ImageLayer>, spans: &mut Range<u32>, task: &mut Task, slots: Slots, core: &Core) {
    let mut limits = core.limits(layer);
    limits.request_bytes_max = limits.request_bytes_max.min(REQUEST_BYTES_MAX).min(task.pacer.request_bytes_max());
    let before = spans.start;
    let claimed = claim_request(layer, spans, limits);
    let ticket = Arc::new(Ticket { layer: layer.clone(), spans: before..spans.start, finish: task.finish.clone() });
    let flows = core.flows(layer, claimed.clone(), limits, task.priority);
    flows.iter().for_each(|flow| layer.store.backlog.enter(&flow.course));
    // Who came to wait since the claim has not found the course: for what it was to bring, or for what lies on the way there.
    let mut open: Vec<SpanIndex> = flows.iter().flat_map(|flow| flow.course.claimed()).chain(claimed).collect();
    open.sort_unstable();
    open.dedup();
    core.hurry(&layer.store, &layer.store.waited_for(&open));
    let mut slots = Some(slots);
    for mut flow in flows {
        let bytes = flow.course.range().map_or(0, |range| range.end.saturating_sub(range.start));
        task.pacer.spend(Instant::now(), bytes);
        flow.slots = slots.take();
        flow.ticket = Some(ticket.clone());
        core.send_flow(flow);
    }
}

/// Claims the absent spans from the next on that one request can bring, up to `request_bytes_max` compressed bytes and [`CLAIMS_MAX`];
/// small gaps of others are bridged.
fn claim_request(layer: &ImageLayer, spans: &mut Range<u32>, limits: Limits) -> Vec<SpanIndex> {
    let compressed = |span| layer.table.compressed_range(layer.table.entry_of(span));
    let mut claimed: Vec<SpanIndex> = Vec::new();
    for span in spans.clone().map(SpanIndex) {
        let range = compressed(span);
        if let (Some(&first), Some(&last)) = (claimed.first(), claimed.last()) {
            let is_full = range.end.saturating_sub(compressed(first).start) > limits.request_bytes_max && range != compressed(last);
            let is_full = is_full || claimed.len() >= CLAIMS_MAX;
            if is_full || range.start.saturating_sub(compressed(last).end) > limits.bridge_bytes_max {
                break;
            }
        }
        if layer.store.states.get(span) == SpanState::Absent && layer.store.claim_ahead(span) {
            claimed.push(span);
            spans.start = span.get() + 1;
        } else if claimed.is_empty() {
            spans.start = span.get() + 1;
        }
    }
    claimed
}

/// Spreads requests so that their bytes keep to a rate on average. Pure.
struct Pacer {
    bytes_per_second: Option<u64>,
    free_at: Option<Instant>,
}

impl Pacer {
    fn new(bytes_per_second: Option<u64>) -> Self {
        Self { bytes_per_second: bytes_per_second.map(|rate| rate.max(1)), free_at: None }
    }

    /// What one request may bring, so that a slow task does not take everything for a while and then nothing.
    fn request_bytes_max(&self) -> u64 {
        self.bytes_per_second.map_or(u64::MAX, |rate| rate / REQUESTS_A_SECOND_MIN)
    }

    /// How long the next request has to wait from `now` on.
    fn wait(&self, now: Instant) -> Duration {
        self.free_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(now))
    }

    fn spend(&mut self, now: Instant, bytes: u64) {
        let Some(rate) = self.bytes_per_second else { return };
        let from = self.free_at.map_or(now, |at| at.max(now));
        // A pause of more than a day is as good as none.
        let pause = Duration::from_secs_f64((bytes as f64 / rate as f64).min(86_400.0));
        self.free_at = Some(from + pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Claim: what is spent keeps to the rate whatever the sizes of requests are; time in which nothing was wanted is not saved up.
    #[test]
    fn bytes_keep_to_the_rate() {
        let start = Instant::now();
        let (mut pacer, mut now) = (Pacer::new(Some(1000)), start);
        for bytes in [100, 250, 1, 649] {
            now += pacer.wait(now);
            pacer.spend(now, bytes);
        }
        assert_eq!((now + pacer.wait(now)).duration_since(start), Duration::from_secs(1));
        now += Duration::from_secs(100);
        assert_eq!(pacer.wait(now), Duration::ZERO);
        pacer.spend(now, 500);
        assert_eq!(pacer.wait(now), Duration::from_millis(500));
        assert_eq!(pacer.request_bytes_max(), 250);
        let mut unlimited = Pacer::new(None);
        unlimited.spend(now, u64::MAX);
        assert_eq!(unlimited.wait(now), Duration::ZERO);
    }
}
