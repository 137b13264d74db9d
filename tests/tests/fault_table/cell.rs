//! One fault during one operation.

use std::{
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use clip_tests::{
    clip::{Clip, Mount, text},
    process::wait_until,
};

use super::{
    Image,
    bench::Bench,
    rows::{Name, Plan, Row},
    watch,
};

/// What is done while the registry fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    Index,
    Read,
    Fill,
}

impl Operation {
    pub const ALL: [Self; 3] = [Self::Index, Self::Read, Self::Fill];

    pub fn name(self) -> &'static str {
        match self {
            Self::Index => "index",
            Self::Read => "read",
            Self::Fill => "fill",
        }
    }
}

/// Where the answers come from that are spoiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Behind {
    Layout,
    /// docker-registry, at this port.
    Registry(u16),
}

impl Behind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Layout => "scripted",
            Self::Registry(_) => "docker",
        }
    }
}

/// How one phase went.
pub struct Outcome {
    /// What was seen, in a word.
    saw: String,
    time: Duration,
    requests: usize,
    cpu: Duration,
    /// Connections while the mount is there, beyond those before.
    kept: usize,
    /// Connections when the program has ended, or the mount is gone.
    left: usize,
}

impl Outcome {
    pub fn text(&self) -> String {
        let (seconds, cpu) = (self.time.as_secs_f64(), self.cpu.as_millis());
        format!("{:10} {seconds:5.1} s {:3} {cpu:4} ms {:2} {:2}", self.saw, self.requests, self.kept, self.left)
    }
}

/// Connections that may be kept for the next request while a mount is there: four to a layer.
const KEPT_MAX: usize = 4;
/// Longer than this is a hang.
pub const HANG: Duration = Duration::from_secs(150);
/// How long a failed read answers the kernel's second question for the same pages (fuse/src/tree/failures.rs), and a little more.
const FAILURE_REMEMBERED: Duration = Duration::from_millis(700);
/// Processor time of one phase that only waits. A debug build that decodes 1.2 MB takes a tenth of a second.
const CPU_MAX: Duration = Duration::from_millis(1500);

/// One fault during one operation at one registry, tried.
pub struct Cell {
    pub row: &'static Row,
    pub operation: Operation,
    pub behind: Behind,
    pub passing: Option<Outcome>,
    pub lasting: Option<Outcome>,
    problems: Vec<String>,
}

impl Cell {
    pub fn try_it(image: &Image, row: &'static Row, operation: Operation, behind: Behind) -> Self {
        let mut cell = Self { row, operation, behind, passing: None, lasting: None, problems: Vec::new() };
        let bench = Bench::new(image, row, behind);
        match operation {
            Operation::Index => cell.index(&bench),
            Operation::Read => cell.read(&bench),
            Operation::Fill => cell.fill(&bench),
        }
        let limits = [(&cell.passing, row.passing_max), (&cell.lasting, row.lasting_max)];
        let mut found = Vec::new();
        for (outcome, time_max) in limits.into_iter().filter_map(|(outcome, max)| Some((outcome.as_ref()?, max))) {
            found.extend((outcome.time > time_max).then(|| format!("{:?}, at most {time_max:?}", outcome.time)));
            found.extend((outcome.requests > row.requests_max).then(|| format!("{} requests", outcome.requests)));
            found.extend((outcome.cpu > CPU_MAX).then(|| format!("{:?} of processor", outcome.cpu)));
            found.extend((outcome.kept > KEPT_MAX).then(|| format!("{} connections kept", outcome.kept)));
            found.extend((outcome.left > 0).then(|| format!("{} connections left", outcome.left)));
        }
        cell.problems.extend(found);
        cell
    }

    pub fn problems(&self) -> Vec<String> {
        let name = format!("{} during {} ({})", self.row.name, self.operation.name(), self.behind.name());
        self.problems.iter().map(|problem| format!("{name}: {problem}")).collect()
    }

    fn demand(&mut self, holds: bool, text: impl FnOnce() -> String) {
        if !holds {
            self.problems.push(text());
        }
    }

