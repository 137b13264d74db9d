//! Expanded images: `<cache>/images/<image id>/{index.erofs,checkpoints,windows,storage_info}`.
//!
//! An image is expanded and checked once, in a temporary directory that is renamed into place. Later opens map the files, check
//! their lengths, and hash them in the background.

use std::{
    fs::File,
    io::{Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use clip_format::{
    bytes::SharedBytes,
    checkpoints::Checkpoints,
    clip_file::ClipFile,
    erofs::{self, Index},
    error::FormatError,
    header::{HEADER_LEN, Header, Section},
    storage_info::StorageInfo,
    units::LayerIndex,
};
use memmap2::Mmap;

use super::{create_dir, open_private};
use crate::error::EngineError;

/// A device of the index is its layer's stream, rounded up to this. Source: DESIGN section 4: the index has 512-byte blocks.
const DEVICE_BLOCK_BYTES: u64 = 512;
/// Bytes of the hash buffer of the background check.
const HASH_CHUNK: usize = 1 << 20;

/// What an opened image consists of.
pub(crate) struct ExpandedImage {
    pub(crate) index: Index,
    pub(crate) storage_info: StorageInfo,
    pub(crate) checkpoints: Checkpoints,
    pub(crate) windows: SharedBytes,
}

/// The header of the `.clip` at `path`.
///
/// # Errors
/// `Io`, `Format`.
pub(crate) fn read_header(path: &Path) -> Result<Header, EngineError> {
    let mut bytes = Vec::with_capacity(HEADER_LEN);
    let file = File::open(path).map_err(|error| EngineError::io("open", path, error))?;
    file.take(HEADER_LEN as u64).read_to_end(&mut bytes).map_err(|error| EngineError::io("read", path, error))?;
    Header::from_bytes(&bytes).map_err(|source| format_error(path, source))
}

/// Opens the expanded form of the `.clip` at `path`, making it first where there is none that fits.
///
/// # Errors
/// `Io`, `Format`.
pub(crate) fn open(cache_dir: &Path, path: &Path, header: &Header) -> Result<ExpandedImage, EngineError> {
    let dir = cache_dir.join("images").join(hex::encode(header.image_id()));
    if fits(&dir, header) {
        match map(&dir, header) {
            Ok(image) => {
                check_in_background(dir, header.clone());
                return Ok(image);
            }
            Err(error) => tracing::error!(dir = %dir.display(), %error, "an expanded image is damaged and is made again"),
        }
    }
    expand(&dir, path, header)?;
    map(&dir, header)
}

/// Removes what an owner that died left half expanded.
pub(crate) fn remove_leftovers(cache_dir: &Path) {
    let Ok(entries) = std::fs::read_dir(cache_dir.join("images")) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b".tmp")) {
        let _ = std::fs::remove_dir_all(entry.path());
    }
}

