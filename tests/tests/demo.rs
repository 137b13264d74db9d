//! `clip demo` works on any machine, with a mount where there can be one, and cleans up.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use clip_tests::clip::Clip;

/// It ends well, says what was fetched, and leaves no mount and no process.
#[test]
fn demo_runs_and_cleans_up() {
    let clip = Clip::new();
    for arguments in [&["demo"][..], &["demo", "--no-mount"]] {
        let said = clip.ok(arguments).unwrap();
        let said = format!("{}{}", said.text(), said.stderr);
        assert!(said.contains("requests") && said.contains("fetched"), "{arguments:?} does not say what was fetched:\n{said}");
    }
    clip.wait_for_servers().unwrap();
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.lines().any(|line| line.contains("clip-demo")), "{mounts}");
}
