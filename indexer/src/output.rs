//! A file that is written: whole under its name, or not there at all; into what is no file, straight through.

use std::{
    fs::{File, FileType, Metadata, OpenOptions},
    io::{ErrorKind, IsTerminal, Write},
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use clip_engine::error::EngineError;

use crate::error::IndexError;

/// Symbolic links that lead to a file that is not there yet. Source: linux include/linux/namei.h, MAXSYMLINKS.
const LINKS_MAX: usize = 40;

/// Where the bytes for a path go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutputPlace {
    /// To a regular file of this path, which no symbolic link ends; it may not be there yet. What is there is replaced at once, and its
    /// mode kept.
    File(PathBuf),
    /// Through what is there: a FIFO or a character device.
    Stream(PathBuf),
}

/// Whether a file that was written outlives a crash of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// It does.
    Synced,
    /// It may be as it was before.
    Later,
}

impl OutputPlace {
    /// Where bytes for `path` go: symbolic links are followed, a last one to nothing, too.
    ///
    /// # Errors
    /// `Image` for what can be neither replaced nor written into: a directory, a block device, a socket. `Io`.
    pub fn find(path: &Path) -> Result<Self, IndexError> {
        let io = |error| EngineError::io("look at", path, error);
        let metadata = match std::fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::File(end_of_links(path).map_err(io)?)),
            Err(error) => return Err(io(error).into()),
        };
        let kind = metadata.file_type();
        if kind.is_file() {
            return Ok(Self::File(std::fs::canonicalize(path).map_err(io)?));
        }
        if is_stream(kind) {
            return Ok(Self::Stream(path.to_owned()));
        }
        let found = match () {
            () if kind.is_dir() => "a directory",
            () if kind.is_block_device() => "a block device",
            () => "a socket",
        };
        Err(IndexError::Image { what: path.display().to_string(), expected: "a file name".to_owned(), found: found.to_owned() })
    }

    /// The place that [`Self::find`] gave as this path, whatever somebody has put there since: no symbolic link at its end is followed.
    #[must_use]
    pub fn at(path: &Path) -> Self {
        match std::fs::symlink_metadata(path) {
            Ok(found) if is_stream(found.file_type()) => Self::Stream(path.to_owned()),
            _ => Self::File(path.to_owned()),
        }
    }

    /// `bytes` are there. A file that was there keeps its mode and, where root writes, its owner.
    ///
    /// # Errors
    /// `Io`; of a file nothing is left behind. `Image` for a terminal.
    pub fn write(&self, bytes: &[u8], durability: Durability) -> Result<(), IndexError> {
        match self {
            Self::File(path) => replace(path, bytes, durability),
            Self::Stream(path) => {
                let io = |operation, error| EngineError::io(operation, path, error);
                let mut stream = OpenOptions::new().write(true).open(path).map_err(|error| io("open", error))?;
                if stream.is_terminal() {
                    let (expected, found) = ("a file name".to_owned(), "a terminal".to_owned());
                    return Err(IndexError::Image { what: path.display().to_string(), expected, found });
                }
                Ok(stream.write_all(bytes).map_err(|error| io("write", error))?)
            }
        }
    }
}

/// Whether bytes go through what is there instead of replacing it.
fn is_stream(kind: FileType) -> bool {
    kind.is_fifo() || kind.is_char_device()
}

/// The path that the symbolic links at `path`, of which the last leads to nothing, lead to.
fn end_of_links(path: &Path) -> std::io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        match std::fs::read_link(&path) {
            Ok(target) => path = parent(&path).join(target),
            // Nothing is there, or its directory is not, which is said when it is written to.
            Err(_) => return Ok(path),
        }
    }
    Err(rustix::io::Errno::LOOP.into())
}

/// The directory that the name at the end of `path` is in.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Writes `bytes` under a temporary name beside `path` and renames.
fn replace(path: &Path, bytes: &[u8], durability: Durability) -> Result<(), IndexError> {
    let io = |operation, error| EngineError::io(operation, path, error);
    let dir = parent(path);
    let mut temporary = tempfile::Builder::new()
        .prefix(".clip-")
        .suffix(".clip.tmp")
        .permissions(PermissionsExt::from_mode(0o644))
        .tempfile_in(dir)
        .map_err(|error| io("create a temporary file beside", error))?;
    temporary.write_all(bytes).map_err(|error| io("write", error))?;
    if let Ok(before) = std::fs::symlink_metadata(path) {
        become_like(temporary.as_file(), &before).map_err(|error| io("set the mode of what replaces", error))?;
    }
    if durability == Durability::Synced {
        temporary.as_file().sync_all().map_err(|error| io("sync", error))?;
    }
    temporary.persist(path).map_err(|error| io("rename to", error.error))?;
    if durability == Durability::Synced {
        // The name itself must survive a crash too.
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| io("sync the directory of", error))?;
    }
    Ok(())
}

