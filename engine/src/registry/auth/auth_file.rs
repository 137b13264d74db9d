//! Credentials in files as docker and podman keep them: `credHelpers`, `credsStore` and `auths`.
//!
//! The `docker_credential` crate reads the same files, but takes a broken file for a missing one and knows no namespaces.

use std::{
    collections::HashMap,
    io::{ErrorKind, Read as _},
    path::Path,
};

use base64::{Engine as _, alphabet, engine::general_purpose::GeneralPurpose, engine::general_purpose::GeneralPurposeConfig};
use serde::Deserialize;

use super::{
    helper::{self, Helpers},
    names::Names,
    secret::{Credentials, Secret},
};

/// Source: docker's own file is a few KB; one with a thousand registries, each with a token of 10 KB, is 10 MB.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// What a file that is not there means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// It holds nothing.
    IsEmpty,
    /// Somebody named it.
    IsAnError,
}

/// A null is as good as nothing everywhere, as it is for Go's JSON.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct AuthFile {
    auths: Option<HashMap<String, Option<AuthEntry>>>,
    creds_store: Option<String>,
    cred_helpers: Option<HashMap<String, Option<String>>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AuthEntry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

/// The credentials that the file at `path` has for the repository of `names`. Blocks: the file, and a helper's whole run.
///
/// # Errors
/// In words, with the path and without a secret: the file cannot be read or parsed, or a helper that it names failed.
pub(super) fn find(path: &Path, missing: Missing, helpers: &Helpers<'_>, names: &Names<'_>) -> Result<Option<Credentials>, String> {
    let within = |why: String| format!("{}: {why}", path.display());
    let Some(file) = read(path, missing).map_err(within)? else { return Ok(None) };
    let by_key = file.cred_helpers.unwrap_or_default();
    let own_helper = by_rank(&by_key, names).first().map(|(_, helper)| helper.as_deref().unwrap_or_default());
    // Source: docker's `getConfiguredCredentialStore`: an empty helper means this file, whatever `credsStore` says.
    let store = file.creds_store.as_deref().filter(|_| own_helper != Some(""));
    for helper in [own_helper, store].into_iter().flatten().filter(|helper| !helper.is_empty()) {
        if let Some(found) = helper::ask(helpers, helper, names.helper_key()).map_err(within)? {
            return Ok(Some(found));
        }
    }
    for (key, entry) in by_rank(&file.auths.unwrap_or_default(), names) {
        let Some(entry) = entry else { continue };
        if let Some(found) = entry.credentials().map_err(|why| within(format!("auths {key:?}: {why}")))? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// The entries whose keys name the repository, those first that name most of it. Of two spellings always the same one wins.
fn by_rank<'a, T>(entries: &'a HashMap<String, T>, names: &Names<'_>) -> Vec<(&'a str, &'a T)> {
    let mut named: Vec<_> = entries.iter().filter_map(|(key, entry)| Some((names.rank(key)?, key.as_str(), entry))).collect();
    named.sort_unstable_by(|one, other| (other.0, one.1).cmp(&(one.0, other.1)));
    named.into_iter().map(|(_, key, entry)| (key, entry)).collect()
}

fn read(path: &Path, missing: Missing) -> Result<Option<AuthFile>, String> {
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if missing == Missing::IsEmpty && matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(format!("cannot be read: {error}")),
    };
    let mut text = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut text).map_err(|error| format!("cannot be read: {error}"))?;
    if text.iter().all(u8::is_ascii_whitespace) {
        // What podman login begins with.
        return Ok(None);
    }
    // Only the place of the fault: serde's message may quote a value.
    let parsed = serde_json::from_slice::<Option<AuthFile>>(&text);
    parsed.map_err(|error| format!("does not parse at line {} column {}; mend it, or move it away", error.line(), error.column()))
}

impl AuthEntry {
    fn credentials(&self) -> Result<Option<Credentials>, String> {
        let filled = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        if let Some(token) = filled(&self.registrytoken) {
            return Ok(Some(Credentials::RegistryToken(Secret::new(token))));
        }
        if let Some(token) = filled(&self.identitytoken) {
            return Ok(Some(Credentials::IdentityToken(Secret::new(token))));
        }
        if let Some(auth) = filled(&self.auth) {
            let config = GeneralPurposeConfig::new().with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent);
            let expected = || "expected base64 of user:password in `auth`".to_owned();
            let decoded = GeneralPurpose::new(&alphabet::STANDARD, config).decode(auth.trim()).map_err(|_| expected())?;
            let text = String::from_utf8(decoded).map_err(|_| expected())?;
            let (user, password) = text.split_once(':').ok_or_else(expected)?;
            return Ok(Some(Credentials::of_pair(user, password.trim_end_matches('\0'))));
        }
        Ok(match (filled(&self.username), filled(&self.password)) {
            (Some(user), Some(password)) => Some(Credentials::of_pair(&user, &password)),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::registry::auth::login::Environment;

    fn password(user: &str, password: &str) -> Option<Credentials> {
        Some(Credentials::of_pair(user, password))
    }

    fn ask(file: &str, registry: &str, repository: &str) -> Result<Option<Credentials>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, file).unwrap();
        look(&path, Missing::IsAnError, &Names::of(registry, repository))
    }

