//! A connection to an origin: addresses, TCP, TLS. Nothing of HTTP.

use std::{
    io,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    path::Path,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::Duration,
};

use rustls::{RootCertStore, crypto::ring};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, timeout_at},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    client::ClientConfig,
    location::{Location, Scheme},
    retry::Failure,
};
use crate::error::EngineError;

/// TLS roots: the extra ones at once, the system's at the first TLS connection.
pub(super) struct Tls {
    extra: Vec<CertificateDer<'static>>,
    connector: OnceLock<Result<TlsConnector, String>>,
}

impl Tls {
    /// With the roots of `ca_file` (PEM) beside the system's.
    pub fn new(ca_file: Option<&Path>) -> Result<Self, EngineError> {
        let extra = ca_file.map_or_else(|| Ok(Vec::new()), read_roots)?;
        Ok(Self { extra, connector: OnceLock::new() })
    }

    fn connector(&self) -> Result<&TlsConnector, &str> {
        self.connector.get_or_init(|| build_connector(&self.extra)).as_ref().map_err(String::as_str)
    }
}

fn read_roots(path: &Path) -> Result<Vec<CertificateDer<'static>>, EngineError> {
    let pem = std::fs::read(path).map_err(|error| EngineError::io("read", path, error))?;
    let bad = |why: String| EngineError::io("read certificates of", path, io::Error::new(io::ErrorKind::InvalidData, why));
    let roots = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>().map_err(|error| bad(error.to_string()))?;
    if roots.is_empty() {
        return Err(bad("expected certificates in PEM form, found none".to_owned()));
    }
    RootCertStore::empty().add(roots[0].clone()).map_err(|error| bad(error.to_string()))?;
    Ok(roots)
}

fn build_connector(extra: &[CertificateDer<'static>]) -> Result<TlsConnector, String> {
    let native = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(native.certs);
    roots.add_parsable_certificates(extra.iter().cloned());
    if roots.is_empty() {
        let why = native.errors.first().map_or_else(String::new, |error| format!(" ({error})"));
        return Err(format!("no trusted root certificates were found{why}; install ca-certificates, or set SSL_CERT_FILE or a CA file"));
    }
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

/// An open byte stream to an origin.
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Connects to `url`'s origin, within the deadlines of `config` for TCP and TLS.
///
/// # Errors
/// Passing: `Deadline`, `Transport` of the network. Final: a certificate or TLS fault.
pub(super) async fn connect(tls: &Tls, method: &'static str, url: &Location, config: &ClientConfig) -> Result<Stream, Failure> {
    let late = |what: &str, waited: Duration| {
        let what = format!("{what} {}", url.origin);
        Failure::passing(EngineError::Deadline { what, waited })
    };
    let timeout = config.connect_timeout;
    let deadline = Instant::now() + timeout;
    let connected = timeout_at(deadline, connect_tcp(url, deadline)).await.map_err(|_| late("connect to", timeout))?;
    let stream = connected.map_err(|reason| Failure::passing(EngineError::Transport { method, url: url.to_string(), reason }))?;
    match url.origin.scheme {
        Scheme::Http => Ok(Stream::Plain(stream)),
        Scheme::Https => {
            let failed = |reason: String| EngineError::Transport { method, url: url.to_string(), reason };
            let connector = tls.connector().map_err(|reason| failed(reason.to_owned()))?;
            let name = ServerName::try_from(url.origin.bare_host().to_owned()).map_err(|error| failed(error.to_string()))?;
            let shaken = tokio::time::timeout(config.tls_timeout, connector.connect(name, stream)).await;
            let stream = shaken.map_err(|_| late("TLS handshake with", config.tls_timeout))?;
            stream.map(|stream| Stream::Tls(Box::new(stream))).map_err(|error| tls_failure(failed, &error))
        }
    }
}

/// A handshake that TLS itself refused fails the same way again; one that the network cut may not.
fn tls_failure(failed: impl Fn(String) -> EngineError, error: &io::Error) -> Failure {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidMessage(_)) => {
            failed(format!("TLS: {error}; does the registry speak plain HTTP (--plain-http)?")).into()
        }
        Some(rustls::Error::InvalidCertificate(_)) => {
            failed(format!("TLS: {error}; if the registry has a private CA, name its certificate (--ca or SSL_CERT_FILE)")).into()
        }
        Some(_) => failed(format!("TLS: {error}")).into(),
        None => Failure::passing(failed(format!("TLS handshake: {error}"))),
    }
}

/// Tries each address in turn, each with an equal share of the time left. A failure is in words.
async fn connect_tcp(url: &Location, deadline: Instant) -> Result<TcpStream, String> {
    let host = url.origin.bare_host();
    let unknown = |error| format!("cannot look up {host:?}: {error}; is the name right, and does DNS work here?");
    let addresses = addresses(host, url.origin.port).await.map_err(unknown)?;
    let refused = |error| format!("cannot connect: {error}; is the registry running and reachable from here?");
    connect_to_one(&addresses, deadline).await.map_err(refused)
}

async fn connect_to_one(addresses: &[SocketAddr], deadline: Instant) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for (at, address) in addresses.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(addresses.len() - at).unwrap_or(u32::MAX);
        match tokio::time::timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Ok(Err(error)) => last = error,
            Err(_) => last = io::Error::new(io::ErrorKind::TimedOut, format!("{address} does not answer")),
        }
    }
    Err(last)
}

/// The addresses of `host`, looked up on a thread of its own: on the runtime's blocking threads a resolver that hangs would hold up the
/// writes of the cache, and the runtime's end. A thread outlives its caller by the resolver's own timeouts, 30 s or so.
async fn addresses(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let name = (host.to_owned(), port);
    let look_up = move || drop(sender.send(name.to_socket_addrs().map(Iterator::collect)));
    std::thread::Builder::new().name("clip-resolve".to_owned()).spawn(look_up)?;
    receiver.await.map_err(|_| io::Error::other("the thread that looked up the name ended"))?
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
