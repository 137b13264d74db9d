//! No password and no token is ever in a `.clip`, a cache, a log at its most talkative, a message, or a process's command line.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use clip_format::clip_file::ClipFile;
use clip_tests::{
    clip::{Clip, binary, text},
    guarded::{Guarded, NEEDS, write_helper},
    images::sample::{self, NOISE, Sample},
    machine::{Need, lacks},
    process::shell,
    proxy::Proxy,
    token_server::Lives,
    web::{Answer, Head, Web},
};

/// What clip has left behind, by where that is.
#[derive(Default)]
struct Traces {
    found: BTreeMap<PathBuf, Vec<u8>>,
}

impl Traces {
    /// Every regular file below `dir`; of a `.clip` each section, expanded, too.
    fn note_files(&mut self, dir: &Path) {
        for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
            let (kind, path) = (entry.file_type().unwrap(), entry.path());
            if kind.is_dir() {
                self.note_files(&path);
            } else if kind.is_file() {
                let bytes = std::fs::read(&path).unwrap();
                if path.extension() == Some(OsStr::new("clip")) {
                    self.note_sections(&path, &bytes);
                }
                self.found.insert(path, bytes);
            }
        }
    }

    fn note_sections(&mut self, path: &Path, bytes: &[u8]) {
        let clip = ClipFile::parse(bytes).unwrap();
        let info = clip.storage_info().unwrap();
        self.found.insert(path.join("storage info"), format!("{info:?}").into_bytes());
        self.found.insert(path.join("index"), clip.index().unwrap());
        self.found.insert(path.join("checkpoints"), clip.checkpoints().unwrap());
    }

    /// The command lines and environments of those who serve `clip`'s mounts; the environment without the variable `known`.
    fn note_servers(&mut self, clip: &Clip, known: Option<&str>) {
        let servers = clip.servers();
        assert!(!servers.is_empty());
        for pid in servers {
            let proc = PathBuf::from(format!("/proc/{pid}"));
            let environment = std::fs::read(proc.join("environ")).unwrap();
            let is_known = |line: &[u8]| known.is_some_and(|known| line.starts_with(format!("{known}=").as_bytes()));
            let others: Vec<&[u8]> = environment.split(|byte| *byte == 0).filter(|line| !is_known(line)).collect();
            self.found.insert(proc.join("environ"), others.join(&0));
            self.found.insert(proc.join("cmdline"), std::fs::read(proc.join("cmdline")).unwrap());
        }
    }

    fn assert_without(&self, secrets: &[String]) {
        assert!(self.has("DEBUG") && self.has("storage info"), "the logs are talkative, and a .clip was taken apart");
        let bytes: usize = self.found.values().map(Vec::len).sum();
        println!("{} secrets, {} files, sections, command lines and environments of {bytes} bytes", secrets.len(), self.found.len());
        for secret in secrets {
            for (path, bytes) in &self.found {
                assert!(!contains(bytes, secret) && !contains(path.as_os_str().as_bytes(), secret), "{secret} is in {}", path.display());
            }
        }
    }

    /// Whether `word` is in a file or in the name of one.
    fn has(&self, word: &str) -> bool {
        self.found.iter().any(|(path, bytes)| contains(bytes, word) || contains(path.as_os_str().as_bytes(), word))
    }
}

fn contains(text: &[u8], word: &str) -> bool {
    text.windows(word.len()).any(|window| window == word.as_bytes())
}

/// One way of having credentials.
struct Way {
    name: &'static str,
    variables: Vec<(String, String)>,
    arguments: Vec<String>,
    /// They are the right ones.
    works: bool,
}

