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
    /// Compressed bytes that wait for a decoder, half of it at most for background work; what one read brings (under 512 KiB) for each
    /// request under way comes on top. Default 64 MiB.
    pub compressed_bytes_max: u64,
    /// Memory of zstd decoders (a frame's window, up to 128 MiB each), half of it at most for background work; a larger one passes alone. As
    /// much as `bytes_in_flight_max`, and on top of it.
    pub decoder_bytes_max: u64,
    /// Compressed bytes that one ranged GET may ask for. Default 16 MiB.
    pub request_bytes_max: u64,
    /// Largest read-ahead of a sequential reader. Default 32 MiB; 0 turns it off.
    pub read_ahead_bytes_max: u64,
    /// How registries are spoken to.
    pub client: ClientConfig,
}

/// Decoded and compressed bytes under way, together, by default.
const MEMORY_BYTES: u64 = 320 << 20;
/// One part in so many of them is compressed. Source: judgement, not measured: layers shrink to a half or a third, and a compressed byte waits
/// for a decoder only, a decoded one for the disk.
const COMPRESSED_PART: u64 = 5;

impl EngineConfig {
    /// The least that [`Self::set_memory_max`] is meant for. Source: a fifth of it, 3.2 MiB, holds what one decode job takes of a long group
    /// (2.25 MiB); what takes more than the limit passes alone, so that a lower one would be passed.
    pub const MEMORY_BYTES_MIN: u64 = 16 << 20;

    /// Bounds the bytes under way, decoded and compressed together, by `bytes`, a fifth of it for compressed ones as by default. The
    /// windows of zstd decoders come on top, up to four fifths of it where layers need that.
    pub fn set_memory_max(&mut self, bytes: u64) {
        self.compressed_bytes_max = bytes / COMPRESSED_PART;
        self.bytes_in_flight_max = bytes - self.compressed_bytes_max;
        self.decoder_bytes_max = self.bytes_in_flight_max;
    }

    /// What [`Self::set_memory_max`] was given last, or its default.
    #[must_use]
    pub fn memory_max(&self) -> u64 {
        self.bytes_in_flight_max + self.compressed_bytes_max
    }

    /// The defaults, with `cache_dir`.
    #[must_use]
    pub fn new(cache_dir: PathBuf) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mut config = Self {
            cache_dir,
            shards: cores.min(8),
            disk_io: DiskIo::Auto,
            read_timeout: Duration::from_secs(30),
            read_deadline: None,
            connections_per_layer_max: 4,
            connections_max: 16,
            bytes_in_flight_max: 0,
            compressed_bytes_max: 0,
            decoder_bytes_max: 0,
            request_bytes_max: 16 << 20,
            read_ahead_bytes_max: 32 << 20,
            client: ClientConfig::default(),
        };
        config.set_memory_max(MEMORY_BYTES);
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Claim: the defaults are those that the fields' docs name; a limit is split without a rest.
    #[test]
    fn one_limit_for_all_memory() {
        let mut config = EngineConfig::new("/c".into());
        let parts = |config: &EngineConfig| (config.bytes_in_flight_max, config.compressed_bytes_max);
        assert_eq!(parts(&config), (256 << 20, 64 << 20));
        config.set_memory_max((80 << 20) + 3);
        assert_eq!(parts(&config), ((64 << 20) + 3, 16 << 20));
        assert_eq!(config.memory_max(), (80 << 20) + 3);
    }
}
