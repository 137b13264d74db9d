//! A connection to an origin: addresses, TCP, a proxy's tunnel, TLS. Nothing of HTTP but that tunnel.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};

use rustls::{AlertDescription, CertificateError};
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, timeout_at},
};
use tokio_rustls::client::TlsStream;

use super::{
    client::ClientConfig,
    location::{Location, Origin, Scheme},
    lookup::addresses,
    proxy::Proxy,
    retry::Failure,
    route::{NoTunnel, Route, open_tunnel},
    tls::Tls,
};
use crate::error::EngineError;

/// An open byte stream to an origin.
pub(super) enum Stream {
    Plain(TcpStream),
    /// Over a plain stream, or over that to a proxy.
    Tls(Box<TlsStream<Stream>>),
}

/// Connects to `url`'s origin by `route`, proxy and TLS included, within the deadlines of `config` for TCP and TLS; a proxy's own TLS and its
/// tunnel count as TCP.
///
/// # Errors
/// Passing: `Deadline`, `Transport` of the network. Final: a certificate or TLS fault, a proxy that refuses or cannot be used.
pub(super) async fn connect(route: &Route, method: &'static str, url: &Location, config: &ClientConfig) -> Result<Stream, Failure> {
    let stream = reach(route, method, url, config).await.map_err(|no| no.failure)?;
    match url.origin.scheme {
        Scheme::Http => Ok(stream),
        Scheme::Https => {
            let failed = |reason: String| EngineError::Transport { method, url: url.to_string(), reason };
            let shaken = tokio::time::timeout(config.tls_timeout, connect_tls(&route.tls, stream, &url.origin, &failed)).await;
            shaken.map_err(|_| late_handshake(&url.origin, config))?
        }
    }
}

fn late_handshake(origin: &Origin, config: &ClientConfig) -> Failure {
    Failure::passing(EngineError::Deadline { what: format!("TLS handshake with {origin}"), waited: config.tls_timeout })
}

/// What answers a TLS handshake.
pub(super) enum Greeted {
    /// TLS, be it to refuse: then a request says why.
    InTls,
    InSomethingElse,
    /// Nobody: the connection was refused, for this reason.
    Refused(Failure),
}

/// How `url`'s host answers a TLS handshake.
///
/// # Errors
/// Passing: no answer, or the connection ends instead.
pub(super) async fn greet(route: &Route, url: &Location, config: &ClientConfig) -> Result<Greeted, Failure> {
    let failed = |reason: String| EngineError::Transport { method: "GET", url: url.to_string(), reason };
    let stream = match reach(route, "GET", url, config).await {
        Ok(stream) => stream,
        Err(no) if no.is_refused => return Ok(Greeted::Refused(no.failure)),
        Err(no) => return Err(no.failure),
    };
    let shaken = tokio::time::timeout(config.tls_timeout, shake_hands(&route.tls, stream, &url.origin, &failed)).await;
    match shaken.map_err(|_| late_handshake(&url.origin, config))?? {
        Ok(_) => Ok(Greeted::InTls),
        Err(error) => match rustls_error(&error) {
            Some(rustls::Error::InvalidMessage(_)) => Ok(Greeted::InSomethingElse),
            Some(_) => Ok(Greeted::InTls),
            None => Err(tls_failure(failed, &error)),
        },
    }
}

/// There is no connection.
struct Unreached {
    failure: Failure,
    /// The host itself said that nobody listens there.
    is_refused: bool,
}

impl From<Failure> for Unreached {
    fn from(failure: Failure) -> Self {
        Self { failure, is_refused: false }
    }
}

