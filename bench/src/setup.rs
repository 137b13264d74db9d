//! What every measurement starts from: an image, its registry, its index, and a place for caches.

use std::{
    fmt,
    io::Write as _,
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use anyhow::{Context, Result, bail, ensure};
use clip_engine::{Engine, EngineConfig, Image, ImageOptions, registry::PlainHttp};
use clip_format::{
    checkpoints::{Checkpoints, SpanTable},
    clip_file::ClipFile,
    erofs::Index,
    header::Header,
    storage_info::{Codec, Source, StorageInfo},
    units::{LayerIndex, SpanIndex},
};
use clip_indexer::{IndexOptions, Indexed, index_image, progress::NoProgress, write_clip};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::{
    args::{Common, Shape},
    corpus::{Corpus, Packing, Sizes, TAG_ALL},
    floor,
    layout::{self, LayoutImage},
    origin::Origin,
    registry::Registry,
    tree,
};

/// How much is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Figures.
    Full,
    /// Every path once or twice, in seconds: the hashes count, the times do not.
    Tiny,
}

/// The image that was made for the run.
pub struct Made {
    /// What is read.
    pub corpus: Corpus,
    /// Where it is read from.
    pub registry: Registry,
}

/// Which image is measured.
#[derive(Clone, Copy, Debug)]
pub enum Subject<'a> {
    /// One that is made from the seed, or the `.clip` that `--clip` names.
    MadeOrClip {
        /// Of the large layer, where nothing else was asked for.
        corpus_mib: u32,
        /// Of one more image; 0 for none.
        equal_layers: usize,
    },
    /// One of an OCI layout, `DIR[:TAG]` with `oci:` before it or not, served from memory.
    Layout(&'a str),
    /// One of a registry, as its reference says.
    Reference(&'a str),
}

/// What every measurement starts from.
pub struct Setup {
    /// The image that was made for the run; none where one was named.
    pub made: Option<Made>,
    /// The registry of this process, where a layout's image is served.
    pub registry: Option<Registry>,
    /// What the image is called: as it was named, or `seed N`.
    pub name: String,
    /// The index.
    pub clip: Clip,
    /// Where its layers come from.
    pub origin: Origin,
    /// The large file as an ordinary file, written when first asked for.
    plain: OnceLock<Plain>,
    /// How much is measured.
    pub scale: Scale,
    /// Runs of each measurement.
    pub runs: usize,
    /// What random reads are drawn from.
    pub seed: u64,
    /// Reads of one run of random reads.
    pub random_reads: usize,
    /// What stands between clip and the registry.
    pub shape: Shape,
    /// The `clip` program, where it was found.
    pub clip_program: Option<PathBuf>,
    scratch: TempDir,
}

/// The large file as the plain loop decoded it.
#[derive(Clone, Debug)]
pub struct Plain {
    /// An ordinary file with its bytes.
    pub path: PathBuf,
    /// BLAKE3 of them.
    pub hash: blake3::Hash,
}

/// The whole image's index, on disk and in memory.
pub struct Clip {
    /// The `.clip`.
    pub path: PathBuf,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The file tree.
    pub index: Index,
    /// Source, config, layers.
    pub info: StorageInfo,
    /// The tables of spans.
    pub checkpoints: Checkpoints,
    /// The windows section.
    pub windows: Vec<u8>,
    /// Regular files, sorted by path.
    pub files: Vec<tree::TreeFile>,
    /// The longest file that lies in one piece of one layer.
    pub large: LargeFile,
}

/// A large file: in one piece of one layer.
#[derive(Clone, Debug)]
pub struct LargeFile {
    /// From the root, without a leading slash.
    pub path: PathBuf,
    /// The layer.
    pub layer: LayerIndex,
    /// Where in its stream.
    pub stream: u64,
    /// Length.
    pub len: u64,
}

/// The image in a line.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ImageSummary {
    /// What it is called; `seed N` when it was made for the run.
    pub name: String,
    /// Of its manifest. Empty in runs that were saved without it.
    #[serde(default)]
    pub digest: String,
    /// Layers.
    pub layers: usize,
    /// Regular files, hard links once.
    pub files: u64,
    /// Of all layer streams.
    pub stream_bytes: u64,
    /// Of all blobs.
    pub compressed_bytes: u64,
    /// Of the large file.
    pub large_bytes: u64,
}

impl ImageSummary {
    /// Its name, with the digest where that is no part of it.
    #[must_use]
    pub fn title(&self) -> String {
        let Self { name, digest, .. } = self;
        if name.contains(digest) { name.clone() } else { format!("{name} ({digest})") }
    }
}

impl fmt::Display for ImageSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let Self { layers, files, .. } = self;
        let (stream, compressed) = (mib(self.stream_bytes), mib(self.compressed_bytes));
        write!(f, "image: {}, {files} files, {stream:.1} MiB of stream in {layers} layers of {compressed:.1} MiB compressed", self.title())
    }
}

