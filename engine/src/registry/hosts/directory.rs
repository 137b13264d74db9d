//! The directory of registries' settings, as containerd lays it out: one directory for each registry, with a `hosts.toml` or, as docker has
//! it, with certificates only.

use std::{
    collections::HashMap,
    io::{ErrorKind, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Component, Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::{
    super::{
        client::{ClientConfig, PlainHttp},
        location::{Scheme, is_loopback},
        proxy::Proxies,
        route::{Route, Via},
        tls::{KeyPair, Tls, TlsSettings},
    },
    Capabilities, DOCKER_HUB, DOCKER_HUB_ENDPOINT, Endpoint, Hosts,
    file::{HostAddress, HostTable, HostsFile},
    name_of, own_origin,
    own_scheme::OwnScheme,
    standing::Standing,
};
use crate::{error::EngineError, files::open_regular};

/// How often a registry's settings are looked at for changes. Source: judgement: somebody who edits them looks at the log for so long; three
/// stat calls are nothing.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// Larger files are none. Source: a host takes some 100 bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Registries remembered; past it all are forgotten, which costs reading their settings. Source: judgement: more than one node's images name.
const REGISTRIES_MAX: usize = 1024;

/// The hosts of every registry that was asked for, as its settings say.
pub(in super::super) struct HostsDirectory {
    dir: Option<PathBuf>,
    config: Arc<ClientConfig>,
    proxies: Arc<Proxies>,
    /// Of hosts without TLS or proxy settings of their own.
    common: Arc<Route>,
    known: Mutex<HashMap<String, Known>>,
}

struct Known {
    hosts: Arc<Hosts>,
    stamp: Stamp,
    looked: Instant,
}

/// What changes when settings change: their directory, and for it and its file inode, time of change and length.
type Stamp = Option<(PathBuf, [Option<FileStamp>; 2])>;
type FileStamp = (u64, i64, i64, u64);

impl HostsDirectory {
    /// Reads nothing yet.
    ///
    /// # Errors
    /// `ca_file` cannot be used.
    pub fn new(config: Arc<ClientConfig>) -> Result<Self, EngineError> {
        let proxies = Arc::new(Proxies::new(&config.proxies));
        let common = Arc::new(Route::new(Tls::new(config.ca_file.as_deref())?, Via::Environment(Arc::clone(&proxies)), None));
        Ok(Self { dir: config.hosts_dir.clone(), config, proxies, common, known: Mutex::default() })
    }

    /// The route of hosts without settings.
    pub fn common_route(&self) -> Arc<Route> {
        Arc::clone(&self.common)
    }

    /// The hosts of `registry`. Settings that change are in force some seconds later; changed to something that cannot be used they are
    /// not, and the log says why.
    ///
    /// # Errors
    /// `Invalid` with file and line, or of a file: the settings cannot be used.
    pub fn of(&self, registry: &str) -> Result<Arc<Hosts>, EngineError> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(old) = known.get_mut(registry) else {
            let (stamp, hosts) = self.read(registry)?;
            if known.len() >= REGISTRIES_MAX {
                known.clear();
            }
            known.insert(registry.to_owned(), Known { hosts: Arc::clone(&hosts), stamp, looked: Instant::now() });
            return Ok(hosts);
        };
        if old.looked.elapsed() >= LOOK_AGAIN {
            old.looked = Instant::now();
            match self.changed(registry, &old.stamp) {
                Ok(None) => {}
                Ok(Some((stamp, hosts))) => {
                    tracing::info!(registry, hosts = ?hosts.shown(), "the settings of a registry have changed");
                    (old.stamp, old.hosts) = (stamp, hosts);
                }
                Err(error) => tracing::warn!(registry, %error, "changed settings of a registry cannot be used; the old ones stay"),
            }
        }
        Ok(Arc::clone(&old.hosts))
    }

    fn changed(&self, registry: &str, old: &Stamp) -> Result<Option<(Stamp, Arc<Hosts>)>, EngineError> {
        let now = self.find(registry)?.map(stamp);
        if now == *old { Ok(None) } else { self.read(registry).map(Some) }
    }

    fn read(&self, registry: &str) -> Result<(Stamp, Arc<Hosts>), EngineError> {
        // Before it is read, so that a change meanwhile is seen the next time.
        let stamp = self.find(registry)?.map(stamp);
        let file = stamp.as_ref().map_or_else(|| Ok(HostsFile::default()), |(dir, _)| settings(dir))?;
        let hosts = self.build(registry, &file)?;
        Ok((stamp, Arc::new(hosts)))
    }

    /// The directory with the settings of `registry`. Source: containerd's `hostPaths`.
    fn find(&self, registry: &str) -> Result<Option<PathBuf>, EngineError> {
        let Some(root) = &self.dir else { return Ok(None) };
        // One name, which leads nowhere else.
        if !Path::new(registry).components().eq([Component::Normal(registry.as_ref())]) {
            let (what, expected) = ("registry".to_owned(), "a host and perhaps a port".to_owned());
            return Err(EngineError::Invalid { what, expected, found: registry.chars().take(160).collect() });
        }
        for name in directory_names(registry) {
            let path = root.join(name);
            match std::fs::metadata(&path) {
                Ok(_) => return Ok(Some(path)),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(EngineError::io("look at", path, error)),
            }
        }
        Ok(None)
    }

    fn build(&self, registry: &str, file: &HostsFile) -> Result<Hosts, EngineError> {
        if !file.unknown.is_empty() {
            let keys = file.unknown.join(", ");
            tracing::warn!(registry, "its hosts.toml has keys that mean nothing and are ignored: {keys}");
        }
        let mut endpoints = Vec::new();
        for (address, table) in &file.hosts {
            endpoints.push(Arc::new(self.endpoint(registry, Some(address), table, false)?));
        }
        endpoints.push(Arc::new(self.endpoint(registry, file.server.as_ref(), &file.of_server, true)?));
        Ok(Hosts { registry: registry.to_owned(), endpoints })
    }

    /// The host at `address`, the registry itself without one.
    fn endpoint(&self, registry: &str, address: Option<&HostAddress>, table: &HostTable, is_last: bool) -> Result<Endpoint, EngineError> {
        let own = own_origin(self.config.plain_http, registry)?;
        // Whoever names an authority for a registry on this machine may mean TLS, which is not what is spoken there by default.
        let is_unsure = address.is_none() && own.scheme == Scheme::Http && self.config.plain_http == PlainHttp::Loopback;
        let own_scheme = (is_unsure && (has_tls(table) || self.config.ca_file.is_some())).then(|| OwnScheme::unknown(own.clone()));
        let own = if own_scheme.is_some() { own_origin(PlainHttp::Never, registry)? } else { own };
        let (origin, path) = address.map_or_else(|| (own, "/v2".to_owned()), |address| (address.origin.clone(), address.path.clone()));
        // Source: containerd sets all capabilities of a server that is not named, whatever the file says.
        let capabilities = address.and(table.capabilities).unwrap_or(Capabilities::ALL);
        let name = if address.is_none() { registry.to_owned() } else { name_of(&origin) };
        // Source: containerd's `isProxy`, which compares hosts as written.
        let is_itself = name == registry || address.is_some_and(|address| address.written == registry);
        Ok(Endpoint {
            path,
            namespace: (!is_itself).then(|| registry.to_owned()),
            name,
            capabilities,
            headers: table.headers.clone(),
            config: Arc::new(self.deadlines(table.dial_timeout, is_last)),
            route: self.route(registry, address, table, &origin.host, origin.scheme)?,
            standing: Standing::default(),
            own_scheme,
            origin,
        })
    }

    /// A host behind which there are others must leave them time within the same read.
    fn deadlines(&self, dial_timeout: Option<Duration>, is_last: bool) -> ClientConfig {
        let mut config = ClientConfig::clone(&self.config);
        if !is_last {
            config.connect_timeout /= 2;
            config.tls_timeout /= 2;
            config.first_byte_timeout /= 2;
        }
        config.connect_timeout = dial_timeout.map_or(config.connect_timeout, |own| own.min(self.config.connect_timeout));
        config
    }

    fn route(
        &self,
        registry: &str,
        address: Option<&HostAddress>,
        table: &HostTable,
        host: &str,
        scheme: Scheme,
    ) -> Result<Arc<Route>, EngineError> {
        let has_tls = has_tls(table);
        if scheme == Scheme::Http && has_tls && address.is_some() {
            tracing::warn!(registry, host, "ca, client and skip_verify mean nothing for an http:// host; write https:// if it speaks TLS");
        } else if table.skip_verify {
            tracing::warn!(registry, host, "the certificate of this host is not verified (skip_verify)");
        }
        if scheme == Scheme::Http && !is_loopback(host) && address.is_some() {
            tracing::warn!(registry, host, "this host is asked in plain HTTP, as its hosts.toml says");
        }
        let plain = (scheme == Scheme::Http && address.is_some()).then(|| host.to_owned());
        if !has_tls && table.proxy.is_none() && plain.as_deref().is_none_or(is_loopback) {
            return Ok(self.common_route());
        }
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host).to_owned();
        let settings = TlsSettings { host: bare, ca: table.ca.clone(), client: table.client.clone(), skip_verify: table.skip_verify };
        let via = match &table.proxy {
            Some(proxy) => Via::Always(Arc::new(proxy.clone())),
            None => Via::Environment(Arc::clone(&self.proxies)),
        };
        Ok(Arc::new(Route::new(self.common.tls.with(&settings)?, via, plain)))
    }
}