    fn index(&mut self, bench: &Bench<'_>) {
        let clip = Clip::new();
        let scratch = clip.path("tmp");
        std::fs::create_dir(&scratch).unwrap();
        let (well, new) = (clip.path("well.clip"), clip.path("new.clip"));
        bench.index(&clip, &bench.reference(), &well);
        if let Some(plan) = self.row.lasting {
            std::fs::write(&new, "old").unwrap();
            bench.begin(plan);
            let mut command = bench.index_command(&clip, &bench.faulty_reference(), &new);
            let ended = watch::run(&clip, command.env("TMPDIR", &scratch), HANG);
            let outcome = Outcome::of_index(&ended, bench, || std::fs::read(&new).unwrap() == b"old");
            self.demand(outcome.saw == "error", || format!("lasting: {}: {}", outcome.saw, ended.stderr));
            self.lasting = Some(outcome);
            let lines: Vec<&str> = ended.stderr.lines().filter(|line| !line.trim().is_empty()).collect();
            self.demand(lines.len() == self.row.lines, || format!("lasting: {} lines: {}", lines.len(), ended.stderr));
            for said in [self.row.says, "/test/table", &bench.culprit(plan)] {
                self.demand(ended.stderr.contains(said), || format!("lasting: {said:?} is not said: {}", ended.stderr));
            }
            self.demand(std::fs::read_dir(&scratch).unwrap().next().is_none(), || "lasting: something is left in TMPDIR".to_owned());
            bench.heal();
        }
        if let Some(plan) = self.row.passing {
            bench.begin(plan);
            let mut command = match plan {
                Plan::Nameless(time) => bench.index_when_named(&clip, &new, time),
                _ => bench.index_command(&clip, &bench.reference(), &new),
            };
            let ended = watch::run(&clip, &mut command, HANG);
            // The .clip has the registry's name in it.
            let is_same = || self.row.at != Name::Address || std::fs::read(&new).unwrap() == std::fs::read(&well).unwrap();
            let outcome = Outcome::of_index(&ended, bench, is_same);
            self.demand(outcome.saw == "right", || format!("passing: {}: {}", outcome.saw, ended.stderr));
            self.passing = Some(outcome);
        }
        bench.heal();
        bench.index(&clip, &bench.reference(), &clip.path("again.clip"));
    }

    fn read(&mut self, bench: &Bench<'_>) {
        let clip = Clip::new();
        let file = clip.path("well.clip");
        bench.index(&clip, &bench.reference(), &file);
        let mut mount = bench.mount(&clip, &file, &[]);
        let mut owner = Owner::of(&clip);
        if let Some(plan) = self.row.lasting {
            bench.begin(plan);
            let begun = owner.begin();
            let saw = read_all(mount.dir(), &bench.image.files[FAR..=FAR], HANG);
            self.demand(saw == Saw::Errno(libc::EIO), || format!("lasting: {saw:?}"));
            self.lasting = Some(owner.outcome(saw.word(), &begun, bench));
            self.assert_log(&clip);
            bench.heal();
            thread::sleep(FAILURE_REMEMBERED);
            if self.row.at != Name::Address {
                mount.umount().unwrap();
                clip.wait_for_servers().unwrap();
                mount = bench.well_mount(&clip, &file);
                owner = Owner::of(&clip);
            }
        }
        let passing = self.row.passing.filter(|_| self.row.at == Name::Address);
        if let Some(plan) = passing {
            bench.begin(plan);
        }
        let begun = owner.begin();
        let saw = read_all(mount.dir(), &bench.image.files, HANG);
        self.demand(saw == Saw::Right, || {
            format!("passing or healed: {saw:?}: {}", clip.log().lines().filter(is_fault).collect::<String>())
        });
        self.passing = passing.map(|_| owner.outcome(saw.word(), &begun, bench));
        mount.umount().unwrap();
        clip.wait_for_servers().unwrap();
        let left = bench.left();
        self.passing.iter_mut().chain(&mut self.lasting).for_each(|outcome| outcome.left = left);
    }