/// A stream to `url`'s origin, by TCP or a proxy's tunnel, on which nothing was said yet.
async fn reach(route: &Route, method: &'static str, url: &Location, config: &ClientConfig) -> Result<Stream, Unreached> {
    let failed = |reason: String| EngineError::Transport { method, url: url.to_string(), reason };
    let proxy = route.proxy(&url.origin).map_err(|reason| Failure::from(failed(reason)))?;
    let through = proxy.as_ref().map_or_else(String::new, |proxy| format!(" through {proxy}"));
    let timeout = config.connect_timeout;
    let late = |_| {
        let what = format!("connect to {}{through}", url.origin);
        Failure::passing(EngineError::Deadline { what, waited: timeout })
    };
    let deadline = Instant::now() + timeout;
    let connected = timeout_at(deadline, async {
        match &proxy {
            Some(proxy) => connect_proxy(route, proxy, &url.origin, deadline, &failed).await.map_err(Unreached::from),
            None => connect_tcp(&url.origin, deadline).await.map(Stream::Plain).map_err(|no| Unreached {
                failure: Failure::passing(failed(no.reason("", "is it running and reachable from here?"))),
                is_refused: matches!(&no, NoTcp::Answer(error) if error.kind() == io::ErrorKind::ConnectionRefused),
            }),
        }
    });
    connected.await.map_err(late)?
}

/// A stream to `proxy`; to `target` behind it when that speaks TLS.
async fn connect_proxy(
    route: &Route,
    proxy: &Proxy,
    target: &Origin,
    deadline: Instant,
    failed: &impl Fn(String) -> EngineError,
) -> Result<Stream, Failure> {
    let stream = connect_tcp(&proxy.origin, deadline).await;
    let stream = stream.map_err(|no| Failure::passing(failed(no.reason(&format!(" to {proxy}"), "is it running?"))))?;
    let mut stream = Stream::Plain(stream);
    if proxy.origin.scheme == Scheme::Https {
        stream = connect_tls(&route.tls, stream, &proxy.origin, &|reason| failed(format!("{proxy}: {reason}"))).await?;
    }
    if target.scheme == Scheme::Https {
        open_tunnel(&mut stream, proxy, target).await.map_err(|no| match no {
            NoTunnel::Broken(error) => Failure::passing(failed(format!("{proxy} opened no tunnel: {error}"))),
            NoTunnel::Refused(502..=504 | 429, why) => Failure::passing(failed(format!("{proxy} {why}"))),
            NoTunnel::Refused(_, why) => failed(format!("{proxy} {why}")).into(),
        })?;
    }
    Ok(stream)
}

async fn connect_tls(tls: &Tls, stream: Stream, origin: &Origin, failed: &impl Fn(String) -> EngineError) -> Result<Stream, Failure> {
    let stream = shake_hands(tls, stream, origin, failed).await?;
    stream.map(|stream| Stream::Tls(Box::new(stream))).map_err(|error| tls_failure(failed, &error))
}

/// The handshake's own end, where one can be begun.
async fn shake_hands(
    tls: &Tls,
    stream: Stream,
    origin: &Origin,
    failed: &impl Fn(String) -> EngineError,
) -> Result<io::Result<TlsStream<Stream>>, Failure> {
    let connector = tls.connector(origin.bare_host()).map_err(|reason| failed(reason.to_owned()))?;
    let name = ServerName::try_from(origin.bare_host().to_owned()).map_err(|error| failed(error.to_string()))?;
    Ok(connector.connect(name, stream).await)
}

fn rustls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref().and_then(|inner| inner.downcast_ref())
}

/// A handshake that TLS itself refused fails the same way again; one that the network cut may not.
fn tls_failure(failed: impl Fn(String) -> EngineError, error: &io::Error) -> Failure {
    match rustls_error(error) {
        Some(rustls::Error::InvalidMessage(_)) => {
            failed(format!("TLS: {error}; does the registry speak plain HTTP (--plain-http)?")).into()
        }
        Some(rustls::Error::InvalidCertificate(found)) => failed(format!("TLS: {error}; {}", certificate_hint(found))).into(),
        Some(rustls::Error::AlertReceived(alert)) if is_of_certificate(*alert) => {
            failed(format!("TLS: {error}; the host wants a client certificate that it knows (client in its hosts.toml)")).into()
        }
        Some(_) => failed(format!("TLS: {error}")).into(),
        None => Failure::passing(failed(format!("TLS handshake: {error}"))),
    }
}

