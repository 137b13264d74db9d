//! What this machine is, and what it allows.

use std::{fmt, fs, path::Path, time::Duration};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// What the figures were taken on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Machine {
    /// Cores that this process may use.
    pub cores: usize,
    /// `model name` of /proc/cpuinfo.
    pub processor: String,
    /// Release of the kernel.
    pub kernel: String,
    /// Runnable tasks, averaged over a minute, when the run began. Much over 0: others work here too, and figures suffer.
    pub load: f64,
    /// Compiled with optimisation.
    pub optimised: bool,
}

impl Machine {
    /// This machine, now.
    #[must_use]
    pub fn now() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Self {
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            processor: model.map_or_else(|| "unknown processor".to_owned(), |(_, name)| name.trim().to_owned()),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            load: load.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or_default(),
            optimised: !cfg!(debug_assertions),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "machine: {} cores ({}), Linux {}, load {:.1} at the start", self.cores, self.processor, self.kernel, self.load)?;
        if !self.optimised {
            write!(f, "\nbuilt without optimisation: the hashes of the work count, the times do not")?;
        }
        Ok(())
    }
}

/// Why this process cannot mount, or `None` when it can.
#[must_use]
pub fn no_mounts() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("mounts are measured as root only: fuser needs no fusermount3 then, which would be measured too".to_owned());
    }
    match fs::File::options().read(true).write(true).open("/dev/fuse") {
        Ok(_) => None,
        Err(error) => Some(format!("/dev/fuse cannot be opened: {error}")),
    }
}

/// One line of /proc/self/status, in KiB: `VmHWM`, `RssAnon`.
///
/// # Errors
/// When the kernel has no such line.
pub fn status_kib(name: &str) -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let number = line.and_then(|line| line.split_whitespace().next()).with_context(|| format!("/proc/self/status has no {name}"))?;
    Ok(number.parse()?)
}

/// Anonymous resident memory of process `pid`, in KiB.
///
/// # Errors
/// When there is no such process, or it is another user's.
pub fn anonymous_kib(pid: rustix::process::Pid) -> Result<u64> {
    let path = format!("/proc/{}/smaps_rollup", pid.as_raw_nonzero());
    let rollup = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Anonymous:"));
    let number = line.and_then(|line| line.split_whitespace().next()).with_context(|| format!("{path} has no Anonymous"))?;
    Ok(number.parse()?)
}

/// Time on a core so far. Precision: 10 ms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CpuTime {
    /// Of all threads of this process, ended ones included.
    pub own: Duration,
    /// Of all children that have ended and were waited for.
    pub children: Duration,
}

/// What this process and its children have spent on a core.
///
/// # Errors
/// When /proc/self/stat is not as proc(5) says.
pub(crate) fn cpu_time() -> Result<CpuTime> {
    cpu_time_in("/proc/self/stat")
}

/// What process `pid` and its children have spent on a core.
///
/// # Errors
/// When there is no such process.
pub(crate) fn cpu_time_of(pid: rustix::process::Pid) -> Result<CpuTime> {
    cpu_time_in(&format!("/proc/{}/stat", pid.as_raw_nonzero()))
}

fn cpu_time_in(path: &str) -> Result<CpuTime> {
    // Source: linux include/asm-generic/param.h, USER_HZ; the same on every architecture that has io_uring.
    const TICKS_A_SECOND: u64 = 100;
    let stat = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    // The name of the program is in parentheses and may hold anything. Source: proc(5), utime, stime, cutime, cstime are fields 14 to 17.
    let (_, rest) = stat.rsplit_once(')').with_context(|| format!("{path} has no program name"))?;
    let mut fields = rest.split_whitespace().skip(11);
    let mut ticks =
        || fields.next().with_context(|| format!("{path} is too short"))?.parse::<u64>().with_context(|| format!("a field of {path}"));
    let time = |ticks: u64| Duration::from_millis(ticks * 1000 / TICKS_A_SECOND);
    Ok(CpuTime { own: time(ticks()? + ticks()?), children: time(ticks()? + ticks()?) })
}

/// Nanoseconds that thread `tid` of this process has spent on a core.
///
/// # Errors
/// When there is no such thread.
pub fn thread_cpu_ns(tid: i32) -> Result<u64> {
    let path = format!("/proc/self/task/{tid}/schedstat");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    Ok(text.split(' ').next().unwrap_or_default().parse()?)
}

/// The first file called `name` below `dir`.
///
/// # Errors
/// When there is none.
pub fn find_file(dir: &Path, name: &str) -> Result<std::path::PathBuf> {
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("list {}", dir.display()))? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                dirs.push(entry.path());
            } else if entry.file_name() == name {
                return Ok(entry.path());
            }
        }
    }
    anyhow::bail!("no {name} below {}", dir.display())
}
