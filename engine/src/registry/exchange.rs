//! One request and its answer over one connection, with deadlines. Knows neither credentials nor redirects nor tries.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::{Body as _, Incoming},
    client::conn::http1,
    header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderValue, PROXY_AUTHORIZATION, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use super::{
    client::{ClientConfig, Traffic},
    connect::{connect, wants_certificate},
    headway::Headway,
    location::{Location, Scheme, is_loopback},
    pool::{Connection, Pool},
    retry::{Failure, after_status},
    route::Route,
};
use crate::error::EngineError;

/// The longest chunk of a body, and what a connection's read buffer grows to. Source: a read brings what the socket holds, and 256 KiB of that
/// decode for a millisecond, in which the next arrive. hyper would go to 408 KiB; its buffer doubles where it grows, so that a read may bring
/// nearly twice as much as was set, which is cut.
pub(crate) const CHUNK_BYTES_MAX: u64 = 256 << 10;
const AGENT: HeaderValue = HeaderValue::from_static(concat!("clip/", env!("CARGO_PKG_VERSION")));
/// A body that nobody reads (a redirect's, a 401's) is read up to here to keep the connection, else the connection is closed.
/// Source: a new TLS connection costs two round trips and 4-5 KB of certificates; more than some of those is not worth reading.
const DRAIN_BYTES_MAX: usize = 16 << 10;
/// ... and this long.
const DRAIN_TIME_MAX: Duration = Duration::from_millis(500);
/// What of an error's body is looked at.
const ERROR_BODY_BYTES_MAX: usize = 16 << 10;
/// What of it is shown.
const DETAIL_CHARS_MAX: usize = 200;

/// Counters that every clone of a client shares.
#[derive(Default)]
pub(super) struct Counters {
    requests: AtomicU64,
    bytes: AtomicU64,
    connections: AtomicU64,
    stragglers: AtomicU64,
}

impl Counters {
    pub fn traffic(&self) -> Traffic {
        let now = |counter: &AtomicU64| counter.load(Relaxed);
        let (requests, bytes) = (now(&self.requests), now(&self.bytes));
        Traffic { requests, bytes, connections: now(&self.connections), stragglers: now(&self.stragglers) }
    }

    pub fn note_straggler(&self) {
        self.stragglers.fetch_add(1, Relaxed);
    }
}

/// What it takes to send a request.
#[derive(Clone)]
pub(super) struct Transport {
    pub config: Arc<ClientConfig>,
    pub route: Arc<Route>,
    pub pool: Arc<Pool>,
    pub counters: Arc<Counters>,
}

/// A request without its address. Its headers and body may hold secrets, so it cannot be shown.
#[derive(Clone)]
pub(super) struct Ask {
    pub method: Method,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Ask {
    pub fn get(headers: HeaderMap) -> Self {
        Self { method: Method::GET, headers, body: Bytes::new() }
    }

    pub fn method_name(&self) -> &'static str {
        if self.method == Method::POST { "POST" } else { "GET" }
    }

    fn request(&self, url: &Location, route: &Route) -> Result<Request<Full<Bytes>>, EngineError> {
        let failed = |reason: String| EngineError::Transport { method: self.method_name(), url: url.to_string(), reason };
        let host = HeaderValue::from_str(&url.origin.authority()).map_err(|error| failed(error.to_string()))?;
        let mut request = Request::new(Full::new(self.body.clone()));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = url.target.clone();
        *request.headers_mut() = self.headers.clone();
        request.headers_mut().insert(HOST, host);
        request.headers_mut().insert(USER_AGENT, AGENT);
        request.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some(proxy) = route.forwarder(url) {
            *request.uri_mut() = url.absolute().map_err(|error| failed(error.to_string()))?;
            if let Some(authorization) = &proxy.authorization {
                request.headers_mut().insert(PROXY_AUTHORIZATION, authorization.clone());
            }
        }
        Ok(request)
    }
}

impl Transport {
    /// Sends `ask` to `url` and waits for the head of the answer. A connection that was idle and turns out to be closed is replaced once,
    /// at once.
    ///
    /// # Errors
    /// `Transport`, `Deadline`.
    pub async fn send(&self, url: &Location, ask: &Ask) -> Result<Exchange, Failure> {
        let begun = Instant::now();
        let method = ask.method_name();
        let idle = self.pool.take(&self.route.line(&url.origin));
        // Who has answered before speaks what it is asked in.
        let hint = if idle.is_some() { "" } else { tls_hint(url) };
        let sent = match idle {
            Some(idle) => match self.send_on(idle, url, ask).await {
                Err(Sent::Closed(reason)) => {
                    tracing::debug!(method, url = %url, reason, "the idle connection was closed; opening another");
                    self.send_on(self.open(method, url).await?, url, ask).await
                }
                other => other,
            },
            None => self.send_on(self.open(method, url).await?, url, ask).await,
        };
        let exchange = sent.map_err(|sent| match sent {
            Sent::Closed(reason) => Failure::passing(EngineError::Transport { method, url: url.to_string(), reason: reason + hint }),
            Sent::Failed(failure) => failure,
        })?;
        let status = exchange.status().as_u16();
        tracing::debug!(method, url = %url, status, head_ms = begun.elapsed().as_millis(), "request");
        Ok(exchange)
    }

