//! docker-registry that speaks TLS under a private authority and wants a password from its htpasswd file: `clip index` and `clip mount`.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::process::Command;

use clip_tests::{
    clip::{Clip, binary, text},
    images::sample::{self, NOISE, SHORT, Sample},
    machine::{Need, lacks},
    process::{Finished, copy_environment, run, with_hosts},
    registry::{Demands, Registry},
    tls::{HOST, Leaf, certificates},
};

/// `unshare`: only this mount namespace knows the registry's name.
const NEEDS: &[Need] =
    &[Need::Root, Need::Fuse, Need::Tool("docker-registry"), Need::Tool("skopeo"), Need::Tool("openssl"), Need::Tool("unshare")];

const PASSWORD: &str = "open sesame: s3cret";
/// bcrypt of the password, the only form that docker-registry takes. Made by perl's crypt; neither openssl nor coreutils can.
const HTPASSWD: &str = "puller:$2y$05$clipclipclipclipclipceb8Two3h3cHNDd6xx0QvwXMf10dYhYLK\n";

struct Private {
    sample: Sample,
    registry: Registry,
    certificates: tempfile::TempDir,
    clip: Clip,
}

impl Private {
    fn new() -> Self {
        let (sample, clip, certificates) = (Sample::new().unwrap(), Clip::new(), certificates(&[Leaf::Server(HOST)]).unwrap());
        let open = Registry::start().unwrap();
        open.push(sample.layout.dir(), sample::TAG, "team/sample").unwrap();
        let htpasswd = certificates.path().join("htpasswd");
        std::fs::write(&htpasswd, HTPASSWD).unwrap();
        let auth = format!("auth:\n  htpasswd:\n    realm: clip test\n    path: {}\n", htpasswd.display());
        let registry = open.restart(&Demands { auth, tls: Some(certificates.path().to_owned()), ..Demands::default() }).unwrap();
        Self { sample, registry, certificates, clip }
    }

    /// A script in a mount namespace where the registry's name leads to this machine. `$clip` is the program, `$image` the image, `$dir` the
    /// user's directory; what is mounted is gone with the script.
    fn run(&self, script: &str) -> Finished {
        let hosts = self.clip.path("hosts");
        std::fs::write(&hosts, format!("127.0.0.1 localhost {HOST}\n")).unwrap();
        let dir = self.clip.path("");
        let mut command = Command::new("bash");
        copy_environment(&self.clip.command(&[]), &mut command);
        command.args(["-euc", &format!("cd \"$dir\"\n{script}")]).env("clip", binary()).env("dir", text(&dir).unwrap());
        command.env("image", format!("{HOST}:{}/team/sample:{}", self.registry.port(), sample::TAG)).env("password", PASSWORD);
        command.env("ca", self.certificates.path().join("ca.pem"));
        run(&mut with_hosts(&command, &hosts)).unwrap()
    }
}

/// Claim: with the authority and the password the image is indexed, mounted and read; every request is over TLS with Basic.
#[test]
fn index_and_mount_with_a_password_over_tls() {
    if lacks(NEEDS) {
        return;
    }
    let private = Private::new();
    std::fs::create_dir(private.clip.path("m")).unwrap();
    let script = r#"
printf '%s' "$password" | "$clip" index "$image" -o a.clip --quiet --ca "$ca" --creds puller --password-stdin
printf '%s' "$password" | "$clip" mount a.clip m --ca "$ca" --creds puller --password-stdin --read-ahead 0
cat m/etc/motd m/lib/noise
"$clip" umount m
"#;
    let finished = private.run(script);
    let expected = [private.sample.contents(SHORT), private.sample.contents(NOISE)].concat();
    assert!(finished.status.success() && finished.stdout == expected, "{}", finished.stderr);
    private.clip.wait_for_servers().unwrap();
}

/// Claim: without the password, with a wrong one, and without the authority indexing fails, says why, and leaves nothing.
#[test]
fn what_is_missing_is_said() {
    if lacks(NEEDS) {
        return;
    }
    let private = Private::new();
    for (arguments, words) in [
        ("--ca \"$ca\"", ["401", "log in"]),
        ("--ca \"$ca\" --creds puller:wr0ng-s3cret", ["401", "log in"]),
        ("--creds puller:wr0ng-s3cret", ["certificate", HOST]),
    ] {
        let finished = private.run(&format!("exec \"$clip\" index \"$image\" -o b.clip --quiet {arguments}"));
        assert_eq!(finished.status.code(), Some(1), "{arguments}: {}", finished.stderr);
        assert!(words.iter().all(|word| finished.stderr.contains(word)) && !finished.stderr.contains("s3cret"), "{}", finished.stderr);
        assert!(!private.clip.path("b.clip").exists());
    }
}
