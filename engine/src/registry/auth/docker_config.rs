//! Credentials as docker keeps them: `config.json`'s auths, credHelpers and credsStore.
//!
//! The `docker_credential` crate reads the same file, but takes a broken file for a missing one, waits for a helper without a deadline,
//! puts a helper's output (which may hold the secret) into its error, and takes "not found" from a helper for a failure.

use std::{
    collections::HashMap,
    fmt,
    io::{ErrorKind, Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use base64::{Engine as _, alphabet, engine::general_purpose::GeneralPurpose, engine::general_purpose::GeneralPurposeConfig};
use serde::Deserialize;

use crate::error::EngineError;

/// A helper that does not answer is killed. Source: interactive helpers wait for a person; nobody answers for a background mount.
const HELPER_TIMEOUT: Duration = Duration::from_secs(30);
/// Source: identity tokens of cloud registries are 2-10 KB.
const HELPER_OUTPUT_BYTES_MAX: u64 = 1 << 20;
/// Docker's own file is a few KB.
const CONFIG_BYTES_MAX: u64 = 16 << 20;
/// The user name by which a helper says that the secret is an identity token. Source: docker-credential-helpers, README.
const TOKEN_USER: &str = "<token>";
/// What helpers print when they know nothing. Source: docker-credential-helpers, credentials/error.go.
const NOT_FOUND: &str = "credentials not found";
/// Docker Hub's key in the file and for helpers.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";
const DOCKER_HUB_HOSTS: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];

/// What a registry or its token server accepts. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Credentials {
    /// For Basic.
    Password { user: String, password: String },
    /// An OAuth2 refresh token.
    IdentityToken(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Credentials::Password { .. } => "Password(hidden)",
            Credentials::IdentityToken(_) => "IdentityToken(hidden)",
        })
    }
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ConfigFile {
    auths: Option<HashMap<String, AuthEntry>>,
    creds_store: Option<String>,
    cred_helpers: Option<HashMap<String, String>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AuthEntry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

/// Where docker's file is.
fn config_path(dir: Option<&Path>) -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let dir = dir.map(Path::to_owned).or_else(|| set("DOCKER_CONFIG")).or_else(|| set("HOME").map(|home| home.join(".docker")))?;
    Some(dir.join("config.json"))
}

