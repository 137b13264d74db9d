//! The directory that is extracted into. Every path is walked from its open descriptor, one component at a time, and no symbolic
//! link is ever followed; so nothing lands outside, whatever the index says and whatever the directory held before.

use std::{
    ffi::OsStr,
    fs::File,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use clip_format::erofs::{FileType, Index, Inode};
use rustix::{
    fs::{AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags},
    io::Errno,
};

use crate::display::escaped;

/// A directory that was made, by its place in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirId(usize);

struct Dir {
    /// `None` for the top.
    parent: Option<DirId>,
    name: Vec<u8>,
    /// Set at the end, parents last, so that making entries neither fails nor changes times.
    inode: Option<Inode>,
}

/// What this user may not do, counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// Devices.
    pub special_files: u64,
    /// Owners.
    pub owners: u64,
    /// Extended attributes.
    pub xattrs: u64,
    /// The first refusal of an extended attribute.
    pub xattr_reason: Option<String>,
}

/// The directory, and what has been made in it.
pub struct Place {
    root: OwnedFd,
    shown: PathBuf,
    dirs: Vec<Dir>,
    last_open: Option<(DirId, OwnedFd)>,
    is_root: bool,
    force: bool,
    /// What could not be done.
    pub skipped: Skipped,
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Place {
    /// `dir`, made if missing; must be empty unless `force`.
    pub fn open(dir: &Path, force: bool) -> Result<Self> {
        let context = || dir.display().to_string();
        std::fs::create_dir_all(dir).with_context(context)?;
        let root = rustix::fs::open(dir, DIRECTORY & !OFlags::NOFOLLOW, Mode::empty()).with_context(context)?;
        if !force {
            let empty = std::fs::read_dir(dir).with_context(context)?.next().is_none();
            ensure!(empty, "{}: is not empty; give another directory, or --force to unpack over what it holds", dir.display());
        }
        let top = Dir { parent: None, name: Vec::new(), inode: None };
        let is_root = rustix::process::geteuid().is_root();
        Ok(Self { root, shown: dir.to_owned(), dirs: vec![top], last_open: None, is_root, force, skipped: Skipped::default() })
    }

    /// The top.
    pub fn root(&self) -> DirId {
        DirId(0)
    }

    /// For messages.
    pub fn path(&self, at: DirId) -> String {
        let mut names = Vec::new();
        let mut dir = &self.dirs[at.0];
        while let Some(parent) = dir.parent {
            names.push(escaped(&dir.name));
            dir = &self.dirs[parent.0];
        }
        names.push(self.shown.display().to_string());
        names.reverse();
        names.join("/")
    }

    /// The directory, opened from the top without following a link. The last one opened is kept.
    fn descriptor(&mut self, at: DirId) -> Result<BorrowedFd<'_>> {
        if self.last_open.as_ref().is_none_or(|(open, _)| *open != at) {
            let mut chain = Vec::new();
            let mut dir = at;
            while let Some(parent) = self.dirs[dir.0].parent {
                chain.push(dir);
                dir = parent;
            }
            let mut fd = rustix::io::fcntl_dupfd_cloexec(&self.root, 3)?;
            for dir in chain.into_iter().rev() {
                let name = self.dirs[dir.0].name.as_slice();
                fd = rustix::fs::openat(&fd, name, DIRECTORY, Mode::empty()).with_context(|| format!("open {}", escaped(name)))?;
            }
            self.last_open = Some((at, fd));
        }
        match &self.last_open {
            Some((_, fd)) => Ok(fd.as_fd()),
            None => bail!("no directory is open"),
        }
    }

