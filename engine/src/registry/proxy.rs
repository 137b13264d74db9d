//! Which proxy a request goes through: the environment's variables as Go's clients read them, or one that `hosts.toml` names.

use std::{fmt, net::IpAddr, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper::header::HeaderValue;

use super::location::{Location, Origin, Scheme};

/// The environment variables that name proxies, as they are set. Not shown: they may hold a password.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ProxyVariables {
    /// `HTTP_PROXY`, else `http_proxy`
    pub http: Option<String>,
    /// `HTTPS_PROXY`, else `https_proxy`
    pub https: Option<String>,
    /// `NO_PROXY`, else `no_proxy`
    pub none_for: Option<String>,
    /// `REQUEST_METHOD` is set: this may be a CGI program, whose `HTTP_PROXY` anybody can set by a header `Proxy`.
    pub is_cgi: bool,
}

impl ProxyVariables {
    /// Those of this process.
    #[must_use]
    pub fn from_environment() -> Self {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let either = |upper: &str, lower: &str| set(upper).or_else(|| set(lower));
        Self {
            http: either("HTTP_PROXY", "http_proxy"),
            https: either("HTTPS_PROXY", "https_proxy"),
            none_for: either("NO_PROXY", "no_proxy"),
            is_cgi: set("REQUEST_METHOD").is_some(),
        }
    }
}

impl fmt::Debug for ProxyVariables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxyVariables").field("http", &self.http.is_some()).field("https", &self.https.is_some()).finish_non_exhaustive()
    }
}

/// A proxy and what it wants to see. Shown without user and password.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Proxy {
    pub origin: Origin,
    /// For `Proxy-Authorization`.
    pub authorization: Option<HeaderValue>,
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "proxy {}", self.origin)
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Proxy {
    /// `http://[USER:PASSWORD@]HOST[:PORT]`, `https://...`, or without a scheme.
    ///
    /// # Errors
    /// What is expected instead; never the address, which may hold a password.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
            let scheme: String = scheme.chars().filter(char::is_ascii_alphanumeric).take(16).collect();
            return Err(format!("expected http://[USER:PASSWORD@]HOST[:PORT] or https://, found the scheme {scheme:?}"));
        }
        let expected = || "expected http://[USER:PASSWORD@]HOST[:PORT] or https://, found an address that is none".to_owned();
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, authority),
        };
        let origin = Location::parse(&format!("{}://{host}/", scheme.to_ascii_lowercase())).map_err(|_| expected())?.origin;
        let authorization = user.map(|user| basic(user).ok_or_else(expected)).transpose()?;
        Ok(Self { origin, authorization })
    }
}

/// `USER:PASSWORD`, both percent-encoded as in URLs, for Basic.
fn basic(user: &str) -> Option<HeaderValue> {
    let (user, password) = user.split_once(':').unwrap_or((user, ""));
    let mut pair = percent_decoded(user)?;
    pair.push(b':');
    pair.extend(percent_decoded(password)?);
    let mut value = HeaderValue::from_str(&format!("Basic {}", STANDARD.encode(pair))).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn percent_decoded(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        if first == b'%' {
            let digits = after.get(..2)?;
            out.push(hex::decode(digits).ok()?[0]);
            rest = &after[2..];
        } else {
            out.push(first);
            rest = after;
        }
    }
    Some(out)
}

/// The environment's proxies.
///
/// Source: golang.org/x/net/http/httpproxy, which containerd, skopeo and crane use. `ALL_PROXY` is curl's and means nothing there.
pub(super) struct Proxies {
    http: Result<Option<Arc<Proxy>>, String>,
    https: Result<Option<Arc<Proxy>>, String>,
    exempt: Exempt,
}

impl Proxies {
    /// What is wrong with a variable is said when a request needs it.
    pub fn new(variables: &ProxyVariables) -> Self {
        let parse = |name: &str, value: &Option<String>| match value.as_deref() {
            None => Ok(None),
            Some(text) => Proxy::parse(text.trim()).map(|proxy| Some(Arc::new(proxy))).map_err(|why| format!("{name}: {why}")),
        };
        let http = if variables.is_cgi && variables.http.is_some() {
            Err("HTTP_PROXY is not used where REQUEST_METHOD is set, since a CGI request could have set it; unset one of them".to_owned())
        } else {
            parse("HTTP_PROXY", &variables.http)
        };
        Self { http, https: parse("HTTPS_PROXY", &variables.https), exempt: Exempt::parse(variables.none_for.as_deref().unwrap_or("")) }
    }

