//! What the engine did so far.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use crossbeam::utils::CachePadded;

use crate::registry::client::Traffic;

/// A snapshot of the counters, for `--stats` and SIGUSR1.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Stats {
    /// Requests to registries (local sources: preads of blobs are `source_reads`).
    pub requests: u64,
    /// Body bytes received from registries.
    pub bytes_fetched: u64,
    /// Connections opened.
    pub connections: u64,
    /// Reads of local blobs.
    pub source_reads: u64,
    /// Bytes read from local blobs.
    pub source_bytes: u64,
    /// Layer stream bytes decoded.
    pub bytes_decoded: u64,
    /// Spans fetched, decoded and verified.
    pub spans_fetched: u64,
    /// Reads answered from the cache without a shard.
    pub reads_present: u64,
    /// Reads that waited for at least one span.
    pub reads_waited: u64,
    /// Bytes given to readers.
    pub bytes_read: u64,
    /// Spans found damaged on disk and fetched again.
    pub spans_repaired: u64,
    /// Spans that could not be kept (disk full) and were passed through.
    pub spans_not_cached: u64,
    /// Reads that failed.
    pub reads_failed: u64,
    /// Bytes of the spans that readers asked for and that were absent, or had been brought before they asked; each counted once as long as
    /// it stays. What was decoded beyond that was decoded for nothing.
    pub bytes_needed: u64,
    /// As [`Self::bytes_needed`], in spans.
    pub spans_needed: u64,
    /// As [`Self::bytes_needed`], in compressed bytes: what had to be fetched.
    pub bytes_needed_compressed: u64,
    /// Spans that were brought before a reader asked: read-ahead, replay, fill, and what a decoder passes on its way.
    pub spans_prefetched: u64,
    /// Those of them that a reader has asked for since.
    pub spans_prefetched_used: u64,
    /// Requests saved by asking for neighbouring groups of spans at once.
    pub requests_joined: u64,
    /// Compressed bytes received between the groups of one request and thrown away.
    pub gap_bytes: u64,
    /// Connections cancelled because they fell far behind their peers; another brought the rest.
    pub stragglers_cancelled: u64,
    /// The most decoded bytes held at once, until they were written.
    pub bytes_in_flight_peak: u64,
    /// The most compressed bytes that waited for a decoder at once.
    pub compressed_in_flight_peak: u64,
    /// Most memory that zstd decoders held at once, as it is counted (`decoder_bytes_max`).
    pub decoder_bytes_peak: u64,
    /// Spans decoded by each shard.
    pub spans_by_shard: Vec<u64>,
    /// Time that shards slept while a decode job waited (a fill's aside, which leave one shard alone while readers miss), all together, in
    /// microseconds.
    pub shard_idle_with_work_us: u64,
    /// The slowest read that waited, in microseconds.
    pub slowest_read_us: u64,
    /// The layer (`sha256:...`) and stream offset of that read; empty when there was none.
    pub slowest_read: String,
}

/// The counters that [`Stats`] is a snapshot of. Each is exact; together they are not of one instant.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) source_reads: AtomicU64,
    pub(crate) source_bytes: AtomicU64,
    pub(crate) bytes_decoded: AtomicU64,
    pub(crate) spans_fetched: AtomicU64,
    pub(crate) reads_present: Spread,
    pub(crate) reads_waited: AtomicU64,
    pub(crate) bytes_read: Spread,
    pub(crate) spans_repaired: AtomicU64,
    pub(crate) spans_not_cached: AtomicU64,
    pub(crate) reads_failed: AtomicU64,
    pub(crate) bytes_needed: AtomicU64,
    pub(crate) spans_needed: AtomicU64,
    pub(crate) bytes_needed_compressed: AtomicU64,
    pub(crate) spans_prefetched: AtomicU64,
    pub(crate) spans_prefetched_used: AtomicU64,
    pub(crate) requests_joined: AtomicU64,
    pub(crate) gap_bytes: AtomicU64,
    pub(crate) idle_with_work_us: AtomicU64,
    pub(crate) compressed: Arc<Gauge>,
    slowest_us: AtomicU64,
    slowest: Mutex<String>,
}

