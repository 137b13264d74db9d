//! What the engine did so far.

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
    /// The slowest read that waited, in microseconds.
    pub slowest_read_us: u64,
    /// The layer (`sha256:...`) and stream offset of that read; empty when there was none.
    pub slowest_read: String,
}