fn sections(header: &Header) -> [(&'static str, &Section); 4] {
    [
        ("index.erofs", &header.index),
        ("storage_info", &header.storage_info),
        ("checkpoints", &header.checkpoints),
        ("windows", &header.windows),
    ]
}

fn fits(dir: &Path, header: &Header) -> bool {
    let right = |name: &str, len| std::fs::symlink_metadata(dir.join(name)).is_ok_and(|file| file.is_file() && file.len() == len);
    sections(header).iter().all(|(name, section)| right(name, section.raw_len))
}

/// Maps the files of `dir`. The small storage info, which says where bytes are fetched from, is hashed at once.
fn map(dir: &Path, header: &Header) -> Result<ExpandedImage, EngineError> {
    let bad = |name: &'static str| move |source| format_error(&dir.join(name), source);
    let info_path = dir.join("storage_info");
    let info = std::fs::read(&info_path).map_err(|error| EngineError::io("read", &info_path, error))?;
    check_hash("storage info", &info, &header.storage_info).map_err(bad("storage_info"))?;
    let storage_info = StorageInfo::from_bytes(&info).map_err(bad("storage_info"))?;
    let index = Index::open(map_file(&dir.join("index.erofs"))?).map_err(bad("index.erofs"))?;
    let windows = map_file(&dir.join("windows"))?;
    let windows_len = (*windows).as_ref().len() as u64;
    let checkpoints = map_file(&dir.join("checkpoints"))?;
    let checkpoints = Checkpoints::open(checkpoints, &storage_info.layers, windows_len).map_err(bad("checkpoints"))?;
    if index.layer_count() != storage_info.layers.len() {
        let (expected, found) = (format!("{} layers", storage_info.layers.len()), format!("{} devices", index.layer_count()));
        return Err(bad("index.erofs")(FormatError::Field { what: "device count", offset: 0, expected, found }));
    }
    for (number, layer) in storage_info.layers.iter().enumerate() {
        let found = u16::try_from(number).ok().and_then(|number| index.layer_bytes(LayerIndex(number)));
        let expected = layer.stream_size.next_multiple_of(DEVICE_BLOCK_BYTES);
        if found != Some(expected) {
            let (expected, found) = (format!("{expected} bytes for layer {number}"), format!("{} bytes", found.unwrap_or(0)));
            return Err(bad("index.erofs")(FormatError::Field { what: "device size", offset: 0, expected, found }));
        }
    }
    Ok(ExpandedImage { index, storage_info, checkpoints, windows })
}

fn map_file(path: &Path) -> Result<SharedBytes, EngineError> {
    let io = |operation| move |error| EngineError::io(operation, path, error);
    let file = File::open(path).map_err(io("open"))?;
    if file.metadata().map_err(io("stat"))?.len() == 0 {
        return Ok(Arc::new(Vec::new()));
    }
    // SAFETY: the file stands in a directory of the owner's (0700), was renamed into place complete and is never written or cut
    // again by this program; removing it leaves the map whole.
    let map = unsafe { Mmap::map(&file) }.map_err(io("map"))?;
    Ok(Arc::new(map))
}

fn expand(dir: &Path, path: &Path, header: &Header) -> Result<(), EngineError> {
    let bad = |source| format_error(path, source);
    let bytes = read_clip(path, header).map_err(|error| EngineError::io("read", path, error))?;
    let clip = ClipFile::parse(&bytes).map_err(bad)?;
    if clip.header() != header {
        let (expected, found) = (hex::encode(header.image_id()), hex::encode(clip.header().image_id()));
        return Err(bad(FormatError::Field { what: "header, which changed while it was read", offset: 0, expected, found }));
    }
    let (index, checkpoints) = (clip.index().map_err(bad)?, clip.checkpoints().map_err(bad)?);
    let storage_info = clip.storage_info().map_err(bad)?;
    let windows = clip.windows().map_err(bad)?;
    let index: Arc<Vec<u8>> = Arc::new(index);
    erofs::check::check(&Index::open(index.clone()).map_err(bad)?).map_err(bad)?;
    let info = storage_info.to_bytes().map_err(bad)?;
    check_hash("storage info", &info, &header.storage_info).map_err(bad)?;
    write_dir(dir, &[("index.erofs", &index), ("storage_info", &info), ("checkpoints", &checkpoints), ("windows", windows)])
}

/// The `.clip` up to the end of its last section, and one byte more where there is one: enough to see that there is too much.
fn read_clip(path: &Path, header: &Header) -> std::io::Result<Vec<u8>> {
    let ends = sections(header).map(|(_, section)| section.position.saturating_add(section.stored_len));
    let end = ends.into_iter().fold(HEADER_LEN as u64, u64::max);
    let mut bytes = Vec::new();
    File::open(path)?.take(end.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Writes `files` under a temporary name beside `dir`, syncs them and renames; what stood at `dir` is gone.
fn write_dir(dir: &Path, files: &[(&str, &[u8])]) -> Result<(), EngineError> {
    let parent = dir.parent().expect("an image directory stands in `images`");
    create_dir(parent)?;
    let io = |operation: &'static str, path: &Path| {
        let path = path.to_owned();
        move |error| EngineError::io(operation, path, error)
    };
    let temporary = tempfile::Builder::new().prefix(".tmp").tempdir_in(parent).map_err(io("create directory in", parent))?;
    for (name, bytes) in files {
        let path = temporary.path().join(name);
        let mut file = open_private(&path).map_err(io("create", &path))?;
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(io("write", &path))?;
    }
    File::open(temporary.path()).and_then(|opened| opened.sync_all()).map_err(io("sync", temporary.path()))?;
    remove_image(dir)?;
    std::fs::rename(temporary.path(), dir).map_err(io("rename to", dir))?;
    // Renamed away: nothing is left at the temporary name to remove.
    let _ = temporary.keep();
    File::open(parent).and_then(|opened| opened.sync_all()).map_err(io("sync", parent))
}

fn remove_image(dir: &Path) -> Result<(), EngineError> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(EngineError::io("remove", dir, error)),
        _ => Ok(()),
    }
}

/// Hashes the files of `dir` on a thread of its own; when one is damaged, says so and removes the directory, so that the next open
/// expands the image again.
fn check_in_background(dir: PathBuf, header: Header) {
    let check = move || {
        let damaged = sections(&header).into_iter().find(|(name, section)| !hashes_to(&dir.join(name), &section.blake3));
        if let Some((name, _)) = damaged {
            tracing::error!(file = %dir.join(name).display(), "an expanded image is damaged; it is removed, mount the image again");
            let _ = remove_image(&dir);
        }
    };
    if let Err(error) = std::thread::Builder::new().name("clip-check".to_owned()).spawn(check) {
        tracing::warn!(%error, "an expanded image could not be checked: no thread");
    }
}

/// False when the file's bytes have another hash; a file that cannot be read (it may be gone already) is no damage.
fn hashes_to(path: &Path, expected: &[u8; 32]) -> bool {
    let Ok(mut file) = File::open(path) else { return true };
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; HASH_CHUNK];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return hasher.finalize().as_bytes() == expected,
            Ok(len) => hasher.update(&buffer[..len]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => return true,
        };
    }
}

fn check_hash(what: &'static str, bytes: &[u8], section: &Section) -> Result<(), FormatError> {
    let found = blake3::hash(bytes);
    if *found.as_bytes() == section.blake3 {
        return Ok(());
    }
    Err(FormatError::Hash { what, expected: hex::encode(section.blake3), found: found.to_hex().to_string() })
}

fn format_error(path: &Path, source: FormatError) -> EngineError {
    EngineError::Format { path: path.to_owned(), source }
}
