//! What a caller can watch while layers are indexed.

use clip_format::{digest::Digest, units::LayerIndex};

/// One thing that happened to one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerEvent {
    /// The blob's first bytes are there.
    Started,
    /// So many blob bytes have been read and so many stream bytes decoded, in total.
    Advanced {
        /// Of the blob.
        compressed: u64,
        /// Of the stream.
        stream: u64,
    },
    /// All hashes agree.
    Finished {
        /// Tar members seen.
        members: u64,
        /// Length of the stream.
        stream: u64,
    },
}

/// Called from the indexer's threads, a few times a second and layer.
pub trait Progress: Sync {
    /// The manifest is read: these layers will come, in manifest order, with their compressed sizes.
    fn layers(&self, layers: &[(Digest, u64)]) {
        let _ = layers;
    }

    /// Something happened to a layer.
    fn layer(&self, layer: LayerIndex, event: LayerEvent) {
        let _ = (layer, event);
    }
}

/// Watches nothing.
pub struct NoProgress;

impl Progress for NoProgress {}