fn has_tls(table: &HostTable) -> bool {
    !table.ca.is_empty() || !table.client.is_empty() || table.skip_verify
}

/// `host_port_`, `host:port`, `_default`. Source: containerd's `hostPaths`.
fn directory_names(registry: &str) -> Vec<String> {
    let registry = if registry == DOCKER_HUB_ENDPOINT { DOCKER_HUB } else { registry };
    let mut names = Vec::new();
    if let Some((host, port)) = registry.rsplit_once(':').filter(|(host, _)| !host.is_empty()) {
        names.push(format!("{host}_{port}_"));
    }
    names.push(registry.to_owned());
    names.push("_default".to_owned());
    names
}

fn stamp(dir: PathBuf) -> (PathBuf, [Option<FileStamp>; 2]) {
    let of = |path: &Path| {
        let found = std::fs::metadata(path).ok()?;
        Some((found.ino(), found.mtime(), found.mtime_nsec(), found.len()))
    };
    let stamps = [of(&dir), of(&dir.join("hosts.toml"))];
    (dir, stamps)
}

/// What is in a registry's directory.
fn settings(dir: &Path) -> Result<HostsFile, EngineError> {
    let path = dir.join("hosts.toml");
    let text = match open_regular(&path) {
        Ok(file) => read_text(file, &path)?,
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        Err(error) => return Err(EngineError::io("open", path, error)),
    };
    if text.is_empty() { certificates(dir) } else { HostsFile::parse(&text, &path) }
}

