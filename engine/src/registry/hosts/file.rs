//! The meaning of a `hosts.toml`. Pure: no file but its own text is looked at.

use std::{
    collections::HashSet,
    ops::Range,
    path::{Path, PathBuf},
    time::Duration,
};

use hyper::{
    HeaderMap,
    header::{HeaderName, HeaderValue},
};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    super::{
        location::{Location, Origin},
        proxy::Proxy,
        tls::KeyPair,
    },
    Capabilities, canonical,
};
use crate::error::EngineError;

/// What the tables say that may stand at the root, for the server, and below each host.
const HOST_KEYS: [&str; 8] = ["capabilities", "ca", "client", "skip_verify", "header", "override_path", "dial_timeout", "proxy"];

/// A host's address and settings.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct HostTable {
    /// `None`: not said, which means all.
    pub capabilities: Option<Capabilities>,
    pub ca: Vec<PathBuf>,
    pub client: Vec<KeyPair>,
    pub skip_verify: bool,
    /// Never shown: they may be credentials.
    pub headers: HeaderMap,
    pub override_path: bool,
    pub dial_timeout: Option<Duration>,
    pub proxy: Option<Proxy>,
}

/// Where a host is.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct HostAddress {
    pub origin: Origin,
    /// No slash at the end.
    pub path: String,
    /// `host[:port]` as it was written.
    pub written: String,
}

/// A `hosts.toml`.
#[derive(Debug, Default, PartialEq)]
pub(super) struct HostsFile {
    /// `None`: the registry itself.
    pub server: Option<HostAddress>,
    pub of_server: HostTable,
    /// In the order of the file.
    pub hosts: Vec<(HostAddress, HostTable)>,
    /// Keys that mean nothing, with their lines.
    pub unknown: Vec<String>,
}

impl HostsFile {
    /// Reads `text`, the contents of the file at `path`; relative paths in it start in its directory.
    ///
    /// # Errors
    /// `Invalid` with file and line.
    pub fn parse(text: &str, path: &Path) -> Result<Self, EngineError> {
        let mut reader = Reader { text, path, unknown: Vec::new() };
        let document = DeTable::parse(text).map_err(|error| {
            let found = error.message().lines().next().unwrap_or_default().to_owned();
            reader.bad(error.span().unwrap_or(0..0), "TOML", found)
        })?;
        let root = document.get_ref();
        let of_server = reader.host(root, true)?;
        let server = match get(root, "server") {
            Some(value) => {
                Some(reader.string(value, "the URL of the server").and_then(|url| reader.address(url, value.span(), &of_server))?)
            }
            None => None,
        };
        let mut hosts = match get(root, "host") {
            Some(value) => reader.hosts(value)?,
            None => Vec::new(),
        };
        hosts.sort_by_key(|(at, _)| *at);
        let hosts = hosts.into_iter().map(|(_, host)| host).collect();
        Ok(Self { server, of_server, hosts, unknown: reader.unknown })
    }
}

type Value<'a> = Spanned<DeValue<'a>>;
/// A host, and where in the file it begins.
type Placed = (usize, (HostAddress, HostTable));

fn get<'a, 'b>(table: &'a DeTable<'b>, key: &str) -> Option<&'a Value<'b>> {
    table.iter().find(|(name, _)| name.get_ref() == key).map(|(_, value)| value)
}

struct Reader<'a> {
    text: &'a str,
    path: &'a Path,
    unknown: Vec<String>,
}

