//! Other programs, run to their end within a deadline: a test must fail, never hang.

use std::{
    io::Read,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// How long a command may take before it is killed. Source: ten times the slowest step of these tests on 2 cores (an mmdebstrap of 22 s).
const COMMAND_DEADLINE: Duration = Duration::from_secs(240);

/// What a finished program left.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// As written.
    pub stdout: Vec<u8>,
    /// As text; diagnostics only.
    pub stderr: String,
}

impl Finished {
    /// The standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// A started child that is killed, by its own pid, when it is dropped.
pub struct Running(pub Child);

impl Running {
    /// Starts `command`.
    ///
    /// # Errors
    /// When it cannot be started, with its name.
    pub fn start(command: &mut Command) -> Result<Self> {
        let name = format!("{:?}", command.get_program());
        Ok(Self(command.spawn().with_context(|| format!("start {name}"))?))
    }

    /// Whether it still runs.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }

    /// How it ended, or an error after `deadline`.
    ///
    /// # Errors
    /// When it still runs.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait()? {
                return Ok(status);
            }
            if started.elapsed() > deadline {
                bail!("process {} still runs after {deadline:?}", self.0.id());
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.is_alive() {
            let _ = self.0.kill();
        }
        let _ = self.0.wait();
    }
}

/// Runs `command` to its end, whatever its exit status. Its standard input is empty.
///
/// # Errors
/// When it cannot be started or takes longer than four minutes.
pub fn run(command: &mut Command) -> Result<Finished> {
    let shown = format!("{command:?}");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = Running::start(command)?;
    // A background process may inherit the pipes and outlive the command, so the readers are not joined for ever.
    let stdout = drain(child.0.stdout.take());
    let stderr = drain(child.0.stderr.take());
    let status = child.wait(COMMAND_DEADLINE).with_context(|| shown.clone())?;
    let limit = Duration::from_secs(10);
    let stdout = stdout.recv_timeout(limit).with_context(|| format!("{shown}: something still holds its standard output"))?;
    let stderr = stderr.recv_timeout(limit).with_context(|| format!("{shown}: something still holds its standard error"))?;
    Ok(Finished { status, stdout, stderr: String::from_utf8_lossy(&stderr).into_owned() })
}

/// Runs `command` and demands success.
///
/// # Errors
/// As [`run`]; also when it fails, with both its outputs.
pub fn run_ok(command: &mut Command) -> Result<Finished> {
    let finished = run(command)?;
    if !finished.status.success() {
        bail!("{command:?}: {}\n{}{}", finished.status, finished.text(), finished.stderr);
    }
    Ok(finished)
}

/// Runs a shell script with `set -eu`, its arguments as `$1`, `$2` ..., and demands success.
///
/// # Errors
/// As [`run_ok`].
pub fn shell(script: &str, arguments: &[&std::ffi::OsStr]) -> Result<String> {
    let mut command = Command::new("bash");
    command.arg("-euc").arg(script).arg("test");
    command.args(arguments);
    Ok(run_ok(&mut command)?.text())
}

/// `to` gets the variables that were set and removed for `from`.
pub fn copy_environment(from: &Command, to: &mut Command) {
    for (name, value) in from.get_envs() {
        match value {
            Some(value) => to.env(name, value),
            None => to.env_remove(name),
        };
    }
}

/// `inner` in a mount namespace of its own, as root, where `hosts` stands at /etc/hosts; what it mounts is gone with it.
#[must_use]
pub fn with_hosts(inner: &Command, hosts: &Path) -> Command {
    let mut command = Command::new("unshare");
    command.args(["-m", "bash", "-euc", "mount --bind \"$1\" /etc/hosts; shift; exec \"$@\"", "test"]).arg(hosts);
    command.arg(inner.get_program()).args(inner.get_args());
    copy_environment(inner, &mut command);
    command
}

/// Waits until `condition` holds.
///
/// # Errors
/// After `deadline`, with `what`.
pub fn wait_until(what: &str, deadline: Duration, mut condition: impl FnMut() -> bool) -> Result<()> {
    let started = Instant::now();
    while !condition() {
        if started.elapsed() > deadline {
            bail!("{what}: not within {deadline:?}");
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// VmHWM of a process in KiB, while it lives.
#[must_use]
pub fn peak_kib(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> std::sync::mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        let _ = sender.send(bytes);
    });
    receiver
}