    /// With `--force`, whatever has this name and is no directory goes.
    fn clear(&mut self, at: DirId, name: &[u8]) -> Result<()> {
        if !self.force {
            return Ok(());
        }
        match rustix::fs::unlinkat(self.descriptor(at)?, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::ISDIR) => bail!("is a directory here and none in the image; remove it first"),
            Err(error) => Err(error.into()),
        }
    }

    /// A directory that only this user may enter until [`Place::finish`] gives it its mode.
    pub fn make_dir(&mut self, at: DirId, name: &[u8], inode: &Inode) -> Result<DirId> {
        let force = self.force;
        let parent = self.descriptor(at)?;
        match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) if force => {
                let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
                if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::Directory {
                    rustix::fs::unlinkat(parent, name, AtFlags::empty())?;
                    rustix::fs::mkdirat(parent, name, Mode::RWXU)?;
                }
            }
            Err(error) => return Err(error.into()),
        }
        self.dirs.push(Dir { parent: Some(at), name: name.to_vec(), inode: Some(inode.clone()) });
        Ok(DirId(self.dirs.len() - 1))
    }

    /// An empty file of the right length: all hole.
    pub fn make_file(&mut self, at: DirId, name: &[u8], inode: &Inode) -> Result<()> {
        self.clear(at, name)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(self.descriptor(at)?, name, flags, Mode::RUSR | Mode::WUSR)?;
        if inode.size > 0 {
            rustix::fs::ftruncate(&file, inode.size)?;
        }
        Ok(())
    }

    /// A file of ours, for writing.
    pub fn open_file(&mut self, at: DirId, name: &[u8]) -> Result<File> {
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(self.descriptor(at)?, name, flags, Mode::empty())?.into())
    }

    /// Owner, extended attributes, mode and time of a file whose data is complete.
    pub fn finish_file(&mut self, at: DirId, name: &[u8], inode: &Inode, index: &Index) -> Result<()> {
        self.attributes(at, name, inode, index)
    }

    /// A symbolic link; its target is only text here.
    pub fn make_symlink(&mut self, at: DirId, name: &[u8], target: &[u8], inode: &Inode, index: &Index) -> Result<()> {
        self.clear(at, name)?;
        rustix::fs::symlinkat(target, self.descriptor(at)?, name)?;
        self.attributes(at, name, inode, index)
    }

    /// A second name of what has been made.
    pub fn link(&mut self, from: DirId, first: &[u8], at: DirId, name: &[u8]) -> Result<()> {
        self.clear(at, name)?;
        let from = rustix::io::fcntl_dupfd_cloexec(self.descriptor(from)?, 3)?;
        rustix::fs::linkat(&from, first, self.descriptor(at)?, name, AtFlags::empty())?;
        Ok(())
    }

    /// A device, fifo or socket; false when only root could make it.
    pub fn make_special(&mut self, at: DirId, name: &[u8], inode: &Inode, index: &Index) -> Result<bool> {
        use rustix::fs::FileType as Kind;
        let (kind, device) = match inode.file_type {
            FileType::CharDevice => (Kind::CharacterDevice, rustix::fs::makedev(inode.rdev_major, inode.rdev_minor)),
            FileType::BlockDevice => (Kind::BlockDevice, rustix::fs::makedev(inode.rdev_major, inode.rdev_minor)),
            FileType::Socket => (Kind::Socket, 0),
            _ => (Kind::Fifo, 0),
        };
        self.clear(at, name)?;
        match rustix::fs::mknodat(self.descriptor(at)?, name, kind, Mode::RUSR | Mode::WUSR, device) {
            Ok(()) => {}
            Err(Errno::PERM) => {
                self.skipped.special_files += 1;
                return Ok(false);
            }
            Err(error) => return Err(error.into()),
        }
        self.attributes(at, name, inode, index)?;
        Ok(true)
    }

    /// Owner first (it clears set-user-id bits and capabilities), then extended attributes, mode, and the time last.
    fn attributes(&mut self, at: DirId, name: &[u8], inode: &Inode, index: &Index) -> Result<()> {
        let is_root = self.is_root;
        let parent = rustix::io::fcntl_dupfd_cloexec(self.descriptor(at)?, 3)?;
        if is_root {
            let (uid, gid) = owner(inode)?;
            rustix::fs::chownat(&parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).context("chown")?;
        } else if inode.uid != rustix::process::geteuid().as_raw() || inode.gid != rustix::process::getegid().as_raw() {
            self.skipped.owners += 1;
        }
        if inode.has_xattrs {
            self.xattrs(&xattr_path(&parent, name), inode, index)?;
        }
        if inode.file_type != FileType::Symlink {
            // The name is a node that was made a moment ago, no link.
            rustix::fs::chmodat(&parent, name, Mode::from_raw_mode(inode.mode & 0o7777), AtFlags::empty()).context("chmod")?;
        }
        rustix::fs::utimensat(&parent, name, &times(inode), AtFlags::SYMLINK_NOFOLLOW).context("set times")?;
        Ok(())
    }

    fn xattrs(&mut self, path: &Path, inode: &Inode, index: &Index) -> Result<()> {
        for xattr in index.xattrs(inode) {
            let (name, value) = xattr?;
            if !self.is_root && !name.starts_with(b"user.") {
                self.skipped.xattrs += 1;
                continue;
            }
            match rustix::fs::lsetxattr(path, OsStr::from_bytes(&name), value, XattrFlags::empty()) {
                Ok(()) => {}
                Err(error @ (Errno::NOTSUP | Errno::PERM | Errno::ACCESS | Errno::INVAL)) => {
                    self.skipped.xattrs += 1;
                    self.skipped.xattr_reason.get_or_insert_with(|| format!("{}: {error}", escaped(&name)));
                }
                Err(error) => return Err(error).with_context(|| format!("set {}", escaped(&name))),
            }
        }
        Ok(())
    }

    /// Gives every directory its attributes, the deepest first; the top gets `top`'s when that is a directory. `index` is not needed
    /// after this.
    pub fn finish(&mut self, top: &Inode, top_is_directory: bool, index: &Index) -> Result<()> {
        if top_is_directory {
            self.dirs[0].inode = Some(top.clone());
        }
        self.last_open = None;
        for number in (1..self.dirs.len()).rev() {
            let dir = &self.dirs[number];
            let (Some(parent), Some(inode)) = (dir.parent, dir.inode.clone()) else { continue };
            let name = dir.name.clone();
            self.attributes(parent, &name, &inode, index).with_context(|| self.path(DirId(number)))?;
        }
        let Some(inode) = self.dirs[0].inode.clone() else { return Ok(()) };
        self.top_attributes(&inode, index).with_context(|| self.shown.display().to_string())
    }

    fn top_attributes(&mut self, inode: &Inode, index: &Index) -> Result<()> {
        if self.is_root {
            let (uid, gid) = owner(inode)?;
            rustix::fs::fchown(&self.root, Some(uid), Some(gid)).context("chown")?;
        }
        if inode.has_xattrs {
            let path = PathBuf::from(format!("/proc/self/fd/{}/.", self.root.as_raw_fd()));
            self.xattrs(&path, inode, index)?;
        }
        rustix::fs::fchmod(&self.root, Mode::from_raw_mode(inode.mode & 0o7777)).context("chmod")?;
        rustix::fs::futimens(&self.root, &times(inode)).context("set times")?;
        Ok(())
    }
}

