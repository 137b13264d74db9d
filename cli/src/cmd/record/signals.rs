//! Signals that are for somebody else.

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2},
    iterator::{Handle, Signals},
};

/// While this lives, no signal ends this process, and each goes to a child.
pub struct Forwarding {
    signals: Signals,
    in_terminal: bool,
}

/// A running forwarding; dropping it ends it.
pub struct Running(Handle);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Forwarding {
    /// From here on signals are kept for [`Self::to`].
    pub fn begin() -> Result<Self> {
        let signals = Signals::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2]).context("signal handlers")?;
        Ok(Self { signals, in_terminal: in_terminals_foreground() })
    }

    /// What came and what comes goes to process `pid`, a child of this one. The terminal's own interruptions reach it anyway: those are
    /// not sent twice.
    pub fn to(mut self, pid: u32) -> Result<Running> {
        let handle = self.signals.handle();
        let child = Pid::from_raw(i32::try_from(pid).context("a process id")?).context("a process id")?;
        std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
            for number in self.signals.forever() {
                if self.in_terminal && matches!(number, SIGINT | SIGQUIT) {
                    continue;
                }
                if let Some(signal) = Signal::from_named_raw(number) {
                    let _ = kill_process(child, signal);
                }
            }
        })?;
        Ok(Running(handle))
    }
}

/// Whether this process belongs to the group that its terminal interrupts. Source: proc(5), /proc/PID/stat fields 5 and 8.
fn in_terminals_foreground() -> bool {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    matches!((fields.get(2), fields.get(5)), (Some(own), Some(terminal)) if own == terminal)
}
