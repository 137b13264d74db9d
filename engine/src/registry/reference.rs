//! Image references as docker, skopeo and crane read them.

use std::{fmt, net::Ipv6Addr, str::FromStr};

use clip_format::digest::Digest;

use super::hosts::{DOCKER_HUB, DOCKER_HUB_ENDPOINT};
use crate::error::EngineError;

/// Source: distribution/reference `RepositoryNameTotalLengthMax`.
const REPOSITORY_BYTES_MAX: usize = 255;
/// Source: distribution spec, `<reference>` as a tag: one word character and at most 127 more.
const TAG_BYTES_MAX: usize = 128;
/// Longest DNS name with a port. Source: RFC 1035 section 3.1.
const REGISTRY_BYTES_MAX: usize = 253 + ":65535".len();
const SHAPE: &str = "[HOST[:PORT]/]REPOSITORY[:TAG][@DIGEST], such as alpine, quay.io/team/app:1.2 or localhost:5000/app";

/// `[HOST[:PORT]/]REPOSITORY[:TAG][@DIGEST]`, normalised: `alpine` is `docker.io/library/alpine:latest`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    /// `docker.io`, `localhost:5000`. `index.docker.io` and `registry-1.docker.io` become `docker.io`.
    pub registry: String,
    /// `library/alpine`
    pub repository: String,
    /// `latest` when neither tag nor digest is given.
    pub tag: Option<String>,
    /// Wins over the tag.
    pub digest: Option<Digest>,
}

impl Reference {
    /// A repository as a `.clip` has recorded it, which nobody vouches for.
    ///
    /// # Errors
    /// `Invalid` for names that are not of the form in which references are recorded: they lead to other hosts, paths and settings.
    pub fn recorded(registry: &str, repository: &str) -> Result<Self, EngineError> {
        let found = Self {
            registry: parse_registry(registry)?,
            repository: parse_repository(registry, repository, repository)?,
            tag: None,
            digest: None,
        };
        if (found.registry.as_str(), found.repository.as_str()) == (registry, repository) {
            return Ok(found);
        }
        Err(invalid("recorded image reference", &found.to_string(), &format!("{registry}/{repository}")))
    }

    /// The host, with port if there is one, that answers for `registry`: `registry-1.docker.io` for `docker.io`.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        if self.registry == DOCKER_HUB { DOCKER_HUB_ENDPOINT } else { &self.registry }
    }

    /// What names the manifest in a request: the digest, else the tag.
    #[must_use]
    pub fn manifest_name(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }

    /// The same repository, naming one manifest by its digest alone.
    #[must_use]
    pub fn at_digest(&self, digest: Digest) -> Self {
        Self { registry: self.registry.clone(), repository: self.repository.clone(), tag: None, digest: Some(digest) }
    }
}

impl FromStr for Reference {
    type Err = EngineError;

