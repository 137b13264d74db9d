//! HTTP/1.1 over TCP or TLS with our own connection pool, and the three requests that clip makes.

use std::{ops::Range, path::PathBuf, time::Duration};

use bytes::Bytes;
use clip_format::digest::Digest;

use super::reference::Reference;
use crate::error::EngineError;

/// When plain HTTP is spoken instead of TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PlainHttp {
    /// To `localhost`, 127.0.0.0/8 and `[::1]` only.
    #[default]
    Loopback,
    /// To every registry.
    Always,
}

/// How registries are spoken to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientConfig {
    /// When plain HTTP is spoken.
    pub plain_http: PlainHttp,
    /// More roots than the system's, PEM.
    pub ca_file: Option<PathBuf>,
    /// The directory of docker's `config.json`; default `$DOCKER_CONFIG` or `~/.docker`.
    pub docker_config_dir: Option<PathBuf>,
    /// TCP and TLS. Default 10 s.
    pub connect_timeout: Duration,
    /// From the request sent to the response head. Default 30 s.
    pub first_byte_timeout: Duration,
    /// Without a byte of the body. Default 30 s.
    pub progress_timeout: Duration,
    /// Tries of one request. Default 3.
    pub tries_max: u32,
    /// Idle connections kept to one host. Default 16.
    pub idle_per_host_max: usize,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            plain_http: PlainHttp::Loopback,
            ca_file: None,
            docker_config_dir: None,
            connect_timeout: Duration::from_secs(10),
            first_byte_timeout: Duration::from_secs(30),
            progress_timeout: Duration::from_secs(30),
            tries_max: 3,
            idle_per_host_max: 16,
        }
    }
}

/// A manifest or image index as the registry served it, digest checked.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// SHA-256 (or the algorithm asked for) of `bytes`.
    pub digest: Digest,
    /// From Content-Type; where missing, from the document's `mediaType`.
    pub media_type: String,
    /// As served. At most 4 MiB.
    pub bytes: Bytes,
}

/// A registry client: TLS roots, credentials, tokens and idle connections. Cheap to clone, all clones share them.
///
/// Connections are driven by tasks on the tokio runtime that opened them, so each shard makes its own pool with
/// [`Client::with_own_pool`]; credentials and tokens stay shared.
#[derive(Clone)]
pub struct Client {}

impl Client {
    /// A client that has not spoken yet.
    ///
    /// # Errors
    /// `Unavailable` or `Corrupt` when `ca_file` cannot be used. Missing system roots are an error at the first TLS connection only.
    pub fn new(config: ClientConfig) -> Result<Self, EngineError> {
        let _ = config;
        todo!()
    }

    /// The same credentials, tokens and counters with a connection pool of its own.
    #[must_use]
    pub fn with_own_pool(&self) -> Self {
        todo!()
    }

    /// Requests sent and body bytes received so far, by every clone.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        todo!()
    }

    /// The manifest or image index that `reference` names.
    ///
    /// # Errors
    /// Every kind; `Corrupt` when the bytes do not hash to the digest asked for.
    pub async fn manifest(&self, reference: &Reference) -> Result<Manifest, EngineError> {
        let _ = reference;
        todo!()
    }

    /// A small blob as a whole (an image config), digest checked, at most `len_max` bytes.
    ///
    /// # Errors
    /// Every kind.
    pub async fn blob_bytes(&self, reference: &Reference, digest: &Digest, len_max: u64) -> Result<Bytes, EngineError> {
        let _ = (reference, digest, len_max);
        todo!()
    }

    /// Opens the bytes `range` of a blob of `blob_size` bytes; a plain GET when the range is the whole blob. The reader resumes a
    /// truncated or stalled body where it stopped, `tries_max` times without progress.
    ///
    /// # Errors
    /// Every kind.
    pub async fn blob(&self, reference: &Reference, digest: &Digest, blob_size: u64, range: Range<u64>) -> Result<BlobReader, EngineError> {
        let _ = (reference, digest, blob_size, range);
        todo!()
    }

    /// Whether `GET /v2/` answers, for `clip doctor`.
    ///
    /// # Errors
    /// Every kind.
    pub async fn ping(&self, reference: &Reference) -> Result<(), EngineError> {
        let _ = reference;
        todo!()
    }
}

/// Counters of a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Traffic {
    /// Requests sent, tries and token requests included.
    pub requests: u64,
    /// Body bytes received.
    pub bytes: u64,
    /// Connections opened.
    pub connections: u64,
}

/// The body of a blob request, chunk by chunk.
pub struct BlobReader {}

impl BlobReader {
    /// The next bytes, or `None` when the whole range has been given. Never more than the range.
    ///
    /// # Errors
    /// Every kind, after resuming failed.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, EngineError> {
        todo!()
    }
}
