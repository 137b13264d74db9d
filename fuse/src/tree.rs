//! The file system itself, over an index and an engine; knows no kernel and is tested without one.
//!
//! Every method is total: a damaged index gives an errno and a line in the log, never a panic. Only [`Tree::read`] can take time, and
//! it does not wait for it.

pub mod attr;
mod failures;
mod log_limit;
mod read;
mod streams;

use std::{ops::ControlFlow, sync::Arc};

use clip_format::{
    erofs::{FileType, Inode},
    error::{ErrorKind, FormatError},
    limits::NAME_BYTES_MAX,
    units::Nid,
};
use rustix::io::Errno;
use tracing::error;

pub use self::{
    attr::Attr,
    read::{ReadReply, SeekTo},
};
use self::{failures::Failures, log_limit::LogLimit, streams::Streams};
use crate::{errno::errno, source::ByteSource};

/// An inode as the kernel names it: its nid, except that 1 is the root, whatever nid that has. `st_ino` is the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The root directory. Source: linux include/uapi/linux/fuse.h, `FUSE_ROOT_ID`.
    pub const ROOT: NodeId = NodeId(1);
}

/// One name of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Which inode.
    pub node: NodeId,
    /// Without NUL or slash.
    pub name: &'a [u8],
    /// As the directory says.
    pub file_type: FileType,
    /// Where to go on after this entry.
    pub next: u64,
}

/// What statfs(2) shows: a full file system of the image's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statfs {
    /// Units of `block_bytes`, the sizes of all regular files, rounded up. None is free.
    pub blocks: u64,
    /// Inodes. None is free.
    pub files: u64,
    /// Bytes of a block.
    pub block_bytes: u32,
    /// Bytes of a name.
    pub name_bytes_max: u32,
}

/// The file system of one mount.
pub struct Tree<B: ByteSource> {
    source: B,
    streams: Streams<B::Stream>,
    failures: Arc<Failures>,
    log_limit: LogLimit,
}

impl<B: ByteSource> Tree<B> {
    /// Serves `source`.
    #[must_use]
    pub fn new(source: B) -> Self {
        Self { source, streams: Streams::new(), failures: Arc::new(Failures::new()), log_limit: LogLimit::new() }
    }

    /// What it serves.
    #[must_use]
    pub fn source(&self) -> &B {
        &self.source
    }

    /// The attributes of `name` in the directory `parent`, or `None` when there is no such name.
    ///
    /// # Errors
    /// `NOTDIR`, `NAMETOOLONG`; `IO` for a damaged index.
    pub fn lookup(&self, parent: NodeId, name: &[u8]) -> Result<Option<Attr>, Errno> {
        if name.len() > NAME_BYTES_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        let dir = self.directory("lookup", parent)?;
        let found = self.source.index().lookup(&dir, name).map_err(|error| self.index_failure("lookup", parent, &error))?;
        let Some(entry) = found else { return Ok(None) };
        self.getattr(self.node("lookup", parent, entry.nid)?).map(Some)
    }

    /// The attributes of `node`.
    ///
    /// # Errors
    /// `IO` when there is no such inode.
    pub fn getattr(&self, node: NodeId) -> Result<Attr, Errno> {
        let inode = self.inode("getattr", node)?;
        attr::attr(self.source.index(), node, &inode).map_err(|error| self.index_failure("getattr", node, &error))
    }

    /// The target of the symlink `node`.
    ///
    /// # Errors
    /// `INVAL` when it is no symlink; `IO` for a damaged index.
    pub fn readlink(&self, node: NodeId) -> Result<&[u8], Errno> {
        let inode = self.inode("readlink", node)?;
        if inode.file_type != FileType::Symlink {
            return Err(Errno::INVAL);
        }
        self.source.index().link_target(&inode).map_err(|error| self.index_failure("readlink", node, &error))
    }

