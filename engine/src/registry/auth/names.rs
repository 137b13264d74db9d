//! The names under which a repository's credentials may be listed.

use super::super::hosts::DOCKER_HUB_HOSTS;

/// Docker Hub's key in docker's file and for helpers.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// One repository, by every name that its registry has.
pub(super) struct Names<'a> {
    hosts: Vec<&'a str>,
    repository: &'a str,
    is_docker_hub: bool,
}

impl<'a> Names<'a> {
    pub fn of(registry: &'a str, repository: &'a str) -> Self {
        let is_docker_hub = DOCKER_HUB_HOSTS.contains(&registry);
        Self { hosts: if is_docker_hub { DOCKER_HUB_HOSTS.to_vec() } else { vec![registry] }, repository, is_docker_hub }
    }

    /// The registry's own names: three for Docker Hub.
    pub fn hosts(&self) -> &[&'a str] {
        &self.hosts
    }

    /// Whether `host` is the registry.
    pub fn is_host(&self, host: &str) -> bool {
        self.hosts.iter().any(|known| known.eq_ignore_ascii_case(host))
    }

    /// What helpers call the registry. Source: docker's cli/config/credentials; `index.docker.io` has a URL for historical reasons.
    pub fn helper_key(&self) -> &'a str {
        if self.is_docker_hub { DOCKER_HUB_KEY } else { self.hosts[0] }
    }

    /// The more, the more of the repository a file's `key` names; `None` when it names another. `host`, `https://host`, `https://host/v1/`
    /// name the registry, and after these any other URL there does, but for Docker Hub, whose key is one URL;
    /// `host/namespace` and `host/namespace/repository` name a part of it.
    ///
    /// Source: containers-auth.json(5); docker's `ConvertToHostname`, which cuts a URL behind its host.
    pub fn rank(&self, key: &str) -> Option<usize> {
        let url = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://"));
        let whole = url.unwrap_or(key);
        let bare = whole.strip_suffix('/').unwrap_or(whole);
        let (host, path) = bare.split_once('/').unwrap_or((bare, ""));
        if !self.is_host(host) {
            return None;
        }
        let is_part = self.repository.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        match path {
            "" | "v1" | "v2" => Some(1),
            _ if url.is_some() => (!self.is_docker_hub).then_some(0),
            _ => is_part.then_some(1 + path.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Claim: a key is a registry in any of docker's spellings, or a leading part of the repository, cut at slashes.
    #[test]
    fn keys_name_registries_and_leading_parts() {
        let names = Names::of("h.x:5", "team/app/web");
        for (key, rank) in [
            ("h.x:5", Some(1)),
            ("H.x:5/", Some(1)),
            ("https://h.x:5/v1/", Some(1)),
            ("http://h.x:5/v2", Some(1)),
            ("h.x:5/v2/", Some(1)),
            ("h.x:5/team", Some(5)),
            ("h.x:5/team/app/", Some(9)),
            ("h.x:5/team/app/web", Some(13)),
            ("h.x:5/team/app/web/more", None),
            ("h.x:5/te", None),
            ("h.x:5/other", None),
            ("https://h.x:5/team", Some(0)),
            ("https://h.x:5/api/docker/local/v1", Some(0)),
            ("https://h.x/team", None),
            ("h.x", None),
            ("", None),
            ("/", None),
        ] {
            assert_eq!(names.rank(key), rank, "{key}");
        }
    }

    /// Claim: Docker Hub's three names and its URL are one registry, and helpers hear the URL.
    #[test]
    fn docker_hub_has_four_names() {
        for registry in DOCKER_HUB_HOSTS {
            let names = Names::of(registry, "library/alpine");
            for key in ["docker.io", "index.docker.io", "registry-1.docker.io", DOCKER_HUB_KEY, "https://docker.io"] {
                assert_eq!(names.rank(key), Some(1), "{key}");
            }
            assert_eq!(names.rank("docker.io/library"), Some(8));
            assert_eq!(names.rank("https://index.docker.io/v1/access-token"), None);
            assert_eq!(names.helper_key(), DOCKER_HUB_KEY);
        }
        assert_eq!(Names::of("h.x:5", "a").helper_key(), "h.x:5");
    }
}
