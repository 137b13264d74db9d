//! The directory that is extracted into. Every path is walked from its open descriptor, one component at a time, no symbolic link is ever
//! followed, and what is opened again is compared with what was made; so nothing lands outside, and nothing else is changed, whatever the
//! index says, whatever the directory held before, and whatever another user does in it meanwhile.

use std::{
    fs::File,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use clip_format::erofs::{FileType, Index, Inode};
use rustix::{
    fs::{AtFlags, Mode, OFlags},
    io::Errno,
};

use super::node::{Handle, Node, Skipped, check_new};
use crate::display::escaped;

/// A directory that was made, by its place in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirId(usize);

struct Dir {
    /// `None` for the top.
    parent: Option<DirId>,
    /// Steps from the top.
    depth: usize,
    name: Vec<u8>,
    node: Node,
    /// Set at the end, parents last, so that making entries neither fails nor changes times.
    inode: Option<Inode>,
}

/// From one directory to another: parents first, then children.
#[derive(Debug, PartialEq, Eq)]
struct Route {
    start: DirId,
    up: Vec<DirId>,
    down: Vec<DirId>,
}

/// The directory, and what has been made in it.
pub struct Place {
    root: OwnedFd,
    shown: PathBuf,
    dirs: Vec<Dir>,
    /// The directory that was used last.
    here: (DirId, OwnedFd),
    is_root: bool,
    force: bool,
    /// What could not be done.
    pub skipped: Skipped,
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// What stands there now may be a fifo that nobody reads.
const FILE: OFlags = OFlags::WRONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);
const NEW_FILE: OFlags = OFlags::WRONLY.union(OFlags::CREATE).union(OFlags::EXCL).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

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
        let top = Dir { parent: None, depth: 0, name: Vec::new(), node: Node::of(&root).with_context(context)?, inode: None };
        let is_root = rustix::process::geteuid().is_root();
        let here = (DirId(0), rustix::io::fcntl_dupfd_cloexec(&root, 3)?);
        Ok(Self { root, shown: dir.to_owned(), dirs: vec![top], here, is_root, force, skipped: Skipped::default() })
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

    /// The directory, reached from the one that was used last or from the top, whichever is nearer, without following a link. Cost: a step
    /// for each directory on the way, which is one for the child of the last one.
    fn descriptor(&mut self, at: DirId) -> Result<BorrowedFd<'_>> {
        if self.here.0 != at {
            self.here = self.walk(at)?;
        }
        Ok(self.here.1.as_fd())
    }

    fn walk(&self, at: DirId) -> Result<(DirId, OwnedFd)> {
        let Route { start, up, down } = self.route(self.here.0, at);
        let start = if start == self.here.0 { &self.here.1 } else { &self.root };
        let mut fd = rustix::io::fcntl_dupfd_cloexec(start, 3)?;
        for dir in up {
            fd = self.step(&fd, b"..", dir)?;
        }
        for dir in down {
            fd = self.step(&fd, &self.dirs[dir.0].name, dir)?;
        }
        Ok((at, fd))
    }

    /// The shorter of the ways to `to`: from `from`, or from the top.
    fn route(&self, from: DirId, to: DirId) -> Route {
        let parent = |dir: &DirId| self.dirs[dir.0].parent;
        let depth = |dir: DirId| self.dirs[dir.0].depth;
        let (mut common, mut other, mut up) = (from, to, Vec::new());
        while common != other {
            if depth(other) > depth(common) {
                other = parent(&other).unwrap_or(DirId(0));
            } else {
                common = parent(&common).unwrap_or(DirId(0));
                up.push(common);
            }
        }
        let (start, up, turn) = if up.len() > depth(common) { (DirId(0), Vec::new(), DirId(0)) } else { (from, up, common) };
        let mut down: Vec<_> = std::iter::successors(Some(to), parent).take_while(|dir| *dir != turn).collect();
        down.reverse();
        Route { start, up, down }
    }

    /// `name` in `from`, which must be `to`.
    fn step(&self, from: &OwnedFd, name: &[u8], to: DirId) -> Result<OwnedFd> {
        let opened = rustix::fs::openat(from, name, DIRECTORY, Mode::empty()).map_err(anyhow::Error::from);
        let checked = opened.and_then(|fd| self.dirs[to.0].node.check(&fd).map(|()| fd));
        checked.with_context(|| format!("open {}", self.path(to)))
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
        let is_new = match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
            Ok(()) => true,
            Err(Errno::EXIST) if force => {
                let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
                let is_new = rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::Directory;
                if is_new {
                    rustix::fs::unlinkat(parent, name, AtFlags::empty())?;
                    rustix::fs::mkdirat(parent, name, Mode::RWXU)?;
                }
                is_new
            }
            Err(error) => return Err(error.into()),
        };
        let found = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if is_new {
            check_new(&found)?;
        }
        let depth = self.dirs[at.0].depth + 1;
        self.dirs.push(Dir { parent: Some(at), depth, name: name.to_vec(), node: Node::from(&found), inode: Some(inode.clone()) });
        Ok(DirId(self.dirs.len() - 1))
    }

    /// An empty file of the right length: all hole.
    pub fn make_file(&mut self, at: DirId, name: &[u8], inode: &Inode) -> Result<Node> {
        self.clear(at, name)?;
        let file = rustix::fs::openat(self.descriptor(at)?, name, NEW_FILE, Mode::RUSR | Mode::WUSR)?;
        if inode.size > 0 {
            rustix::fs::ftruncate(&file, inode.size)?;
        }
        Node::of(&file)
    }

    /// The file that was made as `node`, for writing.
    pub fn open_file(&mut self, at: DirId, name: &[u8], node: Node) -> Result<File> {
        let file = rustix::fs::openat(self.descriptor(at)?, name, FILE, Mode::empty())?;
        node.check(&file)?;
        Ok(file.into())
    }

    /// Owner, extended attributes, mode and time of the file that was made as `node` and whose data is complete.
    pub fn finish_file(&mut self, at: DirId, name: &[u8], node: Node, inode: &Inode, index: &Index) -> Result<()> {
        let file = self.open_file(at, name, node)?;
        Handle::Open(file.into()).set(inode, index, self.is_root, &mut self.skipped)
    }

    /// A symbolic link; its target is only text here.
    pub fn make_symlink(&mut self, at: DirId, name: &[u8], target: &[u8], inode: &Inode, index: &Index) -> Result<Node> {
        self.clear(at, name)?;
        rustix::fs::symlinkat(target, self.descriptor(at)?, name)?;
        self.finish_new(at, name, inode, index)
    }

    /// A second name of what has been made as `node`.
    pub fn link(&mut self, from: (DirId, &[u8]), node: Node, at: DirId, name: &[u8]) -> Result<()> {
        self.clear(at, name)?;
        let (from, first) = (rustix::io::fcntl_dupfd_cloexec(self.descriptor(from.0)?, 3)?, from.1);
        let to = self.descriptor(at)?;
        rustix::fs::linkat(&from, first, to, name, AtFlags::empty())?;
        node.check_stat(&rustix::fs::statat(to, name, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// A device, fifo or socket; `None` when only root could make it.
    pub fn make_special(&mut self, at: DirId, name: &[u8], inode: &Inode, index: &Index) -> Result<Option<Node>> {
        use rustix::fs::FileType as Kind;
        let (kind, device) = match inode.file_type {
            FileType::CharDevice => (Kind::CharacterDevice, rustix::fs::makedev(inode.rdev_major, inode.rdev_minor)),
            FileType::BlockDevice => (Kind::BlockDevice, rustix::fs::makedev(inode.rdev_major, inode.rdev_minor)),
            FileType::Socket => (Kind::Socket, 0),
            _ => (Kind::Fifo, 0),
        };
        self.clear(at, name)?;
        match rustix::fs::mknodat(self.descriptor(at)?, name, kind, Mode::RUSR | Mode::WUSR, device) {
            Ok(()) => self.finish_new(at, name, inode, index).map(Some),
            Err(Errno::PERM) => {
                self.skipped.special_files += 1;
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Attributes of what was made a moment ago and cannot be opened.
    fn finish_new(&mut self, at: DirId, name: &[u8], inode: &Inode, index: &Index) -> Result<Node> {
        let made = Handle::of_new(self.descriptor(at)?, name, inode)?;
        made.set(inode, index, self.is_root, &mut self.skipped)?;
        made.node()
    }

    /// Gives every directory its attributes, the deepest first; the top gets `top`'s when that is a directory. `index` is not needed
    /// after this.
    pub fn finish(&mut self, top: &Inode, top_is_directory: bool, index: &Index) -> Result<()> {
        if top_is_directory {
            self.dirs[0].inode = Some(top.clone());
        }
        for number in (0..self.dirs.len()).rev() {
            let Some(inode) = self.dirs[number].inode.clone() else { continue };
            self.finish_dir(DirId(number), &inode, index).with_context(|| self.path(DirId(number)))?;
        }
        Ok(())
    }

    /// The way to the next one does not lead through this one, which may let nobody in from now on.
    fn finish_dir(&mut self, at: DirId, inode: &Inode, index: &Index) -> Result<()> {
        let fd = match self.dirs[at.0].parent {
            None => rustix::io::fcntl_dupfd_cloexec(&self.root, 3)?,
            Some(parent) => {
                self.descriptor(parent)?;
                self.step(&self.here.1, &self.dirs[at.0].name, at)?
            }
        };
        Handle::Open(fd).set(inode, index, self.is_root, &mut self.skipped)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use clip_format::erofs::{Body, InodeSpec, write_image};

    /// A real index, with one file of 1 GiB that is all hole, an empty one with set-user-id and set-group-id, a fifo, and a directory.
    fn index() -> Index {
        let of = |permissions, body| InodeSpec { permissions, uid: 0, gid: 0, mtime_s: -5, mtime_ns: 7, xattrs: vec![], body };
        let names = [(b"dir".to_vec(), 1), (b"fifo".to_vec(), 3), (b"setuid".to_vec(), 4), (b"sparse".to_vec(), 2)];
        let sparse = Body::Regular { size: 1 << 30, extents: vec![] };
        let setuid = of(0o6755, Body::Regular { size: 0, extents: vec![] });
        let root = of(0o755, Body::Directory(names.to_vec()));
        let inodes = [root, of(0o755, Body::Directory(vec![])), of(0o755, sparse), of(0o755, Body::Fifo), setuid];
        Index::open(std::sync::Arc::new(write_image(&inodes, 0, &[]).unwrap())).unwrap()
    }

    fn inode(path: &[u8]) -> Inode {
        index().resolve(path).unwrap().unwrap()
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

    /// Claim: a directory that somebody replaces after it was made is not entered, and not changed: by a link as by another directory.
    #[test]
    fn directories_put_in_later_are_not_entered() {
        for is_link in [true, false] {
            let (outside, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            std::fs::create_dir(outside.path().join("other")).unwrap();
            let mode = outside.path().join("other").metadata().unwrap().permissions();
            let mut place = Place::open(dir.path(), false).unwrap();
            let etc = place.make_dir(place.root(), b"etc", &inode(b"dir")).unwrap();
            std::fs::remove_dir(dir.path().join("etc")).unwrap();
            if is_link {
                std::os::unix::fs::symlink(outside.path().join("other"), dir.path().join("etc")).unwrap();
            } else {
                std::fs::rename(outside.path().join("other"), dir.path().join("etc")).unwrap();
            }
            assert!(place.make_file(etc, b"passwd", &inode(b"sparse")).is_err());
            let error = place.finish(&inode(b"/"), true, &index()).unwrap_err();
            assert!(format!("{error:#}").contains("/etc"), "{error:#}");
            let there = dir.path().join("etc");
            assert_eq!((std::fs::read_dir(&there).unwrap().count(), there.metadata().unwrap().permissions()), (0, mode));
        }
    }

    /// Claim: where a file that was made has been replaced, by a link, another name of another file, a fifo or a new file, its data and
    /// attributes go nowhere, and nothing waits.
    #[test]
    fn files_put_in_later_are_not_touched() {
        use std::os::unix::fs::MetadataExt as _;
        type Put = fn(&Path, &Path);
        let swaps: [(&str, Put); 4] = [
            ("link", |other, name| std::os::unix::fs::symlink(other, name).unwrap()),
            ("hard link", |other, name| std::fs::hard_link(other, name).unwrap()),
            ("new file", |_, name| std::fs::write(name, "theirs").unwrap()),
            ("fifo", |_, name| rustix::fs::mknodat(rustix::fs::CWD, name, rustix::fs::FileType::Fifo, Mode::RWXU, 0).unwrap()),
        ];
        for (what, put) in swaps {
            let (outside, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let (other, name) = (outside.path().join("root's"), dir.path().join("tool"));
            std::fs::write(&other, "secret").unwrap();
            let before = other.metadata().unwrap().mode();
            let mut place = Place::open(dir.path(), false).unwrap();
            let node = place.make_file(place.root(), b"tool", &inode(b"setuid")).unwrap();
            // Kept, so that its number is not given to the new one.
            std::fs::rename(&name, dir.path().join("away")).unwrap();
            put(&other, &name);
            assert!(place.open_file(place.root(), b"tool", node).is_err(), "{what}");
            assert!(place.finish_file(place.root(), b"tool", node, &inode(b"setuid"), &index()).is_err(), "{what}");
            assert!(place.link((place.root(), b"tool"), node, place.root(), b"second").is_err(), "{what}");
            assert_eq!((std::fs::read(&other).unwrap(), other.metadata().unwrap().mode()), (b"secret".to_vec(), before), "{what}");
        }
    }

    /// Claim: who cannot give the owner does not give its rights either, and is told; a set-user-id bit of the user's own is kept.
    #[test]
    fn set_id_bits_go_where_the_owner_does_not() {
        use std::os::unix::fs::MetadataExt as _;
        let dir = tempfile::tempdir().unwrap();
        let mut place = Place::open(dir.path(), false).unwrap();
        place.is_root = false;
        let mut ours = inode(b"setuid");
        (ours.uid, ours.gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let mut not_ours = ours.clone();
        (not_ours.uid, not_ours.gid) = (ours.uid + 1, ours.gid + 1);
        for (name, inode) in [("ours", &ours), ("theirs", &not_ours)] {
            let node = place.make_file(place.root(), name.as_bytes(), inode).unwrap();
            place.finish_file(place.root(), name.as_bytes(), node, inode, &index()).unwrap();
        }
        let mode = |name| dir.path().join(name).metadata().unwrap().mode() & 0o7777;
        assert_eq!((mode("ours"), mode("theirs")), (0o6755, 0o755));
        assert_eq!((place.skipped.owners, place.skipped.set_id_bits), (1, 1));
    }

    /// Claim: the way to a child is one step however deep it is, and no way is longer than the one from the top.
    #[test]
    fn the_way_to_a_child_is_one_step() {
        let dir = tempfile::tempdir().unwrap();
        let mut place = Place::open(dir.path(), false).unwrap();
        let mut chain = vec![place.root()];
        for _ in 0..40 {
            let next = place.make_dir(chain[chain.len() - 1], b"d", &inode(b"dir")).unwrap();
            place.descriptor(next).unwrap();
            chain.push(next);
        }
        let beside = place.make_dir(chain[1], b"e", &inode(b"dir")).unwrap();
        let route = |start, up: &[DirId], down: &[DirId]| Route { start, up: up.to_vec(), down: down.to_vec() };
        assert_eq!(place.route(chain[39], chain[40]), route(chain[39], &[], &[chain[40]]));
        assert_eq!(place.route(chain[40], chain[39]), route(chain[40], &[chain[39]], &[]));
        assert_eq!(place.route(chain[40], beside), route(chain[0], &[], &[chain[1], beside]));
        assert_eq!(place.route(chain[2], beside), route(chain[2], &[chain[1]], &[beside]));
        for at in [beside, chain[40], chain[38], chain[0], chain[1]] {
            let node = place.dirs[at.0].node;
            node.check(place.descriptor(at).unwrap()).unwrap();
        }
        place.finish(&inode(b"/"), true, &index()).unwrap();
    }

    /// A file of holes takes no blocks, and data written into it leaves the rest a hole.
    #[test]
    fn holes_stay_holes() {
        use std::os::unix::fs::{FileExt as _, MetadataExt as _};
        let dir = tempfile::tempdir().unwrap();
        let mut place = Place::open(dir.path(), false).unwrap();
        let node = place.make_file(place.root(), b"sparse", &inode(b"sparse")).unwrap();
        place.open_file(place.root(), b"sparse", node).unwrap().write_all_at(b"x", 1 << 20).unwrap();
        let metadata = std::fs::metadata(dir.path().join("sparse")).unwrap();
        assert_eq!(metadata.size(), 1 << 30);
        assert!(metadata.blocks() < 1024, "{}", metadata.blocks());
    }
}
