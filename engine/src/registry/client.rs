//! The client's settings and state, and the three requests that clip makes.

use std::{ops::Range, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use clip_format::digest::Digest;
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderValue};
use sha2::{Digest as _, Sha256, Sha512};

use super::{
    auth::{self, Auth, LoggedIn, Login},
    blob::BlobReader,
    exchange::{Counters, Exchange, Transport},
    fetch::Get,
    hosts::{Endpoint, Need, Site, directory::HostsDirectory},
    pace::{Pace, Paces},
    pool::Pool,
    proxy::ProxyVariables,
    redirect::Targets,
    reference::Reference,
    retry::{Failure, Tries},
};
use crate::error::EngineError;

/// Source: distribution spec, "Pushing Manifests": registries should take at least 4 MiB, and none takes more.
const MANIFEST_BYTES_MAX: u64 = 4 << 20;
/// Every manifest that clip reads, the widest first.
const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json";

/// When plain HTTP is spoken instead of TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PlainHttp {
    /// To `localhost`, 127.0.0.0/8 and `[::1]` only.
    #[default]
    Loopback,
    /// To every registry.
    Always,
    /// To none: for a registry with TLS on this machine.
    Never,
}

/// How registries are spoken to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientConfig {
    /// When plain HTTP is spoken.
    pub plain_http: PlainHttp,
    /// More roots than the system's, PEM.
    pub ca_file: Option<PathBuf>,
    /// Where credentials are looked for; default: where whoever started this process keeps them.
    pub login: Login,
    /// containerd's directory of registries' settings (`hosts.toml`); none by default. It need not exist.
    pub hosts_dir: Option<PathBuf>,
    /// The environment's proxies; none by default.
    pub proxies: ProxyVariables,
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
            login: Login::of_process(),
            hosts_dir: None,
            proxies: ProxyVariables::default(),
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
pub struct Client {
    pub(super) shared: Arc<Shared>,
    pub(super) transport: Transport,
}

/// What all clones and pools share.
pub(super) struct Shared {
    pub auth: Auth,
    pub hosts: HostsDirectory,
    pub targets: Targets,
    pub paces: Paces,
    /// Registries already reported for answering a ranged request with the whole blob.
    pub rangeless: std::sync::Mutex<std::collections::HashSet<String>>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("traffic", &self.traffic()).field("idle", &self.transport.pool.len()).finish_non_exhaustive()
    }
}

impl Client {
    /// A client that has not spoken yet.
    ///
    /// # Errors
    /// `Unavailable` or `Corrupt` when `ca_file` cannot be used. Missing system roots are an error at the first TLS connection only.
    pub fn new(config: ClientConfig) -> Result<Self, EngineError> {
        let auth = Auth::new(config.login.clone());
        let config = Arc::new(config);
        let hosts = HostsDirectory::new(Arc::clone(&config))?;
        let route = hosts.common_route();
        let shared = Shared { auth, hosts, targets: Targets::default(), paces: Paces::default(), rangeless: std::sync::Mutex::default() };
        let pool = Arc::new(Pool::new(config.idle_per_host_max));
        let transport = Transport { config, route, pool, counters: Arc::new(Counters::default()) };
        Ok(Self { shared: Arc::new(shared), transport })
    }

    /// The same credentials, tokens and counters with a connection pool of its own.
    #[must_use]
    pub fn with_own_pool(&self) -> Self {
        let pool = Arc::new(Pool::new(self.transport.config.idle_per_host_max));
        Self { shared: Arc::clone(&self.shared), transport: Transport { pool, ..self.transport.clone() } }
    }

    /// Until the result is dropped, `login` is asked for credentials first where the repository of `reference` wants some. The newest
    /// login is the first one, those who named a password or file before those who did not; the client's own is the last.
    #[must_use = "dropping it logs out"]
    pub fn log_in(&self, reference: &Reference, login: Login) -> LoggedIn {
        self.shared.auth.logins.add(&self.shared, reference, login)
    }

