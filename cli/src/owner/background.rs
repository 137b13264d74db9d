//! What an owner does beside serving a mount: replay a profile, fill the cache, keep the record of a run.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::ValueEnum;
use clip_engine::{BackgroundHandle, BackgroundProgress, FillOptions, Image};
use clip_format::profile::Profile;
use clip_indexer::{Durability, OutputPlace};
use serde::{Deserialize, Serialize};

use super::report::Work;
use crate::{exit::chain_text, profile_input};

/// How often [`Background::tick`] wants to be called while [`Background::wants_ticks`]. Source: judgement, not measured: a fill
/// begins at most so much late, a quarter of the quiet time that it waits for.
pub const TICK: Duration = Duration::from_millis(500);
/// `--fill after` begins when no read had to wait for this long. Source: the longest gap between two first needs of an
/// `import numpy` was 370 ms, on a machine with six other jobs; the rest is room.
const QUIET: Duration = Duration::from_secs(2);
/// How often a record is written while it grows. Source: chosen; a crash of the machine loses no more than this.
const RECORD_EVERY: Duration = Duration::from_secs(10);

/// When the whole image is fetched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Fill {
    /// Never.
    #[default]
    None,
    /// When the profile is replayed and no read has waited for two seconds.
    After,
    /// From the start.
    Now,
}

/// What was typed about work beside the mount. All paths absolute.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackgroundWish {
    /// `--record`
    #[serde(with = "super::protocol::optional_path")]
    pub record: Option<PathBuf>,
    /// `--profile`
    #[serde(with = "super::protocol::optional_path")]
    pub profile: Option<PathBuf>,
    /// `--no-profile`
    pub no_profile: bool,
    /// `--fill`
    pub fill: Fill,
    /// `--fill-rate`: compressed bytes a second.
    pub fill_rate: Option<u64>,
}

/// The work of one mount. Dropping it ends it.
pub struct Background {
    image: Arc<Image>,
    replay: Option<BackgroundHandle>,
    fill: Filling,
    record: Option<Arc<Record>>,
}

enum Filling {
    Off,
    /// Not yet: since when no read has waited, and how many had by then.
    Later {
        options: FillOptions,
        quiet_since: Instant,
        reads_waited: u64,
    },
    On(BackgroundHandle),
}

/// Where a record goes, and what of it is there.
pub struct Record {
    path: PathBuf,
    image: Arc<Image>,
    written: Mutex<Written>,
}

struct Written {
    /// `None` before the first time.
    spans: Option<u64>,
    at: Instant,
}

/// A profile that was found to be of use.
pub struct Chosen(Option<Profile>);

impl BackgroundWish {
    /// The profile to replay, checked against the image; one that was asked for and is of no use is an error, an embedded one a warning.
    pub fn choose(&self, clip: &Path, image: &Image) -> Result<Chosen> {
        if let Some(path) = &self.profile {
            let profile = profile_input::read_profile(path)?;
            return useful(profile, image, &path.display().to_string()).map(|profile| Chosen(Some(profile)));
        }
        if self.no_profile {
            return Ok(Chosen(None));
        }
        let name = format!("embedded in {}", clip.display());
        let embedded = profile_input::embedded_profile(clip);
        let chosen = embedded.and_then(|profile| profile.map(|profile| useful(profile, image, &name)).transpose());
        Ok(Chosen(chosen.unwrap_or_else(|error| {
            tracing::warn!("the profile {name} is not used: {}", chain_text(&error));
            None
        })))
    }

    /// Begins what was asked for.
    pub fn begin(&self, image: Arc<Image>, chosen: &Chosen, reads_waited: u64) -> Background {
        let replay = chosen.0.as_ref().map(|profile| image.replay(profile));
        let options = FillOptions { bytes_per_second: self.fill_rate };
        let fill = match self.fill {
            Fill::None => Filling::Off,
            Fill::Now => Filling::On(image.fill(options)),
            Fill::After => Filling::Later { options, quiet_since: Instant::now(), reads_waited },
        };
        let record = self.record.clone().map(|path| Arc::new(Record::new(path, image.clone())));
        Background { image, replay, fill, record }
    }
}

fn useful(profile: Profile, image: &Image, name: &str) -> Result<Profile> {
    let fit = image.useful_fit(&profile).with_context(|| format!("profile {name}"))?;
    tracing::info!("profile {name}: {}", profile_input::fit_text(&profile, &fit));
    Ok(profile)
}

impl Background {
    /// Whether [`Self::tick`] has anything to do.
    pub fn wants_ticks(&self) -> bool {
        self.record.is_some() || matches!(self.fill, Filling::Later { .. })
    }

    /// Begins a fill whose time has come. `reads_waited` is of the whole engine.
    pub fn tick(&mut self, reads_waited: u64) {
        let replayed = self.replay.as_ref().is_none_or(|replay| replay.progress().is_finished);
        if let Filling::Later { options, quiet_since, reads_waited: before } = &mut self.fill {
            if !replayed || *before != reads_waited {
                (*quiet_since, *before) = (Instant::now(), reads_waited);
            } else if quiet_since.elapsed() >= QUIET {
                self.fill = Filling::On(self.image.fill(*options));
            }
        }
    }

    /// Ends replay and fill; what is on its way is still kept.
    pub fn cancel(&mut self) {
        (self.replay, self.fill) = (None, Filling::Off);
    }

    /// The record, to be written where no lock is held.
    pub fn record(&self) -> Option<Arc<Record>> {
        self.record.clone()
    }

    /// How far the work is.
    pub fn work(&self) -> Work {
        let fill = match &self.fill {
            Filling::On(fill) => Some(fill.progress()),
            Filling::Off | Filling::Later { .. } => None,
        };
        let recorded_spans = self.record.as_ref().map(|_| self.image.recorded_spans());
        Work { replay: self.replay.as_ref().map(BackgroundHandle::progress).map(Into::into), fill: fill.map(Into::into), recorded_spans }
    }
}

impl Record {
    fn new(path: PathBuf, image: Arc<Image>) -> Self {
        Self { path, image, written: Mutex::new(Written { spans: None, at: Instant::now() }) }
    }

    /// Whether it was not written for a while.
    pub fn is_due(&self) -> bool {
        self.written.lock().unwrap_or_else(PoisonError::into_inner).at.elapsed() >= RECORD_EVERY
    }

    /// What is recorded so far is in the file, whole; nothing is done when it is there already. A failure is in the log.
    pub fn write(&self) {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        written.at = Instant::now();
        let spans = self.image.recorded_spans();
        if written.spans == Some(spans) {
            return;
        }
        match self.write_file() {
            Ok(()) => {
                written.spans = Some(spans);
                tracing::info!("the record in {} has {spans} spans", self.path.display());
            }
            Err(error) => tracing::error!("the record cannot be written: {}", chain_text(&error)),
        }
    }

    fn write_file(&self) -> Result<()> {
        let context = || format!("profile {}", self.path.display());
        let profile = self.image.recorded().context("the image was not opened to be recorded")?;
        let bytes = profile.and_then(|profile| profile.to_bytes()).with_context(context)?;
        OutputPlace::at(&self.path).write(&bytes, Durability::Synced).with_context(context)
    }
}

impl From<BackgroundProgress> for super::report::Progress {
    fn from(progress: BackgroundProgress) -> Self {
        let BackgroundProgress { spans, spans_done, is_finished } = progress;
        Self { spans, spans_done, is_finished }
    }
}
