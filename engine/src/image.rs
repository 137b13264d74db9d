//! An opened image: its index, its layers, and the two ways to read them.

use std::{ops::Range, path::PathBuf, sync::Arc};

use clip_format::{checkpoints::Checkpoints, erofs::Index, storage_info::StorageInfo, units::LayerIndex};

use crate::error::EngineError;

/// How an image is opened, beyond its `.clip`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageOptions {
    /// Where a local source is now (`--source`).
    pub source: Option<PathBuf>,
    /// Registry reference to read from instead of the recorded one.
    pub store_ref: Option<crate::registry::Reference>,
}

/// What answers a parked read: exactly the bytes asked for, or why not. Called once, from an engine thread; must not block.
pub type ReadDone = Box<dyn FnOnce(Result<Vec<u8>, EngineError>) + Send>;

/// An image that can be read. Shared by every mount of it.
pub struct Image {
    id: [u8; 32],
    index: Index,
    storage_info: StorageInfo,
    checkpoints: Checkpoints,
}

/// One reader's history: who reads sequentially earns read-ahead. One per inode that is being read; cheap.
#[derive(Default)]
pub struct ReadStream {}

impl Image {
    /// BLAKE3 of the `.clip`'s header, which holds the BLAKE3 of every section.
    #[must_use]
    pub fn id(&self) -> [u8; 32] {
        self.id
    }

    /// The file tree.
    #[must_use]
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Source, config and layers.
    #[must_use]
    pub fn storage_info(&self) -> &StorageInfo {
        &self.storage_info
    }

    /// The tables of spans.
    #[must_use]
    pub fn checkpoints(&self) -> &Checkpoints {
        &self.checkpoints
    }

    /// The bytes `range` of a layer's stream, straight from the map of the cache file, when every span of them is present and
    /// verified (an unverified one is verified here). No shard is entered. The slice's pages may be gone (a truncated file): pass it
    /// to a system call, never touch it otherwise.
    #[must_use]
    pub fn present(&self, layer: LayerIndex, range: Range<u64>) -> Option<&[u8]> {
        let _ = (layer, range);
        todo!()
    }

    /// Fetches, decodes and verifies what of `range` is absent, then calls `done`, which may happen before this returns.
    pub fn read(self: &Arc<Self>, layer: LayerIndex, range: Range<u64>, done: ReadDone) {
        let _ = (layer, range, done);
        todo!()
    }

    /// Fills `buffer` from `offset` of the layer's stream, waiting for the network. Reads the cache by pread.
    ///
    /// # Errors
    /// Every kind.
    pub fn read_exact_at(self: &Arc<Self>, layer: LayerIndex, offset: u64, buffer: &mut [u8]) -> Result<(), EngineError> {
        let _ = (layer, offset, buffer);
        todo!()
    }

    /// Tells the engine that a reader of `range` (of a file that ends at `file_end` of the stream) came by, so that it may read ahead.
    pub fn note_read(self: &Arc<Self>, stream: &ReadStream, layer: LayerIndex, range: Range<u64>, file_end: u64) {
        let _ = (stream, layer, range, file_end);
    }
}