    fn fill(&mut self, bench: &Bench<'_>) {
        let file = bench.clip.path("well.clip");
        bench.index(&bench.clip, &bench.reference(), &file);
        if let Some(plan) = self.row.lasting {
            let clip = Clip::new();
            bench.begin(plan);
            let (mut outcome, filled, mount) = filled(bench, &clip, &file);
            let is_given_up = filled.as_ref().is_some_and(|filled| filled.spans_done < filled.spans);
            self.demand(is_given_up, || format!("lasting: {}: {}", outcome.saw, clip.log().lines().filter(is_fault).collect::<String>()));
            self.assert_log(&clip);
            bench.heal();
            if self.row.at == Name::Address {
                let saw = read_all(mount.dir(), &bench.image.files, HANG);
                self.demand(saw == Saw::Right, || format!("healed: {saw:?}: {}", clip.log().lines().filter(is_fault).collect::<String>()));
            }
            mount.umount().unwrap();
            clip.wait_for_servers().unwrap();
            outcome.left = bench.left();
            self.lasting = Some(outcome);
        }
        if let Some(plan) = self.row.passing.filter(|_| self.row.at == Name::Address) {
            let clip = Clip::new();
            bench.begin(plan);
            let (mut outcome, filled, mount) = filled(bench, &clip, &file);
            let is_full = filled.as_ref().is_some_and(|filled| filled.spans_done == filled.spans);
            self.demand(is_full, || format!("passing: {}: {}", outcome.saw, clip.log().lines().filter(is_fault).collect::<String>()));
            bench.begin(Plan::Closed(HANG * 2));
            let saw = read_all(mount.dir(), &bench.image.files, HANG);
            self.demand(saw == Saw::Right, || {
                format!("passing: not all is in the cache: {saw:?}: {}", clip.log().lines().filter(is_fault).collect::<String>())
            });
            mount.umount().unwrap();
            clip.wait_for_servers().unwrap();
            if is_full {
                outcome.saw = saw.word();
            }
            outcome.left = bench.left();
            self.passing = Some(outcome);
        }
    }

    /// What failed is in the log: as many lines as the row says, one where there is one request, with the layer and why.
    fn assert_log(&mut self, clip: &Clip) {
        let log = clip.log();
        let lines: Vec<&str> = log.lines().filter(is_fault).collect();
        let about: Vec<&&str> = lines.iter().filter(|line| line.contains("a fetch failed")).collect();
        let shown = lines.join("\n");
        self.demand((1..=self.row.log_lines_max).contains(&about.len()), || format!("lasting: {} lines in the log:\n{shown}", about.len()));
        let is_clear = about.iter().all(|line| line.contains(self.row.says) && line.contains("layer=sha256:"));
        self.demand(is_clear, || format!("lasting: {:?} or the layer is not said:\n{shown}", self.row.says));
    }
}

impl Outcome {
    /// What a `clip index` did; `is_as_meant` looks at its output.
    fn of_index(ended: &watch::Ended, bench: &Bench<'_>, is_as_meant: impl Fn() -> bool) -> Self {
        let saw = match ended.code {
            Some(0) if is_as_meant() => "right".to_owned(),
            Some(0) => "WRONG".to_owned(),
            Some(1) if is_as_meant() => "error".to_owned(),
            Some(code) => format!("exit {code}"),
            None if ended.hangs => "HANGS".to_owned(),
            None => "signal".to_owned(),
        };
        Self { saw, time: ended.time, requests: bench.requests(), cpu: ended.cpu, kept: 0, left: bench.left() }
    }
}

/// Whether a line of an owner's log tells of something that went wrong.
fn is_fault(line: &&str) -> bool {
    line.contains("ERROR") || line.contains("WARN")
}

/// What reading files gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Saw {
    Right,
    /// Bytes that are not the image's.
    Wrong,
    Errno(i32),
    Hangs,
}

impl Saw {
    fn word(self) -> String {
        match self {
            Self::Right => "right".to_owned(),
            Self::Wrong => "WRONG".to_owned(),
            Self::Errno(libc::EIO) => "EIO".to_owned(),
            Self::Errno(number) => format!("errno {number}"),
            Self::Hangs => "HANGS".to_owned(),
        }
    }
}

