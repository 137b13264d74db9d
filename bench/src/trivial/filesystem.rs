//! The trivial file system's answers.

use std::{
    ffi::OsStr,
    io,
    os::unix::ffi::OsStrExt as _,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use fuser::{
    AccessFlags, Errno, FileAttr, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags,
    ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyXattr, Request,
};

use super::tree::TrivialTree;

// These are clip's. Source: fuse/src/adapter.rs; a floor with other settings would be no floor.
const TTL: Duration = Duration::from_secs(i64::MAX as u64);
const GENERATION: Generation = Generation(0);
const REQUEST_BYTES: u32 = 1 << 20;
const BACKGROUND_MAX: u16 = 128;
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
    blksize: 4096,
    flags: 0,
};

/// One connection.
pub(super) struct Trivial {
    tree: Arc<TrivialTree>,
    no_open: bool,
    no_opendir: bool,
}

impl Trivial {
    pub(super) fn new(tree: Arc<TrivialTree>) -> Self {
        Self { tree, no_open: false, no_opendir: false }
    }
}

impl Filesystem for Trivial {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let offered = config.capabilities();
        self.no_open = offered.contains(InitFlags::FUSE_NO_OPEN_SUPPORT);
        self.no_opendir = offered.contains(InitFlags::FUSE_NO_OPENDIR_SUPPORT);
        for flag in WANTED.into_iter().chain(self.tree.any_acls.then_some(InitFlags::FUSE_POSIX_ACL)) {
            // What the kernel lacks, clip goes without too.
            let _ = config.add_capabilities(flag);
        }
        let in_range = config.set_max_write(REQUEST_BYTES).is_ok()
            && config.set_max_background(BACKGROUND_MAX).is_ok()
            && config.set_congestion_threshold(BACKGROUND_MAX).is_ok();
        debug_assert!(in_range);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.tree.names.get(&parent.0).and_then(|names| names.get(name.as_bytes()));
        match found.and_then(|node| self.tree.attributes.get(node)) {
            Some(attr) => reply.entry(&TTL, attr, GENERATION),
            None => reply.entry(&TTL, &NO_FILE, GENERATION),
        }
    }

    fn getattr(&self, _: &Request, node: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.tree.attributes.get(&node.0) {
            Some(attr) => reply.attr(&TTL, attr),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn readlink(&self, _: &Request, node: INodeNo, reply: ReplyData) {
        match self.tree.links.get(&node.0) {
            Some(target) => reply.data(target),
            None => reply.error(Errno::EINVAL),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if self.no_open {
            reply.error(Errno::ENOSYS);
        } else {
            reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
        }
    }

    fn read(
        &self,
        _: &Request,
        node: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.tree.slice(node.0, offset, size) {
            Some(bytes) => reply.data(bytes),
            None => reply.error(Errno::EIO),
        }
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if self.no_opendir {
            reply.error(Errno::ENOSYS);
        } else {
            reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR);
        }
    }

    fn readdir(&self, _: &Request, node: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let Some(listing) = self.tree.listings.get(&node.0) else { return reply.error(Errno::ENOTDIR) };
        for (at, entry) in listing.iter().enumerate().skip(offset as usize) {
            if reply.add(INodeNo(entry.node), at as u64 + 1, entry.kind, OsStr::from_bytes(&entry.name)) {
                break;
            }
        }
        reply.ok();
    }

    fn readdirplus(&self, _: &Request, node: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let Some(listing) = self.tree.listings.get(&node.0) else { return reply.error(Errno::ENOTDIR) };
        for (at, entry) in listing.iter().enumerate().skip(offset as usize) {
            let Some(attr) = self.tree.attributes.get(&entry.node) else { return reply.error(Errno::EIO) };
            if reply.add(INodeNo(entry.node), at as u64 + 1, OsStr::from_bytes(&entry.name), &TTL, attr, GENERATION) {
                break;
            }
        }
        reply.ok();
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(if self.tree.any_xattrs { Errno::ENODATA } else { Errno::ENOSYS });
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        if self.tree.any_xattrs {
            reply.size(0);
        } else {
            reply.error(Errno::ENOSYS);
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }
}