fn read_text(file: std::fs::File, path: &Path) -> Result<String, EngineError> {
    let mut text = String::new();
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(|error| EngineError::io("read", path, error))?;
    if text.len() as u64 > FILE_BYTES_MAX {
        let (what, expected) = (path.display().to_string(), format!("at most {FILE_BYTES_MAX} bytes"));
        return Err(EngineError::Invalid { what, expected, found: "more".to_owned() });
    }
    Ok(text)
}

/// Docker's way: `*.crt` are authorities; `*.cert` are client certificates, with their key in `*.key` or in the same file.
///
/// Source: containerd's `loadCertFiles`.
fn certificates(dir: &Path) -> Result<HostsFile, EngineError> {
    let failed = |error| EngineError::io("list", dir, error);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if !entry.path().is_dir() {
            names.push(entry.path());
        }
    }
    names.sort_unstable();
    let with =
        |extension: &str| names.iter().filter(|path| path.extension().is_some_and(|own| own == extension)).cloned().collect::<Vec<_>>();
    let pair = |certificate: PathBuf| {
        let key = Some(certificate.with_extension("key")).filter(|key| key.exists());
        KeyPair { certificate, key }
    };
    let of_server = HostTable { ca: with("crt"), client: with("cert").into_iter().map(pair).collect(), ..HostTable::default() };
    Ok(HostsFile { of_server, ..HostsFile::default() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::{super::Need, *};

    fn directory(files: &[(&str, &str)]) -> (tempfile::TempDir, HostsDirectory) {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let config = ClientConfig { hosts_dir: Some(dir.path().to_owned()), ..ClientConfig::default() };
        let directory = HostsDirectory::new(Arc::new(config)).unwrap();
        (dir, directory)
    }

    fn urls(hosts: &Hosts) -> Vec<String> {
        hosts.endpoints.iter().map(|endpoint| endpoint.location("/a/b").unwrap()).map(|at| format!("{}{}", at.origin, at.target)).collect()
    }

    /// Claim: a registry's directory is looked up under containerd's names, in its order, and without any the registry is asked itself.
    #[test]
    fn directories_are_found_under_containerds_names() {
        assert_eq!(directory_names("h.x"), ["h.x", "_default"]);
        assert_eq!(directory_names("h.x:5000"), ["h.x_5000_", "h.x:5000", "_default"]);
        assert_eq!(directory_names("[::1]:5000"), ["[::1]_5000_", "[::1]:5000", "_default"]);
        let mirror = |name: &str| format!("[host.\"https://{name}\"]");
        let files = ["h.x_1_", "h.x:1", "h.x:2", "h.x", "_default"]
            .map(|name| (format!("{name}/hosts.toml"), mirror(&name.replace([':', '_'], "-"))));
        let files: Vec<_> = files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
        // Names of hosts may not end with a dash; what is asked tells which file was read.
        let files: Vec<_> = files.iter().map(|(path, text)| (*path, text.replace("-\"", "z\"").replace("//-", "//z"))).collect();
        let files: Vec<_> = files.iter().map(|(path, text)| (*path, text.as_str())).collect();
        let (_dir, directory) = directory(&files);
        for (registry, mirror) in
            [("h.x:1", "h.x-1z"), ("h.x:2", "h.x-2"), ("h.x:3", "zdefault"), ("h.x", "h.x"), ("docker.io", "zdefault")]
        {
            let first = urls(&directory.of(registry).unwrap()).remove(0);
            assert!(first.starts_with(&format!("https://{mirror}/v2/a/b")), "{registry}: {first}");
        }
        let none = HostsDirectory::new(Arc::new(ClientConfig::default())).unwrap();
        assert_eq!(urls(&none.of("h.x:1").unwrap()), ["https://h.x:1/v2/a/b"]);
        assert_eq!(urls(&none.of("localhost:1").unwrap()), ["http://localhost:1/v2/a/b"]);
        assert_eq!(urls(&none.of("docker.io").unwrap()), ["https://registry-1.docker.io/v2/a/b"]);
    }

    /// Claim: mirrors are told for whom they are asked, the registry itself under any of its names is not; paths are as configured.
    #[test]
    fn mirrors_are_asked_with_ns() {
        let mirrors = "[host.\"https://m.x\"]\n[host.\"https://m.x/p/v2\"]\n[host.\"https://m.x/q\"]\noverride_path = true\n";
        let server = |server: &str| format!("server = \"{server}\"\n{mirrors}");
        let (hub, other) = (server("https://docker.io"), server("http://h.x:5000"));
        let (_dir, directory) = directory(&[("docker.io/hosts.toml", &hub), ("h.x:5000/hosts.toml", &other)]);
        let found = urls(&directory.of("docker.io").unwrap());
        let expected = ["https://m.x/v2/a/b?ns=docker.io", "https://m.x/p/v2/a/b?ns=docker.io", "https://m.x/q/a/b?ns=docker.io"];
        assert_eq!(found[..3], expected);
        assert_eq!(found[3], "https://registry-1.docker.io/v2/a/b");
        let found = urls(&directory.of("h.x:5000").unwrap());
        assert_eq!((found[0].as_str(), found[3].as_str()), ("https://m.x/v2/a/b?ns=h.x%3A5000", "http://h.x:5000/v2/a/b"));
    }

    /// Claim: what is kept at a host is kept under its own name, Docker Hub under the one that people log in to.
    #[test]
    fn each_host_has_its_own_name_for_credentials() {
        let text =
            "server = \"https://registry-1.docker.io\"\n[host.\"https://m.x/v2/hub\"]\n[host.\"https://m.x/q\"]\noverride_path = true";
        let (_dir, directory) = directory(&[("docker.io/hosts.toml", text)]);
        let hosts = directory.of("docker.io").unwrap();
        let reference = "alpine".parse().unwrap();
        let names: Vec<_> = hosts.endpoints.iter().map(|endpoint| endpoint.own_reference(&reference).to_string()).collect();
        assert_eq!(names, ["m.x/hub/v2/library/alpine:latest", "m.x/q/library/alpine:latest", "docker.io/library/alpine:latest"]);
    }

    /// Claim: Docker Hub's name, and so its password, is of https on port 443 only: every other way to its hosts has a name of its own.
    #[test]
    fn docker_hubs_credentials_stay_on_tls() {
        let hosts = ["docker.io", "index.docker.io", "registry-1.docker.io"];
        for (scheme, port, is_hub) in [("https", "", true), ("http", "", false), ("http", ":443", false), ("https", ":5000", false)] {
            for host in hosts {
                let text = format!("[host.\"{scheme}://{host}{port}\"]");
                let (_dir, directory) = directory(&[("docker.io/hosts.toml", &text)]);
                let name = directory.of("docker.io").unwrap().endpoints[0].name.clone();
                assert_eq!(hosts.contains(&name.as_str()), is_hub, "{text}: {name}");
            }
        }
    }

    /// Claim: hosts are asked only for what they can; a server that is not named can do everything; pull is needed for all.
    #[test]
    fn capabilities_choose_the_hosts() {
        let text = "capabilities = [\"push\"]\n[host.\"https://p.x\"]\ncapabilities = [\"pull\"]\n[host.\"https://r.x\"]\ncapabilities = [\"resolve\"]";
        let named = format!("server = \"https://s.x\"\n{text}");
        let (_dir, directory) = directory(&[("h.x/hosts.toml", text), ("g.x/hosts.toml", &named)]);
        let asked = |registry: &str, need: Need| {
            let hosts = directory.of(registry).unwrap();
            hosts.able(need).map(|endpoint| endpoint.origin.host.clone()).collect::<Vec<_>>()
        };
        assert_eq!(asked("h.x", Need::Pull), ["p.x", "h.x"]);
        assert_eq!(asked("h.x", Need::Resolve), ["h.x"]);
        assert_eq!(asked("g.x", Need::Pull), ["p.x"]);
        assert!(asked("g.x", Need::Resolve).is_empty());
    }

    /// Claim: only the last host has the whole of the deadlines, and dial_timeout is what is waited, up to the client's own.
    #[test]
    fn hosts_with_others_behind_them_leave_those_time() {
        let text = "dial_timeout = \"1h\"\n[host.\"https://a.x\"]\n[host.\"https://b.x\"]\ndial_timeout = \"7s\"";
        let (_dir, directory) = directory(&[("h.x/hosts.toml", text)]);
        let hosts = directory.of("h.x").unwrap();
        let waits: Vec<_> = hosts
            .endpoints
            .iter()
            .map(|endpoint| [endpoint.config.connect_timeout, endpoint.config.tls_timeout, endpoint.config.first_byte_timeout])
            .map(|waits| waits.map(|wait| wait.as_secs()))
            .collect();
        assert_eq!(waits, [[5, 5, 7], [7, 5, 7], [10, 10, 15]]);
    }

    /// Claim: without a hosts.toml docker's certificate files count, and files that cannot be used are an error that names them.
    #[test]
    fn dockers_layout_of_certificates() {
        let (dir, directory) =
            directory(&[("h.x/b.cert", ""), ("h.x/a.cert", ""), ("h.x/a.key", ""), ("h.x/ca.crt", ""), ("g.x/hosts.toml", "x = ")]);
        let found = certificates(&dir.path().join("h.x")).unwrap().of_server;
        let path = |name: &str| dir.path().join("h.x").join(name);
        assert_eq!(found.ca, [path("ca.crt")]);
        let pair = |certificate: &str, key: Option<&str>| KeyPair { certificate: path(certificate), key: key.map(path) };
        assert_eq!(found.client, [pair("a.cert", Some("a.key")), pair("b.cert", None)]);
        let error = directory.of("h.x").err().unwrap().to_string();
        assert!(error.contains("ca.crt"), "{error}");
        let error = directory.of("g.x").err().unwrap().to_string();
        assert!(error.contains("g.x/hosts.toml line 1"), "{error}");
    }

    /// Claim: changed settings are in force later without a restart, damaged ones are not, and unchanged ones keep what was learnt.
    #[test]
    fn changed_settings_are_seen() {
        let (dir, directory) = directory(&[("h.x/hosts.toml", "server = \"https://one.x\"")]);
        let expire = || directory.known.lock().unwrap().get_mut("h.x").unwrap().looked = Instant::now() - LOOK_AGAIN;
        let before = directory.of("h.x").unwrap();
        expire();
        assert!(Arc::ptr_eq(&before, &directory.of("h.x").unwrap()));
        std::fs::write(dir.path().join("h.x/hosts.toml"), "server = \"https://second.x\"").unwrap();
        assert!(Arc::ptr_eq(&before, &directory.of("h.x").unwrap()), "not looked at yet");
        expire();
        assert_eq!(urls(&directory.of("h.x").unwrap()), ["https://second.x/v2/a/b?ns=h.x"]);
        std::fs::write(dir.path().join("h.x/hosts.toml"), "server = ").unwrap();
        expire();
        assert_eq!(urls(&directory.of("h.x").unwrap()), ["https://second.x/v2/a/b?ns=h.x"]);
        std::fs::remove_dir_all(dir.path().join("h.x")).unwrap();
        expire();
        assert_eq!(urls(&directory.of("h.x").unwrap()), ["https://h.x/v2/a/b"]);
    }
}
