//! Where a layer's blob is: a registry, or bytes of a local file. One way to read both.

use std::{ops::Range, path::PathBuf, sync::Arc};

use bytes::Bytes;
use clip_format::digest::Digest;

use crate::{
    error::EngineError,
    registry::{BlobReader, Client, Reference},
};

/// Where one layer's blob can be read.
#[derive(Clone, Debug)]
pub enum BlobSource {
    /// From a registry.
    Registry {
        /// Names the repository; tag and digest do not matter.
        repository: Arc<Reference>,
        /// The blob.
        digest: Digest,
        /// Its length.
        size: u64,
    },
    /// From a file of this machine.
    File {
        /// The blob's own file, or the archive that holds it.
        path: PathBuf,
        /// Where in it the blob starts.
        offset: u64,
        /// The blob's length.
        size: u64,
    },
}

impl BlobSource {
    /// Length of the blob.
    #[must_use]
    pub fn size(&self) -> u64 {
        match self {
            BlobSource::Registry { size, .. } | BlobSource::File { size, .. } => *size,
        }
    }

    /// Opens `range` of the blob, half-open. `client` is not touched for files. Must run on a tokio runtime.
    ///
    /// # Errors
    /// Every kind.
    pub async fn open(&self, client: &Client, range: Range<u64>) -> Result<SourceReader, EngineError> {
        let _ = (client, range);
        todo!()
    }
}

/// The bytes of a range of a blob, chunk by chunk.
pub enum SourceReader {
    /// Over HTTP.
    Registry(BlobReader),
    /// By pread.
    File {
        /// The open file.
        file: std::fs::File,
        /// For messages.
        path: PathBuf,
        /// What is left, in the file's own offsets.
        rest: Range<u64>,
    },
}

impl SourceReader {
    /// The next bytes (at most 256 KiB from a file), or `None` at the end of the range.
    ///
    /// # Errors
    /// Every kind.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, EngineError> {
        todo!()
    }
}
