//! Attributes of an inode as the kernel wants them.

use clip_format::{
    erofs::{FileType, Index, Inode},
    error::FormatError,
};

use super::NodeId;

/// Everything that stat(2) shows. There is one time: access and change times are the modification time, since nothing changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Also `st_ino`: the inode's nid, but 1 for the root.
    pub node: NodeId,
    /// From the inode.
    pub file_type: FileType,
    /// `mode & 0o7777`
    pub permissions: u16,
    /// Bytes.
    pub size: u64,
    /// Units: 512 bytes, rounded up; holes of sparse files are not counted.
    pub blocks: u64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of names.
    pub nlink: u32,
    /// Device number of a device file, in the kernel's `new_encode_dev` form; else 0.
    pub rdev: u32,
    /// Seconds since 1970, negative before.
    pub mtime_s: i64,
    /// `< 1_000_000_000`
    pub mtime_ns: u32,
}

/// The attributes of `inode`, known to the kernel as `node`.
///
/// Cost: a sparse file's chunks are counted one by one; all others are constant.
///
/// # Errors
/// `Corrupt` when a sparse file's chunks cannot be read.
pub(super) fn attr(index: &Index, node: NodeId, inode: &Inode) -> Result<Attr, FormatError> {
    let bytes = match inode.file_type {
        FileType::Regular => index.data_bytes(inode)?,
        FileType::Directory | FileType::Symlink => inode.size,
        FileType::CharDevice | FileType::BlockDevice | FileType::Fifo | FileType::Socket => 0,
    };
    Ok(Attr {
        node,
        file_type: inode.file_type,
        permissions: (inode.mode & 0o7777) as u16,
        size: inode.size,
        blocks: bytes.div_ceil(512),
        uid: inode.uid,
        gid: inode.gid,
        nlink: inode.nlink,
        rdev: rdev(inode.rdev_major, inode.rdev_minor),
        mtime_s: inode.mtime_s,
        mtime_ns: inode.mtime_ns.min(999_999_999),
    })
}

/// Source: linux include/linux/kdev_t.h, `new_encode_dev`: 12 bits of major, 20 of minor.
fn rdev(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xf_ff00) << 12)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Device numbers are laid out as the kernel decodes them.
    #[test]
    fn rdev_is_new_encode_dev() {
        assert_eq!(rdev(0, 0), 0);
        assert_eq!(rdev(5, 1), 0x501);
        assert_eq!(rdev(0xfff, 0xf_ffff), u32::MAX);
        assert_eq!(rdev(8, 0x1_2345), 0x1230_0845);
    }
}