    /// The proxy for requests to `origin`, if they go through one.
    ///
    /// # Errors
    /// What is wrong with the variable that should name it.
    pub fn of(&self, origin: &Origin) -> Result<Option<Arc<Proxy>>, String> {
        let proxy = match origin.scheme {
            Scheme::Http => &self.http,
            Scheme::Https => &self.https,
        };
        if matches!(proxy, Ok(None)) || self.exempt.covers(origin.bare_host(), origin.port) {
            return Ok(None);
        }
        proxy.clone()
    }
}

/// What `NO_PROXY` lists.
#[derive(Debug, Default, PartialEq, Eq)]
struct Exempt {
    /// `*`
    all: bool,
    entries: Vec<(Matcher, Option<u16>)>,
}

#[derive(Debug, PartialEq, Eq)]
enum Matcher {
    Address(IpAddr),
    Network {
        address: IpAddr,
        bits: u8,
    },
    /// `.x.y`; and `x.y` itself where `own`.
    Domain {
        suffix: String,
        own: bool,
    },
}

impl Exempt {
    fn parse(list: &str) -> Self {
        let mut found = Self::default();
        for entry in list.split(',').map(|entry| entry.trim().to_ascii_lowercase()).filter(|entry| !entry.is_empty()) {
            if entry == "*" {
                return Self { all: true, entries: Vec::new() };
            }
            found.entries.extend(Self::entry(&entry));
        }
        found
    }

    fn entry(entry: &str) -> Option<(Matcher, Option<u16>)> {
        if let Some(network) = network(entry) {
            return Some((network, None));
        }
        let (host, port) = split_port(entry)?;
        if let Ok(address) = host.parse() {
            return Some((Matcher::Address(address), port));
        }
        let host = host.strip_prefix("*.").map_or_else(|| host.to_owned(), |rest| format!(".{rest}"));
        match host.strip_prefix('.') {
            Some("") => None,
            None if host.is_empty() => None,
            Some(_) => Some((Matcher::Domain { suffix: host, own: false }, port)),
            None => Some((Matcher::Domain { suffix: format!(".{host}"), own: true }, port)),
        }
    }

    /// Whether `host` (without brackets) is asked directly. This machine always is.
    fn covers(&self, host: &str, port: u16) -> bool {
        let host = host.to_ascii_lowercase();
        let address = host.parse::<IpAddr>().ok();
        if self.all || host == "localhost" || address.is_some_and(|address| address.is_loopback()) {
            return true;
        }
        self.entries.iter().any(|(matcher, wanted)| wanted.is_none_or(|wanted| wanted == port) && matcher.covers(&host, address))
    }
}

impl Matcher {
    fn covers(&self, host: &str, address: Option<IpAddr>) -> bool {
        match self {
            Matcher::Address(own) => address == Some(*own),
            Matcher::Network { address: own, bits } => address.is_some_and(|address| is_within(address, *own, *bits)),
            Matcher::Domain { suffix, own } => address.is_none() && (host.ends_with(suffix.as_str()) || *own && host == &suffix[1..]),
        }
    }
}

fn network(entry: &str) -> Option<Matcher> {
    let (address, bits) = entry.split_once('/')?;
    let (address, bits): (IpAddr, u8) = (address.parse().ok()?, bits.parse().ok()?);
    let bits_max = if address.is_ipv4() { 32 } else { 128 };
    (bits <= bits_max).then_some(Matcher::Network { address, bits })
}

fn is_within(address: IpAddr, network: IpAddr, bits: u8) -> bool {
    let number = |address: IpAddr| match address {
        IpAddr::V4(address) => u128::from(u32::from(address)) << 96,
        IpAddr::V6(address) => u128::from(address),
    };
    let differ = number(address) ^ number(network);
    address.is_ipv4() == network.is_ipv4() && (bits == 0 || differ >> (128 - u32::from(bits)) == 0)
}

