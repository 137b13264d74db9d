//! What can go wrong between a reader and the bytes of a layer.

use std::{path::PathBuf, sync::Arc, time::Duration};

pub use clip_format::error::ErrorKind;
use clip_format::{digest::Digest, error::FormatError};
use thiserror::Error;

/// Why bytes could not be had. Cloneable: one failed fetch answers every reader that waited for it.
#[derive(Clone, Debug, Error)]
pub enum EngineError {
    /// The `.clip` or its expanded form is bad.
    #[error("{path}: {source}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: FormatError,
    },
    /// A system call on a file failed.
    #[error("{operation} {path}: {source}")]
    Io {
        /// `open`, `read`, `write` ...
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's word.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// A request could not be made or its answer could not be read.
    #[error("{method} {url}: {reason}")]
    Transport {
        /// HTTP method.
        method: &'static str,
        /// Without credentials or signed query.
        url: String,
        /// The chain of causes in words.
        reason: String,
    },
    /// The registry answered with an error status.
    #[error("{method} {url}: status {status}{detail}{hint}")]
    Status {
        /// HTTP method.
        method: &'static str,
        /// Without credentials or signed query.
        url: String,
        /// HTTP status.
        status: u16,
        /// The registry's own error, cut, prefixed by ": "; or empty.
        detail: String,
        /// What to do next, prefixed by "; "; or empty.
        hint: &'static str,
    },
    /// No host of the registry had it.
    #[error("{last}; its mirrors: {others}")]
    EveryHost {
        /// What the last of them said, the registry itself.
        last: Box<EngineError>,
        /// What the others said, joined by "; ".
        others: String,
    },
    /// The answer contradicts the request.
    #[error("{method} {url}: expected {expected}, found {found}")]
    Protocol {
        /// HTTP method.
        method: &'static str,
        /// Without credentials or signed query.
        url: String,
        /// What the request called for.
        expected: String,
        /// What came.
        found: String,
    },
    /// No progress for too long.
    #[error("{what}: no progress for {}; is the registry reachable? (clip doctor says)", rounded(*waited))]
    Deadline {
        /// The request or read.
        what: String,
        /// How long.
        waited: Duration,
    },
    /// Tried again and again, and the last try failed, too.
    #[error("{last}; tried {tries} times in {:.1} s", time.as_secs_f32())]
    GivenUp {
        /// Why the last try failed.
        last: Box<EngineError>,
        /// `>= 2`
        tries: u32,
        /// From the first one on, or from the last progress.
        time: Duration,
    },
    /// Bytes of a layer are not what the index or the manifest says.
    #[error("layer {layer} {place}: expected {expected}, found {found}")]
    Layer {
        /// The blob.
        layer: Digest,
        /// Span and offsets.
        place: String,
        /// As recorded.
        expected: String,
        /// As received.
        found: String,
    },
    /// A layer is in none of the places where it may be.
    #[error("layer {layer}: {why}")]
    Nowhere {
        /// The blob.
        layer: Digest,
        /// The places, and what each said.
        why: String,
    },
    /// Credentials could not be had.
    #[error("credentials for {registry}: {reason}")]
    Credentials {
        /// Host.
        registry: String,
        /// What the helper or file said; never the secret.
        reason: String,
    },
    /// A reference, option or platform that cannot be used.
    #[error("{what}: expected {expected}, found {found:?}")]
    Invalid {
        /// What was read.
        what: String,
        /// What is accepted.
        expected: String,
        /// What was given.
        found: String,
    },
    /// Valid, but not something this version does.
    #[error("{what}: {found} is not supported; {hint}")]
    Unsupported {
        /// The layer, manifest or feature.
        what: String,
        /// Media type or value.
        found: String,
        /// What is supported or what to do next.
        hint: String,
    },
    /// Another process owns the cache directory.
    #[error("cache {path} is owned by process {pid}: {hint}")]
    CacheBusy {
        /// The directory.
        path: PathBuf,
        /// The owner, 0 when unknown.
        pid: u32,
        /// What to do next.
        hint: &'static str,
    },
    /// The engine is shutting down.
    #[error("the engine has stopped")]
    Stopped,
}

impl EngineError {
    /// What this means to whoever must act on it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            EngineError::Format { source, .. } => source.kind(),
            EngineError::GivenUp { last, .. } => last.kind(),
            EngineError::Io { source, .. } => io_kind(source),
            EngineError::Transport { .. }
            | EngineError::Deadline { .. }
            | EngineError::Nowhere { .. }
            | EngineError::CacheBusy { .. }
            | EngineError::Stopped => ErrorKind::Unavailable,
            EngineError::EveryHost { last, .. } => last.kind(),
            EngineError::Status { status: 401 | 403, .. } | EngineError::Credentials { .. } => ErrorKind::Denied,
            EngineError::Status { .. } => ErrorKind::Unavailable,
            EngineError::Protocol { .. } | EngineError::Layer { .. } => ErrorKind::Corrupt,
            EngineError::Invalid { .. } | EngineError::Unsupported { .. } => ErrorKind::Unsupported,
        }
    }

    /// What failed, without how often and how long it was tried: the same for all that fail together.
    #[must_use]
    pub fn cause(&self) -> String {
        match self {
            EngineError::GivenUp { last, .. } => last.cause(),
            other => other.to_string(),
        }
    }

    /// An `Io` of `operation` on `path`.
    pub fn io(operation: &'static str, path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        EngineError::Io { operation, path: path.into(), source: Arc::new(source) }
    }
}

/// In whole milliseconds, but for less than one.
fn rounded(time: Duration) -> String {
    let millis = Duration::from_millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    format!("{:?}", if millis.is_zero() { time } else { millis })
}

fn io_kind(error: &std::io::Error) -> ErrorKind {
    use std::io::ErrorKind as Io;
    match error.kind() {
        Io::PermissionDenied => ErrorKind::Denied,
        Io::StorageFull | Io::QuotaExceeded | Io::OutOfMemory | Io::FileTooLarge => ErrorKind::Exhausted,
        Io::Unsupported => ErrorKind::Unsupported,
        Io::UnexpectedEof | Io::InvalidData => ErrorKind::Corrupt,
        _ => ErrorKind::Unavailable,
    }
}
