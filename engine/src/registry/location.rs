//! Where a request goes: scheme, host, port and path. Its text never shows a query, for a query may be a signature.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use hyper::Uri;

use super::client::PlainHttp;
use crate::error::EngineError;

/// TLS or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Scheme {
    Http,
    Https,
}

impl Scheme {
    fn name(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }

    fn default_port(self) -> u16 {
        match self {
            Scheme::Http => 80,
            Scheme::Https => 443,
        }
    }
}

/// Whom a connection speaks to; credentials never leave theirs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Origin {
    pub scheme: Scheme,
    /// Lower case; an IPv6 address keeps its brackets.
    pub host: String,
    pub port: u16,
}

impl Origin {
    /// The host as the resolver and TLS want it: IPv6 without brackets.
    pub fn bare_host(&self) -> &str {
        self.host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(&self.host)
    }

    /// `host`, or `host:port` where the port is not the scheme's own.
    pub fn authority(&self) -> String {
        if self.port == self.scheme.default_port() { self.host.clone() } else { format!("{}:{}", self.host, self.port) }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme.name(), self.authority())
    }
}

/// Whether `host` can only be this machine.
pub(super) fn is_loopback(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    match bare.parse::<IpAddr>() {
        Ok(IpAddr::V4(address)) => address.is_loopback() && address != Ipv4Addr::UNSPECIFIED,
        Ok(IpAddr::V6(address)) => address == Ipv6Addr::LOCALHOST,
        Err(_) => bare == "localhost",
    }
}

/// Whether `host` may be spoken to without TLS.
pub(super) fn plain_allowed(plain_http: PlainHttp, host: &str) -> bool {
    match plain_http {
        PlainHttp::Loopback => is_loopback(host),
        PlainHttp::Always => true,
        PlainHttp::Never => false,
    }
}

/// An absolute http or https address. `Display` and `Debug` leave out the query.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Location {
    pub origin: Origin,
    /// Path and query.
    pub target: Uri,
}

impl Location {
    /// `path` (absolute, already escaped) at the registry `authority`.
    pub fn at_registry(plain_http: PlainHttp, authority: &str, path: &str) -> Result<Self, EngineError> {
        if let Some(sign) = authority.chars().find(|sign| matches!(sign, '@' | '/' | '\\' | '?' | '#')) {
            let expected = format!("a host and perhaps a port, without {sign:?}");
            return Err(EngineError::Invalid { what: "registry".to_owned(), expected, found: authority.chars().take(160).collect() });
        }
        let host = authority.rsplit_once(':').filter(|(_, port)| !port.contains(']')).map_or(authority, |(host, _)| host);
        let scheme = if plain_allowed(plain_http, host) { "http" } else { "https" };
        Self::parse(&format!("{scheme}://{authority}{path}"))
    }

    /// An absolute address.
    pub fn parse(text: &str) -> Result<Self, EngineError> {
        let bad = |expected: &str| EngineError::Invalid { what: "address".to_owned(), expected: expected.to_owned(), found: shown(text) };
        let uri: Uri = text.parse().map_err(|_| bad("a URL"))?;
        let scheme = match uri.scheme_str() {
            Some("http") => Scheme::Http,
            Some("https") => Scheme::Https,
            _ => return Err(bad("http:// or https://")),
        };
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| bad("a host"))?.to_ascii_lowercase();
        // `host:` has an empty port, which means the scheme's own; a port past 65535 is not one.
        let port = match uri.authority().map(|authority| authority.as_str()).and_then(port_text) {
            Some(port) => port.parse().map_err(|_| bad("a port from 1 to 65535"))?,
            None => scheme.default_port(),
        };
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        let target = path.parse().map_err(|_| bad("a path"))?;
        Ok(Self { origin: Origin { scheme, host, port }, target })
    }

    /// Where a `Location` header in an answer from here points.
    ///
    /// Source: RFC 3986 section 5.2.
    pub fn join(&self, text: &str) -> Result<Self, EngineError> {
        let joined = self.joined(text)?;
        let path = without_dot_segments(joined.target.path());
        if path == joined.target.path() {
            return Ok(joined);
        }
        let query = joined.target.query().map_or_else(String::new, |query| format!("?{query}"));
        let Origin { scheme, host, port } = &joined.origin;
        Self::parse(&format!("{}://{host}:{port}{path}{query}", scheme.name()))
    }

    fn joined(&self, text: &str) -> Result<Self, EngineError> {
        let is_scheme = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
        if text.split_once("://").is_some_and(|(scheme, _)| is_scheme(scheme)) {
            return Self::parse(text);
        }
        if text.starts_with("//") {
            return Self::parse(&format!("{}:{text}", self.origin.scheme.name()));
        }
        let base = format!("{}://{}:{}", self.origin.scheme.name(), self.origin.host, self.origin.port);
        if text.starts_with('/') {
            return Self::parse(&format!("{base}{text}"));
        }
        let path = self.target.path();
        if text.starts_with('?') {
            return Self::parse(&format!("{base}{path}{text}"));
        }
        let folder = path.rfind('/').map_or("/", |slash| &path[..=slash]);
        Self::parse(&format!("{base}{folder}{text}"))
    }

    /// In absolute form, as proxies want it. Source: RFC 9112 section 3.2.2.
    pub fn absolute(&self) -> Result<Uri, hyper::http::uri::InvalidUri> {
        format!("{}{}", self.origin, self.target).parse()
    }

    /// The same place with `query` (already escaped) added.
    pub fn with_query(&self, query: &str) -> Result<Self, EngineError> {
        let joint = if self.target.query().is_some() { '&' } else { '?' };
        Self::parse(&format!("{}://{}:{}{}{joint}{query}", self.origin.scheme.name(), self.origin.host, self.origin.port, self.target))
    }
}

