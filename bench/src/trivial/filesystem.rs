//! The trivial file system's answers.

use std::{ffi::OsStr, io, os::unix::ffi::OsStrExt as _, sync::Arc};

// A floor with other settings would be no floor.
use clip_fuse::wire::{GENERATION, NO_FILE, TTL, agree};
use fuser::{
    AccessFlags, Errno, FileHandle, Filesystem, FopenFlags, INodeNo, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyXattr, Request,
};

use super::tree::TrivialTree;

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
        let agreed = agree(config, self.tree.any_acls);
        (self.no_open, self.no_opendir) = (agreed.no_open, agreed.no_opendir);
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