    async fn open(&self, method: &'static str, url: &Location) -> Result<Connection, Failure> {
        let stream = connect(&self.route, method, url, &self.config).await?;
        self.counters.connections.fetch_add(1, Relaxed);
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(CHUNK_BYTES_MAX as usize)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| Failure::passing(EngineError::Transport { method, url: url.to_string(), reason: chain(&error) }))?;
        // Its errors reach whoever holds the sender or the body.
        let driver = tokio::spawn(async move { drop(connection.await) }).abort_handle();
        Ok(Connection { line: self.route.line(&url.origin), sender, driver })
    }

    async fn send_on(&self, mut connection: Connection, url: &Location, ask: &Ask) -> Result<Exchange, Sent> {
        let late = |_| {
            self.pool.forget(&self.route.line(&url.origin));
            let what = format!("{} {url}", ask.method_name());
            Sent::Failed(Failure::passing(EngineError::Deadline { what, waited: self.config.first_byte_timeout }))
        };
        let request = ask.request(url, &self.route).map_err(|error| Sent::Failed(error.into()))?;
        self.counters.requests.fetch_add(1, Relaxed);
        let head = timeout(self.config.first_byte_timeout, async {
            connection.sender.ready().await?;
            connection.sender.send_request(request).await
        });
        let response = head.await.map_err(late)?.map_err(|error| {
            let reason = chain(&error);
            if wants_certificate(&error) {
                let found = format!("{reason}; the host wants a client certificate that it knows (client in its hosts.toml)");
                let (method, url) = (ask.method_name(), url.to_string());
                return Sent::Failed(EngineError::Transport { method, url, reason: found }.into());
            }
            if error.is_parse() {
                let found = format!("{reason}; does the server speak TLS only, or not HTTP at all?{}", tls_hint(url));
                let (method, url) = (ask.method_name(), url.to_string());
                return Sent::Failed(EngineError::Transport { method, url, reason: found }.into());
            }
            Sent::Closed(reason)
        })?;
        Ok(Exchange::new(self, ask, url, response, connection))
    }
}

/// Why no head came.
enum Sent {
    /// The connection ended first.
    Closed(String),
    Failed(Failure),
}

/// An answer whose body is still to be read. Dropping it before the end closes the connection.
pub(super) struct Exchange {
    pub method: &'static str,
    pub url: Location,
    pub head: hyper::http::response::Parts,
    body: Incoming,
    /// What has been received of the body and not been given out.
    received: Bytes,
    connection: Option<Connection>,
    pool: Arc<Pool>,
    counters: Arc<Counters>,
    headway: Headway,
    /// The request had some of ours, or the token that a token server gives anybody.
    had_credentials: bool,
    /// The body was given up for standing still.
    has_stalled: bool,
    /// The connection is worth keeping.
    is_kept: bool,
    /// The body said so: one without a length tells it only by giving no more.
    has_ended: bool,
}

impl Exchange {
    fn new(transport: &Transport, ask: &Ask, url: &Location, response: Response<Incoming>, connection: Connection) -> Self {
        let method = ask.method_name();
        let (head, body) = response.into_parts();
        let mut exchange = Self {
            method,
            url: url.clone(),
            head,
            body,
            connection: Some(connection),
            pool: Arc::clone(&transport.pool),
            counters: Arc::clone(&transport.counters),
            received: Bytes::new(),
            headway: Headway::new(transport.config.rate_min, transport.config.progress_timeout),
            had_credentials: ask.headers.contains_key(AUTHORIZATION) || !ask.body.is_empty(),
            has_stalled: false,
            is_kept: true,
            has_ended: false,
        };
        exchange.release_if_ended();
        exchange
    }

    pub fn status(&self) -> StatusCode {
        self.head.status
    }