    fn from_str(text: &str) -> Result<Self, EngineError> {
        let bare = text.strip_prefix("docker://").unwrap_or(text);
        let (named, digest) = match bare.split_once('@') {
            Some((named, digest)) => (named, Some(parse_digest(digest)?)),
            None => (bare, None),
        };
        let (registry, rest) = split_registry(named);
        let (path, tag) = match rest.rsplit_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (rest, None),
        };
        let registry = registry.map_or_else(|| Ok(DOCKER_HUB.to_owned()), parse_registry)?;
        let repository = parse_repository(&registry, path, text)?;
        let tag = tag.map(parse_tag).transpose()?.or_else(|| digest.is_none().then(|| "latest".to_owned()));
        Ok(Self { registry, repository, tag, digest })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

fn invalid(what: &str, expected: &str, found: &str) -> EngineError {
    EngineError::Invalid { what: what.to_owned(), expected: expected.to_owned(), found: found.chars().take(160).collect() }
}

/// The part before the first slash, when it is a host by docker's rule: it has a dot, a colon or an upper-case letter, is in brackets, or is
/// `localhost`.
///
/// Source: distribution/reference `splitDockerDomain`.
fn split_registry(named: &str) -> (Option<&str>, &str) {
    match named.split_once('/') {
        Some((first, rest))
            if first == "localhost" || first.contains(['.', ':', '[']) || first.bytes().any(|byte| byte.is_ascii_uppercase()) =>
        {
            (Some(first), rest)
        }
        _ => (None, named),
    }
}

fn parse_digest(text: &str) -> Result<Digest, EngineError> {
    text.parse().map_err(|_| invalid("digest of the reference", "sha256: and 64, or sha512: and 128, lower-case hex digits", text))
}

fn parse_registry(text: &str) -> Result<String, EngineError> {
    let bad =
        || invalid("registry of the reference", "a host name, an IPv4 address or a bracketed IPv6 address, with an optional :PORT", text);
    if text.len() > REGISTRY_BYTES_MAX {
        return Err(bad());
    }
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, after) = rest.split_once(']').ok_or_else(bad)?;
            address.parse::<Ipv6Addr>().map_err(|_| bad())?;
            let port = if after.is_empty() { None } else { Some(after.strip_prefix(':').ok_or_else(bad)?) };
            (None, port)
        }
        None => match text.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(text), None),
        },
    };
    if host.is_some_and(|host| !host.split('.').all(is_host_label)) || port.is_some_and(|port| !is_port(port)) {
        return Err(bad());
    }
    let lower = text.to_ascii_lowercase();
    Ok(match lower.as_str() {
        "index.docker.io" | "registry-1.docker.io" => DOCKER_HUB.to_owned(),
        _ => lower,
    })
}

fn is_host_label(label: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = label.as_bytes();
    edge(bytes.first()) && edge(bytes.last()) && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
}

fn is_port(port: &str) -> bool {
    port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|number| number != 0)
}

