//! `clip doctor` says of each thing that clip needs whether it is there.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use clip_tests::{
    clip::Clip,
    faults::Server,
    images::sample::{self, Sample},
};

/// Each check is listed; a registry that answers is good, one that is dead is bad and named.
#[test]
fn doctor_checks_the_machine_and_the_registry() {
    let sample = Sample::new().unwrap();
    let mut server = Server::start(&sample.layout).unwrap();
    let clip = Clip::new();
    let reference = server.reference("sample", sample::TAG);
    let said = clip.run(&["doctor", &reference]).unwrap().text();
    for check in ["/dev/fuse", "fusermount3", "io_uring", "127.0.0.1"] {
        assert!(said.contains(check), "{check} is not checked:\n{said}");
    }
    let report: serde_json::Value = serde_json::from_slice(&clip.run(&["doctor", "--json", &reference]).unwrap().stdout).unwrap();
    assert!(report.is_array() || report.is_object());
    server.die();
    let dead = clip.run(&["doctor", &reference]).unwrap();
    assert!(!dead.status.success(), "a dead registry is no good state:\n{}", dead.text());
}
