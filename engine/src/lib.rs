//! "Bytes of a layer stream, please": registry client, inflate, spans, cache, shards.
//!
//! A read asks the span table first: present bytes are handed out of the map of the cache file without entering a shard. A miss
//! claims the absent spans, joins neighbours into one ranged request, inflates from the nearest checkpoint while bytes arrive,
//! verifies each span, answers its waiters and only then writes it to the cache.
#![deny(clippy::undocumented_unsafe_blocks)]

pub mod config;
pub mod engine;
pub mod error;
pub mod image;
pub mod inflate;
pub mod metrics;
pub mod registry;
pub mod source;

pub use config::{DiskIo, EngineConfig};
pub use engine::Engine;
pub use error::{EngineError, ErrorKind};
pub use image::{Image, ImageOptions, ReadStream};
pub use metrics::Stats;
