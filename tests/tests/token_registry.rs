//! docker-registry with its own token authentication and a token server that signs: images are indexed and mounted with credentials from
//! every place, a mount outlives its tokens, and one owner serves mounts of people with different credentials.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::{
    os::unix::fs::PermissionsExt,
    process::Command,
    time::{Duration, Instant},
};

use clip_tests::{
    clip::{binary, text},
    guarded::{Guarded, NEEDS, write_helper},
    images::sample::{NOISE, PROSE, SHORT},
    machine::{Need, lacks},
    process::{run, shell},
    token_server::Lives,
};

/// Tokens that outlive the test.
const LONG: Lives = Lives { said: 300, true_life: 600 };

/// A mount reads over several lives of its tokens, whether their server says how short these are or the registry refuses them early.
fn assert_mount_outlives_tokens(lives: Lives) {
    let guarded = Guarded::new(lives).unwrap();
    let file = guarded.auth_file("auth.json", &guarded.host(), &guarded.password_entry(&guarded.account.password)).unwrap();
    let clip = guarded.clip.index(&guarded.reference("private/sample"), "a", &["--authfile", &file]).unwrap();
    let mount = guarded.clip.mount(&clip, &["--authfile", &file, "--read-ahead", "0", "--connections", "2"]).unwrap();
    let mut counts = vec![guarded.tokens.issued().len()];
    for path in [SHORT, "bin/tool", NOISE, PROSE] {
        std::thread::sleep(Duration::from_millis(2300));
        guarded.assert_read(&mount, path);
        counts.push(guarded.tokens.issued().len());
    }
    let issued = guarded.tokens.issued();
    println!("tokens given after each read: {counts:?}");
    assert!(counts[4] >= counts[0] + 3, "{counts:?}");
    assert!(issued.iter().all(|issued| issued.user.as_deref() == Some("puller")), "nobody asked without credentials");
    mount.umount().unwrap();
}

/// Claim: a mount outlives tokens of 2 s.
#[test]
fn a_mount_outlives_tokens_that_say_how_long_they_live() {
    if !lacks(NEEDS) {
        assert_mount_outlives_tokens(Lives { said: 2, true_life: 3 });
    }
}

/// Claim: a mount outlives tokens that claim 300 s and are refused after 2.
#[test]
fn a_mount_outlives_tokens_that_end_early() {
    if !lacks(NEEDS) {
        assert_mount_outlives_tokens(Lives { said: 300, true_life: 2 });
    }
}