    /// Calls `visit` for the entries of `node`, `.` and `..` included, from position `from` (0, or an entry's `next`), until it breaks.
    ///
    /// # Errors
    /// `NOTDIR`; `IO` for a damaged index, but entries before the damage are visited and then it is `Ok`: the next call, which starts at the
    /// damage, fails.
    pub fn readdir<'a>(&'a self, node: NodeId, from: u64, mut visit: impl FnMut(Entry<'a>) -> ControlFlow<()>) -> Result<(), Errno> {
        let dir = self.directory("readdir", node)?;
        let mut visited = false;
        for entry in self.source.index().dir_entries(&dir, from) {
            let entry = entry.map_err(|error| self.index_failure("readdir", node, &error));
            let named = entry.and_then(|entry| {
                let node = self.node("readdir", node, entry.nid)?;
                Ok(Entry { node, name: entry.name, file_type: entry.file_type, next: entry.next })
            });
            match named {
                Ok(entry) if visit(entry).is_break() => return Ok(()),
                Ok(_) => visited = true,
                Err(_) if visited => return Ok(()),
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// As [`readdir`](Self::readdir), each entry with its attributes.
    ///
    /// # Errors
    /// As `readdir`.
    pub fn readdirplus<'a>(
        &'a self,
        node: NodeId,
        from: u64,
        mut visit: impl FnMut(Entry<'a>, Attr) -> ControlFlow<()>,
    ) -> Result<(), Errno> {
        let mut visited = false;
        let mut failed = None;
        self.readdir(node, from, |entry| match self.getattr(entry.node) {
            Ok(attr) => {
                visited = true;
                visit(entry, attr)
            }
            Err(errno) => {
                failed = Some(errno);
                ControlFlow::Break(())
            }
        })?;
        match failed {
            Some(errno) if !visited => Err(errno),
            _ => Ok(()),
        }
    }

    /// The value of the extended attribute `name` of `node`, or `None`.
    ///
    /// # Errors
    /// `IO` for a damaged index.
    pub fn getxattr(&self, node: NodeId, name: &[u8]) -> Result<Option<&[u8]>, Errno> {
        let inode = self.inode("getxattr", node)?;
        if !inode.has_xattrs {
            return Ok(None);
        }
        self.source.index().xattr(&inode, name).map_err(|error| self.index_failure("getxattr", node, &error))
    }

    /// The names of the extended attributes of `node`, each with a NUL after it.
    ///
    /// # Errors
    /// `IO` for a damaged index.
    pub fn listxattr(&self, node: NodeId) -> Result<Vec<u8>, Errno> {
        let inode = self.inode("listxattr", node)?;
        let mut names = Vec::new();
        if inode.has_xattrs {
            for xattr in self.source.index().xattrs(&inode) {
                let (name, _) = xattr.map_err(|error| self.index_failure("listxattr", node, &error))?;
                names.extend_from_slice(&name);
                names.push(0);
            }
        }
        Ok(names)
    }

    /// Sizes and counts of the whole. Cost: constant.
    #[must_use]
    pub fn statfs(&self) -> Statfs {
        const BLOCK_BYTES: u32 = 4096;
        let index = self.source.index();
        Statfs {
            blocks: index.file_bytes().div_ceil(u64::from(BLOCK_BYTES)),
            files: index.inode_count(),
            block_bytes: BLOCK_BYTES,
            name_bytes_max: NAME_BYTES_MAX as u32,
        }
    }

    fn inode(&self, operation: &'static str, node: NodeId) -> Result<Inode, Errno> {
        if !self.source.is_sound() {
            return Err(errno(ErrorKind::Corrupt));
        }
        let nid = if node == NodeId::ROOT { self.source.index().root() } else { Nid(node.0) };
        self.source.index().inode(nid).map_err(|error| self.index_failure(operation, node, &error))
    }

    fn directory(&self, operation: &'static str, node: NodeId) -> Result<Inode, Errno> {
        let inode = self.inode(operation, node)?;
        if inode.file_type == FileType::Directory { Ok(inode) } else { Err(Errno::NOTDIR) }
    }

    /// The kernel's name for an inode that is known to be none of the numbers it reserves.
    fn node_of(&self, nid: Nid) -> NodeId {
        if nid == self.source.index().root() { NodeId::ROOT } else { NodeId(nid.get()) }
    }

    /// The kernel's name for the inode that an entry of `dir` names.
    fn node(&self, operation: &'static str, dir: NodeId, nid: Nid) -> Result<NodeId, Errno> {
        let node = self.node_of(nid);
        // 0 says "no such file" in the protocol, and 1 is the root.
        if node.0 == 0 || (node == NodeId::ROOT && nid != self.source.index().root()) {
            let error = FormatError::Field {
                what: "nid of a directory entry",
                offset: 0,
                expected: "none of the numbers 0 and 1, which the kernel reserves".into(),
                found: nid.to_string(),
            };
            return Err(self.index_failure(operation, dir, &error));
        }
        Ok(node)
    }

    /// Logs a damaged index and says what the system call fails with.
    fn index_failure(&self, operation: &'static str, node: NodeId, error: &FormatError) -> Errno {
        let errno = errno(error.kind());
        if let Some(suppressed) = self.log_limit.admit() {
            error!(operation, inode = node.0, suppressed, "the index is damaged: {error}; index the image again");
        }
        errno
    }
}
