//! The log on stderr.

use std::io::IsTerminal;

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

/// From here on `tracing` events go to stderr: `--log-level` wins over `CLIP_LOG`, which wins over `default`.
pub fn start(typed: Option<&str>, default: &str, times: Times) {
    let from_env = std::env::var("CLIP_LOG").ok();
    let asked = typed.or(from_env.as_deref());
    let quiet = |level: &str| format!("{QUIET},{level}");
    let (filter, bad) = match asked.map(|asked| EnvFilter::try_new(quiet(asked))) {
        None => (EnvFilter::new(quiet(default)), None),
        Some(Ok(filter)) => (filter, None),
        Some(Err(error)) => (EnvFilter::new(quiet(default)), Some(error)),
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
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
