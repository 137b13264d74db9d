//! Zero-copy reading of an index. Every accessor is total: hostile bytes give `Err`, never a panic, a loop or a read outside.

use std::ops::Range;

use crate::{
    bytes::SharedBytes,
    error::FormatError,
    units::{LayerIndex, Nid, StreamOffset},
};

/// An EROFS image as clip writes them, over bytes that are never parsed as a whole.
#[derive(Clone)]
pub struct Index {
    bytes: SharedBytes,
    root: Nid,
    // layer count and stream sizes, from the device table
}

/// The kind of a directory entry or inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileType {
    /// S_IFREG
    Regular,
    /// S_IFDIR
    Directory,
    /// S_IFLNK
    Symlink,
    /// S_IFCHR
    CharDevice,
    /// S_IFBLK
    BlockDevice,
    /// S_IFIFO
    Fifo,
    /// S_IFSOCK
    Socket,
}

/// One inode's attributes and where its parts are; a small copy, no borrow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    /// Its number, and `st_ino`.
    pub nid: Nid,
    /// From `mode`.
    pub file_type: FileType,
    /// With the S_IFMT bits.
    pub mode: u32,
    /// 32 bits.
    pub uid: u32,
    /// 32 bits.
    pub gid: u32,
    /// Length in bytes (of a symlink: of its target; of a directory: of its entry blocks).
    pub size: u64,
    /// Number of names (of a directory: 2 + subdirectories).
    pub nlink: u32,
    /// Major number of a device, else 0.
    pub rdev_major: u32,
    /// Minor number of a device, else 0.
    pub rdev_minor: u32,
    /// Seconds since 1970, negative before.
    pub mtime_s: i64,
    /// `< 1_000_000_000`
    pub mtime_ns: u32,
    /// There are xattrs.
    pub has_xattrs: bool,
    // layout fields, private
}

/// One name of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// The inode.
    pub nid: Nid,
    /// Without NUL or slash.
    pub name: &'a [u8],
    /// As the entry says.
    pub file_type: FileType,
    /// Pass to `Index::dir_entries` to continue after this entry.
    pub next: u64,
}

/// A piece of a regular file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where in the file, half-open.
    pub file: Range<u64>,
    /// Where the bytes are; `None` is a hole.
    pub data: Option<(LayerIndex, StreamOffset)>,
}

impl Index {
    /// Checks the superblock and device table only: constant time. Accessors check what they touch; [`super::check::check`] checks all.
    ///
    /// # Errors
    /// `Corrupt` or `Unsupported`, naming the field.
    pub fn open(bytes: SharedBytes) -> Result<Self, FormatError> {
        let _ = bytes;
        todo!()
    }

    /// The root directory.
    #[must_use]
    pub fn root(&self) -> Nid {
        self.root
    }

    /// Number of layers = devices.
    #[must_use]
    pub fn layer_count(&self) -> usize {
        todo!()
    }

    /// Number of inodes, as the superblock says.
    #[must_use]
    pub fn inode_count(&self) -> u64 {
        todo!()
    }

    /// True when some inode of the image has extended attributes (a superblock flag of ours): else `getxattr` needs no look.
    #[must_use]
    pub fn any_xattrs(&self) -> bool {
        todo!()
    }

    /// True when some inode has POSIX ACLs.
    #[must_use]
    pub fn any_acls(&self) -> bool {
        todo!()
    }

    /// Sum of the sizes of regular files, for statfs.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        todo!()
    }

    /// The inode at `nid`.
    ///
    /// # Errors
    /// `Corrupt` when there is none that could be read.
    pub fn inode(&self, nid: Nid) -> Result<Inode, FormatError> {
        let _ = nid;
        todo!()
    }

    /// The entry called `name`, or `None`. Cost: a binary search over blocks, then within one.
    ///
    /// # Errors
    /// `Corrupt`; also when `dir` is not a directory.
    pub fn lookup<'a>(&'a self, dir: &Inode, name: &[u8]) -> Result<Option<DirEntry<'a>>, FormatError> {
        let _ = (dir, name);
        todo!()
    }

    /// The entries of `dir` in byte order, `.` and `..` included, from position `from` (0 = the start, else an entry's `next`).
    pub fn dir_entries<'a>(&'a self, dir: &Inode, from: u64) -> impl Iterator<Item = Result<DirEntry<'a>, FormatError>> + 'a {
        let _ = (dir, from);
        std::iter::empty()
    }

    /// A symlink's target.
    ///
    /// # Errors
    /// `Corrupt`; also when `link` is not a symlink.
    pub fn link_target<'a>(&'a self, link: &Inode) -> Result<&'a [u8], FormatError> {
        let _ = link;
        todo!()
    }

    /// The pieces of `file` that cover `range` (cut to the file's size), in order, holes included, neighbours joined.
    pub fn extents<'a>(&'a self, file: &Inode, range: Range<u64>) -> impl Iterator<Item = Result<Extent, FormatError>> + 'a {
        let _ = (file, range);
        std::iter::empty()
    }

    /// The extended attributes, as (full name such as `user.x`, value).
    pub fn xattrs<'a>(&'a self, inode: &Inode) -> impl Iterator<Item = Result<(Vec<u8>, &'a [u8]), FormatError>> + 'a {
        let _ = inode;
        std::iter::empty()
    }

    /// One extended attribute's value, or `None`. Cost: no allocation.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn xattr<'a>(&'a self, inode: &Inode, name: &[u8]) -> Result<Option<&'a [u8]>, FormatError> {
        let _ = (inode, name);
        todo!()
    }

    /// Follows `path` (slash-separated, from the root, `.` and empty parts skipped, `..` confined to the root) without following a
    /// last symlink; symlinks on the way are followed inside the image, at most 40.
    ///
    /// # Errors
    /// `Corrupt`; a path that does not exist is `Ok(None)`.
    pub fn resolve(&self, path: &[u8]) -> Result<Option<Inode>, FormatError> {
        let _ = path;
        todo!()
    }
}
