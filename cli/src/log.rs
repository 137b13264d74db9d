//! The log on stderr.

mod lines;

use std::{
    io::{IsTerminal, Write},
    sync::{Mutex, OnceLock, PoisonError},
};

use indicatif::MultiProgress;
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use self::lines::Lines;
use crate::exit::UsageError;

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

static LINES: Mutex<Lines<std::io::Stderr>> = Mutex::new(Lines::new(std::io::stderr));

/// stderr, with the progress bars out of the way while a line is written. Writing never fails: see [`Lines`].
struct AboveBars;

impl Write for AboveBars {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        let put = || LINES.lock().unwrap_or_else(PoisonError::into_inner).put(line);
        match BARS.get() {
            Some(bars) => bars.suspend(put),
            None => put(),
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn from_env() -> Option<String> {
    std::env::var("CLIP_LOG").ok().filter(|text| !text.is_empty())
}

/// The level or filter in force: `--log-level` wins over `CLIP_LOG`, which wins over `default`.
pub fn level(typed: Option<&str>, default: &str) -> String {
    typed.map(str::to_owned).or_else(from_env).unwrap_or_else(|| default.to_owned())
}

/// `--log-level`: a level, or a filter of `TARGET=LEVEL`. A word alone that is no level would turn everything else off, as the name of a
/// part of the program that nobody has.
pub fn parse_level(text: &str) -> Result<String, String> {
    let is_word = |part: &&str| part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-:".contains(&byte));
    let no_level = |part: &&str| part.is_empty() || part.parse::<LevelFilter>().is_err();
    if let Some(word) = text.split(',').map(str::trim).filter(is_word).find(no_level) {
        return Err(format!("expected off, error, warn, info, debug, trace, or a filter such as clip_engine=debug, found {word:?}"));
    }
    EnvFilter::try_new(text).map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}

/// From here on `tracing` events go to stderr, those of [`level`].
///
/// # Errors
/// When what is in `CLIP_LOG` is no level; `typed` must be what [`parse_level`] gave.
pub fn start(typed: Option<&str>, default: &str, times: Times) -> Result<(), UsageError> {
    let asked = match (typed, from_env()) {
        (Some(typed), _) => typed.to_owned(),
        (None, Some(text)) => parse_level(&text).map_err(|reason| UsageError(format!("CLIP_LOG: {reason}")))?,
        (None, None) => default.to_owned(),
    };
    let filter = EnvFilter::new(format!("{QUIET},{asked}"));
    // A complaint about a line that cannot be written would go where it could not be written, and be a panic.
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| AboveBars).with_target(false).log_internal_errors(false);
    let terminal = std::io::stderr().is_terminal();
    let builder = builder.with_ansi(terminal);
    // Fails only where there is a log already.
    let _ = match times {
        Times::Shown if !terminal => builder.try_init(),
        _ => builder.without_time().try_init(),
    };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Claim: a level is one of six words, or a filter; another word is refused with the list, alone and in a filter.
    #[test]
    fn a_word_is_a_level() {
        for good in ["warn", "INFO", "off", "clip_engine=debug", "clip_engine=debug,warn", "warn,clip_fuse[read]=trace"] {
            assert_eq!(parse_level(good).as_deref(), Ok(good));
        }
        for bad in ["warning", "foo", "", "clip_engine=debug,warning", "warn,", "clip_engine=loud"] {
            assert!(parse_level(bad).is_err(), "{bad}");
        }
        assert!(parse_level("warning").is_err_and(|text| text.contains("warn, info, debug") && text.contains("\"warning\"")));
    }
}
