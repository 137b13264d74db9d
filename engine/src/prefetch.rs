//! Read-ahead on its way: claimed one request at a time, on a share of the connections, so that readers go first.

use std::{iter::Peekable, ops::Range, rc::Rc, sync::Arc, sync::atomic::Ordering};

use clip_format::units::SpanIndex;

use crate::{
    background::{Run, Task},
    core::flows,
    fetch,
    image_layer::ImageLayer,
    shard::Shard,
};

/// Spans to fetch if they are still absent when their turn comes.
pub(crate) struct Prefetch {
    pub(crate) layer: Arc<ImageLayer>,
    pub(crate) spans: Range<u32>,
    /// Fetches of the layer that had failed when this was asked for.
    failed_fetches: u64,
}

impl Prefetch {
    pub(crate) fn new(layer: Arc<ImageLayer>, spans: Range<u32>) -> Self {
        let failed_fetches = layer.store.failed_fetches.load(Ordering::Relaxed);
        Self { layer, spans, failed_fetches }
    }
}

/// Fetches what is still absent of `prefetch`. What its next request does not bring stays unclaimed, free for readers who cannot wait;
/// after a failure the rest is left to them.
pub(crate) async fn run(prefetch: Prefetch, shard: Rc<Shard>) {
    let (core, layer) = (&shard.core, &prefetch.layer);
    let of_layer = layer.store.prefetch_connections.clone().acquire_owned().await;
    let of_node = core.prefetch_connections.clone().acquire_owned().await;
    core.prefetches_waiting.fetch_sub(1, Ordering::Relaxed);
    // Asked for before a failure: the registry may be dead, and to find out once more for each would keep other layers waiting.
    let stale = layer.store.failed_fetches.load(Ordering::Relaxed) != prefetch.failed_fetches;
    if stale || of_layer.is_err() || of_node.is_err() {
        return;
    }
    let request_bytes_max = core.config.request_bytes_max;
    let mut spans = prefetch.spans.map(SpanIndex).peekable();
    while spans.peek().is_some() {
        let claimed = claim_request(layer, &mut spans, request_bytes_max);
        let mut flows = flows(layer, claimed, request_bytes_max).into_iter();
        while let Some(flow) = flows.next() {
            if let Err(error) = fetch::run(flow, shard.clone()).await {
                // Whoever waits for the rest has waited as long as for this.
                return flows.for_each(|flow| flow.fail(&error));
            }
        }
    }
}

/// Brings what is absent of `task`, run by run.
pub(crate) async fn run_task(task: Task, shard: Rc<Shard>) {
    let Task { purpose: _, runs, rate: _, course } = task;
    for Run { layer, spans } in runs {
        if course.is_cancelled() || shard.core.is_stopping() {
            break;
        }
        let count = spans.len() as u64;
        shard.core.prefetches_waiting.fetch_add(1, Ordering::Relaxed);
        run(Prefetch::new(layer.clone(), spans.start..spans.end.min(layer.table.len())), shard.clone()).await;
        course.add_done(count);
    }
    course.finish();
}

/// Claims the absent spans from the next on that one request can bring: neighbours, up to `request_bytes_max` compressed bytes.
fn claim_request(layer: &ImageLayer, spans: &mut Peekable<impl Iterator<Item = SpanIndex>>, request_bytes_max: u64) -> Vec<SpanIndex> {
    let compressed = |span| layer.table.compressed_range(layer.table.entry_of(span));
    let mut claimed: Vec<SpanIndex> = Vec::new();
    while let Some(&span) = spans.peek() {
        let full = claimed.first().is_some_and(|&first| compressed(span).end.saturating_sub(compressed(first).start) > request_bytes_max);
        if full && compressed(span) != compressed(claimed[claimed.len() - 1]) {
            break;
        }
        spans.next();
        if layer.store.claim(span) {
            claimed.push(span);
        } else if !claimed.is_empty() {
            break;
        }
    }
    claimed
}
