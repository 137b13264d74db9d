//! An indexed sample image and the scripted registry that serves it: where tests of mounts begin.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::process::Pid;

use crate::{
    clip::Clip,
    faults::Server,
    images::sample::{self, Sample},
};

/// The image, its registry, the program with a cache directory of its own, and the `.clip`.
pub struct Served {
    /// What the files hold.
    pub sample: Sample,
    /// Serves the layers, and fails on command.
    pub server: Server,
    /// The program.
    pub clip: Clip,
    /// The `.clip`.
    pub file: PathBuf,
}

impl Served {
    /// Makes, serves and indexes the image.
    ///
    /// # Errors
    /// What one of these steps said.
    pub fn new() -> Result<Self> {
        let sample = Sample::new()?;
        let server = Server::start(&sample.layout)?;
        let clip = Clip::new();
        let file = clip.index(&server.reference("sample", sample::TAG), "sample", &[])?;
        Ok(Self { sample, server, clip, file })
    }

    /// The one process that serves the cache directory.
    ///
    /// # Errors
    /// When the process is gone again.
    ///
    /// # Panics
    /// When there is none or more than one.
    pub fn owner(&self) -> Result<Pid> {
        let pids = self.clip.servers();
        assert_eq!(pids.len(), 1, "one process serves a cache directory: {pids:?}");
        Pid::from_raw(i32::try_from(pids[0])?).context("process 0")
    }

    /// A new directory beside the cache.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new_dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.clip.path(name);
        std::fs::create_dir(&dir)?;
        Ok(dir)
    }

    /// Every file through the mount at `dir` is what it should be.
    ///
    /// # Panics
    /// When one is not.
    pub fn assert_all_right(&self, dir: &Path) {
        for (path, contents) in &self.sample.files {
            let found = std::fs::read(dir.join(path)).unwrap_or_else(|error| panic!("{path}: {error}\n{}", self.clip.log()));
            assert!(found == *contents, "{path}: a wrong byte");
        }
    }
}
