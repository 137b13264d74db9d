//! How connections for one host of a registry are made: TLS, proxies, and which of them may be used again for whom.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use hyper::{StatusCode, header::HeaderValue};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::{
    location::{Location, Origin, Scheme},
    proxy::{Proxies, Proxy},
    tls::Tls,
};

/// What a proxy may say before the tunnel is open. Source: what hyper allows a response head is 400 KiB; proxies say under 2 KiB.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// Where proxies are named.
pub(super) enum Via {
    /// By the environment, which may exempt hosts.
    Environment(Arc<Proxies>),
    /// By `hosts.toml`: for every host that is asked in the course of it.
    Always(Arc<Proxy>),
}

/// One way to make connections. Those of another way are never used for it.
pub(super) struct Route {
    id: u64,
    pub tls: Tls,
    via: Via,
    /// A host that may be spoken to in plain HTTP, since its `hosts.toml` says so.
    plain: Option<String>,
}

/// Whom a connection speaks to, and how it was made.
pub(super) type Line = (u64, Origin);

impl Route {
    pub fn new(tls: Tls, via: Via, plain: Option<String>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self { id: NEXT.fetch_add(1, Relaxed), tls, via, plain }
    }

    /// What connections to `origin` are kept under.
    pub fn line(&self, origin: &Origin) -> Line {
        (self.id, origin.clone())
    }

    /// The proxy that `origin` is asked through.
    ///
    /// # Errors
    /// What is wrong with the variable that should name it.
    pub fn proxy(&self, origin: &Origin) -> Result<Option<Arc<Proxy>>, String> {
        match &self.via {
            Via::Environment(proxies) => proxies.of(origin),
            Via::Always(proxy) => Ok(Some(Arc::clone(proxy))),
        }
    }

    /// The proxy that answers requests to `url` itself: of plain HTTP, where there is no tunnel.
    pub fn forwarder(&self, url: &Location) -> Option<Arc<Proxy>> {
        if url.origin.scheme == Scheme::Http { self.proxy(&url.origin).ok().flatten() } else { None }
    }

    /// Whether plain HTTP to `host` was asked for by name.
    pub fn is_plain(&self, host: &str) -> bool {
        self.plain.as_deref() == Some(host)
    }
}

/// Why a proxy opened no tunnel.
pub(super) enum NoTunnel {
    /// The connection to the proxy failed.
    Broken(io::Error),
    /// It says no: its status, and what that means.
    Refused(u16, String),
}

impl From<io::Error> for NoTunnel {
    fn from(error: io::Error) -> Self {
        NoTunnel::Broken(error)
    }
}

/// `stream` leads through `proxy` to `target` from now on.
///
/// Source: RFC 9110 section 9.3.6; RFC 9112 section 3.2.3.
pub(super) async fn open_tunnel(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    proxy: &Proxy,
    target: &Origin,
) -> Result<(), NoTunnel> {
    let place = format!("{}:{}", target.host, target.port);
    let agent = concat!("clip/", env!("CARGO_PKG_VERSION"));
    let mut ask = format!("CONNECT {place} HTTP/1.1\r\nHost: {place}\r\nUser-Agent: {agent}\r\n");
    if let Some(value) = proxy.authorization.as_ref().and_then(|value| HeaderValue::to_str(value).ok()) {
        ask.push_str("Proxy-Authorization: ");
        ask.push_str(value);
        ask.push_str("\r\n");
    }
    ask.push_str("\r\n");
    stream.write_all(ask.as_bytes()).await?;
    stream.flush().await?;
    let head = read_head(stream).await?;
    match status(&head) {
        Some(200..=299) => Ok(()),
        Some(status) => Err(NoTunnel::Refused(status, refusal(status))),
        None => Err(NoTunnel::Refused(0, "does not answer as an HTTP proxy does".to_owned())),
    }
}

/// The head of the proxy's answer, byte by byte: what follows it belongs to TLS.
async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>, NoTunnel> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && !head.ends_with(b"\n\n") {
        if head.len() >= HEAD_BYTES_MAX {
            return Err(NoTunnel::Refused(0, format!("answers with a head of over {HEAD_BYTES_MAX} bytes")));
        }
        head.push(stream.read_u8().await?);
    }
    Ok(head)
}

fn status(head: &[u8]) -> Option<u16> {
    let line = head.split(|byte| *byte == b'\n').next()?;
    let text = std::str::from_utf8(line.get(..12)?).ok()?;
    text.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..))?.parse().ok()
}

fn refusal(status: u16) -> String {
    let name = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or("unknown");
    let hint = match status {
        407 => "; give its user and password in the variable (http://USER:PASSWORD@HOST:PORT)",
        403 | 405 => "; it may allow tunnels to some hosts and ports only",
        502..=504 => "; it cannot reach the host",
        _ => "",
    };
    format!("refuses a tunnel with status {status} ({name}){hint}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Claim: only a line of HTTP/1 with a number is a status.
    #[test]
    fn the_status_of_a_proxy_is_read() {
        for (head, expected) in [
            (&b"HTTP/1.1 200 Connection established\r\n\r\n"[..], Some(200)),
            (b"HTTP/1.0 407\r\n\r\n", Some(407)),
            (b"HTTP/2 200 OK\r\n\r\n", None),
            (b"SSH-2.0-OpenSSH_9\r\n\r\n", None),
            (b"\n\n", None),
            (b"HTTP/1.1 2\xc3\xa40 X\r\n\r\n", None),
        ] {
            assert_eq!(status(head), expected, "{}", String::from_utf8_lossy(head));
        }
        assert!(refusal(407).contains("USER:PASSWORD") && refusal(502).contains("cannot reach"));
    }
}
