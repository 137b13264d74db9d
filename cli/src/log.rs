//! The log on stderr.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// From here on `tracing` events go to stderr: `--log-level` wins over `CLIP_LOG`, which wins over `default`. No times on a terminal.
pub fn start(typed: Option<&str>, default: &str) {
    let from_env = std::env::var("CLIP_LOG").ok();
    let asked = typed.or(from_env.as_deref());
    let (filter, bad) = match asked.map(EnvFilter::try_new) {
        None => (EnvFilter::new(default), None),
        Some(Ok(filter)) => (filter, None),
        Some(Err(error)) => (EnvFilter::new(default), Some(error)),
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    let terminal = std::io::stderr().is_terminal();
    let started = if terminal { builder.without_time().with_ansi(true).try_init() } else { builder.with_ansi(false).try_init() };
    if let (Ok(()), Some(error)) = (started, bad) {
        tracing::warn!("log level {:?}: {error}; using {default}", asked.unwrap_or_default());
    }
}
