//! A program under watch: how long it ran, what it cost, what it left open.

use std::{
    fs::File,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use clip_tests::{clip::Clip, process::Running};

/// How a program ended.
pub struct Ended {
    /// `None`: of a signal, or not at all.
    pub code: Option<i32>,
    /// It did not end in the time it had.
    pub hangs: bool,
    pub stderr: String,
    pub time: Duration,
    pub cpu: Duration,
}

/// Runs `command` to its end, or for `time`, after which it is killed.
pub fn run(clip: &Clip, command: &mut Command, time: Duration) -> Ended {
    let path = clip.path("stderr");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&path).unwrap());
    let (began, mut child) = (Instant::now(), Running::start(command).unwrap());
    let mut spent = Duration::ZERO;
    let ended = |code, hangs, cpu| Ended { code, hangs, stderr: std::fs::read_to_string(&path).unwrap(), time: began.elapsed(), cpu };
    while began.elapsed() < time {
        // Of a process that has ended and was not waited for, this is still there.
        spent = cpu(child.0.id()).unwrap_or(spent);
        if let Some(status) = child.0.try_wait().unwrap() {
            return ended(status.code(), false, spent);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    ended(None, true, spent)
}

/// The processor time of process `pid` so far.
pub fn cpu(pid: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(Duration::from_millis(ticks * 10))
}

/// The sockets that process `pid` has open.
pub fn sockets(pid: u32) -> usize {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries.filter_map(|entry| std::fs::read_link(entry.path()).ok()).filter(|to| to.to_string_lossy().starts_with("socket:")).count()
}
