//! Which hosts are asked for the images of a registry: the mirrors that containerd's `hosts.toml` names, in order, then the registry's own.
//!
//! `directory` finds and reads a registry's settings, `file` is the meaning of their text, `own_scheme` finds out whether a registry on this
//! machine speaks TLS, `standing` remembers hosts that are dead or lack a blob, and `round` is one question to one host after the other. Source: containerd 2.x, docs/hosts.md and core/remotes/docker.

pub(super) mod directory;
mod file;
mod own_scheme;
mod round;
mod standing;

use std::sync::Arc;

use hyper::HeaderMap;

pub use self::round::ServedBy;
pub(super) use self::round::{Avoided, Round};
use self::{own_scheme::OwnScheme, standing::Standing};
use super::{
    auth::Repository,
    client::{ClientConfig, PlainHttp},
    exchange::Transport,
    location::{Location, Origin, Scheme, percent_encoded, plain_allowed},
    reference::Reference,
    route::Route,
};
use crate::error::EngineError;

/// Docker Hub's name in references, for credentials and in the hosts directory.
pub(super) const DOCKER_HUB: &str = "docker.io";
/// Where Docker Hub's registry answers.
pub(super) const DOCKER_HUB_ENDPOINT: &str = "registry-1.docker.io";
/// Hosts that people write for it.
pub(super) const DOCKER_HUB_HOSTS: [&str; 3] = [DOCKER_HUB, "index.docker.io", DOCKER_HUB_ENDPOINT];

/// What a host is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// Which manifest a tag names: only a host that is trusted with that is asked.
    Resolve,
    /// Bytes that have a digest.
    Pull,
}

/// What a host may be asked for. Push and referrers are known and mean nothing here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Capabilities {
    pub pull: bool,
    pub resolve: bool,
}

impl Capabilities {
    pub const ALL: Self = Self { pull: true, resolve: true };

    fn meet(self, need: Need) -> bool {
        self.pull && (need == Need::Pull || self.resolve)
    }
}

/// The hosts of one registry, in the order in which they are asked. The last is the registry's own.
pub(super) struct Hosts {
    registry: String,
    endpoints: Vec<Arc<Endpoint>>,
}

impl Hosts {
    /// Those that can be asked.
    fn able(&self, need: Need) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.endpoints.iter().filter(move |endpoint| endpoint.capabilities.meet(need))
    }

    /// The first that would be asked for bytes now.
    pub fn first(&self) -> Option<&Arc<Endpoint>> {
        self.able(Need::Pull).find(|endpoint| !endpoint.standing.is_dead()).or_else(|| self.able(Need::Pull).next())
    }

    /// What `reference` is called at each, see [`Endpoint::own_reference`].
    pub fn references<'a>(&'a self, reference: &'a Reference) -> impl Iterator<Item = Reference> + 'a {
        self.endpoints.iter().map(|endpoint| endpoint.own_reference(reference))
    }

    /// Each in words, in order.
    pub fn shown(&self) -> Vec<String> {
        self.endpoints.iter().map(|endpoint| endpoint.shown()).collect()
    }
}

/// One host of a registry, and how it is spoken to.
pub(super) struct Endpoint {
    /// Where it is; in TLS, while it is not known whether it speaks that.
    origin: Origin,
    /// Of a registry on this machine whose scheme is to be found out.
    own_scheme: Option<OwnScheme>,
    /// What comes before the repository, `/v2` unless its settings override that; no slash at the end.
    path: String,
    /// `?ns=`: for whom a mirror is asked.
    namespace: Option<String>,
    /// The registry whose credentials it gets.
    name: String,
    capabilities: Capabilities,
    /// Sent to this origin only.
    pub headers: HeaderMap,
    /// The client's, with its own deadlines.
    config: Arc<ClientConfig>,
    route: Arc<Route>,
    standing: Standing,
}

impl Endpoint {
    /// Where `path` (escaped, from the repository on) is at this host.
    pub fn location(&self, path: &str) -> Result<Location, EngineError> {
        self.location_of(self.origin(), path)
    }

