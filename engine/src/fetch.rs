//! One flow: a ranged request (or a few in a row) whose bytes feed the decode jobs of its groups while they arrive.

use std::{
    future::Future,
    ops::Range,
    rc::Rc,
    sync::{Arc, Weak, atomic::AtomicBool},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::{Semaphore, mpsc},
    time::timeout,
};

use crate::{
    background::Ticket,
    backlog::Course,
    claims::{Claims, Failed},
    core::Core,
    error::EngineError,
    image_layer::{ImageLayer, Work},
    job::{DecodeJob, Job, Piece},
    metrics::{Weight, count},
    plan,
    priority::Priority,
    progress::{self, Progress},
    quota::{Held, Quota},
    registry::{CHUNK_BYTES_MAX, Client, ServedBy},
    shard::{Shard, Urgent},
    source::{BlobSource, SourceReader},
};

/// Chunks that wait for one decode job. Source: 8 chunks of at most 256 KiB ([`CHUNK_BYTES_MAX`]) keep an inflate of 1 MiB spans busy and bound
/// what waits for a job to 2 MiB of compressed bytes.
const CHUNKS_WAITING_MAX: usize = 8;

/// As that, where decoding will stop before the group's end: what waits then was fetched for nothing. Source: judgement, not
/// measured: the fewest with which a chunk waits while the next arrives.
const CHUNKS_WAITING_MAX_PARTIAL: usize = 2;

/// Decode jobs of one flow that are under way or wait for a shard; with more the flow stops reading. Source: as many as there are
/// shards by default, so that one flow can keep all of them busy.
const JOBS_MAX: usize = 8;

/// How much longer than the read timeout a flow waits for a client to end by itself. Source: judgement, not measured: a busy node's scheduler.
const LAST_WORDS_MAX: Duration = Duration::from_millis(250);

/// Groups of one layer, fetched together.
pub(crate) struct Flow {
    /// What it has to bring; ascending, with gaps that are bridged.
    pub(crate) course: Arc<Course>,
    pub(crate) priority: Priority,
    /// Its part of the connections, where it has that already.
    pub(crate) slots: Option<Slots>,
    /// What counts it, where somebody counts.
    pub(crate) ticket: Option<Arc<Ticket>>,
    /// Its failure is in the log.
    pub(crate) said: Arc<AtomicBool>,
    /// Its weight on the shard that it was given to.
    pub(crate) on: Option<Weight>,
    /// What was brought before was wrong: this is the last try, over a connection of its own.
    pub(crate) is_repeated: bool,
    /// When it last moved, where another shard has passed it on: its time goes on there.
    progress: Option<Progress>,
}

impl Flow {
    pub(crate) fn new(course: Arc<Course>, priority: Priority) -> Self {
        let said = Arc::default();
        Self { course, priority, slots: None, ticket: None, said, on: None, is_repeated: false, progress: None }
    }
}

/// A flow's part of the connections to its layer's blob and of the node's.
pub(crate) struct Slots {
    _of_layer: Held,
    _of_node: Held,
}

impl Slots {
    /// Waits for both, however long that takes.
    pub(crate) async fn acquire(core: &Core, layer: &ImageLayer, priority: Priority) -> Result<Self, EngineError> {
        let _of_layer = layer.store.connections.acquire(1, priority).await?;
        Ok(Self { _of_layer, _of_node: core.connections.acquire(1, priority).await? })
    }
}

/// What a flow fetches, for as long as it runs and in words.
struct Target {
    layer: Arc<ImageLayer>,
    /// The stream's bytes from the first group's first span to the last group's last.
    stream: Range<u64>,
    client: Client,
}