/// An absolute path without segments `.` and `..`. Source: RFC 3986 section 5.2.4.
fn without_dot_segments(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    for segment in path.strip_prefix('/').unwrap_or(path).split('/') {
        match segment {
            "." => {}
            ".." => drop(kept.pop()),
            other => kept.push(other),
        }
    }
    // What ends with a dot segment names a folder.
    if path.ends_with("/.") || path.ends_with("/..") {
        kept.push("");
    }
    format!("/{}", kept.join("/"))
}

/// An address that did not parse, without what may be secret: query, fragment, user and password.
fn shown(text: &str) -> String {
    let open = text.split(['?', '#']).next().unwrap_or_default();
    open.rsplit('@').next().unwrap_or_default().chars().take(160).collect()
}

fn port_text(authority: &str) -> Option<&str> {
    let after_user = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let after_host = after_user.rsplit_once(']').map_or(after_user, |(_, rest)| rest);
    after_host.rsplit_once(':').map(|(_, port)| port).filter(|port| !port.is_empty())
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.origin, self.target.path())
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// `text` with every byte that is not unreserved as `%XX`. Source: RFC 3986 section 2.3.
pub(super) fn percent_encoded(text: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn only_loopback_is_plain_by_default() {
        for (authority, shown) in [
            ("localhost:5000", "http://localhost:5000/v2/"),
            ("127.8.9.1", "http://127.8.9.1/v2/"),
            ("[::1]:5000", "http://[::1]:5000/v2/"),
            ("[::1]", "http://[::1]/v2/"),
            ("[::2]:443", "https://[::2]/v2/"),
            ("quay.io", "https://quay.io/v2/"),
            ("localhost.evil.example:80", "https://localhost.evil.example:80/v2/"),
        ] {
            assert_eq!(Location::at_registry(PlainHttp::Loopback, authority, "/v2/").unwrap().to_string(), shown);
        }
        assert!(Location::at_registry(PlainHttp::Always, "quay.io", "/v2/").unwrap().to_string().starts_with("http://"));
        assert!(Location::at_registry(PlainHttp::Never, "localhost", "/v2/").unwrap().to_string().starts_with("https://"));
    }

    #[test]
    fn a_redirect_is_resolved_against_where_it_came_from_and_never_shows_its_query() {
        let base = Location::parse("https://h.x:8443/v2/a/blobs/d?n=1").unwrap();
        for (text, shown, target) in [
            ("http://o.x/p?sig=s#f", "http://o.x/p", "/p?sig=s"),
            ("HTTPS://u:p@O.x:443", "https://o.x/", "/"),
            ("//o.x/p", "https://o.x/p", "/p"),
            ("/p?q", "https://h.x:8443/p", "/p?q"),
            ("p", "https://h.x:8443/v2/a/blobs/p", "/v2/a/blobs/p"),
            ("?z", "https://h.x:8443/v2/a/blobs/d", "/v2/a/blobs/d?z"),
            ("../../store/./x?sig=../s", "https://h.x:8443/v2/store/x", "/v2/store/x?sig=../s"),
            ("../..", "https://h.x:8443/v2/", "/v2/"),
            ("../../../../../p", "https://h.x:8443/p", "/p"),
            ("/a/../b/.", "https://h.x:8443/b/", "/b/"),
            ("https://o.x/a//./b/%2e%2e/...", "https://o.x/a//b/%2e%2e/...", "/a//b/%2e%2e/..."),
        ] {
            let joined = base.join(text).unwrap();
            assert_eq!(joined.to_string(), shown, "{text}");
            assert_eq!(joined.target.to_string(), target, "{text}");
            assert_eq!(format!("{joined:?}"), shown);
        }
        assert!(base.join("http://h.x:99999/").is_err());
        assert!(base.join("http:///p").is_err());
        // Another scheme is no path of ours: what it holds may be a password, and paths are shown.
        assert!(base.join("ftp://u:s3cret@h/").is_err());
        let error = base.join("http://u:s3cret@h.x:99999/?s3cret").unwrap_err().to_string();
        assert!(!error.contains("s3cret"), "{error}");
    }
}
