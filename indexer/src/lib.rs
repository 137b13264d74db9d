//! OCI image -> `.clip`: one streaming pass over the layers, no spool, bounded memory.
#![forbid(unsafe_code)]

mod cpu_clock;
pub mod error;
mod image;
mod layer;
pub mod options;
mod output;
pub mod progress;
mod repeats;
mod source;
mod sparse_window;
pub mod tar_entry;
mod tree;

use std::path::Path;

use clip_engine::source::BlobSource;
use clip_format::storage_info::{LayerInfo, StorageInfo};

pub use error::IndexError;
pub use options::{DiffIds, ImageRef, IndexOptions, Windows};
pub use output::{Durability, OutputPlace};
pub use progress::{LayerEvent, Progress};

/// A finished index: the file's bytes and what went into them.
pub struct Indexed {
    /// The `.clip`.
    pub clip: Vec<u8>,
    /// For `--json` and the last line.
    pub summary: Summary,
}

/// What was indexed, at what cost.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Summary {
    /// As asked for.
    pub reference: String,
    /// The manifest's digest.
    pub manifest_digest: String,
    /// `linux/amd64`
    pub platform: String,
    /// One a layer, in manifest order.
    pub layers: Vec<LayerSummary>,
    /// Inodes in the merged tree.
    pub files: u64,
    /// Length of the `.clip`.
    pub clip_bytes: u64,
    /// Bytes of the raw index, before zstd.
    pub index_bytes: u64,
    /// Bytes of the checkpoint windows.
    pub windows_bytes: u64,
    /// Layer stream bytes decoded.
    pub stream_bytes: u64,
    /// Blob bytes read.
    pub compressed_bytes: u64,
    /// Wall time in seconds.
    pub seconds: f64,
    /// Processor time of all of the indexer's threads, in seconds; what comes after the last byte of the `.clip` is not in it.
    pub cpu_seconds: f64,
    /// As much of it as went into the choice of checkpoints and their windows. 0 without windows.
    pub windows_cpu_seconds: f64,
    /// Said once each, such as dropped xattr namespaces with their counts.
    pub warnings: Vec<String>,
}

/// One layer of [`Summary`].
#[derive(Clone, Debug, serde::Serialize)]
pub struct LayerSummary {
    /// As in the `.clip`.
    #[serde(flatten)]
    pub info: LayerInfo,
    /// Spans.
    pub spans: u64,
    /// Spans that start at an entry.
    pub entries: u64,
    /// Tar members.
    pub members: u64,
}

/// Indexes the image that `options` names. Starts its own threads and returns when all are joined.
///
/// # Errors
/// Every kind, naming layer, offset, expected and found.
pub fn index_image(options: &IndexOptions, progress: &dyn Progress) -> Result<Indexed, IndexError> {
    image::index(options, progress)
}

/// Writes `clip` to `path`, see [`OutputPlace`]: a file under a temporary name beside it that is fsynced and renamed.
///
/// # Errors
/// `Io`; of a file nothing is left behind. `Image` for what is no place for one.
pub fn write_clip(path: &Path, clip: &[u8]) -> Result<(), IndexError> {
    OutputPlace::find(path)?.write(clip, Durability::Synced)
}

/// Where the blobs of an image in a local layout are: one a layer of `info`, found by digest.
///
/// # Errors
/// `Io`, or naming the layer that the layout lacks.
pub fn local_blobs(info: &StorageInfo, path: &Path) -> Result<Vec<BlobSource>, IndexError> {
    source::local_blobs(info, path)
}
