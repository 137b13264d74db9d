//! What the kernel is told of a tree that never changes: the settings of a connection, and attributes. The adapter's; public because a floor
//! that a mount is measured against must say the same.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clip_format::erofs::FileType;
use fuser::{FileAttr, Generation, INodeNo, InitFlags, KernelConfig};
use tracing::debug;

use crate::tree::Attr;

/// For ever: the kernel counts in jiffies and takes what is over its range as the end of its range.
/// Source: linux include/linux/jiffies.h, `timespec64_to_jiffies`, whose seconds are signed.
pub const TTL: Duration = Duration::from_secs(i64::MAX as u64);
/// No nodeid is ever used for a second inode.
pub const GENERATION: Generation = Generation(0);
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

/// What was agreed with the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Agreed {
    /// Of what was wanted, what the kernel has.
    pub flags: InitFlags,
    /// ENOSYS to open is taken as "for ever".
    pub no_open: bool,
    /// ENOSYS to opendir is taken as "for ever".
    pub no_opendir: bool,
}

/// Asks for the settings of a connection, ACLs when there are any; what the kernel lacks is left out.
pub fn agree(config: &mut KernelConfig, any_acls: bool) -> Agreed {
    let offered = config.capabilities();
    let mut flags = InitFlags::empty();
    for flag in WANTED.into_iter().chain(any_acls.then_some(InitFlags::FUSE_POSIX_ACL)) {
        match config.add_capabilities(flag) {
            Ok(()) => flags |= flag,
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
    Agreed {
        flags,
        no_open: offered.contains(InitFlags::FUSE_NO_OPEN_SUPPORT),
        no_opendir: offered.contains(InitFlags::FUSE_NO_OPENDIR_SUPPORT),
    }
}

/// The protocol's word for a file type.
#[must_use]
pub fn kind(file_type: FileType) -> fuser::FileType {
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
pub const NO_FILE: FileAttr = FileAttr {
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

/// The protocol's form of attributes.
#[must_use]
pub fn file_attr(attr: &Attr) -> FileAttr {
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