impl Reader<'_> {
    fn line(&self, at: usize) -> usize {
        self.text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count() + 1
    }

    fn bad(&self, at: Range<usize>, expected: impl Into<String>, found: impl Into<String>) -> EngineError {
        let what = format!("{} line {}", self.path.display(), self.line(at.start));
        EngineError::Invalid { what, expected: expected.into(), found: found.into().chars().take(120).collect() }
    }

    /// A value of the wrong type: only its type is shown, for it may be a secret.
    fn wrong(&self, value: &Value<'_>, expected: &str) -> EngineError {
        self.bad(value.span(), expected, value.get_ref().type_str())
    }

    fn string<'a>(&self, value: &'a Value<'_>, expected: &str) -> Result<&'a str, EngineError> {
        value.get_ref().as_str().ok_or_else(|| self.wrong(value, expected))
    }

    fn bool(&self, value: Option<&Value<'_>>) -> Result<bool, EngineError> {
        value.map_or(Ok(false), |value| value.get_ref().as_bool().ok_or_else(|| self.wrong(value, "true or false")))
    }

    /// A string, or an array of strings.
    fn strings<'a>(&self, value: &'a Value<'_>, expected: &str) -> Result<Vec<&'a str>, EngineError> {
        match value.get_ref() {
            DeValue::String(text) => Ok(vec![text.as_ref()]),
            DeValue::Array(all) => all.iter().map(|one| self.string(one, expected)).collect(),
            _ => Err(self.wrong(value, expected)),
        }
    }

    fn path(&self, text: &str) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("/")).join(text)
    }

    fn hosts(&mut self, value: &Value<'_>) -> Result<Vec<Placed>, EngineError> {
        let table = value.get_ref().as_table().ok_or_else(|| self.wrong(value, "tables [host.\"https://HOST\"]"))?;
        let mut found = Vec::new();
        for (url, settings) in table {
            let expected = "a table [host.\"https://HOST\"]; a URL with dots must be in quotes";
            let own = settings.get_ref().as_table().ok_or_else(|| self.wrong(settings, expected))?;
            let own = self.host(own, false)?;
            found.push((url.span().start, (self.address(url.get_ref(), url.span(), &own)?, own)));
        }
        Ok(found)
    }

    fn host(&mut self, table: &DeTable<'_>, is_root: bool) -> Result<HostTable, EngineError> {
        let known: HashSet<&str> = HOST_KEYS.into_iter().chain(is_root.then_some(["server", "host"]).into_iter().flatten()).collect();
        for (key, _) in table.iter().filter(|(key, _)| !known.contains(key.get_ref().as_ref())) {
            let shown: String = key.get_ref().chars().filter(|letter| !letter.is_control()).take(60).collect();
            self.unknown.push(format!("{shown} in line {}", self.line(key.span().start)));
        }
        let ca = get(table, "ca").map_or(Ok(Vec::new()), |value| self.strings(value, "a path, or an array of paths"))?;
        Ok(HostTable {
            capabilities: get(table, "capabilities").map(|value| self.capabilities(value)).transpose()?.flatten(),
            ca: ca.into_iter().map(|path| self.path(path)).collect(),
            client: get(table, "client").map_or(Ok(Vec::new()), |value| self.client(value))?,
            skip_verify: self.bool(get(table, "skip_verify"))?,
            headers: get(table, "header").map_or(Ok(HeaderMap::new()), |value| self.headers(value))?,
            override_path: self.bool(get(table, "override_path"))?,
            dial_timeout: get(table, "dial_timeout").map(|value| self.duration(value)).transpose()?,
            proxy: get(table, "proxy").map(|value| self.proxy(value)).transpose()?,
        })
    }

    /// `None` for an empty list, which means all. Source: containerd's `parseHostConfig`, to which any other word is an error, too.
    fn capabilities(&self, value: &Value<'_>) -> Result<Option<Capabilities>, EngineError> {
        let expected = "an array of \"pull\", \"resolve\", \"push\" and \"referrers\"";
        if !value.get_ref().is_array() {
            return Err(self.wrong(value, expected));
        }
        let names = self.strings(value, expected)?;
        let mut found = Capabilities { pull: false, resolve: false };
        for name in &names {
            match name.to_ascii_lowercase().as_str() {
                "pull" => found.pull = true,
                "resolve" => found.resolve = true,
                "push" | "referrers" => {}
                _ => return Err(self.bad(value.span(), expected, *name)),
            }
        }
        Ok((!names.is_empty()).then_some(found))
    }

    /// A path; an array of paths; an array of pairs of paths, the second of which may be empty.
    fn client(&self, value: &Value<'_>) -> Result<Vec<KeyPair>, EngineError> {
        let expected = "a path, an array of paths, or an array of [CERTIFICATE, KEY]";
        let whole = |path: &str| KeyPair { certificate: self.path(path), key: None };
        let one = |value: &Value<'_>| match value.get_ref() {
            DeValue::String(path) => Ok(whole(path)),
            DeValue::Array(_) => match self.strings(value, expected)?[..] {
                [certificate, ""] => Ok(whole(certificate)),
                [certificate, key] => Ok(KeyPair { certificate: self.path(certificate), key: Some(self.path(key)) }),
                ref other => Err(self.bad(value.span(), expected, format!("an array of {} paths", other.len()))),
            },
            _ => Err(self.wrong(value, expected)),
        };
        match value.get_ref() {
            DeValue::Array(all) => all.iter().map(one).collect(),
            _ => Ok(vec![one(value)?]),
        }
    }

    fn headers(&self, value: &Value<'_>) -> Result<HeaderMap, EngineError> {
        let expected = "a string, or an array of strings";
        let table = value.get_ref().as_table().ok_or_else(|| self.wrong(value, "a table of headers"))?;
        let mut headers = HeaderMap::new();
        for (key, value) in table {
            let name = HeaderName::from_bytes(key.get_ref().as_bytes());
            let name = name.map_err(|_| self.bad(key.span(), "the name of a header", key.get_ref().as_ref()))?;
            for text in self.strings(value, expected)? {
                let bad = |_| self.bad(value.span(), "the value of a header", "other characters than those may have");
                let mut text = HeaderValue::from_str(text).map_err(bad)?;
                text.set_sensitive(true);
                headers.append(name.clone(), text);
            }
        }
        Ok(headers)
    }

    fn duration(&self, value: &Value<'_>) -> Result<Duration, EngineError> {
        let expected = "a time such as \"500ms\", \"3s\" or \"1m30s\"";
        let text = self.string(value, expected)?;
        let found = go_duration(text).filter(|duration| !duration.is_zero());
        found.ok_or_else(|| self.bad(value.span(), expected, text))
    }

    fn proxy(&self, value: &Value<'_>) -> Result<Proxy, EngineError> {
        let text = self.string(value, "the URL of a proxy")?;
        Proxy::parse(text).map_err(|why| self.bad(value.span(), "the URL of a proxy", why))
    }

    /// Source: containerd's `parseHostConfig`: https unless said otherwise, and `/v2` at the end of the path.
    fn address(&self, text: &str, at: Range<usize>, own: &HostTable) -> Result<HostAddress, EngineError> {
        let url = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
        let location = Location::parse(&url).map_err(|error| self.bad(at, "the URL of a host", error.to_string()))?;
        let written = url.split("://").nth(1).unwrap_or_default().split(['/', '?', '#']).next().unwrap_or_default();
        let mut path = clean_path(location.target.path());
        if !own.override_path && !path.ends_with("/v2") {
            path.push_str("/v2");
        }
        let written = written.rsplit('@').next().unwrap_or_default().to_ascii_lowercase();
        Ok(HostAddress { origin: canonical(location.origin), path, written })
    }
}