/// Fetches `flow`. A failure fails every span of it that has not got its bytes, with one log line; bytes that do not decode are their
/// spans' failure only.
pub(crate) async fn run(mut flow: Flow, shard: Rc<Shard>) {
    let is_passed_on = flow.progress.is_some();
    let mut progress = flow.progress.take().unwrap_or_default();
    let client = if flow.is_repeated { shard.client.with_own_pool() } else { shard.client.clone() };
    let target = Target { layer: flow.course.layer.clone(), stream: flow.course.stream(), client };
    let said = flow.said.clone();
    let slots = match flow.slots.take() {
        Some(slots) => Ok(slots),
        None => acquire(&target, flow.priority, &progress, &shard).await,
    };
    let is_settled =
        is_passed_on || flow.is_repeated || shard.client.idle_connections() > 0 || matches!(target.layer.source, BlobSource::File { .. });
    let slots = match slots {
        Ok(slots) if !is_settled => {
            (flow.slots, flow.progress) = (Some(slots), Some(progress));
            match shard.core.pass_on(flow, shard.index) {
                None => return,
                Some(kept) => flow = kept,
            }
            progress = flow.progress.take().unwrap_or_default();
            flow.slots.take().ok_or(EngineError::Stopped)
        }
        slots => slots,
    };
    let mut feed = Feed::new(&flow, said.clone(), shard.clone());
    let fetched = match &slots {
        Ok(_) => fetch(&target, &mut feed, &progress, &shard).await,
        Err(error) => Err(error.clone()),
    };
    if let Some(ticket) = &flow.ticket {
        ticket.note_fetched(fetched.is_ok());
    }
    if let Err(error) = &fetched {
        shard.core.say_fetch_failed(&said, &target.layer.store.digest, error);
        target.layer.store.note_fetch_failed(error);
        feed.fail(error);
    }
}

/// A reader's part of the connections, waited for as long as those who hold them move on.
async fn acquire(target: &Target, priority: Priority, progress: &Progress, shard: &Shard) -> Result<Slots, EngineError> {
    let (core, store) = (&shard.core, &target.layer.store);
    let _of_layer = permit(&store.connections, priority, &store.progress, progress, target, shard).await?;
    let _of_node = permit(&core.connections, priority, &core.progress, progress, target, shard).await?;
    Ok(Slots { _of_layer, _of_node })
}

async fn fetch(target: &Target, feed: &mut Feed, progress: &Progress, shard: &Shard) -> Result<(), EngineError> {
    let Some(range) = feed.course.range() else { return Ok(()) };
    let mut start = range.start;
    while start < range.end {
        let end = range.end.min(start.saturating_add(shard.core.config.request_bytes_max.max(1)));
        if request(target, feed, start..end, progress, shard).await? == Fed::All {
            return Ok(());
        }
        start = end;
    }
    feed.start_rest().await
}

/// Feeds the bytes `range` of the blob.
async fn request(target: &Target, feed: &mut Feed, range: Range<u64>, progress: &Progress, shard: &Shard) -> Result<Fed, EngineError> {
    let layer = &target.layer;
    feed.course.note_position(range.start);
    let mut reader = within(target, progress, shard, layer.source.open(&target.client, range.clone())).await?;
    let mut position = range.start;
    while position < range.end {
        let chunk = tokio::select! {
            chunk = within(target, progress, shard, next_chunk(&mut reader, &layer.source, shard)) => chunk?,
            () = feed.last_is_done() => return Ok(Fed::All),
        };
        let Some(chunk) = chunk else {
            let place = format!("blob bytes {}..{}", range.start, range.end);
            let expected = format!("{} bytes", range.end - range.start);
            let found = format!("{} bytes", position - range.start);
            return Err(EngineError::Layer { layer: layer.store.digest, place, expected, found });
        };
        feed.sender = reader.sender().cloned();
        [progress, &layer.store.progress, &shard.core.progress].iter().for_each(|progress| progress.touch());
        let end = position + chunk.len() as u64;
        if feed.give(position, &chunk).await? == Fed::All {
            return Ok(Fed::All);
        }
        position = end;
        // Decoding has waited for the wait on decoders to count as progress.
        progress.touch();
    }
    Ok(Fed::More)
}