    /// A header's text, when it is text.
    pub fn header(&self, name: impl hyper::header::AsHeaderName) -> Option<&str> {
        self.head.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The length that the head promises.
    pub fn content_length(&self) -> Option<u64> {
        self.header(CONTENT_LENGTH).and_then(|value| value.parse().ok())
    }

    /// The next bytes of the body, at most [`CHUNK_BYTES_MAX`] of them, or `None` at its end.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Failure> {
        let chunk = self.chunk_held().await;
        self.release_if_ended();
        chunk
    }

    /// As [`Self::chunk`]; the connection is not used again before [`Self::release_if_ended`].
    pub async fn chunk_held(&mut self) -> Result<Option<Bytes>, Failure> {
        if self.received.is_empty() {
            match self.receive().await? {
                Some(bytes) => self.received = bytes,
                None => return Ok(None),
            }
        }
        let len = self.received.len().min(CHUNK_BYTES_MAX as usize);
        Ok(Some(self.received.split_to(len)))
    }

    /// What one read of the connection brings, or `None` at the end.
    async fn receive(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            let asked = Instant::now();
            let frame = timeout(self.headway.left(), self.body.frame()).await.map_err(|_| self.stalled())?;
            let came = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()).map_or(0, Bytes::len);
            self.headway.note(came as u64, asked.elapsed());
            match frame {
                None => {
                    self.has_ended = true;
                    return Ok(None);
                }
                Some(Err(error)) => {
                    let reason = format!("the body ended early: {}", chain(&error));
                    return Err(Failure::passing(EngineError::Transport { method: self.method, url: self.url.to_string(), reason }));
                }
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data() {
                        self.counters.bytes.fetch_add(bytes.len() as u64, Relaxed);
                        if !bytes.is_empty() {
                            return Ok(Some(bytes));
                        }
                    }
                }
            }
        }
    }

    fn stalled(&mut self) -> Failure {
        self.has_stalled = true;
        if let Some(connection) = &self.connection {
            self.pool.forget(&connection.line);
        }
        let (method, url) = (self.method, self.url.to_string());
        Failure::passing(match self.headway.too_little() {
            Some(reason) => EngineError::Transport { method, url, reason },
            None => EngineError::Deadline { what: format!("{method} {url} (body)"), waited: self.headway.stall_max() },
        })
    }

    /// Whether the body was given up because it stood still.
    pub fn has_stalled(&self) -> bool {
        self.has_stalled
    }

    /// Its body may stand still for `time` at most.
    pub fn limit_stalls(&mut self, time: Duration) {
        self.headway.limit(time);
    }

    /// The whole body, which must be at most `len_max` bytes.
    pub async fn bytes(mut self, len_max: u64) -> Result<Bytes, Failure> {
        if let Some(len) = self.content_length().filter(|len| *len > len_max) {
            return Err(self.contradiction(format!("at most {len_max} bytes"), len.to_string()).into());
        }
        let mut whole = Vec::new();
        while let Some(bytes) = self.chunk().await? {
            whole.extend_from_slice(&bytes);
            if whole.len() as u64 > len_max {
                return Err(self.contradiction(format!("at most {len_max} bytes"), "more").into());
            }
        }
        Ok(whole.into())
    }

    /// Reads what is left of a short body, so that its connection can serve again.
    pub async fn drain(mut self) {
        let mut left = DRAIN_BYTES_MAX;
        let _ = timeout(DRAIN_TIME_MAX, async {
            while let Ok(Some(bytes)) = self.chunk().await {
                left = left.saturating_sub(bytes.len());
                if left == 0 {
                    break;
                }
            }
        })
        .await;
    }

    /// As [`Self::into_failure_of`], of a registry.
    pub async fn into_failure(self) -> Failure {
        self.into_failure_of(Answerer::Registry).await
    }

    /// The failure that an error status means, with the server's own words.
    pub async fn into_failure_of(self, whom: Answerer) -> Failure {
        let (method, url, status) = (self.method, self.url.to_string(), self.status());
        let had_credentials = self.had_credentials;
        let (again, tls_hint) = (after_status(status, &self.head.headers), tls_hint(&self.url));
        let is_text = self.header(CONTENT_TYPE).is_some_and(|kind| kind.starts_with("text/plain"));
        let body = self.bytes(ERROR_BODY_BYTES_MAX as u64).await.unwrap_or_default();
        let mut detail = detail(&body, is_text).map_or_else(String::new, |detail| format!(": {detail}"));
        if status == StatusCode::BAD_REQUEST && wants_tls(&body) {
            detail.push_str(tls_hint);
        }
        let hint = hint(status, whom, had_credentials);
        Failure { error: EngineError::Status { method, url, status: status.as_u16(), detail, hint }, again }
    }

    /// The error of an answer that contradicts its request.
    pub fn contradiction(&self, expected: impl Into<String>, found: impl Into<String>) -> EngineError {
        EngineError::Protocol { method: self.method, url: self.url.to_string(), expected: expected.into(), found: found.into() }
    }

    /// Whether the connection has brought all of the body.
    pub fn has_ended(&self) -> bool {
        self.has_ended || self.body.is_end_stream()
    }

    /// Gives the connection to the next request once it has brought all of the body.
    pub fn release_if_ended(&mut self) {
        if self.has_ended()
            && let Some(connection) = self.connection.take().filter(|_| self.is_kept)
        {
            self.pool.put(connection);
        }
    }

    /// Its connection will not serve again.
    pub fn close_after(&mut self) {
        self.is_kept = false;
    }
}