/// What to do about a certificate that is refused.
fn certificate_hint(found: &CertificateError) -> &'static str {
    use CertificateError::{Expired, ExpiredContext, NotValidForName, NotValidForNameContext, NotValidYet, NotValidYetContext, Revoked};
    match found {
        Expired | ExpiredContext { .. } => "it has run out: renew it at the server, or set this machine's clock",
        NotValidYet | NotValidYetContext { .. } => "is this machine's clock right?",
        NotValidForName | NotValidForNameContext { .. } => {
            "it is of other names: ask the registry under one of these, or give it a certificate of this name (subjectAltName)"
        }
        Revoked => "the server needs another",
        _ => "if the registry has a private CA, name its certificate (--ca, SSL_CERT_FILE, or ca in its hosts.toml)",
    }
}

/// Whether a connection ended since the other side wants a client certificate, or another. Source: RFC 8446 section 4.4.2.4; in TLS 1.3 it
/// says so after the handshake, as far as the client can tell.
pub(super) fn wants_certificate(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let inner = error.downcast_ref::<io::Error>().and_then(|error| error.get_ref()).and_then(|inner| inner.downcast_ref());
        if let Some(rustls::Error::AlertReceived(alert)) = inner.or_else(|| error.downcast_ref()) {
            return is_of_certificate(*alert);
        }
        cause = error.source();
    }
    false
}

fn is_of_certificate(alert: AlertDescription) -> bool {
    use AlertDescription::{
        BadCertificate, CertificateExpired, CertificateRequired, CertificateUnknown, UnknownCA, UnsupportedCertificate,
    };
    matches!(alert, BadCertificate | CertificateExpired | CertificateRequired | CertificateUnknown | UnknownCA | UnsupportedCertificate)
}

/// Why there is no TCP connection.
enum NoTcp {
    /// The name has no address that can be found now.
    Name(String, io::Error),
    /// No address answers.
    Answer(io::Error),
}

impl NoTcp {
    /// In words: it was to be a connection to `whom`.
    fn reason(&self, whom: &str, hint: &str) -> String {
        match self {
            NoTcp::Name(host, error) => format!("cannot look up {host:?}: {error}; is the name right, and does DNS work here?"),
            NoTcp::Answer(error) => format!("cannot connect{whom}: {error}; {hint}"),
        }
    }
}

/// Tries each address in turn, each with an equal share of the time left.
async fn connect_tcp(origin: &Origin, deadline: Instant) -> Result<TcpStream, NoTcp> {
    let host = origin.bare_host();
    let addresses = addresses(host, origin.port).await.map_err(|error| NoTcp::Name(host.to_owned(), error))?;
    connect_to_one(&addresses, deadline).await.map_err(NoTcp::Answer)
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
            // One that cannot be asked at all (IPv6 is off) says less than one that was.
            Ok(Err(error)) if is_unreachable(&error) && last.kind() == io::ErrorKind::ConnectionRefused => {}
            Ok(Err(error)) => last = error,
            Err(_) => {
                last = io::Error::new(io::ErrorKind::TimedOut, format!("{address} does not answer within {:.1} s", share.as_secs_f64()))
            }
        }
    }
    Err(last)
}

fn is_unreachable(error: &io::Error) -> bool {
    use io::ErrorKind::{AddrNotAvailable, HostUnreachable, NetworkUnreachable};
    matches!(error.kind(), AddrNotAvailable | HostUnreachable | NetworkUnreachable)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Claim: what to do about a certificate fits what is wrong with it: an authority helps where the issuer is unknown only.
    #[test]
    fn the_advice_fits_the_certificate() {
        use CertificateError::{Expired, NotValidForName, NotValidYet, Revoked, UnknownIssuer};
        for (found, word) in [(Expired, "run out"), (NotValidYet, "clock"), (NotValidForName, "other names"), (Revoked, "another")] {
            let hint = certificate_hint(&found);
            assert!(hint.contains(word) && !hint.contains("--ca"), "{found:?}: {hint}");
        }
        assert!(certificate_hint(&UnknownIssuer).contains("--ca"));
    }
}
