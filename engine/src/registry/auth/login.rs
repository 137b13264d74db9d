//! Whose credentials are used, and where they are looked for, in which order.

use std::{
    ffi::{OsStr, OsString},
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    auth_file::{self, Missing},
    helper::Helpers,
    names::Names,
    secret::{Credentials, Secret},
    variables,
};
use crate::error::EngineError;

/// Variables that say nothing about credentials and differ between two commands of one shell. Without them the logins of these are equal.
/// Source: POSIX 2.14 and bash(1), "Shell Variables": those that a shell sets by itself, for each command, directory and level.
const FLEETING: [&str; 4] = ["_", "OLDPWD", "PWD", "SHLVL"];

/// Where the credentials of one caller are looked for, each time a registry wants some. Nothing is read before that.
///
/// In this order, the first that has any wins:
/// 1. what was typed: no credentials at all, a password for one registry, or a file, which is then the only place;
/// 2. `CLIP_REGISTRY_USER_<HOST>` with `CLIP_REGISTRY_PASS_<HOST>`, then `CLIP_OCI_AUTH`;
/// 3. the file named by `REGISTRY_AUTH_FILE`, which is then the only file; else
///    `$XDG_RUNTIME_DIR/containers/auth.json` (without that variable `/run/containers/$UID/auth.json`),
///    `$XDG_CONFIG_HOME/containers/auth.json` (`~/.config/containers/auth.json`), and docker's `$DOCKER_CONFIG/config.json`
///    (`~/.docker/config.json`).
///
/// Within a file: `credHelpers`, `credsStore`, `auths`; of these the key that names most of the repository.
///
/// Source: containers-auth.json(5); docker's cli/config; beam-cloud/clip for the variables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// What was typed.
    pub typed: Typed,
    /// The caller's.
    pub environment: Environment,
    /// What the caller's relative paths are relative to.
    pub directory: PathBuf,
    /// The caller's user number.
    pub user_id: u32,
}

/// What a caller typed about credentials.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Typed {
    /// Nothing.
    #[default]
    Nothing,
    /// None are to be used.
    Anonymous,
    /// These, for one registry.
    Password {
        /// Its name in references.
        registry: String,
        /// Who.
        user: String,
        /// With what.
        password: Secret,
    },
    /// This file and nothing else; that it is missing is an error.
    AuthFile(PathBuf),
}

/// The environment of a caller, in which helpers run too. `Debug` shows how many variables there are.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Environment(Vec<(OsString, OsString)>);

impl Environment {
    /// This process's.
    #[must_use]
    pub fn of_process() -> Self {
        Self::from_pairs(std::env::vars_os())
    }

    /// What was read from elsewhere.
    pub fn from_pairs<N: Into<OsString>, V: Into<OsString>>(pairs: impl IntoIterator<Item = (N, V)>) -> Self {
        let pairs = pairs.into_iter().map(|(name, value)| (name.into(), value.into()));
        Self(pairs.filter(|(name, _)| !FLEETING.iter().any(|fleeting| name == fleeting)).collect())
    }

    /// All of them.
    pub fn variables(&self) -> impl Iterator<Item = (&OsStr, &OsStr)> {
        self.0.iter().map(|(name, value)| (name.as_os_str(), value.as_os_str()))
    }

    /// The value of `name`; an empty one counts as none.
    pub(super) fn get(&self, name: &str) -> Option<&OsStr> {
        self.variables().find(|(known, _)| *known == name).map(|(_, value)| value).filter(|value| !value.is_empty())
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({} variables)", self.0.len())
    }
}

impl Login {
    /// Of whoever started this process, who typed nothing.
    #[must_use]
    pub fn of_process() -> Self {
        let directory = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
        let user_id = rustix::process::getuid().as_raw();
        Self { typed: Typed::Nothing, environment: Environment::of_process(), directory, user_id }
    }

    /// Of nobody: no credentials.
    #[must_use]
    pub fn anonymous() -> Self {
        Self { typed: Typed::Anonymous, environment: Environment::default(), directory: PathBuf::from("/"), user_id: 0 }
    }

    /// The credentials for a repository of `registry`, or `None` where the caller has none. Blocks: files, and a helper's whole run, of
    /// `helper_time_max` at most.
    ///
    /// # Errors
    /// `Credentials`: a place is there and cannot be read or understood, or a helper failed.
    pub(super) fn credentials(
        &self,
        registry: &str,
        repository: &str,
        helper_time_max: Duration,
    ) -> Result<Option<Credentials>, EngineError> {
        let helpers = Helpers { environment: &self.environment, time_max: helper_time_max };
        self.find(&Names::of(registry, repository), &helpers)
            .map_err(|reason| EngineError::Credentials { registry: registry.to_owned(), reason })
    }