impl Setup {
    /// Makes the image, of `corpus_mib` where nothing else was asked for, serves and indexes it; or opens the `.clip` that was named.
    ///
    /// # Errors
    /// Every kind.
    pub fn new(common: &Common, corpus_mib: u32) -> Result<Self> {
        Self::of(common, Subject::MadeOrClip { corpus_mib, equal_layers: 0 })
    }

    /// Makes, opens, or serves and indexes `subject`.
    ///
    /// # Errors
    /// Every kind; when there is no such image, or two were named.
    pub fn of(common: &Common, subject: Subject<'_>) -> Result<Self> {
        let clip_program = program(common.clip_program.as_deref())?;
        let scratch = tempfile::Builder::new().prefix("clip-bench-").tempdir().context("make a directory for the corpus and the caches")?;
        let (scale, runs, random_reads) = if common.tiny { (Scale::Tiny, 2, 3) } else { (Scale::Full, 5, 300) };
        let dir = scratch.path();
        let given = |name: String, registry, clip| (name, None, registry, clip);
        let (name, made, registry, clip) = match (&common.clip, subject) {
            (Some(path), Subject::MadeOrClip { .. }) => {
                let clip = Clip::read(path)?;
                given(clip.reference().unwrap_or_else(|| clip.local_path()), None, clip)
            }
            (Some(_), Subject::Layout(_) | Subject::Reference(_)) => bail!("two images were named; leave out --clip or the other"),
            (None, Subject::Layout(named)) => {
                let (path, tag) = layout::split_tag(named);
                let registry = Registry::of_image(&LayoutImage::read(Path::new(path), tag)?)?;
                let clip = Clip::make(dir, &registry.image_reference())?;
                given(format!("oci:{}", named.trim_start_matches("oci:")), Some(registry), clip)
            }
            (None, Subject::Reference(named)) => given(named.to_owned(), None, Clip::make(dir, named)?),
            (None, Subject::MadeOrClip { corpus_mib, equal_layers }) => {
                let sizes = match (scale, common.corpus_mib) {
                    (Scale::Tiny, None) => Sizes::TINY,
                    (Scale::Tiny, Some(mib)) => Sizes::TINY.with_large_layer(mib),
                    (Scale::Full, mib) => Sizes::FULL.with_large_layer(mib.unwrap_or(corpus_mib)),
                };
                let corpus = Corpus::make(&dir.join("corpus"), common.seed, Sizes { equal_layers, packing: common.codec, ..sizes })?;
                let registry = Registry::start(&corpus)?;
                let clip = Clip::make(dir, &registry.reference(TAG_ALL))?;
                (made_name(common), Some(Made { corpus, registry }), None, clip)
            }
        };
        let serving = made.as_ref().map(|made| &made.registry).or(registry.as_ref());
        let origin = Origin::new(&clip.info, serving, &common.shape)?;
        Ok(Self {
            made,
            registry,
            name,
            clip,
            origin,
            plain: OnceLock::new(),
            scale,
            runs: common.runs.unwrap_or(runs),
            seed: common.seed,
            random_reads,
            shape: common.shape.clone(),
            clip_program,
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

    /// An engine with default settings over `cache`, and the image opened in it. A new round for the shaper.
    ///
    /// # Errors
    /// The engine's.
    pub fn open(&self, cache: &Path) -> Result<(Engine, Arc<Image>)> {
        self.origin.begin_round();
        let engine = Engine::start(EngineConfig::new(cache.to_owned()))?;
        let image = engine.open_image(&self.clip.path, &self.origin.image_options()?)?;
        Ok((engine, image))
    }

    /// As [`Setup::open`], speaking TLS with `registry`.
    ///
    /// # Errors
    /// The engine's.
    pub fn open_tls(&self, registry: &Registry, cache: &Path) -> Result<(Engine, Arc<Image>)> {
        let mut config = EngineConfig::new(cache.to_owned());
        config.client.plain_http = PlainHttp::Never;
        config.client.ca_file = Some(registry.ca_file().to_owned());
        let engine = Engine::start(config)?;
        let reference = Registry::reference_at(registry.tls_address(), TAG_ALL);
        let options = ImageOptions { store_ref: Some(reference.parse()?), ..ImageOptions::default() };
        let image = engine.open_image(&self.clip.path, &options)?;
        Ok((engine, image))
    }

    /// The large file as an ordinary file: what reads must give.
    ///
    /// # Errors
    /// When its layer cannot be fetched or decoded.
    pub fn plain(&self) -> Result<&Plain> {
        if let Some(plain) = self.plain.get() {
            return Ok(plain);
        }
        let plain = match &self.made {
            Some(made) => Plain { path: made.corpus.plain_file(), hash: made.corpus.large_hash },
            None => self.decode_plain().context("decode the large file")?,
        };
        Ok(self.plain.get_or_init(|| plain))
    }

    fn decode_plain(&self) -> Result<Plain> {
        let (large, path) = (&self.clip.large, self.scratch.path().join("large.plain"));
        let (mut file, mut hasher, mut at) = (std::fs::File::create(&path)?, blake3::Hasher::new(), 0);
        let layer = &self.clip.info.layers[usize::from(large.layer.get())];
        floor::decode(layer.codec, &self.origin.blob(large.layer)?, |bytes| {
            let wanted = large.stream.clamp(at, at + bytes.len() as u64)..(large.stream + large.len).clamp(at, at + bytes.len() as u64);
            let part = &bytes[(wanted.start - at) as usize..(wanted.end - at) as usize];
            hasher.update(part);
            at += bytes.len() as u64;
            Ok(file.write_all(part)?)
        })?;
        Ok(Plain { path, hash: hasher.finalize() })
    }

    /// What the large file's layer is compressed with.
    #[must_use]
    pub fn large_codec(&self) -> Codec {
        self.clip.info.layers[usize::from(self.clip.large.layer.get())].codec
    }

    /// The large file's layer's spans.
    #[must_use]
    pub fn large_table(&self) -> &SpanTable {
        self.clip.checkpoints.layer(self.clip.large.layer)
    }

    /// How images that are made are compressed.
    #[must_use]
    pub fn packing(&self) -> Packing {
        self.made.as_ref().map_or(Packing::Gzip, |made| made.corpus.packing())
    }

    /// Whether nothing but its start is a place to enter the large file's layer: one zstd frame.
    #[must_use]
    pub fn large_layer_is_in_one_piece(&self) -> bool {
        let table = self.large_table();
        table.len() > 1 && table.entry_of(SpanIndex(table.len() - 1)) == SpanIndex(0)
    }

    /// The image in a line.
    #[must_use]
    pub fn summary(&self) -> ImageSummary {
        let layers = &self.clip.info.layers;
        ImageSummary {
            name: self.name.clone(),
            digest: self.clip.info.manifest_digest.to_string(),
            layers: layers.len(),
            files: self.clip.files.len() as u64,
            stream_bytes: layers.iter().map(|layer| layer.stream_size).sum(),
            compressed_bytes: layers.iter().map(|layer| layer.compressed_size).sum(),
            large_bytes: self.clip.large.len,
        }
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
    index_with(&IndexOptions::new(reference.parse()?))
}

/// Indexes as `options` say.
///
/// # Errors
/// The indexer's.
pub fn index_with(options: &IndexOptions) -> Result<Indexed> {
    Ok(index_image(options, &NoProgress)?)
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
        let path = dir.join("image.clip");
        write_clip(&path, &index(reference)?.clip)?;
        Self::read(&path)
    }

    /// The reference that it was made from, by digest; none of a local image.
    #[must_use]
    pub fn reference(&self) -> Option<String> {
        match &self.info.source {
            Source::Registry { registry, repository, .. } => Some(format!("{registry}/{repository}@{}", self.info.manifest_digest)),
            Source::Local { .. } => None,
        }
    }

    /// Where a local image was when it was indexed; empty of one of a registry.
    fn local_path(&self) -> String {
        self.info.source.local_path().unwrap_or_default().display().to_string()
    }

    /// The `.clip` at `path`, expanded in memory.
    ///
    /// # Errors
    /// When it cannot be read, or is damaged.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
        Self::parse(path, bytes).with_context(|| path.display().to_string())
    }

    fn parse(path: &Path, bytes: Vec<u8>) -> Result<Self> {
        let file = ClipFile::parse(&bytes)?;
        let (windows, info) = (file.windows()?.to_vec(), file.storage_info()?);
        let checkpoints = Checkpoints::open(Arc::new(file.checkpoints()?), &info.layers, windows.len() as u64)?;
        let index = Index::open(Arc::new(file.index()?))?;
        let files = tree::files(&index)?;
        let (large, piece) = tree::largest(&index, &files)?;
        let large_path = PathBuf::from(std::ffi::OsStr::from_bytes(&large.path));
        let large = LargeFile { path: large_path, layer: piece.layer, stream: piece.stream, len: piece.len };
        Ok(Self { path: path.to_owned(), bytes, index, info, checkpoints, windows, files, large })
    }
}

/// `seed 1`, `seed 1 in zstd-frames`
fn made_name(common: &Common) -> String {
    let codec = if common.codec == Packing::Gzip { String::new() } else { format!(" in {}", common.codec.id()) };
    format!("seed {}{codec}", common.seed)
}

/// The program that was named, else the one beside this one, where there is one.
fn program(named: Option<&Path>) -> Result<Option<PathBuf>> {
    if let Some(named) = named {
        let mode = named.metadata().with_context(|| format!("--clip-program {}", named.display()))?.permissions().mode();
        ensure!(named.is_file() && mode & 0o111 != 0, "--clip-program {}: not a program", named.display());
        return Ok(Some(named.to_owned()));
    }
    let beside = std::env::current_exe().ok().map(|own| own.with_file_name("clip"));
    Ok(beside.filter(|beside| beside.is_file()))
}
