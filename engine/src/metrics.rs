//! What the engine did so far.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

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
    /// Spans that a reader asked for, each once, whether they were here already or not. What was decoded over their bytes nobody read.
    pub spans_needed: u64,
    /// Layer stream bytes of these spans.
    pub bytes_needed: u64,
    /// Compressed bytes of these spans.
    pub bytes_needed_compressed: u64,
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
    pub(crate) spans_needed: AtomicU64,
    pub(crate) bytes_needed: AtomicU64,
    pub(crate) bytes_needed_compressed: AtomicU64,
    pub(crate) reads_present: AtomicU64,
    pub(crate) reads_waited: AtomicU64,
    pub(crate) bytes_read: AtomicU64,
    pub(crate) spans_repaired: AtomicU64,
    pub(crate) spans_not_cached: AtomicU64,
    pub(crate) reads_failed: AtomicU64,
    slowest_us: AtomicU64,
    slowest: Mutex<String>,
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
            spans_needed: now(&self.spans_needed),
            bytes_needed: now(&self.bytes_needed),
            bytes_needed_compressed: now(&self.bytes_needed_compressed),
            reads_present: now(&self.reads_present),
            reads_waited: now(&self.reads_waited),
            bytes_read: now(&self.bytes_read),
            spans_repaired: now(&self.spans_repaired),
            spans_not_cached: now(&self.spans_not_cached),
            reads_failed: now(&self.reads_failed),
            slowest_read_us: now(&self.slowest_us),
            slowest_read: self.slowest.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}
