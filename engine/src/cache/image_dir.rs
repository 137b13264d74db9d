//! Expanded images: `<cache>/images/<image id>/{index.erofs,checkpoints,windows,storage_info}`.
//!
//! An image is expanded and checked once, in a temporary directory that is renamed into place; the disk gets it in the background, and
//! then the file `synced` says so. Later opens map the files, check their lengths, and hash them: small ones, and what may not have
//! reached the disk, before the first answer, large ones in the background, where damage ends the reads of the image with an error.

use std::{
    fs::File,
    io::{Read, Write},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
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
use rustix::fs::{Mode, OFlags};

use super::{background::Background, create_dir, open_private, room::Room};
use crate::{error::EngineError, files::open_regular};

/// A device of the index is its layer's stream, rounded up to this. Source: the index has 512-byte blocks, those of tar
/// (docs/decisions/001.md).
const DEVICE_BLOCK_BYTES: u64 = 512;
/// Bytes of the hash buffer of the check.
const HASH_CHUNK: usize = 1 << 20;
/// Expanded bytes that are hashed before the first answer. Source: BLAKE3 at 5 GB/s takes 3 ms for them, and a Debian
/// base has 1.2 MB.
const CHECKED_AT_ONCE_BYTES_MAX: u64 = 16 << 20;

/// Stands beside the files once the disk has them. Without it, after a power failure, they can have their lengths and be zeros.
const SYNCED: &str = "synced";
/// Where a background check leaves what it found.
pub(crate) type Damage = Arc<OnceLock<EngineError>>;

/// What an opened image consists of.
pub(crate) struct ExpandedImage {
    pub(crate) index: Index,
    pub(crate) storage_info: StorageInfo,
    pub(crate) checkpoints: Checkpoints,
    pub(crate) windows: SharedBytes,
    pub(crate) damage: Damage,
}

/// The header of the `.clip` at `path`, which is as long as it says: what is expanded already needs none of the sections, and a file cut
/// off would be one on this node and none on the next.
///
/// # Errors
/// `Io`, `Format`.
pub(crate) fn read_header(path: &Path) -> Result<Header, EngineError> {
    let mut bytes = Vec::with_capacity(HEADER_LEN);
    let file = open_regular(path).map_err(|error| EngineError::io("open", path, error))?;
    let found = file.metadata().map_err(|error| EngineError::io("look at", path, error))?.len();
    file.take(HEADER_LEN as u64).read_to_end(&mut bytes).map_err(|error| EngineError::io("read", path, error))?;
    let header = Header::from_bytes(&bytes);
    header.and_then(|header| header.check_file_len(found).map(|()| header)).map_err(|source| format_error(path, source))
}

/// Opens the expanded form of the `.clip` at `path`, making it first where there is none that fits, for which it takes of `room`.
///
/// # Errors
/// `Io`, `Format`.
pub(crate) fn open(
    cache_dir: &Path,
    path: &Path,
    header: &Header,
    background: &Background,
    room: &Room,
) -> Result<ExpandedImage, EngineError> {
    let dir = cache_dir.join("images").join(hex::encode(header.image_id()));
    if fits(&dir, header) {
        match reopen(&dir, header, background) {
            Ok(image) => return Ok(image),
            Err(error) => tracing::error!(dir = %dir.display(), %error, "an expanded image is damaged and is made again"),
        }
    }
    let _taken = room.take(expanded_bytes(header).saturating_add(header.file_len()));
    expand(&dir, path, header, background)?;
    map(&dir, header)
}

fn expanded_bytes(header: &Header) -> u64 {
    sections(header).iter().map(|(_, section)| section.raw_len).sum()
}

/// Maps and checks what an earlier open left.
fn reopen(dir: &Path, header: &Header, background: &Background) -> Result<ExpandedImage, EngineError> {
    let synced = dir.join(SYNCED).exists();
    let at_once = expanded_bytes(header) <= CHECKED_AT_ONCE_BYTES_MAX || !synced;
    if at_once {
        check_files(dir, header)?;
    }
    let image = map(dir, header)?;
    if !at_once {
        check_in_background(dir.to_owned(), header.clone(), image.damage.clone(), background);
    }
    if !synced {
        sync_in_background(dir.to_owned(), background);
    }
    Ok(image)
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
    Ok(ExpandedImage { index, storage_info, checkpoints, windows, damage: Damage::default() })
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

fn expand(dir: &Path, path: &Path, header: &Header, background: &Background) -> Result<(), EngineError> {
    let bad = |source| format_error(path, source);
    let bytes = read_clip(path, header).map_err(|error| EngineError::io("read", path, error))?;
    let clip = ClipFile::parse(&bytes).map_err(bad)?;
    if clip.header() != header {
        let (expected, found) = (hex::encode(header.image_id()), hex::encode(clip.header().image_id()));
        return Err(bad(FormatError::Field { what: "header, which changed while it was read", offset: 0, expected, found }));
    }
    let (index, checkpoints) = (clip.unchecked_index().map_err(bad)?, clip.checkpoints().map_err(bad)?);
    let storage_info = clip.storage_info().map_err(bad)?;
    let windows = clip.windows().map_err(bad)?;
    let info = storage_info.to_bytes().map_err(bad)?;
    check_hash("storage info", &info, &header.storage_info).map_err(bad)?;
    // The hash, the check and the writing take about as long as each other, and none changes anything.
    let (hashed, checked, written) = std::thread::scope(|scope| {
        let hash = scope.spawn(|| index.check_hash());
        let check = scope.spawn(|| erofs::check::check(&Index::open(index.image().clone())?));
        let files = [("index.erofs", &index.image()[..]), ("storage_info", &info), ("checkpoints", &checkpoints), ("windows", windows)];
        let written = write_temporary(dir, &files);
        (hash.join(), check.join(), written)
    });
    hashed.unwrap_or_else(|panic| std::panic::resume_unwind(panic)).map_err(bad)?;
    checked.unwrap_or_else(|panic| std::panic::resume_unwind(panic)).map_err(bad)?;
    put_in_place(written?, dir)?;
    sync_in_background(dir.to_owned(), background);
    Ok(())
}

/// The `.clip` up to the end of its last section, and one byte more where there is one: enough to see that there is too much.
fn read_clip(path: &Path, header: &Header) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_regular(path)?.take(header.file_len().saturating_add(1)).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Writes `files` to a directory with a temporary name beside `dir`.
fn write_temporary(dir: &Path, files: &[(&str, &[u8])]) -> Result<tempfile::TempDir, EngineError> {
    let parent = dir.parent().expect("an image directory stands in `images`");
    create_dir(parent)?;
    let temporary = tempfile::Builder::new().prefix(".tmp").tempdir_in(parent);
    let temporary = temporary.map_err(|error| EngineError::io("create directory in", parent, error))?;
    for (name, bytes) in files {
        let path = temporary.path().join(name);
        let mut file = open_private(&path).map_err(|error| EngineError::io("create", &path, error))?;
        file.write_all(bytes).map_err(|error| EngineError::io("write", &path, error))?;
    }
    Ok(temporary)
}

/// Renames `temporary` to `dir`; what stood there is gone.
fn put_in_place(temporary: tempfile::TempDir, dir: &Path) -> Result<(), EngineError> {
    remove_image(dir)?;
    std::fs::rename(temporary.path(), dir).map_err(|error| EngineError::io("rename to", dir, error))?;
    // Renamed away: nothing is left at the temporary name to remove.
    let _ = temporary.keep();
    Ok(())
}

/// Has the disk keep `dir`, on a thread of its own, and says so in the directory. What fails is only tried again by the next open.
fn sync_in_background(dir: PathBuf, background: &Background) {
    background.run("clip-sync", move || {
        if let Err(error) = sync(&dir) {
            tracing::debug!(dir = %dir.display(), %error, "an expanded image was not synced; it is hashed before its next use");
        }
    });
}

/// By the directory's descriptor: its name may be another image's by the time.
fn sync(dir: &Path) -> std::io::Result<()> {
    let opened = File::open(dir)?;
    for entry in std::fs::read_dir(dir)? {
        File::open(entry?.path())?.sync_all()?;
    }
    opened.sync_all()?;
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(&opened, SYNCED, flags, Mode::RUSR | Mode::WUSR)?;
    opened.sync_all()?;
    dir.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

/// Nothing stands at `dir`: it goes under a temporary name first, so that nobody sees a part of it, or adds to it by its name.
fn remove_image(dir: &Path) -> Result<(), EngineError> {
    let io = |error| EngineError::io("remove", dir, error);
    let parent = dir.parent().expect("an image directory stands in `images`");
    if std::fs::symlink_metadata(dir).is_err() {
        return Ok(());
    }
    let grave = tempfile::Builder::new().prefix(".tmp").tempdir_in(parent).map_err(io)?;
    match std::fs::rename(dir, grave.path().join("image")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io(error)),
        // What is left under the temporary name goes with the next start.
        _ => Ok(()),
    }
}

/// Hashes the files of `dir` on a thread of its own; when one is damaged, says so, leaves the error in `damage` and removes the
/// directory, so that the next open expands the image again.
fn check_in_background(dir: PathBuf, header: Header, damage: Damage, background: &Background) {
    background.run("clip-check", move || {
        let checked = check_files(&dir, &header);
        let is_gone =
            |error: &EngineError| matches!(error, EngineError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound);
        // What is gone was taken away, and is in memory still.
        if let Err(error) = checked.or_else(|error| if is_gone(&error) { Ok(()) } else { Err(error) }) {
            tracing::error!(%error, "an expanded image is damaged; its reads fail from now on: unmount it and mount it again");
            let _ = damage.set(error);
            let _ = remove_image(&dir);
        }
    });
}

/// Every file of `dir` hashes to what the header says.
fn check_files(dir: &Path, header: &Header) -> Result<(), EngineError> {
    for (name, section) in sections(header) {
        let path = dir.join(name);
        let found = hash_file(&path).map_err(|error| EngineError::io("read", &path, error))?;
        compare_hash(name, &found, section).map_err(|source| format_error(&path, source))?;
    }
    Ok(())
}

fn hash_file(path: &Path) -> std::io::Result<blake3::Hash> {
    let mut file = File::open(path)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; HASH_CHUNK.min(usize::try_from(file.metadata()?.len()).unwrap_or(HASH_CHUNK)).max(1)];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finalize()),
            Ok(len) => hasher.update(&buffer[..len]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
    }
}

