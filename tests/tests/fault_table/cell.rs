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
    word: &'static str,
    time: Duration,
    requests: usize,
    cpu: Duration,
    /// Connections beyond those before.
    left: usize,
}

impl Outcome {
    pub fn text(&self) -> String {
        let (seconds, cpu) = (self.time.as_secs_f64(), self.cpu.as_millis());
        format!("{:9} {seconds:5.1} s {:3} {cpu:4} ms {:2}", self.word, self.requests, self.left)
    }
}

/// Connections that may be kept for the next request: four to a layer.
const IDLE_MAX: usize = 4;
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
            found.extend((outcome.left > IDLE_MAX).then(|| format!("{} connections left", outcome.left)));
        }
        cell.problems.extend(found);
        cell
    }

    pub fn problems(&self) -> Vec<String> {
        let name = format!("{} during {} ({})", self.row.name, self.operation.name(), self.behind.name());
        self.problems.iter().map(|problem| format!("{name}: {problem}")).collect()
    }

    fn problem(&mut self, text: impl Into<String>) {
        self.problems.push(text.into());
    }

    fn demand(&mut self, holds: bool, text: impl FnOnce() -> String) {
        if !holds {
            self.problem(text());
        }
    }

    fn index(&mut self, bench: &Bench<'_>) {
        let clip = Clip::new();
        let scratch = clip.path("tmp");
        std::fs::create_dir(&scratch).unwrap();
        let (well, new) = (clip.path("well.clip"), clip.path("new.clip"));
        bench.index(&clip, &bench.reference(), &well);
        std::fs::write(&new, "old").unwrap();
        if let Some(plan) = self.row.lasting {
            bench.begin(plan);
            let mut command = bench.index_command(&clip, &bench.faulty_reference(), &new);
            let Some(ended) = watch::run(&clip, command.env("TMPDIR", &scratch), HANG) else { return self.problem("lasting: hangs") };
            self.demand(ended.code == Some(1), || format!("lasting: exit code {:?}: {}", ended.code, ended.stderr));
            self.demand(ended.stderr.contains(self.row.says), || format!("lasting: {:?} is not said: {}", self.row.says, ended.stderr));
            let names = ["/test/table", "clip-fault.invalid", &bench.image.layer].iter().any(|name| ended.stderr.contains(name));
            self.demand(names, || format!("lasting: the image or layer is not named: {}", ended.stderr));
            let errors = ended.stderr.lines().filter(|line| line.contains("rror") || line.contains("WARN")).count();
            self.demand(errors <= 2, || format!("lasting: {errors} lines: {}", ended.stderr));
            self.demand(std::fs::read(&new).unwrap() == b"old", || "lasting: the output was touched".to_owned());
            self.demand(std::fs::read_dir(&scratch).unwrap().next().is_none(), || "lasting: something is left in TMPDIR".to_owned());
            self.lasting =
                Some(Outcome { word: "error", time: ended.time, requests: bench.requests(), cpu: ended.cpu, left: bench.left() });
            bench.heal();
        }
        if let Some(plan) = self.row.passing {
            bench.begin(plan);
            let mut command = match plan {
                Plan::Nameless(time) => bench.index_when_named(&clip, &new, time),
                _ => bench.index_command(&clip, &bench.reference(), &new),
            };
            let Some(ended) = watch::run(&clip, &mut command, HANG) else { return self.problem("passing: hangs") };
            self.demand(ended.code == Some(0), || format!("passing: exit code {:?}: {}", ended.code, ended.stderr));
            // The .clip has the registry's name in it.
            let same = self.row.at != Name::Address || std::fs::read(&new).unwrap() == std::fs::read(&well).unwrap();
            self.demand(same, || "passing: the fault shows in the .clip".to_owned());
            self.passing =
                Some(Outcome { word: "right", time: ended.time, requests: bench.requests(), cpu: ended.cpu, left: bench.left() });
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
            let Some(result) = read_all(mount.dir(), &bench.image.files[FAR..=FAR], HANG) else { return self.problem("lasting: hangs") };
            self.lasting = Some(owner.outcome("EIO", &begun, bench));
            self.demand(result == Err(libc::EIO), || format!("lasting: {result:?}"));
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
        let Some(result) = read_all(mount.dir(), &bench.image.files, HANG) else { return self.problem("passing: hangs") };
        self.demand(result == Ok(()), || format!("passing or healed: {result:?}: {}", clip.log()));
        self.passing = passing.map(|_| owner.outcome("right", &begun, bench));
        mount.umount().unwrap();
    }

    fn fill(&mut self, bench: &Bench<'_>) {
        let file = bench.clip.path("well.clip");
        bench.index(&bench.clip, &bench.reference(), &file);
        if let Some(plan) = self.row.lasting {
            let clip = Clip::new();
            bench.begin(plan);
            let Some((outcome, mount)) = self.filled(bench, &clip, &file, "given up") else { return self.problem("lasting: hangs") };
            self.lasting = Some(outcome);
            self.assert_log(&clip);
            bench.heal();
            if self.row.at == Name::Address {
                let result = read_all(mount.dir(), &bench.image.files, HANG);
                self.demand(result == Some(Ok(())), || format!("healed: {result:?}: {}", clip.log()));
            }
            mount.umount().unwrap();
        }
        if let Some(plan) = self.row.passing.filter(|_| self.row.at == Name::Address) {
            let clip = Clip::new();
            bench.begin(plan);
            let Some((outcome, mount)) = self.filled(bench, &clip, &file, "right") else { return self.problem("passing: hangs") };
            self.passing = Some(outcome);
            bench.begin(Plan::Closed(HANG * 2));
            let result = read_all(mount.dir(), &bench.image.files, HANG);
            self.demand(result == Some(Ok(())), || format!("passing: not all is in the cache: {result:?}: {}", clip.log()));
            mount.umount().unwrap();
        }
    }

    fn filled<'c>(&self, bench: &Bench<'_>, clip: &'c Clip, file: &Path, word: &'static str) -> Option<(Outcome, Mount<'c>)> {
        let stats = clip.path("stats.json");
        let began = Instant::now();
        let mount = bench.mount(clip, file, &["--fill", "now", "--stats", text(&stats).unwrap()]);
        let owner = Owner::of(clip);
        let begun = Begun { at: began, cpu: Duration::ZERO, sockets: 1 };
        wait_until("the fill ends", HANG, || is_filled(owner.pid, &stats)).ok()?;
        Some((owner.outcome(word, &begun, bench), mount))
    }

    /// What failed is in the log, said once or twice.
    fn assert_log(&mut self, clip: &Clip) {
        let log = clip.log();
        let lines: Vec<&str> = log.lines().filter(|line| line.contains("ERROR") || line.contains("WARN")).collect();
        let about = lines.iter().filter(|line| line.contains("a fetch failed")).count();
        self.demand((1..=3).contains(&about), || format!("lasting: {about} lines in the log:\n{log}"));
        self.demand(lines.iter().any(|line| line.contains(self.row.says)), || format!("lasting: {:?} is not said:\n{log}", self.row.says));
    }
}

