//! What the kernel says of a mount's settings, as it has them: what was asked for may be cut or refused.

use std::{fs, io, path::Path};

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use super::{
    kernel::CONNECTIONS,
    mountinfo::{self, Device},
};

/// The settings of one mount, read back from the kernel. `None` where this user may not see them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InForce {
    /// The mount's and the file system's options, comma-separated, from /proc/self/mountinfo.
    pub options: Option<String>,
    /// Requests that nobody waits for, such as read-ahead, that may be under way.
    pub max_background: Option<u32>,
    /// So many of them under way, and the kernel reads ahead no more.
    pub congestion_threshold: Option<u32>,
    /// What one page fault reads around itself, and what a sequential reader is ahead.
    pub read_ahead_kb: Option<u32>,
}

/// What holds for the file system `device`, mounted at `mountpoint`.
pub(super) fn in_force(mountpoint: &Path, device: Device) -> InForce {
    let mounts = mountinfo::read().unwrap_or_default();
    let mount = mounts.into_iter().rev().find(|mount| mount.device == device && mount.mountpoint == mountpoint);
    let connection = |name: &str| number(read_connection(&format!("{}/{name}", device.minor)));
    InForce {
        options: mount.map(|mount| mount.options),
        max_background: connection("max_background"),
        congestion_threshold: connection("congestion_threshold"),
        read_ahead_kb: number(fs::read_to_string(format!("/sys/class/bdi/{}:{}/read_ahead_kb", device.major, device.minor))),
    }
}

fn number(text: io::Result<String>) -> Option<u32> {
    text.ok()?.trim().parse().ok()
}

/// Where nobody has mounted the connections' file system, through a mount of it that no path leads to.
fn read_connection(name: &str) -> io::Result<String> {
    match fs::read_to_string(Path::new(CONNECTIONS).join(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        read => return read,
    }
    let file = open_unseen(name, rustix::fs::OFlags::RDONLY)?;
    io::read_to_string(fs::File::from(file))
}

/// The file `name` of the connections' file system, through a mount of it that no path leads to.
pub(super) fn open_unseen(name: &str, flags: rustix::fs::OFlags) -> io::Result<std::os::fd::OwnedFd> {
    let context = rustix::mount::fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(&context)?;
    let unseen = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    Ok(rustix::fs::openat(&unseen, name, flags | rustix::fs::OFlags::CLOEXEC, rustix::fs::Mode::empty())?)
}