fn check_hash(what: &'static str, bytes: &[u8], section: &Section) -> Result<(), FormatError> {
    compare_hash(what, &blake3::hash(bytes), section)
}

fn compare_hash(what: &'static str, found: &blake3::Hash, section: &Section) -> Result<(), FormatError> {
    if *found.as_bytes() == section.blake3 {
        return Ok(());
    }
    Err(FormatError::Hash { what, expected: hex::encode(section.blake3), found: found.to_hex().to_string() })
}

fn format_error(path: &Path, source: FormatError) -> EngineError {
    EngineError::Format { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::{Duration, Instant};

    use clip_format::{
        clip_file::ClipParts,
        digest::Digest,
        erofs::{Body, InodeSpec, write_image},
        storage_info::{ImageConfig, Platform, Source},
    };

    use super::*;

    fn empty_clip() -> Vec<u8> {
        let body = Body::Directory(Vec::new());
        let root = InodeSpec { permissions: 0o755, uid: 0, gid: 0, mtime_s: 0, mtime_ns: 0, xattrs: Vec::new(), body };
        let text = str::to_owned;
        let source = Source::Registry { registry: text("localhost"), repository: text("x"), reference: text("latest") };
        let platform = Platform { os: text("linux"), architecture: text("amd64"), variant: None };
        let (manifest_digest, config) = (Digest::Sha256([0; 32]), ImageConfig::default());
        let storage_info = StorageInfo { source, manifest_digest, platform, config, layers: Vec::new(), urls: Vec::new() };
        let index = write_image(&[root], 0, &[]).unwrap();
        ClipParts { index: &index, storage_info: &storage_info, spans: &[], windows: &[] }.to_bytes().unwrap()
    }

    /// Claim: an image that did not reach the disk whole, whatever its size, is noticed before it is used, and made again.
    #[test]
    fn what_was_not_synced_is_hashed_first() {
        let (node, background) = (tempfile::tempdir().unwrap(), Background::default());
        let clip = node.path().join("x.clip");
        std::fs::write(&clip, empty_clip()).unwrap();
        let header = read_header(&clip).unwrap();
        open(node.path(), &clip, &header, &background, &Room::default()).unwrap();
        let dir = node.path().join("images").join(hex::encode(header.image_id()));
        let started = Instant::now();
        while !dir.join(SYNCED).exists() {
            assert!(started.elapsed() < Duration::from_secs(10), "never synced");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::fs::remove_file(dir.join(SYNCED)).unwrap();
        let index = dir.join("index.erofs");
        let right = std::fs::read(&index).unwrap();
        std::fs::write(&index, vec![0; right.len()]).unwrap();
        open(node.path(), &clip, &header, &background, &Room::default()).unwrap();
        assert!(std::fs::read(&index).unwrap() == right);
    }

    /// Claim: damage that is found while an image is in use is remembered as an error that names the file, and the files are removed.
    #[test]
    fn damage_found_late_is_remembered() {
        let (node, background) = (tempfile::tempdir().unwrap(), Background::default());
        let clip = node.path().join("x.clip");
        std::fs::write(&clip, empty_clip()).unwrap();
        let header = read_header(&clip).unwrap();
        let opened = open(node.path(), &clip, &header, &background, &Room::default()).unwrap();
        assert!(opened.damage.get().is_none());
        let dir = node.path().join("images").join(hex::encode(header.image_id()));
        let index = dir.join("index.erofs");
        let mut bytes = std::fs::read(&index).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&index, &bytes).unwrap();
        let damage = Damage::default();
        check_in_background(dir.clone(), header, damage.clone(), &background);
        let started = Instant::now();
        while damage.get().is_none() || dir.exists() {
            assert!(started.elapsed() < Duration::from_secs(10), "no damage found");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(damage.get().unwrap().to_string().contains("index.erofs"));
    }
}