/// The file that is read while the fault lasts, far from what its reader would have read ahead.
const FAR: usize = 4;

/// Every file is right, or the error of the first that is not; `None` when that takes longer than `time`. A wrong byte is error 0.
fn read_all(dir: &Path, files: &[(String, Vec<u8>)], time: Duration) -> Option<Result<(), i32>> {
    let (sender, receiver) = mpsc::channel();
    let files: Vec<(PathBuf, Vec<u8>)> = files.iter().map(|(name, contents)| (dir.join(name), contents.clone())).collect();
    thread::spawn(move || {
        let one = |(path, contents): &(PathBuf, Vec<u8>)| match std::fs::read(path) {
            Ok(found) if found == *contents => Ok(()),
            Ok(_) => Err(0),
            Err(error) => Err(error.raw_os_error().unwrap_or(-1)),
        };
        let _ = sender.send(files.iter().try_for_each(one));
    });
    receiver.recv_timeout(time).ok()
}

fn is_filled(owner: u32, stats: &Path) -> bool {
    let _ = std::fs::remove_file(stats);
    let pid = rustix::process::Pid::from_raw(i32::try_from(owner).unwrap()).unwrap();
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::USR1);
    let _ = wait_until("statistics", Duration::from_secs(5), || stats.exists());
    thread::sleep(Duration::from_millis(100));
    let text = std::fs::read(stats).unwrap_or_default();
    serde_json::from_slice::<serde_json::Value>(&text).is_ok_and(|report| report["mounts"][0]["fill"]["is_finished"] == true)
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

    /// The time ends now; what is open is looked at a moment later.
    fn outcome(&self, word: &'static str, begun: &Begun, bench: &Bench<'_>) -> Outcome {
        let time = begun.at.elapsed();
        let cpu = watch::cpu(self.pid).unwrap_or_default().saturating_sub(begun.cpu);
        let left = || watch::sockets(self.pid).saturating_sub(begun.sockets);
        let _ = wait_until("connections close", Duration::from_secs(2), || left() <= IDLE_MAX);
        Outcome { word, time, requests: bench.requests(), cpu, left: left() }
    }
}
