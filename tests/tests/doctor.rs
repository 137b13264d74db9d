//! `clip doctor` says of each thing that clip needs how it stands, and of what does not work how to mend it.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::{collections::BTreeMap, path::Path, process::Command};

use clip_tests::{
    clip::{Clip, binary, text},
    faults::Server,
    images::sample::{self, Sample},
    machine::{Need, lacks},
    process::{Finished, run},
};
use serde_json::Value;

/// What is examined on every machine, and with a reference.
const CHECKS: [&str; 8] =
    ["/dev/fuse", "fusermount3", "user_allow_other", "io_uring", "cache directory", "hole punching", "free space", "registry"];

/// Health by name, from `--json`; each finding has a detail, and a hint exactly when it is not ok.
fn findings(finished: &Finished) -> BTreeMap<String, String> {
    let report: Value = serde_json::from_slice(&finished.stdout).unwrap();
    let all = report.as_array().unwrap().iter().map(|finding| {
        let field = |name: &str| finding[name].as_str().unwrap_or_else(|| panic!("no {name}: {finding}")).to_owned();
        let health = field("health");
        assert!(["ok", "warn", "fail"].contains(&&health[..]), "{finding}");
        assert!(!field("detail").is_empty(), "{finding}");
        assert_eq!(field("mend").is_empty(), health == "ok", "{finding}");
        (field("name"), health)
    });
    let all: BTreeMap<String, String> = all.collect();
    assert_eq!(finished.status.success(), !all.values().any(|health| health == "fail"), "{all:?}");
    all
}

/// The same from the text: `ok   NAME: detail`, and below what is not ok an arrow with the hint.
fn findings_of_text(finished: &Finished) -> BTreeMap<String, String> {
    let said = finished.text();
    let mut lines = said.lines().peekable();
    let mut all = BTreeMap::new();
    while let Some(line) = lines.next() {
        let (health, rest) = line.split_once(' ').unwrap();
        let (name, detail) = rest.trim_start().split_once(": ").unwrap();
        assert!(!detail.is_empty(), "{line}");
        let hint = lines.next_if(|next| next.starts_with("     -> "));
        assert_eq!(hint.is_none(), health == "ok", "{line}: {hint:?}");
        all.insert(name.to_owned(), health.to_lowercase());
    }
    all
}

/// Both forms of the report of `clip doctor ARGUMENTS`, which must agree.
fn examine(clip: &Clip, arguments: &[&str]) -> BTreeMap<String, String> {
    let json = findings(&clip.run(&[&["doctor", "--json"], arguments].concat()).unwrap());
    let text = findings_of_text(&clip.run(&[&["doctor"], arguments].concat()).unwrap());
    assert_eq!(json, text);
    json
}

/// Every check is listed with its state, as text and as JSON; a registry that answers is good, one that is dead is bad, with a hint.
#[test]
fn doctor_checks_the_machine_and_the_registry() {
    let sample = Sample::new().unwrap();
    let mut server = Server::start(&sample.layout).unwrap();
    let clip = Clip::new();
    let reference = server.reference("sample", sample::TAG);
    let found = examine(&clip, &[&reference]);
    for check in CHECKS {
        assert!(found.contains_key(check), "{check} is not checked: {found:?}");
    }
    assert_eq!([&found["registry"], &found["cache directory"], &found["hole punching"]], ["ok"; 3]);
    if !lacks(&[Need::Fuse]) {
        assert_eq!(found["/dev/fuse"], "ok");
    }
    assert_eq!(examine(&clip, &[&server.reference("sample", "no-such-tag")])["registry"], "fail");
    server.die();
    assert_eq!(examine(&clip, &[&reference, "--read-timeout", "1s"])["registry"], "fail");
}

/// A `.clip` is examined through its registry, down to a ranged read of a layer.
#[test]
fn doctor_examines_a_clip() {
    let sample = Sample::new().unwrap();
    let mut server = Server::start(&sample.layout).unwrap();
    let clip = Clip::new();
    let file = clip.index(&server.reference("sample", sample::TAG), "sample", &[]).unwrap();
    let found = examine(&clip, &[text(&file).unwrap()]);
    assert_eq!([&found[".clip"], &found["registry"], &found["ranged reads"]], ["ok"; 3]);
    server.die();
    assert_eq!(examine(&clip, &[text(&file).unwrap(), "--read-timeout", "1s"])["ranged reads"], "fail");
}

/// A cache directory that cannot be is bad.
#[test]
fn doctor_finds_a_bad_cache_directory() {
    let clip = Clip::new();
    let not_a_directory = clip.path("file");
    std::fs::write(&not_a_directory, "").unwrap();
    let below = not_a_directory.join("cache");
    assert_eq!(examine(&clip, &["--cache-dir", text(&below).unwrap()])["cache directory"], "fail");
}

/// What only a user lacks is found when a user asks: nobody may open a /dev/fuse of root alone, or has user_allow_other by default.
#[test]
fn doctor_finds_what_a_user_lacks() {
    if lacks(&[Need::Root, Need::Tool("setpriv")]) {
        return;
    }
    let clip = Clip::new();
    // The build's own directory may be closed to others.
    let program = clip.path("clip");
    std::fs::copy(binary(), &program).unwrap();
    let home = clip.path("home");
    std::fs::create_dir(&home).unwrap();
    std::os::unix::fs::chown(&home, Some(1000), Some(1000)).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid=1000", "--regid=1000", "--clear-groups"]).arg(&program).args(["doctor", "--json"]);
    let found = findings(&run(command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", &home)).unwrap());
    let opens =
        Command::new("setpriv").args(["--reuid=1000", "--regid=1000", "--clear-groups", "test", "-w", "/dev/fuse"]).status().unwrap();
    assert_eq!(found["/dev/fuse"], if opens.success() { "ok" } else { "fail" });
    let conf = std::fs::read_to_string(Path::new("/etc/fuse.conf")).unwrap_or_default();
    let set = conf.lines().any(|line| line.trim() == "user_allow_other");
    assert_eq!(found["user_allow_other"], if set { "ok" } else { "warn" });
    assert_eq!(found["cache directory"], "ok");
}
