//! The engine: shards, cache and open images of one cache directory.

use std::{path::Path, sync::Arc};

use crate::{
    config::EngineConfig,
    error::EngineError,
    image::{Image, ImageOptions},
    metrics::Stats,
};

/// One per cache directory and process; it holds the directory's lock. Dropping the last clone stops the shards.
#[derive(Clone)]
pub struct Engine {}

impl Engine {
    /// Takes the cache directory's lock and starts the shards.
    ///
    /// # Errors
    /// `CacheBusy` when another process owns the directory; `Io`; `Unsupported` when io_uring was demanded and is barred.
    pub fn start(config: EngineConfig) -> Result<Self, EngineError> {
        let _ = config;
        todo!()
    }

    /// Opens the `.clip` at `path`: expands and checks its index on the first open ever, maps it on later ones. The same image opened
    /// twice with the same options is the same `Arc`.
    ///
    /// # Errors
    /// `Format`, `Io`, `Invalid`.
    pub fn open_image(&self, path: &Path, options: &ImageOptions) -> Result<Arc<Image>, EngineError> {
        let _ = (path, options);
        todo!()
    }

    /// The settings it was started with.
    #[must_use]
    pub fn config(&self) -> &EngineConfig {
        todo!()
    }

    /// Counters so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        todo!()
    }
}