/// Claim: index takes credentials from every place that is documented, in the documented order; a public repository needs none.
#[test]
fn credentials_come_from_every_documented_place() {
    if lacks(NEEDS) {
        return;
    }
    let guarded = Guarded::new(LONG).unwrap();
    let (right, wrong) = (guarded.password_entry(&guarded.account.password), guarded.password_entry("wrong"));
    let host = guarded.host();
    let output = guarded.clip.path("a.clip");
    let private = guarded.reference("private/sample");
    let index = |reference: &str, variables: &[(&str, &str)], more: &[&str]| {
        let _ = std::fs::remove_file(&output);
        let (succeeded, said) =
            guarded.with(variables, &[&["index", reference, "-o", text(&output).unwrap(), "--quiet"], more].concat()).unwrap();
        assert!(!said.contains("s3cret"), "a secret in a message: {said}");
        assert_eq!(succeeded, output.exists(), "{said}");
        if succeeded { Ok(()) } else { Err(said) }
    };
    let good = |variables: &[(&str, &str)], more: &[&str]| index(&private, variables, more).unwrap();
    let bad = |variables: &[(&str, &str)], more: &[&str], word: &str| {
        let said = index(&private, variables, more).unwrap_err();
        assert!(said.contains(word), "expected {word:?}: {said}");
    };

    index(&guarded.reference("public/sample"), &[], &[]).unwrap();
    bad(&[], &[], "status 401");
    // Files, by name and by place; the longest key wins.
    let whole = guarded.auth_file("whole.json", &host, &right).unwrap();
    good(&[], &["--authfile", &whole]);
    good(&[("REGISTRY_AUTH_FILE", &whole)], &[]);
    bad(&[("REGISTRY_AUTH_FILE", &whole)], &["--no-creds"], "status 401");
    let of_repository = guarded.auth_file("repository.json", &format!("{host}/private/sample"), &right).unwrap();
    good(&[], &["--authfile", &of_repository]);
    bad(&[], &["--authfile", &guarded.auth_file("other.json", &format!("{host}/other"), &right).unwrap()], "status 401");
    bad(&[], &["--authfile", &guarded.auth_file("wrong.json", &host, &wrong).unwrap()], "the token server refuses these credentials");
    bad(&[], &["--authfile", "/nonexistent.json"], "/nonexistent.json");
    guarded.auth_file("run/containers/auth.json", &host, &right).unwrap();
    let (run_dir, config_dir, docker_dir) = (guarded.clip.path("run"), guarded.clip.path("config"), guarded.clip.path("docker"));
    let (run_dir, config_dir, docker_dir) = (text(&run_dir).unwrap(), text(&config_dir).unwrap(), text(&docker_dir).unwrap());
    good(&[("XDG_RUNTIME_DIR", run_dir)], &[]);
    guarded.auth_file("config/containers/auth.json", &host, &right).unwrap();
    good(&[("XDG_CONFIG_HOME", config_dir)], &[]);
    let identity = format!(r#"{{"identitytoken":"{}"}}"#, guarded.account.identity_token);
    guarded.auth_file("docker/config.json", &format!("https://{host}/v1/"), &identity).unwrap();
    good(&[("DOCKER_CONFIG", docker_dir)], &[]);
    assert!(guarded.tokens.issued().last().unwrap().by_post);
    // The original's variables, in its spelling and in one that a shell can set.
    let (user, password) = (guarded.account.user.as_str(), guarded.account.password.as_str());
    for port in [format!(":{}", guarded.registry.port()), format!("_{}", guarded.registry.port())] {
        let names = ["USER", "PASS"].map(|what| format!("CLIP_REGISTRY_{what}_127_0_0_1{port}"));
        good(&[(&names[0], user), (&names[1], password)], &[]);
        bad(&[(&names[0], user), (&names[1], "wrong"), ("REGISTRY_AUTH_FILE", &whole)], &[], "refuses");
    }
    let json = format!(r#"{{"{host}":{{"username":"{user}","password":"{password}"}}}}"#);
    good(&[("CLIP_OCI_AUTH", &json)], &[]);
    bad(&[("CLIP_OCI_AUTH", "pass-s3cret")], &[], "CLIP_OCI_AUTH");
    // On the command line.
    good(&[], &["--creds", &format!("{user}:{password}")]);
    bad(&[("REGISTRY_AUTH_FILE", &whole)], &["--creds", &format!("{user}:wrong")], "refuses");
    bad(&[], &["--creds", user], "--password-stdin");
    bad(&[], &["--creds", ":pass-s3cret"], "found no user");
    let script = r#"printf '%s\n' "$1" | "$2" index "$3" -o "$4" --quiet --creds "$5" --password-stdin 2>&1"#;
    let said = shell(script, &[password.as_ref(), binary().as_os_str(), private.as_ref(), output.as_os_str(), user.as_ref()]).unwrap();
    assert!(!said.contains("list of processes"), "{said}");
    let mut typed = guarded.clip.command(&["index", &private, "-o", "x", "--creds", "u:pass-s3cret"]);
    assert!(run(&mut typed).unwrap().stderr.contains("list of processes"));
}

/// Claim: without a password on the line it is asked for on the terminal, where it is not shown and can be mended while it is typed.
#[test]
fn a_password_is_asked_for_on_the_terminal() {
    if lacks(NEEDS) || lacks(&[Need::Tool("script")]) {
        return;
    }
    let guarded = Guarded::new(LONG).unwrap();
    let output = guarded.clip.path("a.clip");
    let command = format!(
        "CLIP_LOG=warn '{}' index {} -o '{}' --quiet --creds {}",
        binary().display(),
        guarded.reference("private/sample"),
        output.display(),
        guarded.account.user
    );
    let script = r#"
: > "$3"
{
    for _ in {1..300}; do grep -q 'password of' "$3" && break; sleep 0.1; done
    printf 'nonsense\025%sx\177\n' "$1"
    sleep 2
} | script -qefc "$2" "$3"
"#;
    let terminal = guarded.clip.path("terminal");
    let shown = shell(script, &[guarded.account.password.as_ref(), command.as_ref(), terminal.as_os_str()]).unwrap();
    assert!(shown.contains("password of puller at 127.0.0.1:") && !shown.contains("s3cret"), "{shown}");
    assert!(output.exists(), "{shown}");
}

/// Claim: every command that reads layers takes credentials, and without them fails and says that the registry refused.
#[test]
fn every_reading_command_takes_credentials() {
    if lacks(NEEDS) {
        return;
    }
    let guarded = Guarded::new(LONG).unwrap();
    let file = guarded.auth_file("auth.json", &guarded.host(), &guarded.password_entry(&guarded.account.password)).unwrap();
    let clip = guarded.clip.index(&guarded.reference("private/sample"), "a", &["--authfile", &file]).unwrap();
    let clip = text(&clip).unwrap();
    let commands: [&[&str]; 5] = [
        &["cat", clip, SHORT],
        &["extract", clip, "out"],
        &["verify", "--remote", clip],
        &["runtime-spec", clip, "--user", "0"],
        &["doctor", clip],
    ];
    for (number, command) in commands.into_iter().enumerate() {
        let run_with = |more: &[&str]| {
            let cache = guarded.clip.path(&format!("cache-{number}-{}", more.len()));
            let _ = std::fs::remove_dir_all(guarded.clip.path("out"));
            let arguments = [command, &["--cache-dir", text(&cache).unwrap()], more].concat();
            run(guarded.clip.command(&arguments).current_dir(cache.parent().unwrap())).unwrap()
        };
        let with = run_with(&["--authfile", &file]);
        assert!(with.status.success(), "{command:?}: {}{}", with.text(), with.stderr);
        let without = run_with(&[]);
        let said = without.text() + &without.stderr;
        assert!(said.contains("status 401") || command[0] == "runtime-spec", "{command:?}: {said}");
    }
}

/// Claim: one owner, started by a mount without credentials, serves mounts with a password, a file, and a helper of the caller's PATH that
/// sees the caller's environment. What a mount brought goes with it.
#[test]
fn one_owner_serves_callers_with_different_credentials() {
    if lacks(NEEDS) {
        return;
    }
    let guarded = Guarded::new(LONG).unwrap();
    let file = guarded.auth_file("auth.json", &guarded.host(), &guarded.password_entry(&guarded.account.password)).unwrap();
    let private = guarded.clip.index(&guarded.reference("private/sample"), "private", &["--authfile", &file]).unwrap();
    let public = guarded.clip.index(&guarded.reference("public/sample"), "public", &["--span-size", "64KiB"]).unwrap();
    let first = guarded.clip.mount(&public, &["--read-ahead", "0"]).unwrap();
    guarded.assert_read(&first, SHORT);
    let owners = guarded.clip.servers();
    assert_eq!(owners.len(), 1);
    let issued_before = guarded.tokens.issued().len();

    let refused = guarded.clip.mount(&private, &[]).unwrap();
    assert!(std::fs::read(refused.path("bin/tool")).is_err(), "without credentials");
    refused.umount().unwrap();

    let with_file = guarded.clip.mount(&private, &["--authfile", &file]).unwrap();
    // A failure is remembered for half a second.
    std::thread::sleep(Duration::from_millis(600));
    guarded.assert_read(&with_file, "bin/tool");
    with_file.umount().unwrap();
    let gone = guarded.clip.mount(&private, &[]).unwrap();
    assert!(std::fs::read(gone.path(PROSE)).is_err(), "the credentials of another mount are gone with it");
    gone.umount().unwrap();

    write_helper(&guarded.clip.path("bin"), &guarded.account).unwrap();
    let docker = guarded.clip.path("docker");
    std::fs::create_dir_all(&docker).unwrap();
    std::fs::write(docker.join("config.json"), format!(r#"{{"credHelpers":{{"{}":"clip-test"}}}}"#, guarded.host())).unwrap();
    let path = format!("{}:{}", guarded.clip.path("bin").display(), std::env::var("PATH").unwrap());
    let dir = guarded.clip.path("helped");
    std::fs::create_dir(&dir).unwrap();
    let arguments = ["mount", text(&private).unwrap(), text(&dir).unwrap()];
    let variables = [("DOCKER_CONFIG", text(&docker).unwrap()), ("PATH", &path), ("CLIP_TEST_TEAM", "right")];
    let (mounted, said) = guarded.with(&variables, &arguments).unwrap();
    assert!(mounted, "{said}");
    std::thread::sleep(Duration::from_millis(600));
    assert!(std::fs::read(dir.join(PROSE)).unwrap() == guarded.sample.contents(PROSE));
    guarded.clip.umount(&dir).unwrap();

    let creds = format!("{}:{}", guarded.account.user, guarded.account.password);
    let typed = guarded.clip.mount(&private, &["--creds", &creds]).unwrap();
    std::thread::sleep(Duration::from_millis(600));
    guarded.assert_read(&typed, NOISE);
    typed.umount().unwrap();
    assert_eq!(guarded.clip.servers(), owners, "one owner served all of them");
    let with_password = guarded.tokens.issued().into_iter().skip(issued_before).filter(|issued| issued.user.is_some()).count();
    assert_eq!(with_password, 3, "each of the three mounts with credentials asked once");
    first.umount().unwrap();
}

/// Claim: fstab's options take a file and refuse a password, with the reason and without repeating it.
#[test]
fn option_lists_take_files_and_no_passwords() {
    if lacks(NEEDS) {
        return;
    }
    let guarded = Guarded::new(LONG).unwrap();
    let file = guarded.auth_file("auth.json", &guarded.host(), &guarded.password_entry(&guarded.account.password)).unwrap();
    let clip = guarded.clip.index(&guarded.reference("private/sample"), "a", &["--authfile", &file]).unwrap();
    let dir = guarded.clip.path("m");
    std::fs::create_dir(&dir).unwrap();
    let helper = |options: &str| {
        let cache = format!("{options},cache-dir={}", guarded.clip.cache_dir().display());
        let mut command = Command::new("bash");
        command.args(["-c", "exec -a mount.clip \"$@\"", "test"]).arg(binary());
        command.args([text(&clip).unwrap(), text(&dir).unwrap(), "-o", &cache]).env("CLIP_CACHE_DIR", guarded.clip.cache_dir());
        run(&mut command).unwrap()
    };
    for options in
        ["creds=puller:pass-s3cret", "rw,creds=puller", "password-stdin", "authfile=/nonexistent.json", "no-creds,authfile=/dev/null"]
    {
        let refused = helper(options);
        assert!(!refused.status.success() && !refused.stderr.contains("s3cret"), "{options}: {}", refused.stderr);
        assert!(refused.stderr.contains("authfile"), "{options}: {}", refused.stderr);
    }
    let mounted = helper(&format!("authfile={file}"));
    assert!(mounted.status.success(), "{}", mounted.stderr);
    assert!(std::fs::read(dir.join(SHORT)).unwrap() == guarded.sample.contents(SHORT));
    guarded.clip.umount(&dir).unwrap();
}

/// Claim: a credential helper that hangs makes `clip index` and a mounted read fail within half of what they may wait, with an error that
/// names the helper, and is not taken for a dead registry.
#[test]
fn a_helper_that_hangs_is_named() {
    if lacks(NEEDS) {
        return;
    }
    let guarded = Guarded::new(Lives { said: 60, true_life: 60 }).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let helper = elsewhere.path().join("docker-credential-clip-hangs");
    std::fs::write(&helper, "#!/bin/sh\nsleep 28.25\n").unwrap();
    std::fs::set_permissions(&helper, PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::write(elsewhere.path().join("config.json"), r#"{"credsStore":"clip-hangs"}"#).unwrap();
    let path = format!("{}:{}", elsewhere.path().display(), std::env::var("PATH").unwrap());
    let hanging = [("DOCKER_CONFIG", elsewhere.path().to_str().unwrap()), ("PATH", path.as_str())];
    let (reference, clip) = (guarded.reference("private/sample"), guarded.clip.path("a.clip"));
    // It is built by the first who asks.
    let _ = binary();
    let named = |text: &str| text.contains("docker-credential-clip-hangs: no answer within 2 s");

    let begun = Instant::now();
    let (indexed, said) = guarded.with(&hanging, &["index", &reference, "-o", clip.to_str().unwrap(), "--read-timeout", "4s"]).unwrap();
    assert!(!indexed && named(&said) && begun.elapsed() < Duration::from_secs(4), "after {:?}: {said}", begun.elapsed());

    let known = guarded.auth_file("auth.json", &guarded.host(), &guarded.password_entry(&guarded.account.password)).unwrap();
    let file = guarded.clip.index(&reference, "sample", &["--authfile", &known]).unwrap();
    let dir = guarded.clip.path("mnt");
    std::fs::create_dir(&dir).unwrap();
    let arguments = ["mount", file.to_str().unwrap(), dir.to_str().unwrap(), "--read-timeout", "4s", "--read-ahead", "0"];
    let (mounted, said) = guarded.with(&hanging, &arguments).unwrap();
    assert!(mounted, "{said}");
    let begun = Instant::now();
    assert!(std::fs::read(dir.join(NOISE)).is_err() && begun.elapsed() < Duration::from_secs(4), "after {:?}", begun.elapsed());
    assert!(named(&guarded.clip.log()), "{}", guarded.clip.log());
    guarded.clip.umount(&dir).unwrap();
    guarded.clip.wait_for_servers().unwrap();
}