    /// Requests sent and body bytes received so far, by every clone.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        self.transport.counters.traffic()
    }

    /// The manifest or image index that `reference` names.
    ///
    /// # Errors
    /// Every kind; `Corrupt` when the bytes do not hash to the digest asked for.
    pub async fn manifest(&self, reference: &Reference) -> Result<Manifest, EngineError> {
        let mut get = Get::new(format!("/{}/manifests/{}", reference.repository, reference.manifest_name()));
        get.accept = Some(HeaderValue::from_static(MANIFEST_TYPES));
        let need = if reference.digest.is_some() { Need::Pull } else { Need::Resolve };
        let mut tries = self.tries();
        loop {
            let mut round = self.round(reference, need, reference.digest, &[])?;
            while let Some(site) = round.next() {
                match self.try_manifest(&site, &get).await {
                    Ok(manifest) => {
                        round.answered(&site);
                        return Ok(manifest);
                    }
                    Err(failure) => round.failed(&site, failure),
                }
            }
            tries.after(round.into_failure()).await?;
        }
    }

    async fn try_manifest(&self, site: &Site, get: &Get) -> Result<Manifest, Failure> {
        let exchange = self.try_get(site, get).await?;
        not_encoded(&exchange)?;
        let (method, url) = (exchange.method, exchange.url.to_string());
        let content_type = exchange.header(CONTENT_TYPE).map(bare_media_type);
        let bytes = exchange.bytes(MANIFEST_BYTES_MAX).await?;
        let contradiction = |expected: String, found: String| EngineError::Protocol { method, url: url.clone(), expected, found };
        let digest = digest_of(&bytes, site.reference.digest.as_ref());
        if let Some(asked) = site.reference.digest.filter(|asked| *asked != digest) {
            return Err(contradiction(asked.to_string(), format!("{} bytes with {digest}", bytes.len())).into());
        }
        let media_type = media_type(content_type.as_deref(), &bytes).map_err(|(expected, found)| contradiction(expected, found))?;
        Ok(Manifest { digest, media_type, bytes })
    }

    /// A small blob as a whole (an image config), digest checked, at most `len_max` bytes.
    ///
    /// # Errors
    /// Every kind.
    pub async fn blob_bytes(&self, reference: &Reference, digest: &Digest, len_max: u64) -> Result<Bytes, EngineError> {
        let mut get = Get::new(blob_path(reference, digest));
        get.blob = Some(*digest);
        let mut tries = self.tries();
        loop {
            let mut round = self.round(reference, Need::Pull, Some(*digest), &[])?;
            while let Some(site) = round.next() {
                match self.try_blob_bytes(&site, &get, digest, len_max).await {
                    Ok(bytes) => {
                        round.answered(&site);
                        return Ok(bytes);
                    }
                    Err(failure) => round.failed(&site, failure),
                }
            }
            tries.after(round.into_failure()).await?;
        }
    }

    async fn try_blob_bytes(&self, site: &Site, get: &Get, digest: &Digest, len_max: u64) -> Result<Bytes, Failure> {
        let exchange = self.try_get(site, get).await?;
        not_encoded(&exchange)?;
        let (method, url) = (exchange.method, exchange.url.to_string());
        let bytes = exchange.bytes(len_max).await?;
        let found = digest_of(&bytes, Some(digest));
        if found == *digest {
            return Ok(bytes);
        }
        let found = format!("{} bytes with {found}", bytes.len());
        Err(EngineError::Protocol { method, url, expected: digest.to_string(), found }.into())
    }

    /// Opens the bytes `range` of a blob of `blob_size` bytes; a plain GET when the range is the whole blob. The reader resumes a
    /// truncated or stalled body where it stopped, `tries_max` times without progress.
    ///
    /// # Errors
    /// Every kind.
    pub async fn blob(&self, reference: &Reference, digest: &Digest, blob_size: u64, range: Range<u64>) -> Result<BlobReader, EngineError> {
        BlobReader::open(self.clone(), reference.clone(), *digest, blob_size, range).await
    }

    /// The hosts that are asked for images of `reference`'s registry, in order, in words: for `clip doctor`.
    ///
    /// # Errors
    /// `Invalid`, with file and line: its settings cannot be used.
    pub fn hosts(&self, reference: &Reference) -> Result<Vec<String>, EngineError> {
        Ok(self.shared.hosts.of(&reference.registry)?.shown())
    }

    /// Whether `GET /v2/` answers at one of the hosts, for `clip doctor`.
    ///
    /// # Errors
    /// Every kind.
    pub async fn ping(&self, reference: &Reference) -> Result<(), EngineError> {
        let get = Get::new("/".to_owned());
        let mut tries = self.tries();
        loop {
            let mut round = self.round(reference, Need::Pull, None, &[])?;
            while let Some(site) = round.next() {
                match self.try_ping(&site, &get).await {
                    Ok(()) => {
                        round.answered(&site);
                        return Ok(());
                    }
                    Err(failure) => round.failed(&site, failure),
                }
            }
            tries.after(round.into_failure()).await?;
        }
    }

    async fn try_ping(&self, site: &Site, get: &Get) -> Result<(), Failure> {
        let (exchange, _) = self.ask_registry(site, get).await?;
        match exchange.status().as_u16() {
            200 => {
                exchange.drain().await;
                Ok(())
            }
            401 => Err(auth::refused(exchange).await),
            _ => Err(exchange.into_failure().await),
        }
    }

    /// Idle connections of this clone's pool.
    pub(crate) fn idle_connections(&self) -> usize {
        self.transport.pool.len()
    }

    /// The widest gap that costs less to receive from the registry of `reference` than another request does; 0 before it was measured.
    pub(crate) fn bridge_bytes_max(&self, reference: &Reference) -> u64 {
        let Ok(hosts) = self.shared.hosts.of(&reference.registry) else { return 0 };
        hosts.first().map_or(0, |endpoint| self.pace(endpoint).bridge_bytes_max())
    }

    /// Of one host.
    pub(super) fn pace(&self, endpoint: &Endpoint) -> Arc<Pace> {
        self.shared.paces.of(&endpoint.origin().to_string())
    }

    pub(super) fn tries(&self) -> Tries {
        Tries::new(self.transport.config.tries_max)
    }
}

