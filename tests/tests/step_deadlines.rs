//! Each deadline of a step ends what it bounds, when it was set and not before: against ports where that step never ends.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::{
    thread,
    time::{Duration, Instant},
};

use clip_tests::{
    clip::{Clip, text},
    faults::{Fault, Server},
    holes::{Hole, Step},
    images::{Layout, Member, nasty::noise},
    machine::{Need, lacks},
};
use serde_json::json;

/// What each deadline is set to.
const SET: Duration = Duration::from_secs(2);
/// How much later than its deadline something may end. Source: a debug build of clip starts and ends in 0.1 s alone and in 1 s beside the
/// other tests on 2 cores.
const MARGIN: Duration = Duration::from_secs(2);

/// How that is said.
const WAITED: &str = "no progress for 2s";

struct Case {
    option: &'static str,
    /// What the error has to say was late.
    late: &'static str,
    /// ... and how long it was waited for.
    waited: &'static str,
    /// What ends there.
    step: Option<Step>,
    /// 0.0.0.0 does not look like a loopback address, so that TLS is spoken to it.
    host: &'static str,
}

const CASES: &[Case] = &[
    Case {
        option: "--connect-timeout",
        late: "http://127.0.0.1:",
        waited: "does not answer within 2.0 s",
        step: Some(Step::Connect),
        host: "127.0.0.1",
    },
    Case {
        option: "--tls-timeout",
        late: "TLS handshake with https://0.0.0.0:",
        waited: WAITED,
        step: Some(Step::Silence),
        host: "0.0.0.0",
    },
    Case { option: "--first-byte-timeout", late: "GET http://127.0.0.1:", waited: WAITED, step: Some(Step::Silence), host: "127.0.0.1" },
    Case { option: "--first-byte-timeout", late: "GET http://127.0.0.1:", waited: WAITED, step: Some(Step::Head), host: "127.0.0.1" },
    Case { option: "--stall-timeout", late: "(body)", waited: WAITED, step: None, host: "127.0.0.1" },
];

/// Where the step of a case never ends.
enum Place {
    Hole(Hole),
    Server(Server),
}

impl Place {
    fn of(case: &Case, layout: &Layout) -> Self {
        let Some(step) = case.step else {
            let server = Server::start(layout).unwrap();
            server.fault(Fault::SilentAfter(100));
            return Self::Server(server);
        };
        Self::Hole(Hole::start(step).unwrap())
    }

    fn port(&self) -> u16 {
        match self {
            Self::Hole(hole) => hole.port(),
            Self::Server(server) => server.port(),
        }
    }
}

/// The wait was the one that was set: not the read timeout's, nor another step's default (a third and a half of 60 s).
fn assert_in_time(case: &Case, during: &str, time: Duration) {
    println!("{:20} {during:5} {:?}: {:.1} s", case.option, case.step, time.as_secs_f64());
    assert!(time >= SET && time <= SET + MARGIN, "{} during {during}: {time:?}", case.option);
}

fn assert_says(case: &Case, said: &str) {
    let lines: Vec<&str> = said.lines().filter(|line| line.contains(case.late)).collect();
    assert!(lines.len() == 1 && lines[0].contains(case.waited), "{}: {said}", case.option);
}

fn index(case: &Case, layout: &Layout) {
    let (clip, place) = (Clip::new(), Place::of(case, layout));
    let reference = format!("{}:{}/test/late:t", case.host, place.port());
    let output = clip.path("late.clip");
    let began = Instant::now();
    let told = clip.fails(&[
        "index",
        &reference,
        "-o",
        text(&output).unwrap(),
        "--quiet",
        "--read-timeout",
        "60s",
        "--retries",
        "0",
        case.option,
        "2s",
    ]);
    assert_in_time(case, "index", began.elapsed());
    assert_says(case, &told.unwrap());
    assert!(!output.exists());
}

fn read(case: &Case, layout: &Layout) {
    let (clip, place, well) = (Clip::new(), Place::of(case, layout), Server::start(layout).unwrap());
    let file = clip.index(&well.reference("late", "t"), "late", &[]).unwrap();
    let store = format!("{}:{}/test/late:t", case.host, place.port());
    let mount = clip.mount(&file, &["--store-ref", &store, "--read-timeout", "60s", "--retries", "0", case.option, "2s"]).unwrap();
    let began = Instant::now();
    let error = std::fs::read(mount.path("f")).expect_err("nothing comes");
    assert_in_time(case, "read", began.elapsed());
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    assert_says(case, &clip.log());
    mount.umount().unwrap();
}

/// Claim: `--connect-timeout`, `--tls-timeout`, `--first-byte-timeout` and `--stall-timeout` each end a single try of theirs at the time set,
/// of `clip index` and of a read through `clip mount`, with one line that says which step was waited for and how long.
#[test]
fn every_step_ends_at_the_deadline_that_was_set_for_it() {
    if lacks(&[Need::Root, Need::Fuse]) {
        return;
    }
    // Not within a time that is measured.
    let _ = clip_tests::clip::binary();
    let layout = Layout::scratch().unwrap();
    let layer = layout.gzip(&[Member::file("f", noise(7, 100_000))]).unwrap();
    layout.image("t", &[layer], json!({})).unwrap();
    thread::scope(|scope| {
        for case in CASES {
            scope.spawn(|| index(case, &layout));
            scope.spawn(|| read(case, &layout));
        }
    });
}