/// A path to `name` for the system calls that have no `at` form; the kernel follows the descriptor, never a link of ours.
fn xattr_path(parent: &OwnedFd, name: &[u8]) -> PathBuf {
    let mut path = PathBuf::from(format!("/proc/self/fd/{}", parent.as_raw_fd()));
    path.push(OsStr::from_bytes(name));
    path
}

fn owner(inode: &Inode) -> Result<(Uid, Gid)> {
    let valid = inode.uid != u32::MAX && inode.gid != u32::MAX;
    ensure!(valid, "owner {}:{} cannot be given", inode.uid, inode.gid);
    Ok((Uid::from_raw(inode.uid), Gid::from_raw(inode.gid)))
}

/// The access time is set to the modification time: the image records no other.
fn times(inode: &Inode) -> Timestamps {
    let time = Timespec { tv_sec: inode.mtime_s, tv_nsec: i64::from(inode.mtime_ns) };
    Timestamps { last_access: time, last_modification: time }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use clip_format::erofs::{Body, InodeSpec, write_image};

    /// An inode of a real index, with one file of 1 GiB that is all hole, one of 10 bytes, and one directory.
    fn inode(path: &[u8]) -> Inode {
        let of = |body| InodeSpec { permissions: 0o755, uid: 0, gid: 0, mtime_s: -5, mtime_ns: 7, xattrs: vec![], body };
        let root = Body::Directory(vec![(b"dir".to_vec(), 1), (b"sparse".to_vec(), 2), (b"fifo".to_vec(), 3)]);
        let inodes = [of(root), of(Body::Directory(vec![])), of(Body::Regular { size: 1 << 30, extents: vec![] }), of(Body::Fifo)];
        let index = Index::open(std::sync::Arc::new(write_image(&inodes, 0, &[]).unwrap())).unwrap();
        index.resolve(path).unwrap().unwrap()
    }

    /// A symbolic link that stands where a directory should be is replaced, never followed: nothing lands outside.
    #[test]
    fn links_in_the_way_are_not_followed() {
        let outside = tempfile::tempdir().unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("etc")).unwrap();
        assert!(Place::open(dir.path(), false).is_err(), "a directory that is not empty needs --force");
        let mut place = Place::open(dir.path(), true).unwrap();
        let etc = place.make_dir(place.root(), b"etc", &inode(b"dir")).unwrap();
        place.make_file(etc, b"passwd", &inode(b"sparse")).unwrap();
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
        assert!(dir.path().join("etc/passwd").is_file());
    }

    /// A link that somebody puts in place of a directory after it was made is not followed either.
    #[test]
    fn links_put_in_later_are_not_followed() {
        let outside = tempfile::tempdir().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut place = Place::open(dir.path(), false).unwrap();
        let etc = place.make_dir(place.root(), b"etc", &inode(b"dir")).unwrap();
        std::fs::remove_dir(dir.path().join("etc")).unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("etc")).unwrap();
        assert!(place.make_file(etc, b"passwd", &inode(b"sparse")).is_err());
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    /// A file of holes takes no blocks, and data written into it leaves the rest a hole.
    #[test]
    fn holes_stay_holes() {
        use std::os::unix::fs::{FileExt as _, MetadataExt as _};
        let dir = tempfile::tempdir().unwrap();
        let mut place = Place::open(dir.path(), false).unwrap();
        place.make_file(place.root(), b"sparse", &inode(b"sparse")).unwrap();
        place.open_file(place.root(), b"sparse").unwrap().write_all_at(b"x", 1 << 20).unwrap();
        let metadata = std::fs::metadata(dir.path().join("sparse")).unwrap();
        assert_eq!(metadata.size(), 1 << 30);
        assert!(metadata.blocks() < 1024, "{}", metadata.blocks());
    }
}