async fn next_chunk(reader: &mut SourceReader, source: &BlobSource, shard: &Shard) -> Result<Option<Bytes>, EngineError> {
    let chunk = reader.chunk().await?;
    if let (Some(chunk), BlobSource::File { .. }) = (&chunk, source) {
        count(&shard.core.counters.source_reads, 1);
        count(&shard.core.counters.source_bytes, chunk.len() as u64);
        // A file never makes us wait, so nothing else would run meanwhile.
        tokio::task::yield_now().await;
    }
    Ok(chunk)
}

/// Whether a flow needs more bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fed {
    More,
    All,
}

/// Gives the bytes of a flow to the groups that need them, starting each group's decode job with its first bytes.
struct Feed {
    course: Arc<Course>,
    open: Option<Open>,
    /// The blob's bytes before this have been used.
    used: u64,
    turns: Arc<Semaphore>,
    said: Arc<AtomicBool>,
    ticket: Option<Arc<Ticket>>,
    is_repeated: bool,
    /// A reader waits for what it brings.
    urgent: Option<Urgent>,
    shard: Rc<Shard>,
    /// Who sent the latest bytes, where others could be asked instead.
    sender: Option<Arc<ServedBy>>,
}

/// The group that is being fed.
struct Open {
    compressed: Range<u64>,
    /// Closed by the job when it needs no more, or cannot use them.
    sender: mpsc::Sender<Piece>,
    claims: Weak<Claims>,
}

impl Open {
    /// Gives `piece` to the job once there is room; false when the job takes no more. A job of a fill may not run for long: it becomes
    /// urgent when a reader waits for what `course` comes to behind it.
    async fn send(&self, piece: Piece, course: &Course) -> bool {
        let room = tokio::select! {
            biased;
            room = self.sender.reserve() => room,
            () = course.wanted_later() => {
                if let Some(claims) = self.claims.upgrade() {
                    claims.urgency().raise();
                }
                self.sender.reserve().await
            }
        };
        room.map(|room| room.send(piece)).is_ok()
    }
}

impl Feed {
    fn new(flow: &Flow, said: Arc<AtomicBool>, shard: Rc<Shard>) -> Self {
        let turns = Arc::new(Semaphore::new(JOBS_MAX));
        let urgent = (flow.priority == Priority::Demand).then(|| shard.urgent_flow());
        let (course, ticket, is_repeated) = (flow.course.clone(), flow.ticket.clone(), flow.is_repeated);
        Self { course, open: None, used: 0, turns, said, ticket, is_repeated, urgent, shard, sender: None }
    }

    /// Hands out `chunk`, the blob's bytes at `position`. A byte that two groups share goes to both, one of a gap to none.
    async fn give(&mut self, position: u64, chunk: &Bytes) -> Result<Fed, EngineError> {
        let chunk_end = position + chunk.len() as u64;
        self.course.note_position(position);
        if self.urgent.is_none() && self.course.is_hurried() {
            self.urgent = Some(self.shard.urgent_flow());
        }
        loop {
            if self.open.is_none() {
                let Some(next) = self.course.next() else { return Ok(Fed::All) };
                let gap = next.start.min(chunk_end).saturating_sub(self.used.max(position));
                count(&self.shard.core.counters.gap_bytes, gap);
                if !next.is_empty() && next.start >= chunk_end {
                    return Ok(Fed::More);
                }
                match self.course.start() {
                    Some(work) => self.open = Some(self.start(work).await?),
                    None => return Ok(Fed::All),
                }
            }
            let Some(open) = &self.open else { return Ok(Fed::All) };
            let part = plan::part_of(position, chunk.len(), &open.compressed);
            self.used = chunk_end.min(open.compressed.end);
            let piece = Piece::new(chunk.slice(part), &self.shard.core.counters.compressed);
            let taken = piece.bytes.is_empty() || open.send(piece, &self.course).await;
            if taken && chunk_end < open.compressed.end {
                return Ok(Fed::More);
            }
            self.open = None;
            if !self.course.has_more() {
                return Ok(Fed::All);
            }
        }
    }