fn parse_repository(registry: &str, path: &str, text: &str) -> Result<String, EngineError> {
    if path.is_empty() {
        return Err(invalid("image reference", SHAPE, text));
    }
    if path.len() == 64 && path.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(invalid("image reference", "a repository name; 64 hex digits are an image id, which registries do not serve", text));
    }
    if !path.split('/').all(is_path_component) {
        let expected = "lower-case letters and digits, joined by one dot, one or two underscores or dashes, in components split by slashes";
        return Err(invalid("repository of the reference", expected, path));
    }
    let repository = if registry == DOCKER_HUB && !path.contains('/') { format!("library/{path}") } else { path.to_owned() };
    if repository.len() > REPOSITORY_BYTES_MAX {
        return Err(invalid("repository of the reference", "at most 255 characters", path));
    }
    Ok(repository)
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`. Source: distribution spec, "Pulling manifests".
fn is_path_component(component: &str) -> bool {
    let word = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    let edges = bytes.first().is_some_and(word) && bytes.last().is_some_and(word);
    edges
        && bytes.split(word).all(|joint| joint.is_empty() || matches!(joint, b"." | b"_" | b"__") || joint.iter().all(|byte| *byte == b'-'))
}

fn parse_tag(tag: &str) -> Result<String, EngineError> {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let good = tag.len() <= TAG_BYTES_MAX
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|byte| word(byte) || matches!(byte, b'.' | b'-'));
    if good {
        Ok(tag.to_owned())
    } else {
        let expected = "at most 128 letters, digits, underscores, dots and dashes, not starting with a dot or dash";
        Err(invalid("tag of the reference", expected, tag))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    /// Claim: what a reference was parsed to is accepted where it was recorded, and nothing that leads elsewhere.
    #[test]
    fn recorded_names_lead_nowhere_else() {
        for text in ["alpine", "localhost:5000/app", "quay.io/team/app:1.2", "[::1]:5000/x"] {
            let Reference { registry, repository, .. } = text.parse().unwrap();
            let recorded = Reference::recorded(&registry, &repository).unwrap();
            assert_eq!((recorded.registry, recorded.repository), (registry, repository), "{text}");
        }
        let registries =
            ["", ".", "..", "../certs", "/etc", "localhost:x@evil.example", "a.example/b", "a.example?q", "a.example#f", "A.example"];
        for registry in registries.into_iter().chain(["index.docker.io", "a.example:0", "a.example:5000:1", "a b", "a\nb", "[::1"]) {
            assert!(Reference::recorded(registry, "team/app").is_err(), "{registry:?}");
        }
        for repository in ["", "..", "../app", "team/../app", "/app", "app?q", "app#f", "a b", "App", "a%2fb", "app:1", "a\r\nb"] {
            assert!(Reference::recorded("quay.io", repository).is_err(), "{repository:?}");
        }
        assert!(Reference::recorded("docker.io", "alpine").is_err(), "recorded as library/alpine");
    }

    #[test]
    fn references_are_read_as_docker_reads_them() {
        for (text, shown) in [
            ("alpine", "docker.io/library/alpine:latest"),
            ("alpine:3.20", "docker.io/library/alpine:3.20"),
            ("user/x", "docker.io/user/x:latest"),
            ("docker.io/alpine", "docker.io/library/alpine:latest"),
            ("index.docker.io/alpine", "docker.io/library/alpine:latest"),
            ("registry-1.docker.io/a/b:c", "docker.io/a/b:c"),
            ("localhost/x", "localhost/x:latest"),
            ("localhost", "docker.io/library/localhost:latest"),
            ("host:5000", "docker.io/library/host:5000"),
            ("host:5000/x:tag", "host:5000/x:tag"),
            ("HOST/x", "host/x:latest"),
            ("[::1]:5000/x", "[::1]:5000/x:latest"),
            ("[::1]/x:y", "[::1]/x:y"),
            ("docker://quay.io/a/b__c-d.e--f/g", "quay.io/a/b__c-d.e--f/g:latest"),
        ] {
            assert_eq!(text.parse::<Reference>().unwrap().to_string(), shown, "{text}");
        }
        let both = format!("x:tag@sha256:{HEX}").parse::<Reference>().unwrap();
        assert_eq!(both.to_string(), format!("docker.io/library/x:tag@sha256:{HEX}"));
        assert_eq!(both.manifest_name(), format!("sha256:{HEX}"));
        let digest_only = format!("localhost:1/x@sha256:{HEX}").parse::<Reference>().unwrap();
        assert_eq!(digest_only.tag, None);
        assert_eq!("alpine".parse::<Reference>().unwrap().endpoint(), "registry-1.docker.io");
    }

    #[test]
    fn what_registries_would_refuse_is_refused_with_what_is_expected() {
        let long = format!("h.x/{}", "a".repeat(256));
        let tag = format!("x:{}", "a".repeat(129));
        for text in [
            "",
            ":",
            "@",
            "x:",
            "x@",
            "x@sha256:12",
            "X",
            "a//b",
            "/a",
            "a/",
            "a..b",
            "a___b",
            "-a",
            "a-",
            "a b",
            "x:.t",
            "x:-t",
            "x:ä",
            "h:0/x",
            "h:65536/x",
            "h:5o/x",
            "h:/x",
            "h.x/",
            "[::1/x",
            "[::g]:5/x",
            "[::1]x/y",
            "-h.x/y",
            "h..x/y",
            "a:b:c",
            "x@sha256:é",
            HEX,
            &long,
            &tag,
            "https://h.x/y",
            "docker://",
        ] {
            let error = text.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains("expected"), "{text:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn display_and_parse_are_inverse(
            registry in prop_oneof![
                Just("docker.io".to_owned()),
                "[a-z0-9]{1,5}(-[a-z0-9]{1,3})?\\.[a-z]{2,4}(:[1-9][0-9]{0,3})?",
                "localhost(:[1-9][0-9]{0,3})?",
                Just("[::1]:5000".to_owned()),
            ],
            repository in "[a-z0-9]{1,4}((\\.|_|__|-{1,3})[a-z0-9]{1,3}){0,2}(/[a-z0-9]{1,4}){1,3}",
            tag in proptest::option::of("[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127}"),
            digest in proptest::option::of(any::<[u8; 32]>()),
        ) {
            let tag = if tag.is_none() && digest.is_none() { Some("latest".to_owned()) } else { tag };
            let reference = Reference { registry, repository, tag, digest: digest.map(Digest::Sha256) };
            prop_assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference);
        }

        #[test]
        fn no_text_panics_and_what_parses_is_stable(text in "\\PC{0,40}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference);
            }
        }
    }
}
