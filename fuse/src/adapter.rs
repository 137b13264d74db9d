//! The FUSE protocol in terms of the tree: thin, no decision of the file system is made here.

use std::{
    ffi::OsStr,
    io,
    ops::ControlFlow,
    os::unix::ffi::OsStrExt,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clip_format::erofs::FileType;
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileAttr, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use rustix::io::Errno;
use tracing::debug;

use crate::{
    source::ByteSource,
    tree::{Attr, NodeId, ReadReply, SeekTo, Tree},
};

/// For ever: the kernel counts in jiffies and takes what is over its range as the end of its range.
/// Source: linux include/linux/jiffies.h, `timespec64_to_jiffies`, whose seconds are signed.
const TTL: Duration = Duration::from_secs(i64::MAX as u64);
/// No nodeid is ever used for a second inode.
const GENERATION: Generation = Generation(0);
/// Bytes of one read request: 256 pages. Source: the default of fs.fuse.max_pages_limit, linux 6.13. fuser derives `max_pages` from the
/// size of a write.
const REQUEST_BYTES: u32 = 1 << 20;
/// Read-ahead requests that may wait at one time. Source: judgement, not measured: a few sequential readers of 512 KiB read-ahead
/// each over a registry far away; the kernel's 12 starve them. Over the congestion threshold the kernel drops read-ahead, so the two are equal.
const BACKGROUND_MAX: u16 = 128;
/// What the kernel may do with an image that never changes. Source: linux fs/fuse/inode.c, `process_init_reply`. No AUTO_INVAL_DATA: it would
/// drop pages on a changed mtime, and EXPLICIT_INVAL_DATA says that only we could ask for it. No EXPORT_SUPPORT: it would let file handles name any nodeid.
/// ALLOW_IDMAP: containers in user namespaces mount the tree with shifted ids; needs default_permissions, which every mount has.
const WANTED: [InitFlags; 9] = [
    InitFlags::FUSE_ASYNC_READ,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_EXPLICIT_INVAL_DATA,
    InitFlags::FUSE_MAX_PAGES,
    InitFlags::FUSE_ALLOW_IDMAP,
];

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
        let offered = config.capabilities();
        self.no_open = offered.contains(InitFlags::FUSE_NO_OPEN_SUPPORT);
        self.no_opendir = offered.contains(InitFlags::FUSE_NO_OPENDIR_SUPPORT);
        let mut agreed = InitFlags::empty();
        let acl = self.tree.source().index().any_acls().then_some(InitFlags::FUSE_POSIX_ACL);
        for flag in WANTED.into_iter().chain(acl) {
            match config.add_capabilities(flag) {
                Ok(()) => agreed |= flag,
                Err(missing) => debug!(?missing, "the kernel lacks a FUSE capability"),
            }
        }
        // Each fails only for values out of its range, which these constants are not.
        let in_range = config.set_max_write(REQUEST_BYTES).is_ok()
            && config.set_max_background(BACKGROUND_MAX).is_ok()
            && config.set_congestion_threshold(BACKGROUND_MAX).is_ok();
        debug_assert!(in_range);
        let abi = config.kernel_abi();
        debug!(%abi, ?offered, request_bytes = REQUEST_BYTES, background_max = BACKGROUND_MAX, "the kernel's FUSE");
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

fn kind(file_type: FileType) -> fuser::FileType {
    match file_type {
        FileType::Regular => fuser::FileType::RegularFile,
        FileType::Directory => fuser::FileType::Directory,
        FileType::Symlink => fuser::FileType::Symlink,
        FileType::CharDevice => fuser::FileType::CharDevice,
        FileType::BlockDevice => fuser::FileType::BlockDevice,
        FileType::Fifo => fuser::FileType::NamedPipe,
        FileType::Socket => fuser::FileType::Socket,
    }
}

/// The attributes beside nodeid 0, which the kernel does not look at.
const NO_FILE: FileAttr = FileAttr {
    ino: INodeNo(0),
    size: 0,
    blocks: 0,
    atime: UNIX_EPOCH,
    mtime: UNIX_EPOCH,
    ctime: UNIX_EPOCH,
    crtime: UNIX_EPOCH,
    kind: fuser::FileType::RegularFile,
    perm: 0,
    nlink: 0,
    uid: 0,
    gid: 0,
    rdev: 0,
    blksize: BLOCK_BYTES,
    flags: 0,
};

/// `st_blksize`: a page, the size of a page-cache read.
const BLOCK_BYTES: u32 = 4096;

fn file_attr(attr: &Attr) -> FileAttr {
    let time = time(attr.mtime_s, attr.mtime_ns);
    FileAttr {
        ino: INodeNo(attr.node.0),
        size: attr.size,
        blocks: attr.blocks,
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: kind(attr.file_type),
        perm: attr.permissions,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

/// Every 64-bit second is a `SystemTime` on Linux; should one not be, 1970.
fn time(seconds: i64, nanoseconds: u32) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let second = if seconds < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    second.and_then(|second| second.checked_add(Duration::from_nanos(u64::from(nanoseconds)))).unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Times before 1970 keep their nanoseconds, and the ends of the range do not wrap.
    #[test]
    fn times_of_all_signs() {
        assert_eq!(UNIX_EPOCH.duration_since(time(-1, 250_000_000)).map(|d| d.as_millis()).ok(), Some(750));
        assert_eq!(time(3, 5).duration_since(UNIX_EPOCH).ok(), Some(Duration::new(3, 5)));
        assert!(time(i64::MIN, 0) < UNIX_EPOCH);
        assert!(time(i64::MAX, 999_999_999) > UNIX_EPOCH);
    }
}