    /// Starts the jobs that need no bytes: a kept decoder may have used all of its group's, and hold the output back.
    async fn start_rest(&mut self) -> Result<(), EngineError> {
        self.open = None;
        while let Some(work) = self.course.start() {
            drop(self.start(work).await?);
        }
        Ok(())
    }

    /// Queues the decode job of `work`, once there is room for its compressed bytes and one of the flow's jobs has ended if there are too
    /// many. Those have all their bytes, so that they end whatever becomes of this flow; the job has room for all it needs, so that it
    /// never waits for bytes that wait for room.
    async fn start(&self, work: Work) -> Result<Open, EngineError> {
        let core = &self.shard.core;
        let turn = tokio::select! {
            biased;
            turn = self.turns.clone().acquire_owned() => Some(turn.map_err(|_| EngineError::Stopped)?),
            () = self.course.hurried() => None,
        };
        let compressed = work.group.compressed.clone();
        let chunks_waiting = if work.group.whole { CHUNKS_WAITING_MAX } else { CHUNKS_WAITING_MAX_PARTIAL };
        let bytes = compressed.end.saturating_sub(compressed.start).min(bytes_held_max(chunks_waiting));
        let room = tokio::select! {
            biased;
            room = core.compressed.acquire_as(bytes, work.claims.urgency()) => room?,
            () = self.course.hurried() => core.compressed.acquire(bytes, Priority::Demand).await?,
        };
        let (sender, input) = mpsc::channel(chunks_waiting);
        let open = Open { compressed, sender, claims: Arc::downgrade(&work.claims) };
        let (course, said, ticket) = (self.course.clone(), self.said.clone(), self.ticket.clone());
        let (host, is_repeated) = (self.sender.clone(), self.is_repeated);
        Job::start(core, DecodeJob { course, work, input, turn, room, said, ticket, host, is_repeated });
        Ok(open)
    }

    /// True for ever once the last group's job needs no more bytes.
    async fn last_is_done(&self) {
        match &self.open {
            Some(open) if !self.course.has_more() => open.sender.closed().await,
            _ => std::future::pending().await,
        }
    }

    /// Fails what has not got all its bytes: the open group's job does that itself, which knows why when its channel closes and puts its
    /// decoder away before anybody asks again.
    fn fail(self, error: &EngineError) {
        if let Some(claims) = self.open.as_ref().and_then(|open| open.claims.upgrade()) {
            claims.note_failed(error.clone());
        }
        let layer = &self.course.layer;
        let failed = self.course.take().into_iter().map(|work| {
            layer.chains.break_off(&work.claims, work.resumed.map(|resumed| *resumed));
            work.claims.fail(error.clone())
        });
        let failed: Vec<Failed> = failed.collect();
        self.shard.core.decoders.note_standing(&layer.chains);
        drop(failed);
    }
}

/// Compressed bytes that a job holds at most, of a group that is longer: a full channel, and the chunk that is decoded. The one that waits to
/// be sent is its request's.
const fn bytes_held_max(chunks_waiting: usize) -> u64 {
    (chunks_waiting as u64 + 1) * CHUNK_BYTES_MAX
}

/// Waits for a permit as long as those who hold them move on (`moving`), or the flow is younger than the timeout.
async fn permit(
    quota: &Arc<Quota>,
    priority: Priority,
    moving: &Progress,
    progress: &Progress,
    target: &Target,
    shard: &Shard,
) -> Result<Held, EngineError> {
    let idle_max = shard.core.config.read_timeout;
    let permit = progress::while_moving(quota.acquire(1, priority), &[progress, moving], idle_max).await;
    let permit = permit.ok_or_else(|| stalled(target, shard))??;
    progress.inherit(moving);
    Ok(permit)
}

/// The result of `step`, unless the flow makes no progress meanwhile. A registry's client ends by itself within the timeout, and says why
/// better.
async fn within<T>(
    target: &Target,
    progress: &Progress,
    shard: &Shard,
    step: impl Future<Output = Result<T, EngineError>>,
) -> Result<T, EngineError> {
    let left = shard.core.config.read_timeout.saturating_sub(progress.idle()) + LAST_WORDS_MAX;
    timeout(left, step).await.unwrap_or_else(|_| Err(stalled(target, shard)))
}

