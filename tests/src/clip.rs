//! The real `clip` binary: where it is, and one cache directory with its mounts, which leave nothing behind.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::process::{self, Finished, wait_until};

/// The `clip` binary of this workspace, up to date.
///
/// # Panics
/// When it cannot be built: no test of this crate means anything then.
#[must_use]
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| build().expect("the clip binary builds"))
}

/// `CLIP_TESTS_BINARY` when set, else what cargo says it built: cargo names a binary's path only to tests of its own package.
fn build() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("CLIP_TESTS_BINARY") {
        return Ok(PathBuf::from(path));
    }
    let profile_dir = profile_dir()?;
    let profile = match profile_dir.file_name().and_then(OsStr::to_str) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--locked", "-p", "clip", "--bin", "clip", "--profile", profile, "--target-dir"]);
    command.arg(profile_dir.parent().context("target directory")?).current_dir(workspace());
    process::run_ok(&mut command)?;
    Ok(profile_dir.join("clip"))
}

/// `target/debug` or its like, from the test program's own place in `target/debug/deps`.
fn profile_dir() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let dir = own.parent().context("directory of the test program")?;
    Ok(if dir.ends_with("deps") { dir.parent().context("profile directory")?.to_owned() } else { dir.to_owned() })
}

/// The workspace's root.
#[must_use]
fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace")
}

/// The build's target directory: what is made once per machine is kept there.
///
/// # Errors
/// When the test program lies in no target directory.
pub fn target_dir() -> Result<PathBuf> {
    Ok(profile_dir()?.parent().context("target directory")?.to_owned())
}

/// What decides about proxies.
const PROXY_VARIABLES: [&str; 7] = ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy", "REQUEST_METHOD"];

/// One cache directory, a place for files, and every process that serves from it. Dropping it ends them.
pub struct Clip {
    dir: TempDir,
    variables: Vec<(OsString, OsString)>,
}

impl Default for Clip {
    fn default() -> Self {
        Self::new()
    }
}

impl Clip {
    /// A fresh, empty cache directory.
    ///
    /// # Panics
    /// When no temporary directory can be made.
    #[must_use]
    pub fn new() -> Self {
        // Short: the owner's socket lies below it, and a socket's path is at most 107 bytes.
        let dir = tempfile::Builder::new().prefix("clip-t-").tempdir().expect("a temporary directory");
        // Others must be able to reach mounts below it; the cache directory itself stays closed.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(dir.path(), open).expect("permissions of the temporary directory");
        Self { dir, variables: Vec::new() }
    }

    /// The same with an environment variable set for every command.
    #[must_use]
    pub fn with_variable(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.variables.push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// The cache directory.
    #[must_use]
    pub fn cache_dir(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    /// A path for a file of the test.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `clip`, with this cache directory in the environment.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary());
        // A developer's own credentials and settings must not decide a test.
        for place in ["DOCKER_CONFIG", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"] {
            command.env(place, self.dir.path());
        }
        for name in ["RUST_LOG", "REGISTRY_AUTH_FILE", "CLIP_OCI_AUTH"].into_iter().chain(PROXY_VARIABLES) {
            command.env_remove(name);
        }
        command.env("CLIP_CACHE_DIR", self.cache_dir()).env("RUST_BACKTRACE", "1").envs(self.variables.iter().cloned()).args(arguments);
        command
    }

    /// Runs `clip ARGUMENTS` to its end, whatever its exit status.
    ///
    /// # Errors
    /// When it cannot be started, panics, or takes too long.
    pub fn run(&self, arguments: &[&str]) -> Result<Finished> {
        let finished = process::run(&mut self.command(arguments))?;
        anyhow::ensure!(!finished.stderr.contains("panicked at"), "clip {arguments:?} panicked\n{}", finished.stderr);
        Ok(finished)
    }

    /// Runs `clip ARGUMENTS` and demands success.
    ///
    /// # Errors
    /// As `run`, and when it fails.
    pub fn ok(&self, arguments: &[&str]) -> Result<Finished> {
        let finished = self.run(arguments)?;
        if !finished.status.success() {
            bail!("clip {arguments:?}: {}\n{}{}", finished.status, finished.text(), finished.stderr);
        }
        Ok(finished)
    }

    /// Runs `clip ARGUMENTS`, demands an orderly failure (an exit status, no signal) and returns what it said.
    ///
    /// # Errors
    /// As `run`, and when it succeeds or dies of a signal.
    pub fn fails(&self, arguments: &[&str]) -> Result<String> {
        let finished = self.run(arguments)?;
        match finished.status.code() {
            Some(code) if code != 0 => Ok(finished.stderr),
            _ => bail!("clip {arguments:?}: expected a failure, found {}\n{}{}", finished.status, finished.text(), finished.stderr),
        }
    }

    /// Indexes `reference` into `NAME.clip`.
    ///
    /// # Errors
    /// clip's own.
    pub fn index(&self, reference: &str, name: &str, more: &[&str]) -> Result<PathBuf> {
        let output = self.path(&format!("{name}.clip"));
        let mut arguments = vec!["index", reference, "-o", text(&output)?, "--quiet"];
        arguments.extend_from_slice(more);
        self.ok(&arguments)?;
        Ok(output)
    }

    /// Mounts `clip` at a new directory.
    ///
    /// # Errors
    /// clip's own.
    pub fn mount(&self, clip: &Path, more: &[&str]) -> Result<Mount<'_>> {
        let dir = tempfile::Builder::new().prefix("mnt-").tempdir_in(self.dir.path())?.keep();
        let mut arguments = vec!["mount", text(clip)?, text(&dir)?];
        arguments.extend_from_slice(more);
        let mount = Mount { dir: dir.clone(), clip: self };
        self.ok(&arguments)?;
        Ok(mount)
    }

