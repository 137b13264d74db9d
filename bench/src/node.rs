//! A node's clip, through the program alone: mount, counters, umount.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clip_engine::{Engine, EngineConfig, EngineError};
use rustix::process::{Pid, Signal};
use serde::Deserialize;

/// What an owner process may take to leave after the last umount, or to write its counters. Source: the end of 300 mounts takes 3 s on 2
/// busy cores, and that of 1,000 over 20 s; reaching this is an error.
const WITHIN: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(2);

/// Counters of an owner. Source: `clip_engine::Stats`.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct Counters {
    /// Requests to registries.
    pub requests: u64,
    /// Body bytes received from registries.
    pub bytes_fetched: u64,
    /// Bytes read from local blobs.
    pub source_bytes: u64,
    /// Layer stream bytes decoded.
    pub bytes_decoded: u64,
    /// Layer stream bytes of the spans that readers asked for.
    pub bytes_needed: u64,
    /// Compressed bytes of these spans.
    pub bytes_needed_compressed: u64,
    /// Spans that were brought before a reader asked for them, and that one has asked for since.
    pub spans_prefetched_used: u64,
    /// Reads that waited for at least one span.
    pub reads_waited: u64,
}

#[derive(Deserialize)]
struct Report {
    engine: Counters,
}

/// A mount by the program, whose owner process serves a cache directory. Dropping it unmounts.
pub struct NodeMount {
    program: PathBuf,
    cache: PathBuf,
    mountpoint: PathBuf,
    stats: PathBuf,
}

impl NodeMount {
    /// `clip mount CLIP MOUNTPOINT` with the cache directory `cache` and `more` arguments. Returns when the mount answers.
    ///
    /// # Errors
    /// The program's, in its own words.
    pub fn new(program: &Path, clip: &Path, mountpoint: &Path, cache: &Path, more: &[String]) -> Result<Self> {
        Self::with_environment(program, clip, mountpoint, cache, more, &[])
    }

    /// As [`new`](Self::new), with environment variables for the program and the owner that it starts.
    ///
    /// # Errors
    /// The program's, in its own words.
    pub fn with_environment(
        program: &Path,
        clip: &Path,
        mountpoint: &Path,
        cache: &Path,
        more: &[String],
        environment: &[(&str, &str)],
    ) -> Result<Self> {
        let mut stats = mountpoint.as_os_str().to_owned();
        stats.push(".stats.json");
        let mount = Self { program: program.to_owned(), cache: cache.to_owned(), mountpoint: mountpoint.to_owned(), stats: stats.into() };
        let mut command = Command::new(program);
        command
            .arg("mount")
            .arg(clip)
            .arg(mountpoint)
            .arg("--cache-dir")
            .arg(cache)
            .arg("--stats")
            .arg(&mount.stats)
            .args(more)
            .envs(environment.iter().copied());
        run(&mut command)?;
        Ok(mount)
    }

    /// Where.
    #[must_use]
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// The owner process.
    ///
    /// # Errors
    /// When its lock file does not name it.
    pub fn owner(&self) -> Result<Pid> {
        let path = self.cache.join("owner.lock");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        text.trim().parse().ok().and_then(Pid::from_raw).with_context(|| format!("{}: expected a pid, found {text:?}", path.display()))
    }

    /// What the owner has counted so far.
    ///
    /// # Errors
    /// When it does not answer in time.
    pub fn counters(&self) -> Result<Counters> {
        let _ = fs::remove_file(&self.stats);
        rustix::process::kill_process(self.owner()?, Signal::USR1).context("ask the owner for its counters")?;
        let deadline = Instant::now() + WITHIN;
        // It appears whole, by a rename.
        while !self.stats.exists() {
            ensure!(Instant::now() < deadline, "the owner did not write {} within {WITHIN:?}", self.stats.display());
            std::thread::sleep(LOOK);
        }
        let text = fs::read(&self.stats).with_context(|| format!("read {}", self.stats.display()))?;
        let report: Report = serde_json::from_slice(&text).with_context(|| format!("understand {}", self.stats.display()))?;
        Ok(report.engine)
    }

    /// Unmounts, and waits until the owner has left.
    ///
    /// # Errors
    /// The program's; when the owner stays.
    pub fn end(self) -> Result<()> {
        run(Command::new(&self.program).arg("umount").arg(&self.mountpoint))?;
        wait_for_owner(&self.cache)
    }
}

impl Drop for NodeMount {
    fn drop(&mut self) {
        // After `end` nothing is mounted there. Lazily, since a failed run may have left something open.
        let flags = rustix::mount::UnmountFlags::DETACH | rustix::mount::UnmountFlags::NOFOLLOW;
        let _ = rustix::mount::unmount(&self.mountpoint, flags);
        let _ = fs::remove_file(&self.stats);
    }
}

/// Runs `command` to its end.
///
/// # Errors
/// When it fails, with what it said.
pub fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Waits until the cache directory's owner process has left: its lock can be taken.
///
/// # Errors
/// When it stays.
pub fn wait_for_owner(cache: &Path) -> Result<()> {
    let deadline = Instant::now() + WITHIN;
    loop {
        match Engine::start(EngineConfig::new(cache.to_owned())) {
            Ok(_) => return Ok(()),
            Err(EngineError::CacheBusy { .. }) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
            Err(error) => return Err(error).context("the owner of the cache directory did not leave"),
        }
    }
}
