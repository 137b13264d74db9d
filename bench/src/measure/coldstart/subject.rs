//! What is started: an image, where its bytes come from, its unpacked tree, and the command.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use clip_format::{clip_file::ClipFile, storage_info::StorageInfo, units::LayerIndex};
use clip_indexer::write_clip;
use tempfile::TempDir;

use super::ColdstartArgs;
use crate::{
    corpus::{LayerWriter, TAG_ALL, image_of},
    layout::LayoutImage,
    origin::Origin,
    registry::Registry,
    setup::{self, Made, Setup},
    unpack::unpack_layer,
};

/// Small files that the made image's command reads. Source: about what `python3 -c 'import numpy'` opens.
const SMALL_READ_MAX: usize = 400;
/// One of so many small files, and of so many libraries, is read. Source: `import torch` touches a fifth of
/// the bytes of its image (1.02 of 5.6 GB).
const ONE_OF: usize = 5;
/// What the made image's command runs.
const CAT: &str = "/bin/cat";

/// What is started.
pub(super) struct Subject<'a> {
    /// In words.
    pub(super) name: String,
    setup: &'a Setup,
    /// Where it is not the setup's image.
    own: Option<Own>,
    pub(super) command: Vec<String>,
    /// The unpacked tree.
    pub(super) tree: PathBuf,
    _scratch: TempDir,
}

/// An image that is made here, served and indexed.
struct Own {
    clip: PathBuf,
    info: StorageInfo,
    origin: Origin,
    registry: Registry,
}

impl Own {
    fn new(setup: &Setup, image: &LayoutImage, dir: &Path) -> Result<Self> {
        let (registry, clip) = (Registry::of_image(image)?, dir.join("image.clip"));
        let bytes = setup::index(&registry.image_reference())?.clip;
        write_clip(&clip, &bytes)?;
        let info = ClipFile::parse(&bytes)?.storage_info()?;
        let origin = Origin::new(&info, Some(&registry), &setup.shape)?;
        Ok(Self { clip, info, origin, registry })
    }
}

impl<'a> Subject<'a> {
    /// The setup's image and the command that `args` ask for; of a made image one more that can run `cat`, with a command that reads a part of it.
    ///
    /// # Errors
    /// Every kind.
    pub(super) fn new(setup: &'a Setup, args: &ColdstartArgs) -> Result<Self> {
        let scratch = setup.fresh_dir()?;
        let mut command = args.command.clone();
        let (name, own) = match &setup.made {
            None => (setup.name.clone(), None),
            Some(made) => {
                if command.is_empty() {
                    command = reading(setup);
                }
                let image = made_image(made).context("make an image that can run cat")?;
                (format!("{} with cat", setup.name), Some(Own::new(setup, &image, scratch.path())?))
            }
        };
        ensure!(!command.is_empty(), "no command: say what to run, as in clip-bench coldstart ... -- python3 -c 'import numpy'");
        let tree = scratch.path().join("tree");
        let mut subject = Self { name, setup, own, command, tree, _scratch: scratch };
        match &args.unpacked {
            Some(tree) => subject.tree.clone_from(tree),
            None => subject.unpack().context("unpack the image")?,
        }
        Ok(subject)
    }

    pub(super) fn clip(&self) -> &Path {
        self.own.as_ref().map_or(&self.setup.clip.path, |own| &own.clip)
    }

    pub(super) fn info(&self) -> &StorageInfo {
        self.own.as_ref().map_or(&self.setup.clip.info, |own| &own.info)
    }

    pub(super) fn origin(&self) -> &Origin {
        self.own.as_ref().map_or(&self.setup.origin, |own| &own.origin)
    }

    /// Of this process; none where a foreign one serves.
    pub(super) fn registry(&self) -> Option<&Registry> {
        self.own.as_ref().map(|own| &own.registry).or(self.setup.registry.as_ref())
    }

    fn unpack(&self) -> Result<()> {
        fs::create_dir(&self.tree)?;
        self.layers().try_for_each(|layer| unpack_layer(&self.origin().blob(layer)?, &self.tree))
    }

    fn layers(&self) -> impl Iterator<Item = LayerIndex> {
        (0..self.info().layers.len()).filter_map(|layer| u16::try_from(layer).ok().map(LayerIndex))
    }

    /// The blob of the longest gzip layer.
    pub(super) fn longest_gzip(&self) -> Result<Option<Bytes>> {
        let blobs = self.layers().map(|layer| self.origin().blob(layer)).collect::<Result<Vec<_>>>()?;
        Ok(blobs.into_iter().filter(|blob| blob.starts_with(&[0x1f, 0x8b])).max_by_key(Bytes::len))
    }
}

/// `cat` of a part of the files: what a start touches of an image.
fn reading(setup: &Setup) -> Vec<String> {
    let files = setup.clip.files.iter().filter(|file| file.path.starts_with(b"usr/"));
    let (libraries, small): (Vec<_>, Vec<_>) = files.partition(|file| file.path.starts_with(b"usr/lib/"));
    let some = small.into_iter().step_by(ONE_OF).take(SMALL_READ_MAX).chain(libraries.into_iter().step_by(ONE_OF));
    let paths = some.map(|file| format!("/{}", String::from_utf8_lossy(&file.path)));
    std::iter::once(CAT.to_owned()).chain(paths).collect()
}

/// The run's own image, with `cat` and what it is linked to as one more layer.
fn made_image(made: &Made) -> Result<LayoutImage> {
    let mut layer = LayerWriter::new(made.corpus.packing())?;
    for file in tools()? {
        let content = fs::read(&file).with_context(|| format!("read {}", file.display()))?;
        layer.program(file.to_str().context("a library whose name is not UTF-8")?.trim_start_matches('/'), &content)?;
    }
    let mut layers = made.corpus.layers_of(TAG_ALL).to_vec();
    layers.push(layer.finish()?);
    Ok(image_of(&layers))
}

/// `cat` and the libraries that the loader maps for it, by the names that it asks for.
///
/// # Errors
/// When this machine has no `cat`, or no `ldd` that says what it is linked to.
pub(super) fn tools() -> Result<BTreeSet<PathBuf>> {
    ensure!(Path::new(CAT).is_file(), "no {CAT} on this machine to make an image with");
    let output = Command::new("ldd").arg(CAT).output().context("run ldd, which says what cat is linked to")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let paths = text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/'))).map(PathBuf::from);
    Ok(paths.chain(std::iter::once(PathBuf::from(CAT))).collect())
}