/// The credentials for `registry`, or `None` where docker has none. Blocks: files, and a helper's whole run.
///
/// # Errors
/// `Credentials`: the file is there and cannot be read or parsed, or a helper failed.
pub(crate) fn credentials(dir: Option<&Path>, registry: &str) -> Result<Option<Credentials>, EngineError> {
    let failed = |reason: String| EngineError::Credentials { registry: registry.to_owned(), reason };
    let Some(path) = config_path(dir) else { return Ok(None) };
    let Some(config) = read_config(&path).map_err(|why| failed(format!("{}: {why}", path.display())))? else { return Ok(None) };
    let names = names_of(registry);
    let store = config.creds_store.as_deref().filter(|name| !name.is_empty());
    let helper = config.cred_helpers.as_ref().and_then(|helpers| helpers.iter().find(|(key, _)| matches(key, &names)));
    if let Some((key, helper)) = helper {
        return run_helper(helper, key).map_err(failed);
    }
    if let Some(store) = store {
        let key = if names.len() > 1 { DOCKER_HUB_KEY } else { registry };
        if let Some(found) = run_helper(store, key).map_err(failed)? {
            return Ok(Some(found));
        }
    }
    let entries = config.auths.unwrap_or_default();
    let mut entries: Vec<_> = entries.iter().filter(|(key, _)| matches(key, &names)).collect();
    // Two spellings of one registry: always the same one wins.
    entries.sort_unstable_by_key(|(key, _)| key.as_str());
    for (key, entry) in entries {
        if let Some(found) = entry.credentials().map_err(|why| failed(format!("{}: auths {key:?}: {why}", path.display())))? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn read_config(path: &Path) -> Result<Option<ConfigFile>, String> {
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        Err(error) => return Err(format!("cannot be read: {error}")),
    };
    let mut text = Vec::new();
    file.take(CONFIG_BYTES_MAX).read_to_end(&mut text).map_err(|error| format!("cannot be read: {error}"))?;
    // Only the place of the fault: serde's message may quote a value.
    let config = serde_json::from_slice(&text);
    config.map(Some).map_err(|error| format!("does not parse at line {} column {}; mend it, or move it away", error.line(), error.column()))
}

/// The names under which a registry may be listed.
fn names_of(registry: &str) -> Vec<&str> {
    if DOCKER_HUB_HOSTS.contains(&registry) { DOCKER_HUB_HOSTS.to_vec() } else { vec![registry] }
}

/// Whether the file's `key` (`host`, `https://host`, `https://host/v1/`) is one of `names`.
fn matches(key: &str, names: &[&str]) -> bool {
    let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let bare = bare.strip_suffix('/').unwrap_or(bare);
    let bare = bare.strip_suffix("/v1").or_else(|| bare.strip_suffix("/v2")).unwrap_or(bare);
    names.iter().any(|name| name.eq_ignore_ascii_case(bare))
}

impl AuthEntry {
    fn credentials(&self) -> Result<Option<Credentials>, String> {
        let filled = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        if let Some(token) = filled(&self.identitytoken) {
            return Ok(Some(Credentials::IdentityToken(token)));
        }
        if let Some(auth) = filled(&self.auth) {
            let config = GeneralPurposeConfig::new().with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent);
            let expected = || "expected base64 of user:password in `auth`".to_owned();
            let decoded = GeneralPurpose::new(&alphabet::STANDARD, config).decode(auth.trim()).map_err(|_| expected())?;
            let text = String::from_utf8(decoded).map_err(|_| expected())?;
            let (user, password) = text.split_once(':').ok_or_else(expected)?;
            return Ok(Some(of_pair(user, password.trim_end_matches('\0'))));
        }
        Ok(match (filled(&self.username), filled(&self.password)) {
            (Some(user), Some(password)) => Some(of_pair(&user, &password)),
            _ => None,
        })
    }
}

fn of_pair(user: &str, password: &str) -> Credentials {
    if user == TOKEN_USER {
        Credentials::IdentityToken(password.to_owned())
    } else {
        Credentials::Password { user: user.to_owned(), password: password.to_owned() }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

/// Runs `docker-credential-NAME get`. `None` when it knows no credentials for `key`.
fn run_helper(name: &str, key: &str) -> Result<Option<Credentials>, String> {
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')) {
        return Err(format!("credential helper {name:?}: expected letters, digits, dots, underscores and dashes"));
    }
    let program = format!("docker-credential-{name}");
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("{program} (named in docker's config.json) cannot be run: {error}"))?;
    let output = talk(&mut child, key, HELPER_TIMEOUT).map_err(|why| format!("{program}: {why}"));
    // A helper that has ended is only reaped by this; one that has not is killed.
    let _ = child.kill();
    let _ = child.wait();
    let (succeeded, output) = output?;
    if !succeeded {
        let said = String::from_utf8_lossy(&output);
        if said.to_ascii_lowercase().contains(NOT_FOUND) {
            return Ok(None);
        }
        let said: String = said.chars().filter(|letter| !letter.is_control()).take(200).collect();
        return Err(format!("{program} failed: {said}"));
    }
    let answer: HelperAnswer = serde_json::from_slice(&output).map_err(|_| format!("{program}: expected JSON with Username and Secret"))?;
    Ok((!answer.secret.is_empty()).then(|| of_pair(&answer.username, &answer.secret)))
}

