//! The log on stderr.

use std::{
    io::{IsTerminal, Write},
    sync::OnceLock,
};

use indicatif::MultiProgress;
use tracing_subscriber::EnvFilter;

/// What a library says at warning level that is nothing to a user: fuser names every optional request that a file system answers
/// with "not implemented".
const QUIET: &str = "fuser=error";

/// Whether lines carry the time; on a terminal they never do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Times {
    /// A process that runs for long.
    Shown,
    /// A command.
    Hidden,
}

static BARS: OnceLock<MultiProgress> = OnceLock::new();

/// From here on lines of the log appear above `bars`, which are drawn again below them. One set of bars a process.
pub fn keep_above(bars: &MultiProgress) {
    let _ = BARS.set(bars.clone());
}

/// stderr, with the progress bars out of the way while a line is written.
struct AboveBars;

impl Write for AboveBars {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        let write = || std::io::stderr().write(line);
        match BARS.get() {
            Some(bars) => bars.suspend(write),
            None => write(),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

fn from_env() -> Option<String> {
    std::env::var("CLIP_LOG").ok()
}

/// The level or filter in force: `--log-level` wins over `CLIP_LOG`, which wins over `default`.
pub fn level(typed: Option<&str>, default: &str) -> String {
    typed.map(str::to_owned).or_else(from_env).unwrap_or_else(|| default.to_owned())
}

/// From here on `tracing` events go to stderr, those of [`level`].
pub fn start(typed: Option<&str>, default: &str, times: Times) {
    let from_env = from_env();
    let asked = typed.or(from_env.as_deref());
    let quiet = |level: &str| format!("{QUIET},{level}");
    let (filter, bad) = match asked.map(|asked| EnvFilter::try_new(quiet(asked))) {
        None => (EnvFilter::new(quiet(default)), None),
        Some(Ok(filter)) => (filter, None),
        Some(Err(error)) => (EnvFilter::new(quiet(default)), Some(error)),
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| AboveBars).with_target(false);
    let terminal = std::io::stderr().is_terminal();
    let builder = builder.with_ansi(terminal);
    let started = match times {
        Times::Shown if !terminal => builder.try_init(),
        _ => builder.without_time().try_init(),
    };
    if let (Ok(()), Some(error)) = (started, bad) {
        tracing::warn!("log level {:?}: {error}; using {default}", asked.unwrap_or_default());
    }
}