/// Every way; what holds secrets by design is in `elsewhere`.
fn ways(guarded: &Guarded, elsewhere: &Path) -> Vec<Way> {
    let at = |name: &str| elsewhere.join(name).to_str().unwrap().to_owned();
    let (host, account) = (guarded.host(), &guarded.account);
    let file = |name: &str, entry: &str| vec!["--authfile".to_owned(), guarded.auth_file(&at(name), &host, entry).unwrap()];
    let right = guarded.password_entry(&account.password);
    let identity = format!(r#"{{"identitytoken":"{}"}}"#, account.identity_token);
    let variable = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    std::fs::write(at("config.json"), r#"{"credsStore":"clip-test"}"#).unwrap();
    write_helper(elsewhere, account).unwrap();
    let path = format!("{}:{}", elsewhere.display(), std::env::var("PATH").unwrap());
    let helper = vec![variable("DOCKER_CONFIG", &at("")), variable("PATH", &path), variable("CLIP_TEST_TEAM", "right")];
    let json = format!(r#"{{"{host}":{{"username":"{}","password":"{}"}}}}"#, account.user, account.password);
    let named = host.replace(['.', ':'], "_");
    let pair = vec![
        variable(&format!("CLIP_REGISTRY_USER_{named}"), &account.user),
        variable(&format!("CLIP_REGISTRY_PASS_{named}"), &account.password),
    ];
    let way = |name, variables, arguments, works| Way { name, variables, arguments, works };
    vec![
        way("file", vec![], file("auth.json", &right), true),
        way("identity", vec![], file("identity.json", &identity), true),
        way("json", vec![variable("CLIP_OCI_AUTH", &json)], vec![], true),
        way("variables", pair, vec![], true),
        way("helper", helper, vec![], true),
        way("wrong", vec![], file("wrong.json", &guarded.password_entry("wr0ng-s3cret")), false),
        way("token", vec![], file("token.json", r#"{"registrytoken":"registry-s3cret"}"#), false),
    ]
}

/// Index, mount, read and ask by `way`; what is said becomes files of the user's directory. A way that does not work mounts `known`.
fn go(guarded: &Guarded, way: &Way, known: &Path, traces: &mut Traces) -> PathBuf {
    let Way { name, variables, arguments, works } = way;
    let variables: Vec<_> = variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let (reference, own, dir) = (guarded.reference("private/sample"), guarded.clip.path(&format!("{name}.clip")), guarded.clip.path(name));
    std::fs::create_dir(&dir).unwrap();
    let run = |step: &str, command: &[&str]| {
        let arguments = arguments.iter().map(String::as_str);
        let all: Vec<_> = ["--log-level", "trace"].into_iter().chain(command.iter().copied()).chain(arguments).collect();
        let (succeeded, text) = guarded.with(&variables, &all).unwrap();
        assert_eq!(succeeded, *works || step == "mount", "{name} {step}: {text}");
        std::fs::write(guarded.clip.path(&format!("{name}.{step}.stderr")), &text).unwrap();
    };
    run("index", &["index", &reference, "-o", text(&own).unwrap()]);
    let own = if *works { own } else { known.to_owned() };
    let (clip, at, log) = (text(&own).unwrap(), text(&dir).unwrap(), guarded.clip.path(&format!("{name}.log")));
    run("mount", &["mount", clip, at, "--read-ahead", "0", "--log-file", text(&log).unwrap()]);
    assert_eq!(std::fs::read(dir.join(NOISE)).is_ok(), *works, "{name}");
    traces.note_servers(&guarded.clip, None);
    run("cat", &["cat", clip, "bin/tool"]);
    run("doctor", &["doctor", clip]);
    leave(&guarded.clip, &dir, name);
    own
}

/// The mount is gone, and its cache put aside: everything is asked for again by the next.
fn leave(clip: &Clip, dir: &Path, name: &str) {
    clip.umount(dir).unwrap();
    clip.wait_for_servers().unwrap();
    std::fs::rename(clip.cache_dir(), clip.path(&format!("{name}.cache"))).unwrap();
}

/// As [`go`], with a password that comes over standard input.
fn go_typed(guarded: &Guarded, traces: &mut Traces) {
    let (output, dir) = (guarded.clip.path("typed.clip"), guarded.clip.path("typed"));
    std::fs::create_dir(&dir).unwrap();
    let script = r#"
        say() { printf '%s' "$1"; }
        say "$1" | "$2" index "$3" -o "$4" --log-level trace --creds "$5" --password-stdin 2>"$4.index.stderr"
        say "$1" | "$2" mount "$4" "$6" --log-level trace --creds "$5" --password-stdin --read-ahead 0 2>"$4.mount.stderr""#;
    let (account, reference) = (&guarded.account, guarded.reference("private/sample"));
    let words: [&OsStr; 6] =
        [account.password.as_ref(), binary().as_os_str(), reference.as_ref(), output.as_os_str(), account.user.as_ref(), dir.as_os_str()];
    let cache = guarded.clip.cache_dir();
    let script = format!("export CLIP_CACHE_DIR=\"$7\"\n{script}");
    shell(&script, &[&words[..], &[cache.as_os_str()]].concat()).unwrap();
    guarded.assert_read_at(&dir, NOISE);
    traces.note_servers(&guarded.clip, None);
    leave(&guarded.clip, &dir, "typed");
}

/// Claim: index, mount, reads and failures with credentials from every place leave no trace of them, at log level trace.
#[test]
fn no_secret_is_ever_written_down() {
    if lacks(NEEDS) {
        return;
    }
    let guarded = Guarded::new(Lives { said: 1, true_life: 3 }).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let (ways, mut traces) = (ways(&guarded, elsewhere.path()), Traces::default());
    let mut known = PathBuf::new();
    for way in &ways {
        known = go(&guarded, way, &known, &mut traces);
    }
    go_typed(&guarded, &mut traces);

    let (account, issued) = (&guarded.account, guarded.tokens.issued());
    assert!(issued.iter().any(|issued| issued.by_post) && issued.len() > ways.len(), "{}", issued.len());
    let mut secrets = vec!["s3cret".to_owned(), account.password.clone(), account.identity_token.clone()];
    for password in [account.password.as_str(), "wr0ng-s3cret"] {
        secrets.push(STANDARD.encode(format!("{}:{password}", account.user)));
    }
    secrets.extend(issued.iter().filter_map(|issued| issued.token.rsplit('.').next()).map(str::to_owned));
    traces.note_files(guarded.clip.cache_dir().parent().unwrap());
    assert!(traces.has("/token") && traces.found.len() > 60, "{}", traces.found.len());
    traces.assert_without(&secrets);
}

/// A registry that answers only those who send the header of its settings, and leads blobs to a signed address.
fn signing(sample: &Sample) -> Web {
    let layout = sample.layout.clone();
    Web::start(move |head: &Head| {
        let path = head.target().split('?').next().unwrap_or_default();
        let name = path.rsplit('/').next().unwrap_or_default();
        let is_signed = head.target().ends_with("?X-Signature=query-s3cret&x=1");
        if !is_signed && head.header("x-key") != Some("header-s3cret") {
            return Answer::Status(403, "");
        }
        if path.contains("/blobs/") && !is_signed {
            return Answer::Redirect(format!("http://storage.invalid/blobs/{name}?X-Signature=query-s3cret&x=1"));
        }
        let digest = if name.contains(':') { name.to_owned() } else { layout.manifest(sample::TAG).unwrap().0 };
        std::fs::read(layout.blob_path(&digest).unwrap()).map_or(Answer::Status(404, ""), |bytes| Answer::Bytes(Arc::new(bytes)))
    })
    .unwrap()
}

/// Claim: nor do a header of hosts.toml, a proxy's password and a redirect's signed query leave a trace. The proxy's password is in the
/// environment of the owner, to which it is given in no other way, and which nobody else may read.
#[test]
fn settings_proxies_and_signed_addresses_leave_no_trace() {
    if lacks(&[Need::Root, Need::Fuse]) {
        return;
    }
    let sample = Sample::new().unwrap();
    let web = signing(&sample);
    let proxy = Proxy::start(web.authority().rsplit(':').next().unwrap().parse().unwrap()).unwrap();
    let clip = Clip::new().with_variable("HTTP_PROXY", proxy.url().replace("//", "//user:proxy-s3cret@"));
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::create_dir(elsewhere.path().join("registry.invalid")).unwrap();
    let settings = "[host.\"http://mirror.invalid\"]\n[host.\"http://mirror.invalid\".header]\nX-Key = \"header-s3cret\"\n";
    std::fs::write(elsewhere.path().join("registry.invalid/hosts.toml"), settings).unwrap();
    let reference = format!("registry.invalid/team/sample:{}", sample::TAG);
    let more = ["--hosts-dir", text(elsewhere.path()).unwrap(), "--plain-http"];
    let run = |step: &str, arguments: &[&str]| {
        let done = clip.run(&[&["--log-level", "trace"], arguments, &more].concat()).unwrap();
        std::fs::write(clip.path(&format!("{step}.stderr")), format!("{}{}", done.text(), done.stderr)).unwrap();
        assert!(done.status.success(), "{step}: {}", done.stderr);
    };
    let (file, dir, mut traces) = (clip.path("a.clip"), clip.path("mnt"), Traces::default());
    std::fs::create_dir(&dir).unwrap();
    run("index", &["index", &reference, "-o", text(&file).unwrap()]);
    run("mount", &["mount", text(&file).unwrap(), text(&dir).unwrap(), "--read-ahead", "0"]);
    assert!(std::fs::read(dir.join(NOISE)).unwrap() == sample.contents(NOISE));
    traces.note_servers(&clip, Some("HTTP_PROXY"));
    run("doctor", &["doctor", text(&file).unwrap()]);
    leave(&clip, &dir, "mnt");
    let seen = proxy.seen();
    assert!(seen.iter().any(|line| line.contains("X-Signature=query-s3cret") && line.contains("Basic ")), "{seen:?}");
    traces.note_files(clip.cache_dir().parent().unwrap());
    traces.assert_without(&["s3cret".to_owned(), STANDARD.encode("user:proxy-s3cret")]);
}