/// Writes the key, reads the answer, waits for the end: all within `timeout`.
fn talk(child: &mut Child, key: &str, timeout: Duration) -> Result<(bool, Vec<u8>), String> {
    let late = || format!("no answer within {} s", timeout.as_secs_f32());
    let deadline = Instant::now() + timeout;
    let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else { return Err("no pipes".to_owned()) };
    // A key is shorter than any pipe; a helper that does not read it may still answer.
    let _ = stdin.write_all(key.as_bytes());
    drop(stdin);
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut output = Vec::new();
        let read = stdout.take(HELPER_OUTPUT_BYTES_MAX).read_to_end(&mut output);
        let _ = sender.send(read.map(|_| output));
    });
    let output = receiver.recv_timeout(timeout).map_err(|_| late())?.map_err(|error| error.to_string())?;
    loop {
        match child.try_wait().map_err(|error| error.to_string())? {
            Some(status) => return Ok((status.success(), output)),
            None if Instant::now() >= deadline => return Err(late()),
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn password(user: &str, password: &str) -> Credentials {
        Credentials::Password { user: user.to_owned(), password: password.to_owned() }
    }

    fn ask(config: &str, registry: &str) -> Result<Option<Credentials>, EngineError> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        credentials(Some(dir.path()), registry)
    }

    #[test]
    fn auths_are_found_under_every_spelling_docker_uses() {
        // dTpw is u:p, dTpwOnc is u:p:w without padding.
        for (config, registry, expected) in [
            (r#"{"auths":{"https://index.docker.io/v1/":{"auth":"dTpw"}}}"#, "docker.io", Some(password("u", "p"))),
            (r#"{"auths":{"docker.io":{"auth":"dTpwOnc"}}}"#, "docker.io", Some(password("u", "p:w"))),
            (r#"{"auths":{"localhost:5000":{"auth":"dTpw"}}}"#, "localhost:5000", Some(password("u", "p"))),
            (r#"{"auths":{"https://h.x/v2/":{"username":"u","password":"p"}}}"#, "h.x", Some(password("u", "p"))),
            (r#"{"auths":{"h.x":{"auth":"dTpw","identitytoken":"t"}}}"#, "h.x", Some(Credentials::IdentityToken("t".into()))),
            (r#"{"auths":{"h.x":{}}}"#, "h.x", None),
            (r#"{"auths":{"h.x:1":{"auth":"dTpw"}}}"#, "h.x", None),
            (r#"{"auths":{"https://index.docker.io/v1/access-token":{"auth":"dTpw"}}}"#, "docker.io", None),
            (r#"{"auths":null,"HttpHeaders":{"a":"b"}}"#, "h.x", None),
        ] {
            assert_eq!(ask(config, registry).unwrap(), expected, "{config}");
        }
    }

    #[test]
    fn a_broken_file_is_an_error_that_names_it_and_a_missing_one_means_anonymous() {
        let error = ask(r#"{"auths":{"h.x":{"auth":"s3cret"},}"#, "h.x").unwrap_err().to_string();
        assert!(error.contains("config.json") && error.contains("line 1") && !error.contains("s3cret"), "{error}");
        let error = ask(r#"{"auths":{"h.x":{"auth":"*s3cret"}}}"#, "h.x").unwrap_err().to_string();
        assert!(error.contains("config.json") && !error.contains("s3cret"), "{error}");
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(credentials(Some(empty.path()), "h.x").unwrap(), None);
    }

    #[test]
    fn a_helper_that_is_missing_or_strangely_named_is_an_error() {
        let error = ask(r#"{"credHelpers":{"h.x":"clip-has-no-such"}}"#, "h.x").unwrap_err().to_string();
        assert!(error.contains("docker-credential-clip-has-no-such"), "{error}");
        assert!(ask(r#"{"credsStore":"../evil"}"#, "h.x").is_err());
        assert_eq!(ask(r#"{"credHelpers":{"other.x":"../evil"}}"#, "h.x").unwrap(), None);
    }

    #[test]
    fn a_helper_that_does_not_answer_ends_with_its_deadline() {
        for script in ["sleep 20", "exec >&-; sleep 20"] {
            let mut child = Command::new("sh").args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            let begun = Instant::now();
            let error = talk(&mut child, "h.x", Duration::from_millis(100)).unwrap_err();
            assert!(error.contains("no answer within 0.1 s") && begun.elapsed() < Duration::from_secs(5), "{error}");
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    #[test]
    fn credentials_do_not_show() {
        let shown = format!("{:?} {:?}", password("u", "s3cret"), Credentials::IdentityToken("s3cret".into()));
        assert!(!shown.contains("s3cret"), "{shown}");
    }
}