    /// Unmounts `dir` with `clip umount`. Another test's program, between its fork and its exec, may hold a file of the mount for a
    /// moment: that is waited for.
    ///
    /// # Errors
    /// clip's own.
    pub fn umount(&self, dir: &Path) -> Result<()> {
        let mut last = String::new();
        let unmounted = wait_until("the mount is free", Duration::from_secs(3), || match self.run(&["umount", &dir.to_string_lossy()]) {
            Ok(finished) if finished.status.success() => true,
            Ok(finished) => {
                last = finished.stderr;
                !last.contains("in use")
            }
            Err(_) => true,
        });
        unmounted.with_context(|| last.clone())?;
        anyhow::ensure!(!is_mounted(dir), "{} is still mounted after clip umount: {last}", dir.display());
        Ok(())
    }

    /// Pids of processes of ours that serve this cache directory: their environment names it.
    #[must_use]
    pub fn servers(&self) -> Vec<u32> {
        let mut wanted = b"CLIP_CACHE_DIR=".to_vec();
        wanted.extend_from_slice(self.cache_dir().as_os_str().as_bytes());
        let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
        let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
        pids.filter(|pid| {
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            *pid != std::process::id() && environment.split(|byte| *byte == 0).any(|variable| variable == wanted)
        })
        .collect()
    }

    /// Waits until no process serves this cache directory.
    ///
    /// # Errors
    /// When one still does after 20 s.
    pub fn wait_for_servers(&self) -> Result<()> {
        wait_until("the owner leaves after the last umount", Duration::from_secs(20), || self.servers().is_empty())
    }
}

impl Clip {
    /// What the owner of the cache directory has logged.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.cache_dir().join("owner.log")).unwrap_or_default()
    }
}

impl Drop for Clip {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("log of the owner:\n{}", self.log());
        }
        for mountpoint in mountpoints_below(self.dir.path()) {
            let _ = rustix::mount::unmount(&mountpoint, rustix::mount::UnmountFlags::DETACH);
        }
        if self.wait_for_servers().is_err() {
            for pid in self.servers() {
                if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
            }
        }
    }
}

/// A mounted image. Dropping it detaches the mount.
pub struct Mount<'a> {
    dir: PathBuf,
    clip: &'a Clip,
}

impl Mount<'_> {
    /// Where.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A path in it.
    #[must_use]
    pub fn path(&self, name: impl AsRef<OsStr>) -> PathBuf {
        self.dir.join(Path::new(name.as_ref()))
    }

    /// Unmounts with `clip umount` and waits until the directory is no mount.
    ///
    /// # Errors
    /// clip's own.
    pub fn umount(self) -> Result<()> {
        self.clip.umount(&self.dir)
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        if is_mounted(&self.dir) {
            let _ = rustix::mount::unmount(&self.dir, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// Whether `dir` is a mount point now, live or dead.
#[must_use]
pub fn is_mounted(dir: &Path) -> bool {
    mountpoints_below(dir).iter().any(|mountpoint| mountpoint == dir)
}

/// The mount points at and below `dir`, innermost first.
fn mountpoints_below(dir: &Path) -> Vec<PathBuf> {
    let list = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let places = list.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from);
    let mut found: Vec<PathBuf> = places.filter(|place| place.starts_with(dir)).collect();
    found.reverse();
    found
}

/// `path` as an argument.
///
/// # Errors
/// When it is not UTF-8; temporary directories of tests are.
pub fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}
