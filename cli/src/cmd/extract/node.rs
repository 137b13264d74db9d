//! What was made, told from what somebody else has put under its name since: everything is set on descriptors, never by name.

use std::{
    ffi::OsStr,
    os::{
        fd::{AsFd, AsRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::PathBuf,
};

use anyhow::{Context, Result, bail, ensure};
use clip_format::erofs::{FileType, Index, Inode};
use rustix::{
    fs::{AtFlags, CWD, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags},
    io::Errno,
};

use crate::display::escaped;

/// For a node that cannot be opened, or must not be: a link, a device, a fifo, a socket.
const AS_PATH: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What this user may not do, counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// Devices.
    pub special_files: u64,
    /// Owners.
    pub owners: u64,
    /// Nodes without the set-user-id or set-group-id bit of the image, which would be of another owner here.
    pub set_id_bits: u64,
    /// Extended attributes.
    pub xattrs: u64,
    /// The first refusal of an extended attribute.
    pub xattr_reason: Option<String>,
}

/// A node that was made here. The number of one that is gone may be given to another, but not by another user to one of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    device: u64,
    number: u64,
    owner: u32,
}

impl Node {
    /// The node behind `fd`.
    pub fn of(fd: impl AsFd) -> Result<Self> {
        Ok(Self::from(&rustix::fs::fstat(fd)?))
    }

    /// # Errors
    /// When `fd` is another node.
    pub fn check(self, fd: impl AsFd) -> Result<()> {
        self.check_stat(&rustix::fs::fstat(fd)?)
    }

    /// As [`Node::check`].
    pub fn check_stat(self, found: &Stat) -> Result<()> {
        ensure!(self == Self::from(found), "is no longer what was made here: another process has put something else there");
        Ok(())
    }
}

impl From<&Stat> for Node {
    fn from(stat: &Stat) -> Self {
        Self { device: stat.st_dev, number: stat.st_ino, owner: stat.st_uid }
    }
}

/// A node whose attributes can be set.
pub enum Handle {
    /// A file or directory that was opened.
    Open(OwnedFd),
    /// Anything else: the descriptor stands for its name only.
    Path(OwnedFd),
}

impl Handle {
    /// The node of `inode`'s kind that was made a moment ago as `name` in `parent`. For root it must be root's, and another user cannot make
    /// one of those; a user gives away nothing by setting attributes of what is theirs already.
    pub fn of_new(parent: impl AsFd, name: &[u8], inode: &Inode) -> Result<Self> {
        let fd = rustix::fs::openat(parent, name, AS_PATH, Mode::empty())?;
        let found = rustix::fs::fstat(&fd)?;
        check_new(&found)?;
        let same_kind = inode.mode & libc::S_IFMT == found.st_mode & libc::S_IFMT;
        let is_device = matches!(inode.file_type, FileType::CharDevice | FileType::BlockDevice);
        let same_device = !is_device || found.st_rdev == rustix::fs::makedev(inode.rdev_major, inode.rdev_minor);
        if !same_kind || !same_device {
            bail!("is not what was just made here: another process has put something else there");
        }
        Ok(Self::Path(fd))
    }

    /// Which node it is.
    pub fn node(&self) -> Result<Node> {
        Node::of(self.fd())
    }

    fn fd(&self) -> &OwnedFd {
        match self {
            Self::Open(fd) | Self::Path(fd) => fd,
        }
    }

    /// Leads to the node itself, a symbolic link too: the kernel jumps there and follows nothing.
    fn proc_path(fd: &OwnedFd) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
    }

    /// The attributes that `inode` records: owner first (it clears set-user-id bits and capabilities), then extended attributes, mode, and
    /// the time last.
    pub fn set(&self, inode: &Inode, index: &Index, is_root: bool, skipped: &mut Skipped) -> Result<()> {
        if is_root {
            let (uid, gid) = owner(inode)?;
            rustix::fs::chownat(self.fd(), "", Some(uid), Some(gid), AtFlags::EMPTY_PATH).context("chown")?;
        }
        let found = rustix::fs::fstat(self.fd())?;
        if (found.st_uid, found.st_gid) != (inode.uid, inode.gid) {
            skipped.owners += 1;
        }
        if inode.has_xattrs {
            self.set_xattrs(inode, index, is_root, skipped)?;
        }
        if inode.file_type != FileType::Symlink {
            let recorded = inode.mode & 0o7777;
            let mode = mode_for(recorded, found.st_uid == inode.uid, found.st_gid == inode.gid);
            skipped.set_id_bits += u64::from(mode != recorded);
            self.set_mode(Mode::from_raw_mode(mode)).context("chmod")?;
        }
        self.set_times(&times(inode)).context("set times")
    }

    fn set_mode(&self, mode: Mode) -> Result<(), Errno> {
        match self {
            Self::Open(fd) => rustix::fs::fchmod(fd, mode),
            Self::Path(fd) => rustix::fs::chmod(Self::proc_path(fd), mode),
        }
    }

    fn set_times(&self, times: &Timestamps) -> Result<(), Errno> {
        match self {
            Self::Open(fd) => rustix::fs::futimens(fd, times),
            Self::Path(fd) => rustix::fs::utimensat(CWD, Self::proc_path(fd), times, AtFlags::empty()),
        }
    }

    fn set_xattr(&self, name: &[u8], value: &[u8]) -> Result<(), Errno> {
        let name = OsStr::from_bytes(name);
        match self {
            Self::Open(fd) => rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty()),
            Self::Path(fd) => rustix::fs::setxattr(Self::proc_path(fd), name, value, XattrFlags::empty()),
        }
    }

    fn set_xattrs(&self, inode: &Inode, index: &Index, is_root: bool, skipped: &mut Skipped) -> Result<()> {
        for xattr in index.xattrs(inode) {
            let (name, value) = xattr?;
            if !is_root && !name.starts_with(b"user.") {
                skipped.xattrs += 1;
                continue;
            }
            match self.set_xattr(&name, value) {
                Ok(()) => {}
                Err(error @ (Errno::NOTSUP | Errno::PERM | Errno::ACCESS | Errno::INVAL)) => {
                    skipped.xattrs += 1;
                    skipped.xattr_reason.get_or_insert_with(|| format!("{}: {error}", escaped(&name)));
                }
                Err(error) => return Err(error).with_context(|| format!("set {}", escaped(&name))),
            }
        }
        Ok(())
    }
}

/// `found`, which was made by this process a moment ago, is of root when this process is root's.
pub fn check_new(found: &Stat) -> Result<()> {
    let is_ours = !rustix::process::geteuid().is_root() || found.st_uid == 0;
    ensure!(is_ours, "is not what was just made here: user {} has put something else there", found.st_uid);
    Ok(())
}

/// `recorded` without the bits that would lend the rights of another owner than the image's.
fn mode_for(recorded: u32, uid_is_set: bool, gid_is_set: bool) -> u32 {
    let dropped = if uid_is_set { 0 } else { 0o4000 } | if gid_is_set { 0 } else { 0o2000 };
    recorded & !dropped
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
    use super::*;

    /// Claim: a set-user-id bit is kept only with the image's user, a set-group-id bit only with its group.
    #[test]
    fn set_id_bits_need_their_owner() {
        assert_eq!(mode_for(0o6755, true, true), 0o6755);
        assert_eq!(mode_for(0o6755, false, true), 0o2755);
        assert_eq!(mode_for(0o7755, true, false), 0o5755);
        assert_eq!(mode_for(0o6755, false, false), 0o755);
    }
}