    fn find(&self, names: &Names<'_>, helpers: &Helpers<'_>) -> Result<Option<Credentials>, String> {
        match &self.typed {
            Typed::Anonymous => return Ok(None),
            Typed::Password { registry, user, password } if names.is_host(registry) => {
                return Ok(Some(Credentials::of_pair(user, password.reveal())));
            }
            Typed::AuthFile(path) => return auth_file::find(&self.directory.join(path), Missing::IsAnError, helpers, names),
            Typed::Password { .. } | Typed::Nothing => {}
        }
        if let Some(found) = variables::find(&self.environment, names)? {
            return Ok(Some(found));
        }
        for path in self.files() {
            if let Some(found) = auth_file::find(&path, Missing::IsEmpty, helpers, names)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The files that are looked into, in order.
    fn files(&self) -> Vec<PathBuf> {
        let path = |name| self.environment.get(name).map(|value| self.directory.join(value));
        if let Some(only) = path("REGISTRY_AUTH_FILE") {
            return vec![only];
        }
        let home = path("HOME");
        let in_home = |below: &str| home.as_deref().map(|home| home.join(below));
        let run = path("XDG_RUNTIME_DIR").unwrap_or_else(|| Path::new("/run/containers").join(self.user_id.to_string()));
        let run = if self.environment.get("XDG_RUNTIME_DIR").is_some() { run.join("containers/auth.json") } else { run.join("auth.json") };
        let own = path("XDG_CONFIG_HOME").or_else(|| in_home(".config")).map(|dir| dir.join("containers/auth.json"));
        let docker = path("DOCKER_CONFIG").or_else(|| in_home(".docker")).map(|dir| dir.join("config.json"));
        [Some(run), own, docker].into_iter().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn login(pairs: &[(&str, &str)]) -> Login {
        let environment = Environment::from_pairs(pairs.iter().copied());
        Login { typed: Typed::Nothing, environment, directory: "/at".into(), user_id: 7 }
    }

    fn password(user: &str, password: &str) -> Option<Credentials> {
        Some(Credentials::of_pair(user, password))
    }

    /// Claim: the files are podman's, then docker's, found as containers-auth.json(5) says; one that is named is the only one.
    #[test]
    fn files_are_where_podman_and_docker_keep_them() {
        let files =
            |pairs: &[(&str, &str)]| -> Vec<String> { login(pairs).files().iter().map(|path| path.to_str().unwrap().to_owned()).collect() };
        assert_eq!(files(&[("HOME", "/h")]), ["/run/containers/7/auth.json", "/h/.config/containers/auth.json", "/h/.docker/config.json"]);
        let all = [("HOME", "/h"), ("XDG_RUNTIME_DIR", "/r"), ("XDG_CONFIG_HOME", "/c"), ("DOCKER_CONFIG", "d")];
        assert_eq!(files(&all), ["/r/containers/auth.json", "/c/containers/auth.json", "/at/d/config.json"]);
        assert_eq!(files(&[&all[..], &[("REGISTRY_AUTH_FILE", "one.json")]].concat()), ["/at/one.json"]);
        assert_eq!(files(&[("HOME", ""), ("DOCKER_CONFIG", "")]), ["/run/containers/7/auth.json"]);
    }

    /// Claim: what was typed wins over variables, these over files, podman's over docker's; typed credentials go to their registry alone.
    #[test]
    fn the_order_is_the_documented_one() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        for (file, user) in
            [("run/containers/auth.json", "run"), ("config/containers/auth.json", "config"), ("docker/config.json", "docker")]
        {
            std::fs::create_dir_all(Path::new(&at(file)).parent().unwrap()).unwrap();
            let text = format!(r#"{{"auths":{{"h.x":{{"username":"{user}","password":"p"}}}}}}"#);
            std::fs::write(at(file), text).unwrap();
        }
        let places = [("XDG_RUNTIME_DIR", at("run")), ("XDG_CONFIG_HOME", at("config")), ("DOCKER_CONFIG", at("docker"))];
        let environment = |more: &[(&str, &str)]| {
            let places = places.iter().map(|(name, value)| (*name, value.as_str()));
            Environment::from_pairs(places.chain(more.iter().copied()))
        };
        let variables =
            [("CLIP_REGISTRY_USER_H_X", "user"), ("CLIP_REGISTRY_PASS_H_X", "p"), ("CLIP_OCI_AUTH", r#"{"h.x":{"token":"t"}}"#)];
        let mut login = Login { environment: environment(&variables), ..login(&[]) };
        let find = |login: &Login, registry: &str| login.credentials(registry, "a/b", Duration::from_secs(10)).unwrap();
        assert_eq!(find(&login, "h.x"), password("user", "p"));
        login.environment = environment(&variables[2..]);
        assert_eq!(find(&login, "h.x"), password("oauth2accesstoken", "t"));
        login.environment = environment(&[]);
        for (file, user) in
            [("run/containers/auth.json", "run"), ("config/containers/auth.json", "config"), ("docker/config.json", "docker")]
        {
            assert_eq!(find(&login, "h.x"), password(user, "p"));
            std::fs::remove_file(at(file)).unwrap();
        }
        assert_eq!(find(&login, "h.x"), None);

        login.environment = environment(&variables);
        login.typed = Typed::Password { registry: "o.x".into(), user: "typed".into(), password: Secret::new("p") };
        assert_eq!((find(&login, "o.x"), find(&login, "h.x")), (password("typed", "p"), password("user", "p")));
        login.typed = Typed::Anonymous;
        assert_eq!(find(&login, "h.x"), None);
        login.typed = Typed::AuthFile(at("gone.json").into());
        assert!(login.credentials("h.x", "a/b", Duration::from_secs(10)).unwrap_err().to_string().contains("gone.json"));
    }

    /// Claim: two commands of one shell have equal logins, and no way of showing one shows a variable.
    #[test]
    fn logins_of_one_shell_are_equal_and_do_not_show() {
        let one = login(&[("PWD", "/a"), ("CLIP_OCI_AUTH", "s3cret"), ("_", "x")]);
        assert_eq!(one, login(&[("CLIP_OCI_AUTH", "s3cret"), ("SHLVL", "2")]));
        let typed = Typed::Password { registry: "h.x".into(), user: "u".into(), password: Secret::new("s3cret") };
        let shown = format!("{:?}", Login { typed, ..one });
        assert!(!shown.contains("s3cret"), "{shown}");
    }
}