/// Without empty and dot segments, and without a slash at the end. Source: Go's path.Clean.
fn clean_path(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(kept.pop()),
            other => kept.push(other),
        }
    }
    kept.into_iter().fold(String::new(), |path, segment| path + "/" + segment)
}

/// As Go's time.ParseDuration, without sign.
fn go_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
        let (number, after) = rest.split_at(digits);
        let unit_len = after.find(|letter: char| letter.is_ascii_digit() || letter == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_len);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" | "μs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total += number.parse::<f64>().ok()? * seconds;
        rest = after;
    }
    if text.is_empty() { None } else { Duration::try_from_secs_f64(total).ok() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<HostsFile, EngineError> {
        HostsFile::parse(text, Path::new("/certs.d/h.x/hosts.toml"))
    }

    const FULL: &str = r#"
server = "https://up.x/"
ca = "/etc/up.pem"
frobnicate = 1

[host."https://z.x"]
  capabilities = ["pull"]
  ca = ["z1.pem", "/z2.pem"]
  skip_verify = true
  dial_timeout = "1m2.5s"
[host."https://z.x".header]
  x-one = "1"
  x-two = ["2", "3"]

[host."http://a.x:81/base/v2"]
  Capabilities = ["PULL"]
  capabilities = ["PULL", "Resolve", "push", "referrers"]
  client = [["a.cert", "a.key"], ["b.pem", ""], "c.pem"]
  proxy = "http://p.x:3128"

[host."m.x/api/"]
  override_path = true
  client = "m.pem"
"#;

    /// Claim: every setting is read, hosts keep the order of the file, and what containerd ignores is noted with its line.
    #[test]
    fn every_setting_is_read_in_order() {
        let file = parse(FULL).unwrap();
        let server = file.server.unwrap();
        assert_eq!((server.origin.to_string().as_str(), server.path.as_str()), ("https://up.x", "/v2"));
        assert_eq!(file.of_server.ca, [PathBuf::from("/etc/up.pem")]);
        let shown: Vec<_> = file.hosts.iter().map(|(at, _)| format!("{}{}", at.origin, at.path)).collect();
        assert_eq!(shown, ["https://z.x/v2", "http://a.x:81/base/v2", "https://m.x/api"]);
        let [(_, z), (_, a), (_, m)] = &file.hosts[..] else { panic!() };
        assert_eq!(z.capabilities, Some(Capabilities { pull: true, resolve: false }));
        assert_eq!(z.ca, [PathBuf::from("/certs.d/h.x/z1.pem"), PathBuf::from("/z2.pem")]);
        assert!(z.skip_verify && z.dial_timeout == Some(Duration::from_millis(62_500)));
        let values: Vec<_> = z.headers.get_all("x-two").iter().map(|value| value.to_str().unwrap()).collect();
        assert_eq!((z.headers["x-one"].to_str().unwrap(), values), ("1", vec!["2", "3"]));
        assert_eq!(a.capabilities, Some(Capabilities::ALL));
        let pair = |certificate: &str, key: Option<&str>| KeyPair {
            certificate: Path::new("/certs.d/h.x").join(certificate),
            key: key.map(|key| Path::new("/certs.d/h.x").join(key)),
        };
        assert_eq!(a.client, [pair("a.cert", Some("a.key")), pair("b.pem", None), pair("c.pem", None)]);
        assert_eq!(a.proxy.as_ref().unwrap().origin.to_string(), "http://p.x:3128");
        assert_eq!(m.client, [pair("m.pem", None)]);
        assert_eq!(m.capabilities, None);
        assert_eq!(file.unknown, ["frobnicate in line 4", "Capabilities in line 16"]);
    }

    /// Claim: addresses become those that containerd asks, and Docker Hub's names the one that answers.
    #[test]
    fn addresses_are_containerds() {
        for (written, shown) in [
            ("h.x", "https://h.x/v2"),
            ("h.x:5000", "https://h.x:5000/v2"),
            ("http://h.x/", "http://h.x/v2"),
            ("https://h.x/v2/", "https://h.x/v2"),
            ("https://h.x//a/./b/../c", "https://h.x/a/c/v2"),
            ("https://docker.io", "https://registry-1.docker.io/v2"),
            ("https://user:pass@h.x", "https://h.x/v2"),
        ] {
            let file = parse(&format!("server = {written:?}")).unwrap();
            let at = file.server.unwrap();
            assert_eq!(format!("{}{}", at.origin, at.path), shown, "{written}");
        }
    }

    /// Claim: what cannot be meant is an error that says file, line, what is expected and what was found, and never a header's value.
    #[test]
    fn what_cannot_be_meant_is_said_with_its_line() {
        for (text, line, expected, found) in [
            ("\nserver = [", 2, "TOML", ""),
            ("a = 1\na = 2", 2, "TOML", "duplicate"),
            ("server = 5", 1, "URL", "integer"),
            ("server = \"ftp://h.x\"", 1, "URL of a host", ""),
            ("server = \"https://h.x:99999\"", 1, "port", ""),
            ("[host]\n\"https://h.x\" = 1", 2, "a table", "integer"),
            ("[host.\"https://h.x\"]\ncapabilities = [\"pull\", \"fly\"]", 2, "resolve", "fly"),
            ("capabilities = \"pull\"", 1, "array", "string"),
            ("ca = [1]", 1, "paths", "integer"),
            ("client = [[\"a\"]]", 1, "CERTIFICATE, KEY", "1 paths"),
            ("client = true", 1, "a path", "boolean"),
            ("skip_verify = \"yes\"", 1, "true or false", "string"),
            ("dial_timeout = \"5\"", 1, "500ms", "5"),
            ("dial_timeout = \"0s\"", 1, "500ms", "0s"),
            ("dial_timeout = \"-1s\"", 1, "500ms", "-1s"),
            ("proxy = \"socks5://u:s3cret@h.x\"", 1, "proxy", "socks5"),
            ("[header]\nx = 5", 2, "string", "integer"),
            ("[header]\nx = \"s3cret\\n\"", 2, "header", "characters"),
            ("[header]\n\"x y\" = \"s3cret\"", 2, "name of a header", "x y"),
            ("header = 1", 1, "table", "integer"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            let place = format!("/certs.d/h.x/hosts.toml line {line}:");
            assert!(error.starts_with(&place) && error.contains(expected) && error.contains(found), "{text:?}: {error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
    }

    /// Claim: an empty file is one server, which is the registry itself with every capability.
    #[test]
    fn an_empty_file_says_nothing() {
        assert_eq!(parse("").unwrap(), HostsFile::default());
        assert_eq!(parse("capabilities = []").unwrap().of_server.capabilities, None);
    }

    proptest! {
        /// Claim: no text panics.
        #[test]
        fn no_text_panics(text in "(server|host|ca|header|client|\\[|\\]|=|\"|\\.|[a-z0-9/:]|\\n| |\\PC){0,60}") {
            let _ = parse(&text);
        }
    }
}