/// What the registry says in its error document (distribution spec, "Error codes") or in plain text; control characters removed.
fn detail(body: &[u8], is_text: bool) -> Option<String> {
    let said = match serde_json::from_slice::<serde_json::Value>(body) {
        Ok(document) => {
            let first = document.get("errors").and_then(|errors| errors.get(0)).unwrap_or(&document);
            let word = |name: &str| first.get(name).and_then(serde_json::Value::as_str).filter(|word| !word.is_empty());
            match (word("code"), word("message").or_else(|| word("details"))) {
                (Some(code), Some(message)) => format!("{code}: {message}"),
                (one, other) => one.or(other)?.to_owned(),
            }
        }
        Err(_) if is_text => String::from_utf8_lossy(body).lines().next()?.to_owned(),
        Err(_) => return None,
    };
    let cut: String = said.chars().filter(|letter| !letter.is_control()).take(DETAIL_CHARS_MAX).collect();
    (!cut.trim().is_empty()).then_some(cut)
}

/// Whether a 400 is a TLS server's answer to plain HTTP. Source: Go's net/http, nginx, Apache httpd.
fn wants_tls(body: &[u8]) -> bool {
    let text = String::from_utf8_lossy(body);
    ["request to an HTTPS server", "sent to HTTPS port", "to an SSL-enabled server port"].iter().any(|words| text.contains(words))
}

/// What to do where `url` was spoken to in plain HTTP, but may speak TLS.
fn tls_hint(url: &Location) -> &'static str {
    match url.origin.scheme {
        Scheme::Https => "",
        Scheme::Http if is_loopback(&url.origin.host) => {
            "; if it speaks TLS, name its authority (--ca FILE, or ca in its hosts.toml) or write server = \"https://...\" there"
        }
        Scheme::Http => "; if it speaks TLS, leave out --plain-http, or write https:// where http:// is written",
    }
}

/// Who gave an answer, as far as the advice goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answerer {
    Registry,
    /// Where the registry keeps its blobs, to which it redirects.
    Storage,
    TokenServer,
}

/// What to do about `status` of an answer to a request with or without credentials.
fn hint(status: StatusCode, whom: Answerer, had_credentials: bool) -> &'static str {
    match (status.as_u16(), whom) {
        (401 | 403, Answerer::Storage) => {
            "; the storage that the registry redirects to refuses, and no credentials are sent there: is the clock right on both sides, and \
             does the registry sign its addresses?"
        }
        (404, Answerer::Storage) => "; the storage that the registry redirects to does not have it",
        (400 | 401 | 403, Answerer::TokenServer) if had_credentials => {
            "; the token server refuses these credentials: check the name, or log in again (docker login)"
        }
        (400 | 401 | 403, Answerer::TokenServer) => {
            "; the token server gives nothing without credentials: check the name, or log in (docker login)"
        }
        (407 | 429, _) => hint_of_any(status),
        (_, Answerer::TokenServer) => "; this is the token server that the registry names, not the registry",
        (401, _) => "; credentials for this repository are missing or refused: check the name, or log in (docker login)",
        (403, _) if had_credentials => {
            "; these credentials may not read this repository (nor may anybody, where none were found): check the name, or log in (docker login)"
        }
        (403, _) => "; nothing is given without credentials: check the name, or log in (docker login)",
        (404, _) => "; check the name, tag or digest",
        _ => hint_of_any(status),
    }
}

fn hint_of_any(status: StatusCode) -> &'static str {
    match status.as_u16() {
        407 => "; the proxy wants a user and password: give them in the variable (HTTP_PROXY=http://USER:PASSWORD@HOST:PORT)",
        416 => "; the blob at the registry is shorter than its manifest says",
        429 => "; it limits how often it is asked: wait, or log in (docker login)",
        _ => "",
    }
}

/// An error and its causes, without repeating what a cause already said.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}
