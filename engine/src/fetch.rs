//! One flow: a ranged request (or a few in a row) whose bytes feed the decode jobs of its groups while they arrive.

use std::{
    collections::VecDeque,
    future::Future,
    ops::Range,
    rc::Rc,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::timeout,
};

use crate::{
    claims::{Claims, Failed},
    error::EngineError,
    image_layer::{ImageLayer, Work},
    job::DecodeJob,
    metrics::count,
    plan,
    progress::{self, Progress},
    shard::Shard,
    source::{BlobSource, SourceReader},
};

/// Chunks that wait for one decode job. Source: 8 chunks of at most 256 KiB keep an inflate of 1 MiB spans busy and bound a flow to
/// 2 MiB of compressed bytes.
const CHUNKS_WAITING_MAX: usize = 8;

/// As that, where decoding will stop before the group's end: what waits then was fetched for nothing.
const CHUNKS_WAITING_MAX_PARTIAL: usize = 2;

/// Decode jobs of one flow that are under way or wait for a shard; with more the flow stops reading. Source: as many as there are
/// shards by default, so that one flow can keep all of them busy; it bounds what one flow holds to the compressed bytes of so many groups.
const JOBS_MAX: usize = 8;

/// Neighbouring groups of one layer, fetched together.
pub(crate) struct Flow {
    pub(crate) layer: Arc<ImageLayer>,
    /// Not empty; ascending, without gaps.
    pub(crate) works: VecDeque<Work>,
}

impl Flow {
    /// Fails every span of a flow that will not be run.
    pub(crate) fn fail(self, error: &EngineError) {
        let failed: Vec<Failed> = self.works.iter().map(|work| work.claims.fail(error.clone())).collect();
        drop(failed);
    }
}

/// What a flow fetches, for as long as it runs and in words.
struct Target {
    layer: Arc<ImageLayer>,
    /// The stream's bytes from the first group's first span to the last group's last.
    stream: Range<u64>,
}

impl Target {
    fn of(flow: &Flow) -> Self {
        let range = |span| flow.layer.table.stream_range(span);
        let start = flow.works.front().map_or(0, |work| range(work.group.from).start);
        let end = flow.works.back().map_or(0, |work| range(work.group.last).end);
        Self { layer: flow.layer.clone(), stream: start..end }
    }
}

/// Fetches `flow`. A failure fails every span of it that has not got its bytes, with one log line.
///
/// # Errors
/// Why the source could not be read; bytes that do not decode are their spans' failure only.
pub(crate) async fn run(mut flow: Flow, shard: Rc<Shard>) -> Result<(), EngineError> {
    let progress = Progress::default();
    let target = Target::of(&flow);
    let works = std::mem::take(&mut flow.works);
    let turns = Arc::new(Semaphore::new(JOBS_MAX));
    let said = Arc::new(AtomicBool::new(false));
    let mut feed = Feed { works, open: None, turns, said: said.clone(), shard: shard.clone(), layer: flow.layer.clone() };
    let fetched = fetch(&target, &mut feed, &progress, &shard).await;
    if let Err(error) = &fetched {
        shard.core.say_fetch_failed(&said, &flow.layer.store.digest, error);
        flow.layer.store.failed_fetches.fetch_add(1, Ordering::Relaxed);
        feed.fail(error);
    }
    fetched
}

