//! What can go wrong while an image is indexed.

use clip_engine::error::{EngineError, ErrorKind};
use clip_format::{digest::Digest, error::FormatError};
use thiserror::Error;

/// Why an image could not be indexed.
#[derive(Debug, Error)]
pub enum IndexError {
    /// From the registry, a file, or a reference that cannot be read.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// From the `.clip`'s format: a limit, mostly.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A layer's bytes are not what they should be.
    #[error("layer {layer}, {place}: expected {expected}, found {found}")]
    Layer {
        /// The blob.
        layer: Digest,
        /// `stream offset 512, member "etc/passwd"`.
        place: String,
        /// What would have been right.
        expected: String,
        /// What stands there.
        found: String,
    },
    /// A manifest, config or layout is not what it should be.
    #[error("{what}: expected {expected}, found {found}")]
    Image {
        /// The document and field.
        what: String,
        /// What would have been right.
        expected: String,
        /// What stands there.
        found: String,
    },
    /// Valid, but not something this version does.
    #[error("{what}: {found} is not supported; {hint}")]
    Unsupported {
        /// `layer sha256:...`
        what: String,
        /// The media type or feature.
        found: String,
        /// What is supported, or what to do next.
        hint: String,
    },
}

impl IndexError {
    /// What this means to whoever must act on it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            IndexError::Engine(error) => error.kind(),
            IndexError::Format(error) => error.kind(),
            IndexError::Layer { .. } | IndexError::Image { .. } => ErrorKind::Corrupt,
            IndexError::Unsupported { .. } => ErrorKind::Unsupported,
        }
    }
}
