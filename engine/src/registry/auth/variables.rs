//! Credentials in environment variables, as the original clip reads them.
//!
//! Source: beam-cloud/clip pkg/common/provider.go: `<HOST>` is the registry in upper case with `_` for `.` and `-`; `CLIP_OCI_AUTH` is
//! JSON, `{"HOST": {"username": ..., "password": ..., "token": ...}}`, where a token wins and goes with the user `oauth2accesstoken`.

use std::collections::HashMap;

use serde::Deserialize;

use super::{
    login::Environment,
    names::Names,
    secret::{Credentials, Secret},
};

/// The user name with which cloud registries take an access token as password.
const ACCESS_TOKEN_USER: &str = "oauth2accesstoken";

#[derive(Deserialize)]
struct Entry {
    username: Option<String>,
    password: Option<String>,
    token: Option<String>,
}

impl Entry {
    fn credentials<'a>(&'a self) -> Option<Credentials> {
        let password = |user: &str, secret: &str| Credentials::Password { user: user.to_owned(), password: Secret::new(secret) };
        let filled = |text: &'a Option<String>| text.as_deref().filter(|text| !text.is_empty());
        if let Some(token) = filled(&self.token) {
            return Some(password(ACCESS_TOKEN_USER, token));
        }
        filled(&self.username).map(|user| password(user, self.password.as_deref().unwrap_or_default()))
    }
}

/// What the variables say.
///
/// # Errors
/// In words, without a value: a variable that cannot be understood.
pub(super) fn find(environment: &Environment, names: &Names<'_>) -> Result<Option<Credentials>, String> {
    let text = |name: &str| match environment.get(name) {
        None => Ok(None),
        Some(value) => value.to_str().map(Some).ok_or_else(|| format!("{name} is no UTF-8")),
    };
    for host in names.hosts().iter().flat_map(|host| spellings(host)) {
        if let Some(user) = text(&format!("CLIP_REGISTRY_USER_{host}"))? {
            let password = text(&format!("CLIP_REGISTRY_PASS_{host}"))?.unwrap_or_default();
            return Ok(Some(Credentials::Password { user: user.to_owned(), password: Secret::new(password) }));
        }
    }
    let Some(json) = text("CLIP_OCI_AUTH")? else { return Ok(None) };
    let entries: HashMap<String, Option<Entry>> =
        serde_json::from_str(json).map_err(|_| r#"CLIP_OCI_AUTH: expected {"HOST": {"username", "password" or "token"}}"#.to_owned())?;
    let mut named: Vec<_> = entries.iter().filter_map(|(key, entry)| Some((names.rank(key)?, key, entry.as_ref()?))).collect();
    named.sort_unstable_by(|one, other| (other.0, one.1).cmp(&(one.0, other.1)));
    Ok(named.into_iter().find_map(|(_, _, entry)| entry.credentials()))
}

/// How variables write `host`: as the original clip does, which leaves the colon before a port, and as a shell can write it.
fn spellings(host: &str) -> [String; 2] {
    let upper = host.to_ascii_uppercase();
    let replaced = |which: fn(char) -> bool| upper.chars().map(|letter| if which(letter) { '_' } else { letter }).collect();
    [replaced(|letter| matches!(letter, '.' | '-')), replaced(|letter| !letter.is_ascii_alphanumeric())]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn found(pairs: &[(&str, &str)], registry: &str) -> Result<Option<Credentials>, String> {
        find(&Environment::from_pairs(pairs.iter().copied()), &Names::of(registry, "library/a"))
    }

    /// Claim: hosts are written as the original clip writes them, and a port also so that a shell can set it.
    #[test]
    fn variables_name_hosts_as_the_original_does() {
        for (name, registry) in [
            ("GHCR_IO", "ghcr.io"),
            ("123456789_DKR_ECR_US_EAST_1_AMAZONAWS_COM", "123456789.dkr.ecr.us-east-1.amazonaws.com"),
            ("LOCALHOST:5000", "localhost:5000"),
            ("LOCALHOST_5000", "localhost:5000"),
            ("INDEX_DOCKER_IO", "docker.io"),
            ("DOCKER_IO", "docker.io"),
        ] {
            let (user, pass) = (format!("CLIP_REGISTRY_USER_{name}"), format!("CLIP_REGISTRY_PASS_{name}"));
            let pairs = [(user.as_str(), "u"), (pass.as_str(), "p:w")];
            assert_eq!(found(&pairs, registry).unwrap(), Some(Credentials::of_pair("u", "p:w")), "{name}");
            assert_eq!(found(&pairs[..1], registry).unwrap(), Some(Credentials::of_pair("u", "")), "{name} without a password");
            assert_eq!(found(&pairs[1..], registry).unwrap(), None, "{name} without a user");
            assert_eq!(found(&pairs, "quay.io").unwrap(), None, "{name}");
        }
    }

    /// Claim: `CLIP_OCI_AUTH` holds passwords and tokens by host; what cannot be read is an error without a value in it.
    #[test]
    fn the_json_variable_has_passwords_and_tokens() {
        let json = r#"{"ghcr.io":{"username":"u","password":"p"},"registry.io":{"token":"t","username":"x"},"h.x":{},
            "n.x":{"username":"u","password":"p","token":null},"z.x":null}"#;
        let ask = |registry| found(&[("CLIP_OCI_AUTH", json)], registry).unwrap();
        assert_eq!(ask("ghcr.io"), Some(Credentials::of_pair("u", "p")));
        assert_eq!(ask("registry.io"), Some(Credentials::of_pair("oauth2accesstoken", "t")));
        assert_eq!(ask("n.x"), Some(Credentials::of_pair("u", "p")));
        assert_eq!((ask("h.x"), ask("o.x"), ask("z.x")), (None, None, None));
        for broken in ["s3cret", r#"{"h.x":"s3cret"}"#, r#"{"h.x":{"token":["s3cret"]}}"#] {
            let error = found(&[("CLIP_OCI_AUTH", broken)], "h.x").unwrap_err();
            assert!(error.contains("CLIP_OCI_AUTH") && !error.contains("s3cret"), "{error}");
        }
    }
}