/// Mounts with a fill and waits for its end, which `None` says did not come.
fn filled<'c>(bench: &Bench<'_>, clip: &'c Clip, file: &Path) -> (Outcome, Option<Filled>, Mount<'c>) {
    let stats = clip.path("stats.json");
    let began = Instant::now();
    let mount = bench.mount(clip, file, &["--fill", "now", "--stats", text(&stats).unwrap()]);
    let owner = Owner::of(clip);
    let begun = Begun { at: began, cpu: Duration::ZERO, sockets: 1 };
    let mut filled = None;
    let _ = wait_until("the fill ends", HANG, || {
        filled = Filled::of(owner.pid, &stats);
        filled.is_some()
    });
    let saw = filled.as_ref().map_or_else(|| "HANGS".to_owned(), |filled| format!("{} of {}", filled.spans_done, filled.spans));
    (owner.outcome(saw, &begun, bench), filled, mount)
}

/// The file that is read while the fault lasts, far from what its reader would have read ahead.
const FAR: usize = 4;

/// What reading `files` gives, up to the first that is not right, within `time`.
fn read_all(dir: &Path, files: &[(String, Vec<u8>)], time: Duration) -> Saw {
    let (sender, receiver) = mpsc::channel();
    let files: Vec<(PathBuf, Vec<u8>)> = files.iter().map(|(name, contents)| (dir.join(name), contents.clone())).collect();
    thread::spawn(move || {
        let one = |(path, contents): &(PathBuf, Vec<u8>)| match std::fs::read(path) {
            Ok(found) if found == *contents => Saw::Right,
            Ok(_) => Saw::Wrong,
            Err(error) => Saw::Errno(error.raw_os_error().unwrap_or(-1)),
        };
        let _ = sender.send(files.iter().map(one).find(|saw| *saw != Saw::Right).unwrap_or(Saw::Right));
    });
    receiver.recv_timeout(time).unwrap_or(Saw::Hangs)
}

/// A fill that has ended.
struct Filled {
    spans: u64,
    spans_done: u64,
}

impl Filled {
    /// `None`: it goes on.
    fn of(owner: u32, stats: &Path) -> Option<Self> {
        let _ = std::fs::remove_file(stats);
        let pid = rustix::process::Pid::from_raw(i32::try_from(owner).unwrap()).unwrap();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::USR1);
        let _ = wait_until("statistics", Duration::from_secs(5), || stats.exists());
        thread::sleep(Duration::from_millis(100));
        let report: serde_json::Value = serde_json::from_slice(&std::fs::read(stats).unwrap_or_default()).ok()?;
        let fill = &report["mounts"][0]["fill"];
        let number = |name: &str| fill[name].as_u64();
        Some(Self { spans: number("spans")?, spans_done: number("spans_done")? }).filter(|_| fill["is_finished"] == true)
    }
}

/// The process that serves a mount.
struct Owner {
    pid: u32,
}

struct Begun {
    at: Instant,
    cpu: Duration,
    sockets: usize,
}

impl Owner {
    fn of(clip: &Clip) -> Self {
        Self { pid: clip.servers()[0] }
    }

    fn begin(&self) -> Begun {
        Begun { at: Instant::now(), cpu: watch::cpu(self.pid).unwrap_or_default(), sockets: watch::sockets(self.pid) }
    }

    /// The time ends now; what is open is looked at a moment later, and what is left of it when the mount is gone.
    fn outcome(&self, saw: String, begun: &Begun, bench: &Bench<'_>) -> Outcome {
        let time = begun.at.elapsed();
        let cpu = watch::cpu(self.pid).unwrap_or_default().saturating_sub(begun.cpu);
        let kept = || watch::sockets(self.pid).saturating_sub(begun.sockets);
        let _ = wait_until("connections close", Duration::from_secs(2), || kept() <= KEPT_MAX);
        Outcome { saw, time, requests: bench.requests(), cpu, kept: kept(), left: 0 }
    }
}
