//! The FUSE protocol in terms of the tree: thin, no decision of the file system is made here.

use std::{ffi::OsStr, io, ops::ControlFlow, os::unix::ffi::OsStrExt, path::Path, time::SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileHandle, Filesystem, FopenFlags, INodeNo, IoctlFlags, KernelConfig, LockOwner,
    OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    TimeOrNow, WriteFlags,
};
use rustix::io::Errno;
use tracing::debug;

use crate::{
    source::ByteSource,
    tree::{NodeId, ReadReply, SeekTo, Tree},
    wire::{GENERATION, NO_FILE, TTL, agree, file_attr, kind},
};

/// One connection to the kernel.
pub(crate) struct Adapter<B: ByteSource> {
    tree: Tree<B>,
    /// Answer ENOSYS to open: the kernel then never asks again, and keeps the pages of a file between opens.
    no_open: bool,
    /// The same for opendir.
    no_opendir: bool,
    /// Answer ENOSYS to getxattr and listxattr: the kernel then never asks again.
    no_xattrs: bool,
}

impl<B: ByteSource> Adapter<B> {
    pub(crate) fn new(tree: Tree<B>) -> Self {
        let no_xattrs = !tree.source().index().any_xattrs();
        Self { tree, no_open: false, no_opendir: false, no_xattrs }
    }
}