    fn location_of(&self, origin: &Origin, path: &str) -> Result<Location, EngineError> {
        let query = self.namespace.as_ref().map_or_else(String::new, |namespace| format!("?ns={}", percent_encoded(namespace)));
        Location::parse(&format!("{origin}{}{path}{query}", self.path))
    }

    pub fn origin(&self) -> &Origin {
        self.own_scheme.as_ref().and_then(OwnScheme::plain).unwrap_or(&self.origin)
    }

    /// The name that credentials, tokens and redirect targets of `reference` are kept under at this host.
    fn own_reference(&self, reference: &Reference) -> Reference {
        let prefix = self.path.strip_prefix("/v2").unwrap_or(&self.path).trim_matches('/');
        let repository = match prefix {
            "" => reference.repository.clone(),
            prefix => format!("{prefix}/{}", reference.repository),
        };
        Reference { registry: self.name.clone(), repository, tag: reference.tag.clone(), digest: reference.digest }
    }

    fn shown(&self) -> String {
        let capabilities = match self.capabilities {
            Capabilities { pull: true, resolve: true } => "",
            Capabilities { pull: true, resolve: false } => " (blobs and digests only)",
            Capabilities { pull: false, .. } => " (never asked: it lacks the capability pull)",
        };
        let scheme = match &self.own_scheme {
            Some(own) if !own.is_known() => " (or plain HTTP, if it speaks no TLS)",
            _ => "",
        };
        format!("{}{}{capabilities}{scheme}", self.origin(), self.path)
    }
}

/// A host that is asked now: where, as whom, and by which connections.
pub(super) struct Site {
    pub endpoint: Arc<Endpoint>,
    /// See [`Endpoint::own_reference`].
    pub reference: Reference,
    /// The image's own, whose readers' logins are asked.
    image: Reference,
    pub transport: Transport,
}

impl Site {
    fn new(endpoint: &Arc<Endpoint>, reference: &Reference, transport: &Transport) -> Self {
        let (config, route) = (Arc::clone(&endpoint.config), Arc::clone(&endpoint.route));
        let transport = Transport { config, route, ..transport.clone() };
        Self { endpoint: Arc::clone(endpoint), reference: endpoint.own_reference(reference), image: reference.clone(), transport }
    }

    /// For auth.
    pub fn repository(&self) -> Repository<'_> {
        Repository { here: &self.reference, image: &self.image }
    }
}

impl Transport {
    /// Whether `origin` may be spoken to without TLS.
    pub fn allows_plain(&self, origin: &Origin) -> bool {
        plain_allowed(self.config.plain_http, &origin.host) || self.route.is_plain(&origin.host)
    }
}

/// The place of `registry` itself, when no settings say otherwise.
fn own_origin(plain_http: PlainHttp, registry: &str) -> Result<Origin, EngineError> {
    let authority = if registry == DOCKER_HUB { DOCKER_HUB_ENDPOINT } else { registry };
    Ok(Location::at_registry(plain_http, authority, "/")?.origin)
}

/// `origin`, with Docker Hub's names as the one that answers.
fn canonical(origin: Origin) -> Origin {
    if origin.scheme == Scheme::Https && origin.port == 443 && DOCKER_HUB_HOSTS.contains(&origin.host.as_str()) {
        return Origin { host: DOCKER_HUB_ENDPOINT.to_owned(), ..origin };
    }
    origin
}

/// The registry that `origin` is. Docker Hub is one behind TLS on the port of https only, or its password would go to whatever answers elsewhere:
/// other ways to its hosts are named with their port, which is no name of Docker Hub.
fn name_of(origin: &Origin) -> String {
    match (DOCKER_HUB_HOSTS.contains(&origin.host.as_str()), origin.scheme, origin.port) {
        (true, Scheme::Https, 443) => DOCKER_HUB.to_owned(),
        (true, _, port) => format!("{}:{port}", origin.host),
        (false, ..) => origin.authority(),
    }
}
