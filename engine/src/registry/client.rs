//! The client's settings and state, and the three requests that clip makes.

use std::{
    ops::Range,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use clip_format::digest::Digest;
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderValue};
use sha2::{Digest as _, Sha256, Sha512};

use super::{
    auth::{self, Auth, LoggedIn, Login},
    blob::BlobReader,
    exchange::{Counters, Exchange, Transport},
    fetch::Get,
    hosts::{Avoided, Endpoint, Need, Round, Site, directory::HostsDirectory},
    pace::{Pace, Paces},
    pool::Pool,
    proxy::ProxyVariables,
    redirect::Targets,
    reference::Reference,
    retry::{Again, Failure, Patience, Tries},
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
    /// The name's look-up and TCP, and a proxy's tunnel. Default 10 s.
    pub connect_timeout: Duration,
    /// The TLS handshake. Default 10 s.
    pub tls_timeout: Duration,
    /// From the request sent to the response head. Default 15 s.
    pub first_byte_timeout: Duration,
    /// A body that brings less than `rate_min` for so long is given up, and its rest asked for anew. Default 10 s.
    pub progress_timeout: Duration,
    /// Bytes a second below which a body does not move; 0: any byte moves it. Default 1 KiB.
    pub rate_min: u64,
    /// No further try after this long without progress, tries and waits together. Default 30 s.
    pub patience: Duration,
    /// Tries of one request without progress. Default: as many as `patience` holds.
    pub tries_max: u32,
    /// Idle connections kept to one host. Default 16.
    pub idle_per_host_max: usize,
}

/// How long a request may be without progress. Source: container runtimes give a pull that does not move a minute (kubelet's
/// image-pull-progress-deadline was one); whoever waits for a file has given up by then.
const PATIENCE: Duration = Duration::from_secs(30);
/// Connecting and a handshake each. Source: Linux sends a SYN that was lost again after 1, 3 and 7 s: three losses are survived.
const CONNECT_TIMEOUT_MAX: Duration = Duration::from_secs(10);
/// Bytes a second of a body that moves. Source: the slowest honest links (GPRS, a satellite phone) bring 2-5 KiB/s; sixteen requests that
/// share a line of 128 kbit/s have 1 KiB/s each.
const RATE_MIN: u64 = 1 << 10;

impl ClientConfig {
    /// Sets `patience` to `time`, and the deadlines of each step to the parts of it that leave time for another try: a half for the first
    /// byte, a third for all others, of which connecting and TLS have 10 s at most.
    pub fn set_patience(&mut self, time: Duration) {
        self.patience = time;
        (self.first_byte_timeout, self.progress_timeout) = (time / 2, time / 3);
        (self.connect_timeout, self.tls_timeout) = (CONNECT_TIMEOUT_MAX.min(time / 3), CONNECT_TIMEOUT_MAX.min(time / 3));
    }
}

impl Default for ClientConfig {
    fn default() -> Self {
        let mut config = Self {
            plain_http: PlainHttp::Loopback,
            ca_file: None,
            login: Login::of_process(),
            hosts_dir: None,
            proxies: ProxyVariables::default(),
            connect_timeout: Duration::ZERO,
            tls_timeout: Duration::ZERO,
            first_byte_timeout: Duration::ZERO,
            progress_timeout: Duration::ZERO,
            rate_min: RATE_MIN,
            patience: Duration::ZERO,
            tries_max: u32::MAX,
            idle_per_host_max: 16,
        };
        config.set_patience(PATIENCE);
        config
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
        let mut asking = Asking::new(self, reference, need, reference.digest)?;
        loop {
            let site = asking.site().await?;
            let tried = self.try_manifest(&site, &get, asking.left()).await;
            if let Some(answer) = asking.settled(&site, tried) {
                return Ok(answer);
            }
        }
    }

    async fn try_manifest(&self, site: &Site, get: &Get, left: Duration) -> Result<Manifest, Failure> {
        let exchange = self.try_document(site, get, left).await?;
        let (method, url) = (exchange.method, exchange.url.to_string());
        let content_type = exchange.header(CONTENT_TYPE).map(bare_media_type);
        let bytes = exchange.bytes(MANIFEST_BYTES_MAX).await?;
        let contradiction = |expected: String, found: String| EngineError::Protocol { method, url: url.clone(), expected, found };
        let digest = digest_of(&bytes, site.reference.digest.as_ref());
        if let Some(asked) = site.reference.digest.filter(|asked| *asked != digest) {
            let found = format!("{} bytes with {digest}", bytes.len());
            return Err(Failure::contradiction(contradiction(asked.to_string(), found)));
        }
        let media_type = media_type(content_type.as_deref(), &bytes);
        let media_type = media_type.map_err(|(expected, found)| Failure::contradiction(contradiction(expected, found)))?;
        Ok(Manifest { digest, media_type, bytes })
    }

