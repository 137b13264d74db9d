//! A `.clip` taken apart, for tests of what it holds.

use std::{path::Path, sync::Arc};

use anyhow::{Context, Result};
use clip_format::{
    bytes::SharedBytes,
    checkpoints::{Checkpoints, SpanStart},
    clip_file::ClipFile,
    erofs::Index,
    storage_info::StorageInfo,
};

/// All sections of a `.clip`, expanded.
pub struct Parts {
    /// The EROFS image.
    pub index: Vec<u8>,
    /// Source, config, layers.
    pub storage_info: StorageInfo,
    /// The tables of spans.
    pub checkpoints: Checkpoints,
    /// Every window's zstd frame.
    pub windows: Vec<u8>,
}

impl Parts {
    /// Reads and checks the `.clip` at `path`.
    ///
    /// # Errors
    /// The format's own.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| format!("read {path:?}"))?;
        let clip = ClipFile::parse(&bytes)?;
        let storage_info = clip.storage_info()?;
        let windows = clip.windows()?.to_vec();
        let checkpoints = Checkpoints::open(Arc::new(clip.checkpoints()?), &storage_info.layers, windows.len() as u64)?;
        Ok(Self { index: clip.index()?, storage_info, checkpoints, windows })
    }

    /// The file tree.
    ///
    /// # Errors
    /// The format's own.
    pub fn tree(&self) -> Result<Index> {
        let bytes: SharedBytes = Arc::new(self.index.clone());
        Ok(Index::open(bytes)?)
    }
}

/// Whether decoding can begin at a span.
#[must_use]
pub fn is_entry(start: &SpanStart) -> bool {
    !matches!(start, SpanStart::Chained)
}
