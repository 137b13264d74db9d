//! The two ways in which the demo reads: through a mount, or through the library.

use std::{
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result, bail, ensure};
use clip_engine::Image;
use clip_format::erofs::{FileType, Inode};
use clip_fuse::{
    Mounted,
    mount::{Detach, umount},
};

use crate::{
    demo::image::Expected,
    interrupt::Registered,
    pieces::{Pieces, cut, file_extents},
};

/// A way to read the image. Dropping a mount detaches it.
pub enum Reading {
    /// The kernel's.
    Mount {
        /// Served by this process.
        mounted: Mounted,
        /// Detaches it when the demo is interrupted.
        _registered: Registered,
    },
    /// The index and the engine, called directly.
    Library(Arc<Image>),
}

/// What is compared of a path, however it was read.
struct Seen {
    kind: FileType,
    mode: u32,
    size: u64,
    inode: u64,
    target: Vec<u8>,
}

impl Reading {
    /// Through `mounted`.
    pub fn mounted(mounted: Mounted, registered: Registered) -> Self {
        Reading::Mount { mounted, _registered: registered }
    }

    /// Through the library.
    pub fn library(image: &Arc<Image>) -> Self {
        Reading::Library(Arc::clone(image))
    }

    /// Where it is mounted, if it is.
    pub fn mountpoint(&self) -> Option<PathBuf> {
        match self {
            Reading::Mount { mounted, .. } => Some(mounted.mountpoint().to_owned()),
            Reading::Library(_) => None,
        }
    }

    /// A mount is gone.
    pub fn end(self) -> Result<()> {
        let Reading::Mount { mounted, .. } = self else { return Ok(()) };
        umount(mounted.mountpoint(), Detach::IfIdle)?;
        mounted.wait();
        Ok(())
    }

    /// `path` is what `expected` says, contents apart.
    pub fn check(&self, path: &str, expected: &Expected) -> Result<()> {
        let seen = self.seen(path)?;
        let Some(seen) = seen else {
            ensure!(*expected == Expected::Absent, "is missing");
            return Ok(());
        };
        match expected {
            Expected::Absent => bail!("should have been removed by a whiteout"),
            Expected::File { mode, size, .. } => {
                ensure!(seen.kind == FileType::Regular, "expected a regular file, found {:?}", seen.kind);
                ensure!(seen.mode & 0o7777 == *mode, "expected mode {mode:o}, found {:o}", seen.mode & 0o7777);
                ensure!(seen.size == *size, "expected {size} bytes, found {}", seen.size);
            }
            Expected::Symlink(target) => {
                ensure!(seen.kind == FileType::Symlink, "expected a symbolic link, found {:?}", seen.kind);
                ensure!(seen.target == target.as_bytes(), "expected target {target}, found {}", String::from_utf8_lossy(&seen.target));
            }
            Expected::HardLink(other) => {
                let other = self.seen(other)?.context("the other name is missing")?;
                ensure!(seen.inode == other.inode, "expected the same inode as its other name");
            }
        }
        Ok(())
    }

    fn seen(&self, path: &str) -> Result<Option<Seen>> {
        match self {
            Reading::Mount { mounted, .. } => seen_in_mount(&mounted.mountpoint().join(path)),
            Reading::Library(image) => image.index().resolve(path.as_bytes())?.map(|inode| seen_in_index(image, &inode)).transpose(),
        }
    }

    /// The extended attribute `name` of `path` has this value.
    pub fn check_xattr(&self, path: &str, name: &str, value: &[u8]) -> Result<()> {
        let found = match self {
            Reading::Mount { mounted, .. } => {
                let mut buffer = [0; 256];
                let len = rustix::fs::getxattr(mounted.mountpoint().join(path), name, &mut buffer[..]).context(name.to_owned())?;
                buffer[..len].to_vec()
            }
            Reading::Library(image) => {
                let inode = image.index().resolve(path.as_bytes())?.context("is missing")?;
                image.index().xattr(&inode, name.as_bytes())?.map(<[u8]>::to_vec).unwrap_or_default()
            }
        };
        ensure!(found == value, "{path}: attribute {name}: expected {value:?}, found {found:?}");
        Ok(())
    }

    /// The bytes of a regular file.
    pub fn contents(&self, path: &str) -> Result<Vec<u8>> {
        match self {
            Reading::Mount { mounted, .. } => Ok(std::fs::read(mounted.mountpoint().join(path))?),
            Reading::Library(image) => contents_through(image, path),
        }
    }
}

fn seen_in_mount(path: &Path) -> Result<Option<Seen>> {
    let metadata = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let (kind, target) = match metadata.file_type() {
        kind if kind.is_symlink() => {
            let target = std::fs::read_link(path)?;
            (FileType::Symlink, std::os::unix::ffi::OsStringExt::into_vec(target.into_os_string()))
        }
        kind if kind.is_dir() => (FileType::Directory, Vec::new()),
        _ => (FileType::Regular, Vec::new()),
    };
    Ok(Some(Seen { kind, mode: metadata.permissions().mode(), size: metadata.size(), inode: metadata.ino(), target }))
}

fn seen_in_index(image: &Image, inode: &Inode) -> Result<Seen> {
    let target = if inode.file_type == FileType::Symlink { image.index().link_target(inode)?.to_vec() } else { Vec::new() };
    Ok(Seen { kind: inode.file_type, mode: inode.mode, size: inode.size, inode: inode.nid.get(), target })
}

fn contents_through(image: &Arc<Image>, path: &str) -> Result<Vec<u8>> {
    let inode = image.index().resolve(path.as_bytes())?.context("is missing")?;
    let extents = file_extents(image.index(), &inode)?;
    let mut contents = vec![0; usize::try_from(inode.size)?];
    for (piece, bytes) in Pieces::new(Arc::clone(image), extents.into_iter().flat_map(|extent| cut((), extent))) {
        let bytes = bytes?;
        let from = usize::try_from(piece.tag.offset)?;
        let place = contents.get_mut(from..from + bytes.len()).context("a piece past the file's end")?;
        place.copy_from_slice(&bytes);
    }
    Ok(contents)
}
