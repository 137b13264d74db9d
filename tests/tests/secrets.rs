//! No password and no token is ever in a `.clip`, a cache, a log at its most talkative, a message, or a process's command line.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::{
    collections::BTreeMap,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use clip_tests::{
    clip::{binary, text},
    guarded::{Guarded, NEEDS, write_helper},
    images::sample::NOISE,
    machine::lacks,
    process::shell,
    token_server::Lives,
};

/// Every regular file below `dir`, its name included.
fn files_below(dir: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            files_below(&entry.path(), found);
        } else if kind.is_file() {
            found.insert(entry.path(), std::fs::read(entry.path()).unwrap());
        }
    }
}

fn contains(text: &[u8], secret: &str) -> bool {
    text.windows(secret.len()).any(|window| window == secret.as_bytes())
}

/// One way of having credentials.
struct Way<'a> {
    name: &'a str,
    variables: Vec<(&'a str, String)>,
    arguments: Vec<&'a str>,
}

/// Claim: index, mount, reads and failures with credentials from every place leave no trace of them, at log level trace.
#[test]
fn no_secret_is_ever_written_down() {
    if lacks(NEEDS) {
        return;
    }
    let guarded = Guarded::new(Lives { said: 1, true_life: 3 }).unwrap();
    // What holds secrets by design is elsewhere.
    let elsewhere = tempfile::tempdir().unwrap();
    let at = |name: &str| elsewhere.path().join(name).to_str().unwrap().to_owned();
    let (host, account) = (guarded.host(), &guarded.account);
    let identity = format!(r#"{{"identitytoken":"{}"}}"#, account.identity_token);
    let file = guarded.auth_file(&at("auth.json"), &host, &guarded.password_entry(&account.password)).unwrap();
    let identity = guarded.auth_file(&at("identity.json"), &host, &identity).unwrap();
    let wrong = guarded.auth_file(&at("wrong.json"), &host, &guarded.password_entry("wr0ng-s3cret")).unwrap();
    std::fs::write(at("config.json"), r#"{"credsStore":"clip-test"}"#).unwrap();
    write_helper(elsewhere.path(), account).unwrap();
    let path = format!("{}:{}", elsewhere.path().display(), std::env::var("PATH").unwrap());
    let helper = vec![("DOCKER_CONFIG", at("")), ("PATH", path), ("CLIP_TEST_TEAM", "right".to_owned())];
    let json = format!(r#"{{"{host}":{{"username":"{}","password":"{}"}}}}"#, account.user, account.password);
    let ways = [
        Way { name: "file", variables: vec![], arguments: vec!["--authfile", &file] },
        Way { name: "identity", variables: vec![], arguments: vec!["--authfile", &identity] },
        Way { name: "variable", variables: vec![("CLIP_OCI_AUTH", json)], arguments: vec![] },
        Way { name: "helper", variables: helper, arguments: vec![] },
        Way { name: "wrong", variables: vec![], arguments: vec!["--authfile", &wrong] },
    ];
    let said = |name: String, text: &str| std::fs::write(guarded.clip.path(&name), text).unwrap();
    let mut lines = Vec::new();
    for Way { name, variables, arguments } in &ways {
        let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let (reference, clip, dir) = (guarded.reference("private/sample"), guarded.clip.path("a.clip"), guarded.clip.path(name));
        std::fs::create_dir(&dir).unwrap();
        let run = |step: &str, command: &[&str]| {
            let all = [&["--log-level", "trace"], command, arguments.as_slice()].concat();
            let (succeeded, text) = guarded.with(&variables, &all).unwrap();
            assert_eq!(succeeded, *name != "wrong" || step == "mount", "{name} {step}: {text}");
            said(format!("{name}.{step}.stderr"), &text);
        };
        let (clip, at) = (text(&clip).unwrap(), text(&dir).unwrap());
        run("index", &["index", &reference, "-o", clip]);
        run("mount", &["mount", clip, at, "--read-ahead", "0", "--log-file", guarded.clip.path(&format!("{name}.log")).to_str().unwrap()]);
        let read = std::fs::read(dir.join(NOISE));
        assert_eq!(read.is_ok(), *name != "wrong", "{name}");
        for pid in guarded.clip.servers() {
            lines.push(std::fs::read(format!("/proc/{pid}/cmdline")).unwrap());
            lines.push(std::fs::read(format!("/proc/{pid}/environ")).unwrap());
        }
        run("cat", &["cat", clip, "bin/tool"]);
        run("doctor", &["doctor", clip]);
        guarded.clip.umount(&dir).unwrap();
        guarded.clip.wait_for_servers().unwrap();
        // Everything is asked for again by the next.
        let kept = guarded.clip.path(&format!("{name}.cache"));
        std::fs::rename(guarded.clip.cache_dir(), kept).unwrap();
    }
    let script = r#"printf '%s' "$1" | "$2" index "$3" -o "$4" --log-level trace --creds "$5" --password-stdin 2>"$4.stderr""#;
    let output = guarded.clip.path("typed.clip");
    let typed = [
        account.password.as_ref(),
        binary().as_os_str(),
        guarded.reference("private/sample").as_ref(),
        output.as_os_str(),
        account.user.as_ref(),
    ]
    .map(std::ffi::OsStr::to_owned);
    shell(script, &typed.each_ref().map(|word| word.as_os_str())).unwrap();

    let issued = guarded.tokens.issued();
    assert!(issued.iter().any(|issued| issued.by_post) && issued.len() > ways.len(), "{}", issued.len());
    let mut secrets = vec!["s3cret".to_owned(), account.password.clone(), account.identity_token.clone()];
    for password in [account.password.as_str(), "wr0ng-s3cret"] {
        secrets.push(STANDARD.encode(format!("{}:{password}", account.user)));
    }
    secrets.extend(issued.iter().filter_map(|issued| issued.token.rsplit('.').next()).map(str::to_owned));
    let mut found = BTreeMap::new();
    files_below(output.parent().unwrap(), &mut found);
    let is_log = |path: &Path| path.extension().is_some_and(|kind| kind == "log" || kind == "stderr");
    let logged: usize = found.iter().filter(|(path, _)| is_log(path)).map(|(_, bytes)| bytes.len()).sum();
    assert!(
        found.values().any(|bytes| contains(bytes, "DEBUG")) && found.values().any(|bytes| contains(bytes, "/token")),
        "the logs are talkative"
    );
    println!("{} secrets, {} files, {logged} bytes of logs, {} command lines and environments", secrets.len(), found.len(), lines.len());
    assert!(found.len() > 40 && !lines.is_empty());
    for secret in &secrets {
        for (path, bytes) in &found {
            assert!(!contains(bytes, secret) && !contains(path.as_os_str().as_bytes(), secret), "{secret} is in {}", path.display());
        }
        assert!(!lines.iter().any(|line| contains(line, secret)), "{secret} is in the owner's command line or environment");
    }
}