impl<B: ByteSource> Filesystem for Adapter<B> {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let agreed = agree(config, self.tree.source().index().any_acls());
        (self.no_open, self.no_opendir) = (agreed.no_open, agreed.no_opendir);
        let agreed = agreed.flags;
        debug!(?agreed, no_open = self.no_open, no_opendir = self.no_opendir, no_xattrs = self.no_xattrs, "FUSE connection");
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.tree.lookup(NodeId(parent.0), name.as_bytes()) {
            Ok(Some(attr)) => reply.entry(&TTL, &file_attr(&attr), GENERATION),
            // Nodeid 0 with a TTL is a name that does not exist and may be remembered as such.
            Ok(None) => reply.entry(&TTL, &NO_FILE, GENERATION),
            Err(errno) => reply.error(to_fuser(errno)),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.tree.getattr(NodeId(ino.0)) {
            Ok(attr) => reply.attr(&TTL, &file_attr(&attr)),
            Err(errno) => reply.error(to_fuser(errno)),
        }
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        match self.tree.readlink(NodeId(ino.0)) {
            Ok(target) => reply.data(target),
            Err(errno) => reply.error(to_fuser(errno)),
        }
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if self.no_open {
            reply.error(fuser::Errno::ENOSYS);
        } else {
            reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
        }
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.tree.read(NodeId(ino.0), offset, size, reply);
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if self.no_opendir {
            reply.error(fuser::Errno::ENOSYS);
        } else {
            reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR);
        }
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let read = self.tree.readdir(NodeId(ino.0), offset, |entry| {
            let kind = kind(entry.file_type);
            flow(reply.add(INodeNo(entry.node.0), entry.next, kind, OsStr::from_bytes(entry.name)))
        });
        match read {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(to_fuser(errno)),
        }
    }

    fn readdirplus(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let read = self.tree.readdirplus(NodeId(ino.0), offset, |entry, attr| {
            let (ino, name) = (INodeNo(entry.node.0), OsStr::from_bytes(entry.name));
            flow(reply.add(ino, entry.next, name, &TTL, &file_attr(&attr), GENERATION))
        });
        match read {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(to_fuser(errno)),
        }
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let statfs = self.tree.statfs();
        reply.statfs(statfs.blocks, 0, 0, statfs.files, 0, statfs.block_bytes, statfs.name_bytes_max, statfs.block_bytes);
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        if self.no_xattrs {
            return reply.error(fuser::Errno::ENOSYS);
        }
        match self.tree.getxattr(NodeId(ino.0), name.as_bytes()) {
            Ok(Some(value)) => reply_sized(value, size, reply),
            Ok(None) => reply.error(fuser::Errno::ENODATA),
            Err(errno) => reply.error(to_fuser(errno)),
        }
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        if self.no_xattrs {
            return reply.error(fuser::Errno::ENOSYS);
        }
        match self.tree.listxattr(NodeId(ino.0)) {
            Ok(names) => reply_sized(&names, size, reply),
            Err(errno) => reply.error(to_fuser(errno)),
        }
    }

    fn lseek(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let to = match whence {
            libc::SEEK_DATA => SeekTo::Data,
            libc::SEEK_HOLE => SeekTo::Hole,
            _ => return reply.error(fuser::Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(fuser::Errno::ENXIO) };
        match self.tree.seek(NodeId(ino.0), offset, to) {
            // A file's size fits an i64 (clip_format::limits::FILE_BYTES_MAX), and so does what lies in it.
            Ok(found) => reply.offset(found as i64),
            Err(errno) => reply.error(to_fuser(errno)),
        }
    }

    // ENOSYS to these makes the kernel answer by itself from then on (close and fsync succeed, permissions are its own check, poll is always
    // ready, ioctl is ENOTTY). Said here, since fuser's own answer is the same with a warning in the log at the first close of every mount.
    // Source: linux fs/fuse/file.c, `fuse_flush`, `fuse_fsync_common`, `fuse_file_poll`, `fuse_bmap`; fs/fuse/dir.c, `fuse_access`.
    //
    // FUSE_INTERRUPT (a signal to a reader that waits) never reaches a file system through fuser: it answers ENOSYS, and the kernel
    // asks no more. SIGKILL still ends at once whoever waits for a page (linux mm/filemap.c, `folio_wait_locked_killable`); a direct read
    // stays until it is answered, at the latest after the engine's read timeout.

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn poll(&self, _: &Request, _: INodeNo, _: FileHandle, _: PollNotifier, _: PollEvents, _: PollFlags, reply: ReplyPoll) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn bmap(&self, _: &Request, _: INodeNo, _: u32, _: u64, reply: ReplyBmap) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn ioctl(&self, _: &Request, _: INodeNo, _: FileHandle, _: IoctlFlags, _: u32, _: &[u8], _: u32, reply: ReplyIoctl) {
        reply.error(fuser::Errno::ENOSYS);
    }

    // The mount is read-only, so the kernel refuses these before they come here.

    fn setattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.error(fuser::Errno::EROFS);
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(fuser::Errno::EROFS);
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(fuser::Errno::EROFS);
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(fuser::Errno::EROFS);
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(fuser::Errno::EROFS);
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        reply.error(fuser::Errno::EROFS);
    }

    fn rename(&self, _: &Request, _: INodeNo, _: &OsStr, _: INodeNo, _: &OsStr, _: RenameFlags, reply: ReplyEmpty) {
        reply.error(fuser::Errno::EROFS);
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(fuser::Errno::EROFS);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply.error(fuser::Errno::EROFS);
    }

    fn setxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: &[u8], _: i32, _: u32, reply: ReplyEmpty) {
        reply.error(fuser::Errno::EROFS);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(fuser::Errno::EROFS);
    }

    fn create(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        reply.error(fuser::Errno::EROFS);
    }

    fn fallocate(&self, _: &Request, _: INodeNo, _: FileHandle, _: u64, _: u64, _: i32, reply: ReplyEmpty) {
        reply.error(fuser::Errno::EROFS);
    }

    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(fuser::Errno::EROFS);
    }
}

impl ReadReply for ReplyData {
    fn data(self, bytes: &[u8]) {
        ReplyData::data(self, bytes);
    }

    fn fail(self, errno: Errno) {
        self.error(to_fuser(errno));
    }
}

/// xattr(7)'s convention: size 0 asks for the size.
fn reply_sized(value: &[u8], size: u32, reply: ReplyXattr) {
    match u32::try_from(value.len()) {
        Ok(len) if size == 0 => reply.size(len),
        Ok(len) if len <= size => reply.data(value),
        Ok(_) => reply.error(fuser::Errno::ERANGE),
        Err(_) => reply.error(fuser::Errno::E2BIG),
    }
}

fn flow(full: bool) -> ControlFlow<()> {
    if full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

fn to_fuser(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.raw_os_error())
}