    fn look(path: &Path, missing: Missing, names: &Names<'_>) -> Result<Option<Credentials>, String> {
        let environment = Environment::default();
        find(path, missing, &Helpers { environment: &environment, time_max: std::time::Duration::from_secs(10) }, names)
    }

    /// Claim: docker's entries are found under every spelling that docker uses.
    #[test]
    fn auths_are_found_under_every_spelling_docker_uses() {
        // dTpw is u:p, dTpwOnc is u:p:w without padding.
        for (file, registry, expected) in [
            (r#"{"auths":{"https://index.docker.io/v1/":{"auth":"dTpw"}}}"#, "docker.io", password("u", "p")),
            (r#"{"auths":{"docker.io":{"auth":"dTpwOnc"}}}"#, "docker.io", password("u", "p:w")),
            (r#"{"auths":{"localhost:5000":{"auth":"dTpw"}}}"#, "localhost:5000", password("u", "p")),
            (r#"{"auths":{"https://h.x/v2/":{"username":"u","password":"p"}}}"#, "h.x", password("u", "p")),
            (r#"{"auths":{"h.x":{"auth":"dTpw","identitytoken":"t"}}}"#, "h.x", password("<token>", "t")),
            (r#"{"auths":{"h.x":{"auth":"PHRva2VuPjp0"}}}"#, "h.x", password("<token>", "t")),
            (r#"{"auths":{"h.x":{"registrytoken":"t"}}}"#, "h.x", Some(Credentials::RegistryToken(Secret::new("t")))),
            (r#"{"auths":{"h.x":{}}}"#, "h.x", None),
            (r#"{"auths":{"h.x:1":{"auth":"dTpw"}}}"#, "h.x", None),
            (r#"{"auths":{"https://index.docker.io/v1/access-token":{"auth":"dTpw"}}}"#, "docker.io", None),
            (r#"{"auths":{"https://h.x/team":{"auth":"dTpw"}}}"#, "h.x", password("u", "p")),
            (r#"{"auths":null,"HttpHeaders":{"a":"b"}}"#, "h.x", None),
            (r#"{"auths":{"h.x":{"auth":"dTpw","identitytoken":null},"z.x":null},"credHelpers":{"z.x":null}}"#, "h.x", password("u", "p")),
            (r#"{"auths":{"h.x":null},"credsStore":null,"credHelpers":null}"#, "h.x", None),
            ("null", "h.x", None),
            (" \n", "h.x", None),
        ] {
            assert_eq!(ask(file, registry, "library/a").unwrap(), expected, "{file}");
        }
    }

    /// Claim: of podman's keys the one wins that names most of the repository; an empty entry leaves it to the next.
    #[test]
    fn the_longest_key_wins() {
        let entry = |user: &str| format!(r#"{{"username":"{user}","password":"p"}}"#);
        let (host, team, app) = (entry("host"), entry("team"), entry("app"));
        let file = format!(r#"{{"auths":{{"h.x":{host},"h.x/team":{team},"h.x/team/app":{app},"h.x/void":{{}}}}}}"#);
        for (repository, user) in
            [("team/app", "app"), ("team/other", "team"), ("teams", "host"), ("team/app/web", "app"), ("void/a", "host")]
        {
            assert_eq!(ask(&file, "h.x", repository).unwrap(), password(user, "p"), "{repository}");
        }
    }

    /// Claim: a broken file is an error that names it and no secret; one that nobody named may be missing.
    #[test]
    fn a_broken_file_is_an_error_that_names_it() {
        for broken in [r#"{"auths":{"h.x":{"auth":"s3cret"},}"#, r#"{"auths":{"h.x":{"auth":"*s3cret"}}}"#, r#"{"auths":"s3cret"}"#] {
            let error = ask(broken, "h.x", "a").unwrap_err();
            assert!(error.contains("config.json") && !error.contains("s3cret"), "{error}");
        }
        let names = Names::of("h.x", "a");
        let gone = Path::new("/nonexistent/config.json");
        assert_eq!(look(gone, Missing::IsEmpty, &names).unwrap(), None);
        assert!(look(gone, Missing::IsAnError, &names).is_err());
    }

    /// Claim: an empty helper of a registry means the file itself, and switches `credsStore` off for that registry alone.
    #[test]
    fn an_empty_helper_means_the_file() {
        for empty in ["\"\"", "null"] {
            let file =
                format!(r#"{{"auths":{{"h.x":{{"auth":"dTpw"}}}},"credHelpers":{{"h.x":{empty}}},"credsStore":"clip-has-no-such"}}"#);
            assert_eq!(ask(&file, "h.x", "a").unwrap(), password("u", "p"));
            assert!(ask(&file, "o.x", "a").unwrap_err().contains("clip-has-no-such"));
        }
    }

    /// Claim: only a helper that is asked must be there, and its name cannot leave the path.
    #[test]
    fn a_helper_that_is_missing_or_strangely_named_is_an_error() {
        let error = ask(r#"{"credHelpers":{"h.x":"clip-has-no-such"}}"#, "h.x", "a").unwrap_err();
        assert!(error.contains("config.json") && error.contains("docker-credential-clip-has-no-such"), "{error}");
        assert!(ask(r#"{"credsStore":"../evil"}"#, "h.x", "a").is_err());
        assert_eq!(ask(r#"{"credHelpers":{"other.x":"../evil"}}"#, "h.x", "a").unwrap(), None);
    }
}