/// `host`, `host:port`, `[v6]:port`, `v6`. `None` for `:port`, and for a port that is none.
fn split_port(entry: &str) -> Option<(&str, Option<u16>)> {
    if let Some(rest) = entry.strip_prefix('[') {
        let (host, after) = rest.split_once(']')?;
        return match after.strip_prefix(':') {
            Some(port) => Some((host, Some(port.parse().ok()?))),
            None => Some((host, None)),
        };
    }
    match entry.split_once(':') {
        Some((_, rest)) if rest.contains(':') => Some((entry, None)),
        Some(("", _)) => None,
        Some((host, port)) => Some((host, Some(port.parse().ok()?))),
        None => Some((entry, None)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn origin(url: &str) -> Origin {
        Location::parse(url).unwrap().origin
    }

    fn variables(none_for: &str) -> ProxyVariables {
        let some = |text: &str| Some(text.to_owned());
        ProxyVariables { http: some("plain.x:3128"), https: some("http://u:p%40ss@secure.x"), none_for: some(none_for), is_cgi: false }
    }

    /// Claim: the scheme of the request chooses the variable, the proxy's user and password are decoded, and nothing shows them.
    #[test]
    fn each_scheme_has_its_proxy() {
        let proxies = Proxies::new(&variables(""));
        let plain = proxies.of(&origin("http://h.x/")).unwrap().unwrap();
        assert_eq!((plain.to_string().as_str(), plain.authorization.is_none()), ("proxy http://plain.x:3128", true));
        let secure = proxies.of(&origin("https://h.x/")).unwrap().unwrap();
        assert_eq!(secure.origin.port, 80);
        assert_eq!(secure.authorization.as_ref().unwrap().to_str().unwrap(), format!("Basic {}", STANDARD.encode("u:p@ss")));
        let shown = format!("{secure} {secure:?} {:?} {:?}", secure.authorization, variables(""));
        assert!(!shown.contains("ss@") && !shown.contains("p%40"), "{shown}");
        assert!(Proxies::new(&ProxyVariables::default()).of(&origin("https://h.x/")).unwrap().is_none());
    }

    /// Claim: NO_PROXY is read as Go reads it. Source: the cases of httpproxy's own documentation.
    #[test]
    fn no_proxy_exempts_domains_addresses_networks_and_ports() {
        let asked_directly = |list: &str, url: &str| Proxies::new(&variables(list)).of(&origin(url)).unwrap().is_none();
        for (list, url, direct) in [
            ("", "https://localhost:5000/", true),
            ("", "http://127.8.9.1/", true),
            ("", "https://[::1]/", true),
            ("", "https://h.x/", false),
            ("*", "https://h.x/", true),
            ("other, *", "https://h.x/", true),
            ("x.org", "https://x.org/", true),
            ("X.ORG", "https://a.x.org/", true),
            ("x.org", "https://ax.org/", false),
            (".x.org", "https://a.x.org/", true),
            (".x.org", "https://x.org/", false),
            ("*.x.org", "https://a.b.x.org/", true),
            ("*.x.org", "https://x.org/", false),
            ("x.org:443", "https://x.org/", true),
            ("x.org:8443", "https://x.org/", false),
            ("x.org:8443", "https://x.org:8443/", true),
            ("x.org:nonsense", "https://x.org/", false),
            (":443", "https://x.org/", false),
            (".", "https://x.org/", false),
            (" a , x.org ,,", "https://x.org/", true),
            ("10.0.0.0/8", "https://10.1.2.3/", true),
            ("10.0.0.0/8", "https://11.1.2.3/", false),
            ("0.0.0.0/0", "https://11.1.2.3/", true),
            ("10.0.0.0/33", "https://10.1.2.3/", false),
            ("192.0.2.1", "https://192.0.2.1:5/", true),
            ("192.0.2.1:6", "https://192.0.2.1:5/", false),
            ("fd00::/8", "https://[fd12::1]/", true),
            ("fd00::/8", "https://[fe80::1]/", false),
            ("[fd12::1]:444", "https://[fd12::1]:444/", true),
            ("fd12::1", "https://[fd12::1]/", true),
            ("2.1", "https://192.0.2.1/", false),
        ] {
            assert_eq!(asked_directly(list, url), direct, "NO_PROXY={list:?} {url}");
        }
    }

    /// Claim: a variable that cannot be used is said when it is needed, without its value, and CGI's HTTP_PROXY is not believed.
    #[test]
    fn what_cannot_be_used_is_said_when_it_is_needed() {
        for bad in ["socks5://u:s3cret@h.x:1", "http://u:s3cret@", "http://u:s3cret%zz@h.x", "http://u:s3cret@h.x:99999"] {
            let proxies = Proxies::new(&ProxyVariables { https: Some(bad.to_owned()), ..variables("h.y") });
            let error = proxies.of(&origin("https://h.x/")).unwrap_err();
            assert!(error.starts_with("HTTPS_PROXY: expected") && !error.contains("s3cret"), "{error}");
            assert!(proxies.of(&origin("http://h.x/")).unwrap().is_some());
            assert!(proxies.of(&origin("https://h.y/")).unwrap().is_none());
        }
        let cgi = Proxies::new(&ProxyVariables { is_cgi: true, ..variables("") });
        assert!(cgi.of(&origin("http://h.x/")).unwrap_err().contains("REQUEST_METHOD"));
        assert!(cgi.of(&origin("https://h.x/")).unwrap().is_some());
    }
}