/// `file` gets mode and, where that may be given away, owner of `before`.
fn become_like(file: &File, before: &Metadata) -> std::io::Result<()> {
    let own = file.metadata()?;
    if rustix::process::geteuid().is_root() && (own.uid(), own.gid()) != (before.uid(), before.gid()) {
        std::os::unix::fs::fchown(file, Some(before.uid()), Some(before.gid()))?;
    }
    file.set_permissions(PermissionsExt::from_mode(before.mode() & 0o777))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{io::Read, os::unix::fs::symlink};

    use super::*;

    fn write(path: &Path, bytes: &[u8]) -> Result<(), IndexError> {
        OutputPlace::find(path)?.write(bytes, Durability::Synced)
    }

    /// Claim: a link that is put where a place was found is replaced, and where it leads nothing changes.
    #[test]
    fn a_place_is_not_moved_by_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::write(&other, "other").unwrap();
        symlink(&other, &path).unwrap();
        assert_eq!(OutputPlace::find(&path).unwrap(), OutputPlace::File(std::fs::canonicalize(&other).unwrap()));
        OutputPlace::at(&path).write(b"new", Durability::Later).unwrap();
        assert_eq!((std::fs::read(&other).unwrap(), std::fs::read(&path).unwrap()), (b"other".to_vec(), b"new".to_vec()));
        assert!(std::fs::symlink_metadata(&path).unwrap().is_file());
    }

    /// A written file is whole, and no temporary name stays beside it; a failed write leaves nothing.
    #[test]
    fn a_clip_is_whole_or_absent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.clip");
        write(&path, b"first").unwrap();
        write(&path, b"second").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"second");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        let is_dir = dir.path().join("d");
        std::fs::create_dir(&is_dir).unwrap();
        assert!(write(&is_dir, b"x").unwrap_err().to_string().contains("a directory"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    /// Claim: links stay and what they lead to is written, there already or not; a file that was there keeps its mode.
    #[test]
    fn links_and_modes_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("sub")).unwrap();
        std::fs::write(at("sub/there"), b"old").unwrap();
        std::fs::set_permissions(at("sub/there"), PermissionsExt::from_mode(0o600)).unwrap();
        for (link, target) in [("one", "sub/there"), ("two", "sub/link"), ("sub/link", "absent"), ("loop", "loop")] {
            symlink(target, at(link)).unwrap();
        }
        write(&at("one"), b"1").unwrap();
        write(&at("two"), b"2").unwrap();
        assert_eq!((std::fs::read(at("sub/there")).unwrap(), std::fs::read(at("sub/absent")).unwrap()), (b"1".to_vec(), b"2".to_vec()));
        assert!(["one", "two", "sub/link"].iter().all(|name| at(name).is_symlink()));
        assert_eq!(std::fs::metadata(at("sub/there")).unwrap().mode() & 0o777, 0o600);
        assert!(write(&at("loop"), b"x").is_err());
        assert_eq!(std::fs::read_dir(at("sub")).unwrap().count(), 3);
    }

    /// Claim: a FIFO and a character device are written into and stay what they are; a socket is refused.
    #[test]
    fn what_is_no_file_stays() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
        let reader = std::thread::spawn({
            let fifo = fifo.clone();
            move || {
                let mut bytes = Vec::new();
                File::open(fifo).unwrap().read_to_end(&mut bytes).unwrap();
                bytes
            }
        });
        write(&fifo, b"through").unwrap();
        assert_eq!(reader.join().unwrap(), b"through");
        assert!(std::fs::metadata(&fifo).unwrap().file_type().is_fifo());
        let null = dir.path().join("null");
        symlink("/dev/null", &null).unwrap();
        write(&null, b"gone").unwrap();
        assert!(null.is_symlink() && std::fs::metadata("/dev/null").unwrap().file_type().is_char_device());
        let socket = dir.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert!(write(&socket, b"x").unwrap_err().to_string().contains("a socket"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
    }
}
