//! "Bytes of a layer stream, please": registry client, inflate, spans, cache, shards.
//!
//! A read asks the span table first: present bytes are handed out of the map of the cache file without entering a shard. A miss
//! claims the absent spans, joins neighbours into one ranged request, inflates from the nearest checkpoint while bytes arrive,
//! verifies each span, answers its waiters and only then writes it to the cache.
#![deny(clippy::undocumented_unsafe_blocks)]

pub mod background;
mod backlog;
mod buffers;
mod cache;
mod chain;
mod claims;
pub mod config;
mod core;
mod decode;
mod decoder_memory;
mod disk;
pub mod engine;
pub mod error;
mod fetch;
pub mod files;
pub mod image;
mod image_layer;
pub mod inflate;
#[doc(hidden)]
pub mod inner_loops;
mod job;
mod jobs;
mod layer;
mod line_limit;
pub mod memory;
pub mod metrics;
mod neighbour;
mod plan;
mod priority;
mod progress;
mod quota;
mod read;
mod readahead;
mod record;
pub mod registry;
mod replay;
mod shard;
pub mod source;
mod span;
pub mod stretch;
mod tend;
mod unread;
pub mod zstd;

pub use background::{BackgroundHandle, BackgroundProgress, FillOptions};
pub use bytes::Bytes;
pub use cache::check_cache_dir;
pub use config::{DiskIo, EngineConfig};
pub use engine::Engine;
pub use error::{EngineError, ErrorKind};
pub use image::{Image, ImageOptions, ReadStream};
pub use metrics::Stats;
