//! What every measurement starts from: the corpus, its registry, its index, and a place for caches.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result};
use clip_engine::{Engine, EngineConfig, Image, ImageOptions};
use clip_format::{
    checkpoints::{Checkpoints, SpanTable},
    clip_file::ClipFile,
    erofs::Index,
    header::Header,
    units::LayerIndex,
};
use clip_indexer::{IndexOptions, Indexed, index_image, progress::NoProgress, write_clip};
use tempfile::TempDir;

use crate::{
    corpus::{Corpus, LARGE_PATH, Sizes, TAG_ALL},
    registry::Registry,
};

/// How much is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Figures.
    Full,
    /// Every path once or twice, in seconds: the hashes count, the times do not.
    Tiny,
}

/// Settings of one run.
#[derive(Clone, Debug)]
pub struct Options {
    /// How much is measured.
    pub scale: Scale,
    /// What the corpus is made from.
    pub seed: u64,
    /// Runs of each measurement; default 5, tiny 2.
    pub runs: Option<usize>,
    /// The `clip` program; default: beside this one, if it is there.
    pub clip_program: Option<PathBuf>,
}

/// What every measurement starts from.
pub struct Setup {
    /// What is read.
    pub corpus: Corpus,
    /// Where it is read from.
    pub registry: Registry,
    /// Its index.
    pub clip: Clip,
    /// How much is measured.
    pub scale: Scale,
    /// Runs of each measurement.
    pub runs: usize,
    /// Reads of one run of random reads.
    pub random_reads: usize,
    /// The `clip` program, where it was found.
    pub clip_program: Option<PathBuf>,
    scratch: TempDir,
}

/// The whole image's index, on disk and in memory.
pub struct Clip {
    /// The `.clip`.
    pub path: PathBuf,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The file tree.
    pub index: Index,
    /// The tables of spans.
    pub checkpoints: Checkpoints,
    /// The windows section.
    pub windows: Vec<u8>,
    /// Where the large file is.
    pub large: LargeFile,
}

/// Where the large file is: in one piece of one layer.
#[derive(Clone, Copy, Debug)]
pub struct LargeFile {
    /// The layer.
    pub layer: LayerIndex,
    /// Where in its stream.
    pub stream: u64,
    /// Length.
    pub len: u64,
}

impl Setup {
    /// Makes the corpus, serves it and indexes it.
    ///
    /// # Errors
    /// Every kind.
    pub fn new(options: &Options) -> Result<Self> {
        let scratch = tempfile::Builder::new().prefix("clip-bench-").tempdir().context("make a directory for the corpus and the caches")?;
        let (sizes, runs, random_reads) = match options.scale {
            Scale::Full => (Sizes::FULL, 5, 150),
            Scale::Tiny => (Sizes::TINY, 2, 3),
        };
        let corpus = Corpus::make(&scratch.path().join("corpus"), options.seed, sizes)?;
        let registry = Registry::start(&corpus)?;
        let clip = Clip::make(scratch.path(), &registry.reference(TAG_ALL))?;
        Ok(Self {
            corpus,
            registry,
            clip,
            scale: options.scale,
            runs: options.runs.unwrap_or(runs).max(1),
            random_reads,
            clip_program: options.clip_program.clone().or_else(clip_program),
            scratch,
        })
    }

    /// A new, empty directory.
    ///
    /// # Errors
    /// The system's.
    pub fn fresh_dir(&self) -> Result<TempDir> {
        tempfile::Builder::new().prefix("run-").tempdir_in(self.scratch.path()).context("make a directory in the scratch space")
    }

    /// An engine with default settings over `cache`, and the image opened in it.
    ///
    /// # Errors
    /// The engine's.
    pub fn open(&self, cache: &Path) -> Result<(Engine, Arc<Image>)> {
        open(cache, &self.clip.path)
    }

    /// The large file's layer's spans.
    #[must_use]
    pub fn large_table(&self) -> &SpanTable {
        self.clip.checkpoints.layer(self.clip.large.layer)
    }
}

/// An engine with default settings over `cache`, and the image at `clip` opened in it.
///
/// # Errors
/// The engine's.
pub fn open(cache: &Path, clip: &Path) -> Result<(Engine, Arc<Image>)> {
    let engine = Engine::start(EngineConfig::new(cache.to_owned()))?;
    let image = engine.open_image(clip, &ImageOptions::default())?;
    Ok((engine, image))
}

/// Indexes `reference` with default settings.
///
/// # Errors
/// The indexer's.
pub fn index(reference: &str) -> Result<Indexed> {
    Ok(index_image(&IndexOptions::new(reference.parse()?), &NoProgress)?)
}

/// One hash over the sections that do not depend on where the image came from: index, checkpoints, windows.
///
/// # Errors
/// When the header is damaged.
pub fn sections_hash(clip: &[u8]) -> Result<blake3::Hash> {
    let header = Header::from_bytes(clip)?;
    let mut hasher = blake3::Hasher::new();
    for section in [&header.index, &header.checkpoints, &header.windows] {
        hasher.update(&section.blake3);
    }
    Ok(hasher.finalize())
}

impl Clip {
    fn make(dir: &Path, reference: &str) -> Result<Self> {
        let bytes = index(reference)?.clip;
        let path = dir.join("image.clip");
        write_clip(&path, &bytes)?;
        let file = ClipFile::parse(&bytes)?;
        let windows = file.windows()?.to_vec();
        let checkpoints = Checkpoints::open(Arc::new(file.checkpoints()?), &file.storage_info()?.layers, windows.len() as u64)?;
        let index = Index::open(Arc::new(file.index()?))?;
        let large = large_file(&index)?;
        Ok(Self { path, bytes, index, checkpoints, windows, large })
    }
}

fn large_file(index: &Index) -> Result<LargeFile> {
    let inode = index.resolve(LARGE_PATH.as_bytes())?.context("the index lacks the large file")?;
    let extent = index.extents(&inode, 0..inode.size).next().context("the large file has no bytes")??;
    anyhow::ensure!(extent.file == (0..inode.size), "expected the large file in one piece, found {:?} of {}", extent.file, inode.size);
    let (layer, stream) = extent.data.context("the large file is a hole")?;
    Ok(LargeFile { layer, stream: stream.get(), len: inode.size })
}

fn clip_program() -> Option<PathBuf> {
    let beside = std::env::current_exe().ok()?.with_file_name("clip");
    beside.is_file().then_some(beside)
}
