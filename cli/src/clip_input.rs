//! A `.clip` given on the command line: opened without a cache for `inspect` and `ls`, through an engine for what reads contents.

use std::{
    io::{Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result};
use clip_engine::{Engine, EngineConfig, EngineError, Image, ImageOptions, files::open_regular, source::BlobSource};
use clip_format::{
    clip_file::{ClipFile, storage_info_of},
    erofs::{FileType, Index, Inode},
    header::{HEADER_LEN, Header, Section},
    storage_info::StorageInfo,
};

use crate::{
    args::ReadArgs,
    interrupt::ScratchDir,
    resolve::{self, Whence},
};

/// Largest `.clip` that is read into memory: the sum of the format's limits of stored sections.
const CLIP_BYTES_MAX: u64 = 12 << 30;

/// The file's bytes.
pub fn read_clip(path: &Path) -> Result<Vec<u8>> {
    let context = || format!("{}: cannot be read", path.display());
    let file = open_regular(path).with_context(context)?;
    let mut bytes = Vec::new();
    file.take(CLIP_BYTES_MAX + 1).read_to_end(&mut bytes).with_context(context)?;
    anyhow::ensure!(bytes.len() as u64 <= CLIP_BYTES_MAX, "{}: a .clip has at most {CLIP_BYTES_MAX} bytes", path.display());
    Ok(bytes)
}

/// The header, checked; errors name the file.
pub fn parse_clip<'a>(path: &Path, bytes: &'a [u8]) -> Result<ClipFile<'a>> {
    ClipFile::parse(bytes).with_context(|| path.display().to_string())
}

/// The index of `clip`, expanded in memory, hash and superblock checked.
pub fn open_index(path: &Path, clip: &ClipFile<'_>) -> Result<Index> {
    let raw = clip.index().with_context(|| path.display().to_string())?;
    Index::open(Arc::new(raw)).with_context(|| path.display().to_string())
}

/// An image whose contents can be read, the engine that reads them, and, when the usual cache directory is taken, a private one.
pub struct OpenedImage {
    /// The image; dropped before the engine.
    pub image: Arc<Image>,
    _engine: Engine,
    _scratch: Option<ScratchDir>,
}

/// Which cache directory a reading command uses when none is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheChoice {
    /// The user's.
    Shared,
    /// The user's, for a few small files: that they are fetched again when another process has it is not worth a warning.
    SharedForLittle,
    /// One of its own, removed afterwards.
    Private,
}

/// Opens `path` for reading contents. When another process owns the cache directory, a private one serves instead, and that is said.
pub fn open_image(path: &Path, args: &ReadArgs, choice: CacheChoice) -> Result<OpenedImage> {
    let whence = resolve::whence(args)?;
    let login = resolve::login(&args.client, || resolve::registry_of(path, &whence))?;
    let wish = resolve::EngineWish::from_args(args)?;
    let config = |cache_dir: PathBuf| {
        let mut config = wish.to_config(cache_dir);
        config.client.login = login.clone();
        config
    };
    let (engine, scratch) = if choice == CacheChoice::Private && args.cache_dir.is_none() {
        private_engine(config)?
    } else {
        let cache_dir = resolve::cache_dir(args.cache_dir.as_deref())?;
        match Engine::start(config(cache_dir.clone())) {
            Ok(engine) => (engine, None),
            Err(error @ EngineError::CacheBusy { .. }) => {
                if choice == CacheChoice::Shared {
                    tracing::warn!("{error}; reading through a private cache directory, so what is cached there is fetched again");
                }
                private_engine(config)?
            }
            Err(error) => return Err(error).with_context(|| format!("cache directory {} (--cache-dir)", cache_dir.display())),
        }
    };
    let image = open(&engine, path, &whence, Recording::Off)?;
    Ok(OpenedImage { image, _engine: engine, _scratch: scratch })
}

/// Whether the order of first need is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recording {
    /// It is.
    On,
    /// It is not.
    Off,
}

/// Opens `path` in `engine`. Of an image that lies on this machine the layers are found first: a layout that has moved is an error
/// here, not at the first read.
pub fn open(engine: &Engine, path: &Path, whence: &Whence, recording: Recording) -> Result<Arc<Image>> {
    // The engine opens it once more; of what is no file this is where it is told.
    drop(open_regular(path).with_context(|| format!("{}: cannot be read", path.display()))?);
    let local_blobs = if whence.store_ref.is_some() { None } else { local_blobs(path, whence.source.as_deref())? };
    let record = recording == Recording::On;
    let options = ImageOptions { source: whence.source.clone(), store_ref: whence.store_ref.clone(), local_blobs, record };
    Ok(engine.open_image(path, &options)?)
}

