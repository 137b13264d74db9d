//! The program in its tiny size, so that no subcommand can rot: the hashes of the work are checked by the program itself.
#![allow(clippy::unwrap_used)]

use std::process::Command;

use serde_json::Value;

fn run(arguments: &[&str]) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_clip-bench"));
    let output = command.args(["--tiny", "--json"]).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn ids(report: &Value) -> Vec<String> {
    report["figures"].as_array().unwrap().iter().map(|figure| figure["id"].as_str().unwrap().to_owned()).collect()
}

/// Claim: every subcommand runs, and yields figures of its own name with a spread that is in order.
#[test]
fn every_subcommand_runs() {
    for name in ["index", "size", "mount", "read", "memory"] {
        let report = run(&[name, "--runs", "1"]);
        let figures = report["figures"].as_array().unwrap();
        assert!(!figures.is_empty() || !report["skipped"].as_array().unwrap().is_empty(), "{name} found nothing");
        for figure in figures {
            let spread = ["min", "median", "max"].map(|name| figure["spread"][name].as_f64().unwrap());
            assert!(figure["id"].as_str().unwrap().starts_with(name), "{figure}");
            assert!(spread.is_sorted() && spread[0] >= 0.0, "{figure}");
        }
    }
}

/// Claim: `all` yields what the subcommands yield, and the same seed does the same work.
#[test]
fn all_is_everything_and_repeats() {
    let (one, two) = (run(&["all"]), run(&["all", "--runs", "1"]));
    assert_eq!(ids(&one), ids(&two));
    let work = |report: &Value| {
        report["figures"].as_array().unwrap().iter().map(|figure| figure["work"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(work(&one), work(&two));
    for name in ["index.", "size.", "read.", "memory."] {
        assert!(ids(&one).iter().any(|id| id.starts_with(name)), "no {name}");
    }
}