async fn fetch(target: &Target, feed: &mut Feed, progress: &Progress, shard: &Shard) -> Result<(), EngineError> {
    let (core, layer) = (&shard.core, &target.layer);
    let _of_layer = permit(&layer.store.connections, &layer.store.progress, progress, target, shard).await?;
    let _of_node = permit(&core.connections, &core.progress, progress, target, shard).await?;
    let Some(range) = feed.range() else { return Ok(()) };
    let mut start = range.start;
    while start < range.end {
        let end = range.end.min(start.saturating_add(core.config.request_bytes_max.max(1)));
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
    let mut reader = within(target, progress, shard, layer.source.open(&shard.client, range.clone())).await?;
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
    /// Not started.
    works: VecDeque<Work>,
    open: Option<Open>,
    turns: Arc<Semaphore>,
    said: Arc<AtomicBool>,
    shard: Rc<Shard>,
    layer: Arc<ImageLayer>,
}

/// The group that is being fed.
struct Open {
    compressed: Range<u64>,
    /// Closed by the job when it needs no more, or cannot use them.
    sender: mpsc::Sender<Bytes>,
    claims: Weak<Claims>,
}

impl Feed {
    /// The blob's bytes from the first group's start to the last one's end.
    fn range(&self) -> Option<Range<u64>> {
        Some(self.works.front()?.group.compressed.start..self.works.back()?.group.compressed.end)
    }

    /// Hands out `chunk`, the blob's bytes at `position`. A byte that two groups share goes to both.
    async fn give(&mut self, position: u64, chunk: &Bytes) -> Result<Fed, EngineError> {
        let chunk_end = position + chunk.len() as u64;
        loop {
            if self.open.is_none() {
                match self.works.pop_front() {
                    None => return Ok(Fed::All),
                    Some(work) => self.open = Some(self.start(work).await?),
                }
            }
            let Some(open) = &self.open else { return Ok(Fed::All) };
            let part = plan::part_of(position, chunk.len(), &open.compressed);
            let taken = part.is_empty() || open.sender.send(chunk.slice(part)).await.is_ok();
            if taken && chunk_end < open.compressed.end {
                return Ok(Fed::More);
            }
            self.open = None;
            if self.works.is_empty() {
                return Ok(Fed::All);
            }
        }
    }

    /// Starts the jobs that need no bytes: a kept decoder may have used all of its group's, and hold the output back.
    async fn start_rest(&mut self) -> Result<(), EngineError> {
        self.open = None;
        while let Some(work) = self.works.pop_front() {
            drop(self.start(work).await?);
        }
        Ok(())
    }

    /// Queues the decode job of `work`, once one of the flow's jobs has ended if there are too many. Those have all their bytes, so
    /// that they end whatever becomes of this flow.
    async fn start(&self, work: Work) -> Result<Open, EngineError> {
        let turn = match self.turns.clone().acquire_owned().await {
            Ok(turn) => turn,
            Err(_) => return Err(EngineError::Stopped),
        };
        let (sender, input) = mpsc::channel(if work.group.whole { CHUNKS_WAITING_MAX } else { CHUNKS_WAITING_MAX_PARTIAL });
        let open = Open { compressed: work.group.compressed.clone(), sender, claims: Arc::downgrade(&work.claims) };
        self.shard.core.push_job(DecodeJob { layer: self.layer.clone(), work, input, turn, said: self.said.clone() });
        Ok(open)
    }

    /// True for ever once the last group's job needs no more bytes.
    async fn last_is_done(&self) {
        match &self.open {
            Some(open) if self.works.is_empty() => open.sender.closed().await,
            _ => std::future::pending().await,
        }
    }

    /// Fails what has not got all its bytes: the open group before its channel closes, so that its job knows why.
    fn fail(self, error: &EngineError) {
        let open = self.open.as_ref().and_then(|open| open.claims.upgrade());
        let claims = open.iter().chain(self.works.iter().map(|work| &work.claims));
        let failed: Vec<Failed> = claims.map(|claims| claims.fail(error.clone())).collect();
        drop(failed);
    }
}

/// Waits for a permit as long as those who hold them move on (`moving`), or the flow is younger than the timeout.
async fn permit(
    semaphore: &Arc<Semaphore>,
    moving: &Progress,
    progress: &Progress,
    target: &Target,
    shard: &Shard,
) -> Result<OwnedSemaphorePermit, EngineError> {
    let idle_max = shard.core.config.read_timeout;
    let permit = progress::acquire(semaphore, 1, &[progress, moving], idle_max).await.ok_or_else(|| stalled(target, shard))??;
    progress.inherit(moving);
    Ok(permit)
}

/// The result of `step`, unless the flow makes no progress meanwhile.
async fn within<T>(
    target: &Target,
    progress: &Progress,
    shard: &Shard,
    step: impl Future<Output = Result<T, EngineError>>,
) -> Result<T, EngineError> {
    let left = shard.core.config.read_timeout.saturating_sub(progress.idle());
    timeout(left, step).await.unwrap_or_else(|_| Err(stalled(target, shard)))
}

fn stalled(target: &Target, shard: &Shard) -> EngineError {
    let Target { layer, stream } = target;
    let what = format!("fetch of stream bytes {}..{} of layer {}", stream.start, stream.end, layer.store.digest);
    EngineError::Deadline { what, waited: shard.core.config.read_timeout }
}