fn local_blobs(path: &Path, moved_to: Option<&Path>) -> Result<Option<Vec<BlobSource>>> {
    let info = read_storage_info(path)?;
    let recorded = info.source.local_path();
    let Some(at) = moved_to.map(Path::to_owned).or(recorded) else { return Ok(None) };
    let blobs = clip_indexer::local_blobs(&info, &at)
        .with_context(|| format!("layers of {} (--source PATH says where they are now)", path.display()))?;
    Ok(Some(blobs))
}

/// The storage info of the `.clip` at `path`. Cost: two small reads, however large the image.
pub fn read_storage_info(path: &Path) -> Result<StorageInfo> {
    let read = read_section(path, |header| Some(header.storage_info))?;
    let (header, stored) = read.with_context(|| format!("{}: no storage info", path.display()))?;
    storage_info_of(&header, &stored).with_context(|| path.display().to_string())
}

/// The header of the `.clip` at `path` and the stored bytes of the section that `choose` takes; `None` when it takes none.
pub fn read_section(path: &Path, choose: impl Fn(&Header) -> Option<Section>) -> Result<Option<(Header, Vec<u8>)>> {
    let context = || format!("{}: cannot be read", path.display());
    let mut file = open_regular(path).with_context(context)?;
    let mut head = Vec::with_capacity(HEADER_LEN);
    (&mut file).take(HEADER_LEN as u64).read_to_end(&mut head).with_context(context)?;
    let header = Header::from_bytes(&head).with_context(|| path.display().to_string())?;
    let Some(section) = choose(&header) else { return Ok(None) };
    file.seek(SeekFrom::Start(section.position)).with_context(context)?;
    let mut stored = Vec::new();
    file.take(section.stored_len).read_to_end(&mut stored).with_context(context)?;
    Ok(Some((header, stored)))
}

fn private_engine(config: impl Fn(PathBuf) -> EngineConfig) -> Result<(Engine, Option<ScratchDir>)> {
    let scratch = ScratchDir::new("clip-cache-").context("temporary cache directory (TMPDIR)")?;
    let engine = Engine::start(config(scratch.path().join("cache")))?;
    Ok((engine, Some(scratch)))
}

/// Symbolic links followed on the way to a file; as the kernel's MAXSYMLINKS (linux include/linux/namei.h).
const LINKS_MAX: usize = 40;

/// The inode at `path`, a last symbolic link followed too, and the path where it was found. A slash behind the path, or behind the target
/// of a link on the way, asks for a directory.
pub fn resolve_following(index: &Index, path: &[u8]) -> Result<(Inode, Vec<u8>)> {
    let (mut at, mut needs_directory) = (path.to_vec(), false);
    for _ in 0..LINKS_MAX {
        let name_len = without_slashes(&at).len();
        needs_directory |= name_len < at.len();
        at.truncate(name_len.max(1));
        let inode = resolve_name(index, &at)?;
        match inode.file_type {
            FileType::Symlink => {}
            FileType::Directory => return Ok((inode, at)),
            _ if needs_directory => anyhow::bail!("{}: not a directory", crate::display::escaped(path)),
            _ => return Ok((inode, at)),
        }
        let target = index.link_target(&inode)?;
        at = if target.starts_with(b"/") { target.to_vec() } else { [parent(&at), b"/", target].concat() };
    }
    anyhow::bail!("{}: more than {LINKS_MAX} symbolic links", crate::display::escaped(path))
}

/// The inode at `path`, a last symbolic link not followed unless a slash is behind it, which asks for a directory.
pub fn resolve_exact(index: &Index, path: &[u8]) -> Result<Inode> {
    if without_slashes(path).len() < path.len() {
        return Ok(resolve_following(index, path)?.0);
    }
    resolve_name(index, path)
}

fn resolve_name(index: &Index, path: &[u8]) -> Result<Inode> {
    let shown = || crate::display::escaped(path);
    let found = index.resolve(path).with_context(shown)?;
    found.ok_or_else(|| anyhow::anyhow!("{}: no such file or directory in the image", shown()))
}

fn without_slashes(path: &[u8]) -> &[u8] {
    &path[..path.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1)]
}

fn parent(path: &[u8]) -> &[u8] {
    let path = without_slashes(path);
    let slash = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
    &path[..slash]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The directory that a relative link target is relative to.
    #[test]
    fn parents() {
        assert_eq!(parent(b"/a/b"), b"/a");
        assert_eq!(parent(b"a/b//"), b"a");
        assert_eq!(parent(b"a"), b"");
        assert_eq!(parent(b"/"), b"");
    }
}
