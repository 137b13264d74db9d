//! A registry whose images only those may pull who have a token, the sample image in it, and a user with credentials.

use std::{os::unix::fs::PermissionsExt, path::Path, path::PathBuf};

use anyhow::Result;
use base64::{Engine as _, engine::general_purpose::STANDARD};

use crate::{
    clip::{Clip, Mount, text},
    images::sample::{self, Sample},
    machine::Need,
    process::run,
    registry::{Demands, Registry},
    token_server::{Account, Lives, TokenServer},
};

/// What its tests need.
pub const NEEDS: &[Need] = &[Need::Root, Need::Fuse, Need::Tool("docker-registry"), Need::Tool("skopeo"), Need::Tool("openssl")];

/// docker-registry behind a token server, with the sample as `private/sample` and `public/sample`.
pub struct Guarded {
    /// What the image holds.
    pub sample: Sample,
    /// Who gives tokens.
    pub tokens: TokenServer,
    /// Who wants them.
    pub registry: Registry,
    /// Who gets them.
    pub account: Account,
    /// The user's cache and files.
    pub clip: Clip,
}

impl Guarded {
    /// All of it, with tokens that live as `lives` says.
    ///
    /// # Errors
    /// The tools' own.
    pub fn new(lives: Lives) -> Result<Self> {
        let sample = Sample::new()?;
        let account =
            Account { user: "puller".to_owned(), password: "pass-s3cret: word".to_owned(), identity_token: "identity-s3cret&1".to_owned() };
        let tokens = TokenServer::start(account.clone(), lives)?;
        let open = Registry::start()?;
        for name in ["private/sample", "public/sample"] {
            open.push(sample.layout.dir(), sample::TAG, name)?;
        }
        let registry = open.restart(&Demands { auth: tokens.registry_auth(), ..Demands::default() })?;
        Ok(Self { sample, tokens, registry, account, clip: Clip::new() })
    }

    /// `127.0.0.1:PORT/NAME:TAG`
    #[must_use]
    pub fn reference(&self, name: &str) -> String {
        self.registry.reference(name, sample::TAG)
    }

    /// `127.0.0.1:PORT`
    #[must_use]
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.registry.port())
    }

    /// A file as docker and podman write it, with `entry` for `key`. It is at `name` in the user's directory, or where that says.
    ///
    /// # Errors
    /// The system's.
    pub fn auth_file(&self, name: &str, key: &str, entry: &str) -> Result<String> {
        let path: PathBuf = self.clip.path(name);
        std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
        std::fs::write(&path, format!(r#"{{"auths":{{"{key}":{entry}}}}}"#))?;
        Ok(text(&path)?.to_owned())
    }

    /// An entry of such a file: the user with this password.
    #[must_use]
    pub fn password_entry(&self, password: &str) -> String {
        format!(r#"{{"auth":"{}"}}"#, STANDARD.encode(format!("{}:{password}", self.account.user)))
    }

    /// `clip ARGUMENTS` with more variables: whether it succeeded, and what it said.
    ///
    /// # Errors
    /// When it cannot be started or takes too long.
    pub fn with(&self, variables: &[(&str, &str)], arguments: &[&str]) -> Result<(bool, String)> {
        let finished = run(self.clip.command(arguments).envs(variables.iter().copied()))?;
        Ok((finished.status.success(), finished.stderr))
    }

    /// The mount has what the image holds at `path`.
    ///
    /// # Panics
    /// When it has not.
    pub fn assert_read(&self, mount: &Mount<'_>, path: &str) {
        self.assert_read_at(mount.dir(), path);
    }

    /// As [`Self::assert_read`], of what is mounted at `dir`.
    ///
    /// # Panics
    /// When it has not.
    pub fn assert_read_at(&self, dir: &Path, path: &str) {
        assert!(std::fs::read(dir.join(path)).unwrap_or_default() == self.sample.contents(path), "{path}");
    }
}

/// An executable `docker-credential-clip-test` is in `dir`: it knows the account, for a caller whose `CLIP_TEST_TEAM` is right.
///
/// # Errors
/// The system's.
pub fn write_helper(dir: &Path, account: &Account) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    let helper = dir.join("docker-credential-clip-test");
    let answer = format!(r#"{{"Username":"{}","Secret":"{}"}}"#, account.user, account.password);
    let script = format!(
        "#!/bin/sh\nread -r key || :\n[ \"$CLIP_TEST_TEAM\" = right ] || {{ echo 'credentials not found in native keychain'; exit 1; }}\ncat <<'END'\n{answer}\nEND\n"
    );
    std::fs::write(&helper, script)?;
    Ok(std::fs::set_permissions(&helper, PermissionsExt::from_mode(0o755))?)
}