pub(super) fn blob_path(reference: &Reference, digest: &Digest) -> String {
    format!("/{}/blobs/{digest}", reference.repository)
}

/// The digests of the image are of the bytes as stored; a server that encodes them on the way serves others.
pub(super) fn not_encoded(exchange: &Exchange) -> Result<(), EngineError> {
    match exchange.header(CONTENT_ENCODING) {
        None | Some("" | "identity") => Ok(()),
        Some(found) => Err(exchange.contradiction("no Content-Encoding", found.chars().take(80).collect::<String>())),
    }
}

/// The digest of `bytes` by the algorithm of `like`, SHA-256 without one.
fn digest_of(bytes: &[u8], like: Option<&Digest>) -> Digest {
    match like {
        Some(Digest::Sha512(_)) => Digest::Sha512(Sha512::digest(bytes).into()),
        Some(Digest::Sha256(_)) | None => Digest::Sha256(Sha256::digest(bytes).into()),
    }
}

fn bare_media_type(header: &str) -> String {
    header.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct TypedDocument {
    media_type: Option<String>,
}

/// What a manifest is. Header and document must agree where both say it, or one digest could be read in two ways.
///
/// Source: CVE-2021-41190; OCI image spec, "manifest.md", `mediaType`. The generic types of static file servers say nothing.
fn media_type(content_type: Option<&str>, bytes: &[u8]) -> Result<String, (String, String)> {
    let shown = |text: &str| text.chars().take(120).collect::<String>();
    let document: TypedDocument =
        serde_json::from_slice(bytes).map_err(|error| ("a JSON manifest".to_owned(), format!("{} bytes: {error}", bytes.len())))?;
    let own = document.media_type.filter(|own| !own.is_empty());
    let said = content_type.filter(|said| said.starts_with("application/vnd."));
    match (said, own) {
        (Some(said), Some(own)) if said != own => Err((format!("the mediaType {} of the Content-Type", shown(said)), shown(&own))),
        (Some(said), _) => Ok(said.to_owned()),
        (None, Some(own)) => Ok(own),
        (None, None) => Err(("a manifest with a mediaType or a Content-Type".to_owned(), shown(content_type.unwrap_or("neither")))),
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
    /// Connections given up because they fell far behind their peers.
    pub stragglers: u64,
}
