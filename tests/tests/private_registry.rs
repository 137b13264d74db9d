//! A registry with a private certificate authority, behind Basic or Bearer authentication with credentials from a helper program, serves
//! `clip index` and `clip cat`; without the authority or the credentials both fail and say why.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::os::unix::fs::PermissionsExt;

use clip_tests::{
    clip::{Clip, text},
    faults::Server,
    images::sample::{self, Sample},
    machine::{Need, lacks},
    process::{Finished, run, with_hosts},
    tls::{HOST, PASSWORD, Scheme, TlsFront, USER},
};

/// `unshare`: only this mount namespace knows the registry's name.
const NEEDS: &[Need] = &[Need::Root, Need::Tool("openssl"), Need::Tool("unshare")];

/// A private registry, and a user with a credential helper.
struct Private {
    sample: Sample,
    _server: Server,
    front: TlsFront,
    clip: Clip,
}

impl Private {
    fn new(scheme: Scheme) -> Self {
        let sample = Sample::new().unwrap();
        let server = Server::start(&sample.layout).unwrap();
        let front = TlsFront::start(&server, scheme).unwrap();
        let clip = Clip::new();
        let path = format!("{}:{}", clip.path("bin").display(), std::env::var("PATH").unwrap());
        Self { sample, _server: server, front, clip: clip.with_variable("PATH", path) }
    }

    /// Docker's configuration names a helper that knows the registry's user.
    fn log_in(&self, password: &str) {
        let config = format!(r#"{{"credHelpers": {{"{}": "clip-test"}}}}"#, self.front.authority());
        std::fs::write(self.clip.path("config.json"), config).unwrap();
        std::fs::create_dir_all(self.clip.path("bin")).unwrap();
        let helper = self.clip.path("bin/docker-credential-clip-test");
        let answer = format!(r#"{{"ServerURL": "%s", "Username": "{USER}", "Secret": "{password}"}}"#);
        let script =
            format!("#!/bin/sh\n[ \"$1\" = get ] || exit 1\nread -r server || [ -n \"$server\" ]\nprintf '{answer}\\n' \"$server\"\n");
        std::fs::write(&helper, script).unwrap();
        std::fs::set_permissions(&helper, PermissionsExt::from_mode(0o755)).unwrap();
    }

    /// `clip ARGUMENTS` where the registry's name leads to this machine.
    fn run(&self, arguments: &[&str]) -> Finished {
        let hosts = self.clip.path("hosts");
        std::fs::write(&hosts, format!("127.0.0.1 localhost {HOST}\n")).unwrap();
        run(&mut with_hosts(&self.clip.command(arguments), &hosts)).unwrap()
    }
}

/// Index and cat work with `--ca` and the helper's credentials; no password is sent but to those who ask for it.
fn assert_private_registry_is_read(scheme: Scheme) {
    let private = Private::new(scheme);
    private.log_in(PASSWORD);
    let (reference, file) = (private.front.reference("sample", sample::TAG), private.clip.path("private.clip"));
    let (ca, output) = (text(private.front.ca()).unwrap(), text(&file).unwrap());
    let indexed = private.run(&["index", &reference, "-o", output, "--quiet", "--ca", ca]);
    assert!(indexed.status.success(), "{}", indexed.stderr);
    for (path, contents) in &private.sample.files {
        let found = private.run(&["cat", output, path, "--ca", ca]);
        assert!(found.stdout == *contents, "{path}: {}", found.stderr);
    }
    let seen = private.front.authorizations();
    let with_password = |line: &&String| line.contains(" Basic ");
    assert!(seen.iter().any(|line| with_password(&line)), "{seen:?}");
    if scheme == Scheme::Bearer {
        assert!(
            seen.iter().filter(with_password).all(|line| line.starts_with("/token?") && line.contains("service=clip-test")),
            "{seen:?}"
        );
        assert!(seen.iter().any(|line| line.contains("/blobs/") && line.contains(" Bearer ")), "{seen:?}");
    }
}

/// Basic.
#[test]
fn basic_authentication_over_tls() {
    if !lacks(NEEDS) {
        assert_private_registry_is_read(Scheme::Basic);
    }
}

/// Bearer tokens.
#[test]
fn bearer_tokens_over_tls() {
    if !lacks(NEEDS) {
        assert_private_registry_is_read(Scheme::Bearer);
    }
}

/// Without the authority, the credentials or the right password indexing fails, says which registry refused, and leaves nothing.
#[test]
fn what_is_missing_is_said() {
    if lacks(NEEDS) {
        return;
    }
    let private = Private::new(Scheme::Bearer);
    let (reference, file) = (private.front.reference("sample", sample::TAG), private.clip.path("private.clip"));
    let (ca, output) = (text(private.front.ca()).unwrap(), text(&file).unwrap());
    let fails = |arguments: &[&str], word: &str| {
        let finished = private.run(&[&["index", &reference, "-o", output, "--quiet"], arguments].concat());
        assert_eq!(finished.status.code(), Some(1), "{word}: {}", finished.stderr);
        assert!(finished.stderr.contains(HOST) && finished.stderr.contains(word), "{word}: {}", finished.stderr);
        assert!(!finished.stderr.contains(PASSWORD), "a password in a message: {}", finished.stderr);
        assert!(!file.exists());
    };
    fails(&["--ca", ca], "401");
    private.log_in("wrong");
    fails(&["--ca", ca], "401");
    private.log_in(PASSWORD);
    fails(&[], "certificate");
}