    /// The head of a small document's answer, within what is `left` of the time for tries; its body does not stand still for longer.
    async fn try_document(&self, site: &Site, get: &Get, left: Duration) -> Result<Exchange, Failure> {
        let begun = Instant::now();
        let late =
            |_| Failure { error: EngineError::Deadline { what: format!("GET {}", get.path), waited: left }, again: Again::OutOfTime };
        let mut exchange = tokio::time::timeout(left, self.try_get(site, get)).await.map_err(late)??;
        not_encoded(&exchange).map_err(Failure::contradiction)?;
        exchange.limit_stalls(left.saturating_sub(begun.elapsed()));
        Ok(exchange)
    }

    /// A small blob as a whole (an image config), digest checked, at most `len_max` bytes.
    ///
    /// # Errors
    /// Every kind.
    pub async fn blob_bytes(&self, reference: &Reference, digest: &Digest, len_max: u64) -> Result<Bytes, EngineError> {
        let mut get = Get::new(blob_path(reference, digest));
        get.blob = Some(*digest);
        let mut asking = Asking::new(self, reference, Need::Pull, Some(*digest))?;
        loop {
            let site = asking.site().await?;
            let tried = self.try_blob_bytes(&site, &get, digest, len_max, asking.left()).await;
            if let Some(answer) = asking.settled(&site, tried) {
                return Ok(answer);
            }
        }
    }

    async fn try_blob_bytes(&self, site: &Site, get: &Get, digest: &Digest, len_max: u64, left: Duration) -> Result<Bytes, Failure> {
        let exchange = self.try_document(site, get, left).await?;
        let (method, url) = (exchange.method, exchange.url.to_string());
        let bytes = exchange.bytes(len_max).await?;
        let found = digest_of(&bytes, Some(digest));
        if found == *digest {
            return Ok(bytes);
        }
        // Another server may have the right bytes.
        self.shared.targets.forget(&site.reference, digest);
        let found = format!("{} bytes with {found}", bytes.len());
        Err(Failure::contradiction(EngineError::Protocol { method, url, expected: digest.to_string(), found }))
    }

    /// Opens the bytes `range` of a blob of `blob_size` bytes; a plain GET when the range is the whole blob. The reader resumes a
    /// truncated or stalled body where it stopped, as long as that brings progress.
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
        let mut asking = Asking::new(self, reference, Need::Pull, None)?;
        loop {
            let site = asking.site().await?;
            let tried = self.try_ping(&site, &get).await;
            if let Some(answer) = asking.settled(&site, tried) {
                return Ok(answer);
            }
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
        self.tries_within(self.patience())
    }

    /// For one of several places, which may go `time` without progress.
    pub(super) fn tries_within(&self, time: Duration) -> Tries {
        let ClientConfig { tries_max, rate_min, .. } = *self.transport.config;
        Tries::new(Patience { tries_max, time, rate_min })
    }

    /// How long a reader waits without progress.
    pub(super) fn patience(&self) -> Duration {
        self.transport.config.patience
    }

    /// Whatever brought bytes of `blob` that are not right, the registry will be asked where they are.
    pub(crate) fn forget_target(&self, reference: &Reference, blob: &Digest) {
        if let Ok(hosts) = self.shared.hosts.of(&reference.registry) {
            hosts.references(reference).for_each(|own| self.shared.targets.forget(&own, blob));
        }
    }
}

/// One question to the hosts of a registry, round after round as long as that may help.
struct Asking<'a> {
    client: &'a Client,
    reference: &'a Reference,
    need: Need,
    blob: Option<Digest>,
    tries: Tries,
    round: Round<'a>,
}

impl<'a> Asking<'a> {
    fn new(client: &'a Client, reference: &'a Reference, need: Need, blob: Option<Digest>) -> Result<Self, EngineError> {
        let round = client.round(reference, need, blob, &Avoided::default())?;
        Ok(Self { client, reference, need, blob, tries: client.tries(), round })
    }

    /// The host to ask now.
    ///
    /// # Errors
    /// What the last round came to, when there is to be no other.
    async fn site(&mut self) -> Result<Site, EngineError> {
        loop {
            if let Some(site) = self.round.next() {
                return Ok(site);
            }
            let next = self.client.round(self.reference, self.need, self.blob, &Avoided::default())?;
            self.tries.after(std::mem::replace(&mut self.round, next).into_failure()).await?;
        }
    }

    /// What is left of the time for tries.
    fn left(&self) -> Duration {
        self.tries.left()
    }

    /// What `site` answered, if it did; else the next is to be asked.
    ///
    /// A loop around this stands in each request: one that took the request as an async closure would not be `Send` (Rust 1.95).
    fn settled<T>(&mut self, site: &Site, tried: Result<T, Failure>) -> Option<T> {
        match tried {
            Ok(answer) => {
                self.round.answered(site);
                Some(answer)
            }
            Err(failure) => {
                self.round.failed(site, failure);
                None
            }
        }
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