/// The error of a flow whose time is over. Where the registry has been away meanwhile, that is why.
fn stalled(target: &Target, shard: &Shard) -> EngineError {
    let Target { layer, stream, .. } = target;
    let waited = shard.core.config.read_timeout;
    layer.store.unavailable_since(waited).unwrap_or_else(|| {
        let what = format!("fetch of stream bytes {}..{} of layer {}", stream.start, stream.end, layer.store.digest);
        EngineError::Deadline { what, waited }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{collections::VecDeque, pin::pin};

    use clip_format::{
        checkpoints::{Checkpoints, Span, SpanStart},
        digest::Digest,
        storage_info::{Codec, LayerInfo},
        units::{CompressedOffset, SpanIndex, StreamOffset},
    };

    use super::*;
    use crate::{buffers::Buffers, layer::LayerStore, metrics::Counters, plan::Wanted, tend::Tended};

    /// A plain layer of four spans of 100 bytes.
    fn layer(dir: &std::path::Path) -> Arc<ImageLayer> {
        let span = |at| Span { start: SpanStart::Plain, compressed: CompressedOffset(at), stream: StreamOffset(at), digest: [0; 32] };
        let digest = Digest::Sha256([1; 32]);
        let codec = Codec::Plain;
        let info = LayerInfo { digest, diff_id: digest, media_type: String::new(), compressed_size: 400, stream_size: 400, codec };
        let bytes = Checkpoints::encode(&[(0..4).map(|number| span(number * 100)).collect()]).unwrap();
        let table = Checkpoints::open(Arc::new(bytes), &[info], 0).unwrap().layers()[0].clone();
        let tended = Tended::start(Buffers::new(0));
        let store = LayerStore::open(dir.to_owned(), digest, &table, 1, Arc::default(), &tended).unwrap();
        let source = BlobSource::File { path: dir.join("blob"), offset: 0, size: 400 };
        Arc::new(ImageLayer::new(Arc::new(store), table, source, Arc::new(Vec::new())))
    }

    /// Claim: a full channel to a fill's job makes that job urgent once a reader waits for a later group that is near, no sooner and not
    /// when the reader waits for one that this request is past.
    #[tokio::test]
    async fn what_stands_before_a_reader_becomes_urgent() {
        let dir = tempfile::tempdir().unwrap();
        let layer = layer(&dir.path().join("layer"));
        let work = |span: u32| {
            assert!(layer.store.claim_ahead(SpanIndex(span)));
            layer.work(Wanted { entry: SpanIndex(span), wanted: vec![SpanIndex(span)] }, Priority::Fill).unwrap()
        };
        let course = Course::new(layer.clone(), (0..4).map(work).collect::<VecDeque<_>>());
        let (past, started) = (course.start().unwrap(), course.start().unwrap());
        course.note_position(100);
        let (sender, mut input) = mpsc::channel(1);
        let open = Open { compressed: 100..200, sender, claims: Arc::downgrade(&started.claims) };
        let counters = Counters::default();
        let piece = || Piece::new(Bytes::from_static(&[0; 10]), &counters.compressed);
        let is_urgent = || !started.claims.urgency().get().is_background();
        assert!(open.send(piece(), &course).await);
        let mut second = pin!(open.send(piece(), &course));
        let mut waits = async || timeout(std::time::Duration::from_millis(20), second.as_mut()).await.is_err();
        assert!(waits().await && !is_urgent());
        assert!(course.hurry(SpanIndex(0), 1000).is_none());
        assert!(waits().await && !is_urgent() && !past.claims.urgency().get().is_background());
        assert!(course.hurry(SpanIndex(3), 1000).is_none());
        assert!(waits().await && is_urgent());
        assert!(input.recv().await.is_some() && !waits().await);
        drop(input);
        assert!(!open.send(piece(), &course).await, "the job takes no more");
    }
}