/// An amount that rises and falls, and its peak.
#[derive(Default)]
pub(crate) struct Gauge {
    now: AtomicU64,
    max: AtomicU64,
}

impl Gauge {
    /// Adds `weight` for as long as what is given back lives.
    pub(crate) fn weigh(self: &Arc<Self>, weight: u64) -> Weight {
        let now = self.now.fetch_add(weight, Ordering::Relaxed) + weight;
        self.max.fetch_max(now, Ordering::Relaxed);
        Weight { gauge: self.clone(), weight }
    }
}

impl Gauge {
    pub(crate) fn count(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }
}

/// A part of a [`Gauge`].
pub(crate) struct Weight {
    gauge: Arc<Gauge>,
    weight: u64,
}

impl Drop for Weight {
    fn drop(&mut self) {
        self.gauge.now.fetch_sub(self.weight, Ordering::Relaxed);
    }
}

/// Parts of a counter that every read counts in. Source: over the session threads that a few mounts have; more share.
const PARTS: usize = 16;

/// A counter without a cache line that is written by all cores: each thread counts in a part.
#[derive(Default)]
pub(crate) struct Spread([CachePadded<AtomicU64>; PARTS]);

impl Spread {
    /// Cost: an atomic addition to a line that other cores seldom have.
    pub(crate) fn add(&self, more: u64) {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static PART: usize = THREADS.fetch_add(1, Ordering::Relaxed) % PARTS;
        }
        // A thread that ends has no part any more, and reads nothing.
        let part = PART.try_with(|part| *part).unwrap_or(0);
        self.0[part].fetch_add(more, Ordering::Relaxed);
    }

    /// Exact once those who count have returned.
    pub(crate) fn sum(&self) -> u64 {
        self.0.iter().map(|part| part.load(Ordering::Relaxed)).sum()
    }
}

/// Adds to a counter.
pub(crate) fn count(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

impl Counters {
    /// Keeps the place of a read that took `took` if none was slower.
    pub(crate) fn read_took(&self, took: Duration, place: impl FnOnce() -> String) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        if took <= self.slowest_us.load(Ordering::Relaxed) {
            return;
        }
        let mut slowest = self.slowest.lock().unwrap_or_else(PoisonError::into_inner);
        if self.slowest_us.fetch_max(took, Ordering::Relaxed) < took {
            *slowest = place();
        }
    }

    /// The counters now, with a client's traffic.
    pub(crate) fn snapshot(&self, traffic: Traffic) -> Stats {
        let now = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            requests: traffic.requests,
            bytes_fetched: traffic.bytes,
            connections: traffic.connections,
            source_reads: now(&self.source_reads),
            source_bytes: now(&self.source_bytes),
            bytes_decoded: now(&self.bytes_decoded),
            spans_fetched: now(&self.spans_fetched),
            reads_present: self.reads_present.sum(),
            reads_waited: now(&self.reads_waited),
            bytes_read: self.bytes_read.sum(),
            spans_repaired: now(&self.spans_repaired),
            spans_not_cached: now(&self.spans_not_cached),
            reads_failed: now(&self.reads_failed),
            bytes_needed: now(&self.bytes_needed),
            spans_needed: now(&self.spans_needed),
            bytes_needed_compressed: now(&self.bytes_needed_compressed),
            spans_prefetched: now(&self.spans_prefetched),
            spans_prefetched_used: now(&self.spans_prefetched_used),
            requests_joined: now(&self.requests_joined),
            gap_bytes: now(&self.gap_bytes),
            stragglers_cancelled: traffic.stragglers,
            compressed_in_flight_peak: now(&self.compressed.max),
            shard_idle_with_work_us: now(&self.idle_with_work_us),
            slowest_read_us: now(&self.slowest_us),
            slowest_read: self.slowest.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            ..Stats::default()
        }
    }
}
