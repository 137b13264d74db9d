//! Every setting of an engine, with its default and where that comes from.

use std::{path::PathBuf, time::Duration};

use crate::registry::ClientConfig;

/// Which system interface writes the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskIo {
    /// io_uring where the kernel allows it, else the pool with one warning.
    #[default]
    Auto,
    /// io_uring or an error.
    Uring,
    /// `pwrite` on a small pool of threads.
    Pool,
}

/// Settings of one engine. Two mounts that share a cache directory share one engine, so these must be equal.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Where layers and expanded indexes are kept. Created if missing (0700).
    pub cache_dir: PathBuf,
    /// Engine threads. Default: min(cores, 8).
    pub shards: usize,
    /// Which system interface writes the cache.
    pub disk_io: DiskIo,
    /// A read fails after this long without progress towards it. Default 30 s.
    pub read_timeout: Duration,
    /// A read fails after this long, progress or not. Default: never.
    pub read_deadline: Option<Duration>,
    /// Requests under way to one layer's blob; a quarter, one at least where there are two, is kept for readers. Default 4.
    pub connections_per_layer_max: usize,
    /// Requests under way from this node, of which as much is kept for readers. Default 16.
    pub connections_max: usize,
    /// Decompressed bytes held until they are written, half of it at most by background work; a longer span passes alone. Default 256 MiB.
    pub bytes_in_flight_max: u64,
    /// Compressed bytes that wait for a decoder, half of it at most for background work; one chunk as received (at most 512 KiB) for each
    /// request under way comes on top. Default 64 MiB.
    pub compressed_bytes_max: u64,
    /// Buffers of decoded bytes that are kept for the next spans; what is not used for a second goes back to the system. Default 32 MiB.
    pub buffers_kept_bytes_max: u64,
    /// Compressed bytes that one ranged GET may ask for. Default 16 MiB.
    pub request_bytes_max: u64,
    /// Largest read-ahead of a sequential reader. Default 32 MiB; 0 turns it off.
    pub read_ahead_bytes_max: u64,
    /// How registries are spoken to.
    pub client: ClientConfig,
}

impl EngineConfig {
    /// The defaults, with `cache_dir`.
    #[must_use]
    pub fn new(cache_dir: PathBuf) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            cache_dir,
            shards: cores.min(8),
            disk_io: DiskIo::Auto,
            read_timeout: Duration::from_secs(30),
            read_deadline: None,
            connections_per_layer_max: 4,
            connections_max: 16,
            bytes_in_flight_max: 256 << 20,
            compressed_bytes_max: 64 << 20,
            buffers_kept_bytes_max: 32 << 20,
            request_bytes_max: 16 << 20,
            read_ahead_bytes_max: 32 << 20,
            client: ClientConfig::default(),
        }
    }
}
