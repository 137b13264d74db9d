//! What needs real mounts, in its tiny size. The program itself compares the hashes of the work with the floor's.
#![allow(clippy::unwrap_used)]

use std::process::Command;

use serde_json::Value;

fn run(arguments: &[&str]) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_clip-bench"));
    let output = command.args(["--tiny", "--json", "--runs", "1"]).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    // It fails too where this machine can take none of the figures; then the report says why.
    assert!(output.status.success() || said.contains("nothing was measured"), "{arguments:?}: {said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The figures whose id begins with `prefix`; `None`, and a line that says why, when this machine could not take them.
fn figures(report: &Value, prefix: &str) -> Option<Vec<Value>> {
    let figures = report["figures"].as_array().unwrap().iter();
    let found: Vec<_> = figures.filter(|figure| figure["id"].as_str().unwrap().starts_with(prefix)).cloned().collect();
    if found.is_empty() {
        let skipped = report["skipped"].as_array().unwrap();
        assert!(!skipped.is_empty(), "neither figures of {prefix} nor a reason: {report}");
        eprintln!("skipped {prefix}: {skipped:?}");
        return None;
    }
    Some(found)
}

fn counter(figure: &Value, name: &str) -> f64 {
    let counters = figure["counters"].as_array().unwrap().iter();
    let found = counters.clone().find(|counter| counter["name"].as_str().unwrap().starts_with(name));
    found.unwrap_or_else(|| panic!("no {name} in {figure}"))["spread"]["median"].as_f64().unwrap()
}

/// Claim: every storm runs with one client and with four, through a fresh mount and again, and finds what the floor finds.
#[test]
fn storms_find_what_the_floor_finds() {
    let Some(found) = figures(&run(&["metadata"]), "metadata.") else { return };
    assert_eq!(found.len(), 4 * 2 * 2);
    for storm in found.chunks(4) {
        let work: Vec<_> = storm.iter().map(|figure| (figure["id"].as_str().unwrap().chars().last(), figure["work"].clone())).collect();
        // In order: fresh and cached with one client, then with four, whose hash is over another order.
        assert_eq!(work[0].1, work[1].1, "{storm:?}");
        assert_eq!(work[2].1, work[3].1, "{storm:?}");
        assert!(storm.iter().all(|figure| figure["floor"].is_object()));
    }
}

/// Claim: a warm read of the large file gives the same bytes as through the trivial file system.
#[test]
fn warm_reads_find_what_the_floor_finds() {
    let Some(found) = figures(&run(&["read"]), "read.warm.") else { return };
    let work: Vec<_> = found.iter().map(|figure| figure["work"].clone()).collect();
    assert_eq!(work.len(), 3);
    assert!(work.iter().all(|other| *other == work[0]));
}

/// Claim: a cold start reads the same in a mount, with and without a profile that is recorded for it, and in the unpacked tree, fetches
/// something, and decodes at least what it needed.
#[test]
fn a_cold_start_reads_the_same_everywhere() {
    let report = run(&["coldstart", "--pull", "--record-profile"]);
    let Some(found) = figures(&report, "coldstart.first") else { return };
    let (fetched, decoded, needed) =
        (counter(&found[0], "fetched"), counter(&found[0], "decoded"), counter(&found[0], "of the spans needed"));
    assert!(fetched > 0.0 && needed > 0.0 && decoded >= needed, "{}", found[0]);
    for id in ["coldstart.second", "coldstart.pulled", "coldstart.decoded", "coldstart.fetched", "coldstart.bound"] {
        assert!(figures(&report, id).is_some(), "no {id}");
        assert!(figures(&report, &format!("{id}.profile")).is_some(), "no {id} with a profile");
    }
    // What decoding passes on its way counts without a profile too.
    let profiled = &figures(&report, "coldstart.first.profile").unwrap()[0];
    let brought = [&found[0], profiled].map(|figure| counter(figure, "spans brought before"));
    assert!(brought[1] > brought[0], "nothing was replayed: {profiled}");
}

/// Claim: a command that fails in the mount is an error that shows what it said.
#[test]
fn a_command_that_fails_is_an_error() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_clip-bench"));
    let output = command.args(["--tiny", "--runs", "1", "coldstart", "--", "/bin/cat", "/no/such/file"]).output().unwrap();
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if out.contains("skipped: coldstart") {
        eprintln!("{out}");
        return;
    }
    assert!(!output.status.success() && error.contains("/no/such/file: No such file"), "{error}");
}

/// Claim: many mounts, a large tree and idle mounts are measured, and every mount answers the same.
#[test]
fn many_large_and_idle_mounts_are_measured() {
    let report = run(&["mount"]);
    for id in ["mount.many.one.each", "mount.many.several.memory", "mount.million.more"] {
        let _ = figures(&report, id);
    }
    if let Some(found) = figures(&run(&["memory"]), "memory.idle") {
        assert_eq!(found.len(), 4);
        assert!(found[2]["what"].as_str().unwrap().contains("128 cores"), "{}", found[2]);
    }
}
