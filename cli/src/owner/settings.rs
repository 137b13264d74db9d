//! What an owner is set to besides its engine: one value for all its mounts, chosen by the mount that starts it.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{log, resolve::Difference, values::typed_time};

/// How long open files are served after the first SIGTERM.
const STOP_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
/// The log level of an owner: what `info` says, without a line for each of the requests that an outage makes it send again.
pub const LOG_LEVEL_DEFAULT: &str = "info,clip_engine::registry::retry=warn";

/// What was typed. `None`: not asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerWish {
    /// `--stop-timeout`
    pub stop_timeout: Option<Duration>,
    /// `--log-file`, absolute
    #[serde(with = "super::protocol::optional_path")]
    pub log_file: Option<PathBuf>,
    /// `--log-level`
    pub log_level: Option<String>,
}

/// What is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerSettings {
    /// As `--stop-timeout`.
    pub stop_timeout: Duration,
    /// `None`: standard error, of an owner in the foreground.
    #[serde(with = "super::protocol::optional_path")]
    pub log_file: Option<PathBuf>,
    /// A level or filter.
    pub log_level: String,
}

impl OwnerWish {
    /// Where an owner that is started in the background logs.
    pub fn log_file(&self, cache_dir: &Path) -> PathBuf {
        self.log_file.clone().unwrap_or_else(|| cache_dir.join("owner.log"))
    }

    /// The settings of an owner in the background: wishes, else the environment's, else defaults.
    pub fn in_background(&self, cache_dir: &Path) -> OwnerSettings {
        OwnerSettings { log_file: Some(self.log_file(cache_dir)), ..self.in_foreground() }
    }

    /// As `in_background`, for an owner that logs to standard error.
    pub fn in_foreground(&self) -> OwnerSettings {
        OwnerSettings {
            stop_timeout: self.stop_timeout.unwrap_or(STOP_TIMEOUT_DEFAULT),
            log_file: None,
            log_level: log::level(self.log_level.as_deref(), LOG_LEVEL_DEFAULT),
        }
    }

    /// Every wish that `settings` do not fulfil.
    pub fn differences(&self, settings: &OwnerSettings) -> Vec<Difference> {
        let mut found = Vec::new();
        let mut differs = |option: &str, owner: String, asked: String| {
            found.push(Difference { option: option.to_owned(), owner, asked });
        };
        if let Some(asked) = self.stop_timeout.filter(|asked| *asked != settings.stop_timeout) {
            differs("--stop-timeout", typed_time(settings.stop_timeout), typed_time(asked));
        }
        match (&self.log_file, &settings.log_file) {
            (Some(asked), Some(owner)) if !is_same_file(asked, owner) => {
                differs("--log-file", owner.display().to_string(), asked.display().to_string());
            }
            (Some(asked), None) => differs("--log-file", "standard error".to_owned(), asked.display().to_string()),
            _ => {}
        }
        if let Some(asked) = self.log_level.as_ref().filter(|asked| **asked != settings.log_level) {
            differs("--log-level", settings.log_level.clone(), asked.clone());
        }
        found
    }
}

/// Equal as written, or with links resolved.
fn is_same_file(one: &Path, other: &Path) -> bool {
    let resolved = |path: &Path| std::fs::canonicalize(path).ok();
    one == other || resolved(one).is_some_and(|one| Some(one) == resolved(other))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn wish(log_file: Option<&Path>) -> OwnerWish {
        OwnerWish { stop_timeout: Some(Duration::from_secs(5)), log_file: log_file.map(Path::to_owned), log_level: Some("debug".into()) }
    }

    /// A later mount that asks for nothing, or for what is in force, fits any owner.
    #[test]
    fn what_is_in_force_is_no_difference() {
        let settings = wish(None).in_background(Path::new("/c"));
        assert_eq!(OwnerWish::default().differences(&settings), []);
        assert_eq!(wish(Some(Path::new("/c/owner.log"))).differences(&settings), []);
    }

    /// Each wish that differs is named with both values.
    #[test]
    fn differences_name_option_and_both_values() {
        let asked = OwnerWish { stop_timeout: Some(Duration::ZERO), log_file: Some("/x.log".into()), log_level: Some("warn".into()) };
        let triples = |settings: &OwnerSettings| -> Vec<[String; 3]> {
            asked.differences(settings).into_iter().map(|found| [found.option, found.owner, found.asked]).collect()
        };
        let found = triples(&wish(None).in_background(Path::new("/c")));
        assert_eq!(found, [["--stop-timeout", "5s", "0s"], ["--log-file", "/c/owner.log", "/x.log"], ["--log-level", "debug", "warn"]]);
        assert_eq!(triples(&wish(None).in_foreground())[1], ["--log-file", "standard error", "/x.log"]);
    }

    /// One log file under two names is one log file.
    #[test]
    fn links_to_the_log_file_are_the_log_file() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("a.log"), dir.path().join("b.log"));
        std::fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert!(is_same_file(&file, &link));
        assert!(!is_same_file(&file, &dir.path().join("c.log")));
    }
}
