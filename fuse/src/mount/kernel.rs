//! What root does by system call: mount, umount, read-ahead, abort.

use std::{ffi::CString, fs, io, os::fd::AsRawFd, os::fd::OwnedFd, path::Path};

use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
    mount::{MountFlags, UnmountFlags},
};
use tracing::debug;

use super::{
    in_force,
    mountinfo::{Device, FS_TYPE},
    options::MountOptions,
};
use crate::error::MountError;

/// The FUSE device.
pub(super) const DEV_FUSE: &str = "/dev/fuse";
/// Its major and minor number. Source: linux include/linux/miscdevice.h, `FUSE_MINOR`; include/uapi/linux/major.h, `MISC_MAJOR`.
const DEV_FUSE_NUMBER: (u32, u32) = (10, 229);
/// Where the kernel lists its FUSE connections, when somebody has mounted it.
pub(super) const CONNECTIONS: &str = "/sys/fs/fuse/connections";

/// A mount by mount(2), and the connection to serve it by.
///
/// # Errors
/// `System`; see `is_not_allowed` for when fusermount3 may do it instead.
pub(super) fn mount(mountpoint: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    let device = rustix::fs::open(DEV_FUSE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| {
        let hint = match errno {
            Errno::NOENT | Errno::NXIO | Errno::NODEV => "; is FUSE there? (modprobe fuse; in a container: --device /dev/fuse)",
            Errno::PERM | Errno::ACCESS => "; a container needs --device /dev/fuse and --cap-add SYS_ADMIN",
            _ => "",
        };
        system("open", Path::new(DEV_FUSE), errno.into(), hint)
    })?;
    if rustix::fs::fstat(&device).is_ok_and(|stat| (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)) != DEV_FUSE_NUMBER) {
        let hint = "; that is another device (as root: rm /dev/fuse; mknod -m 666 /dev/fuse c 10 229)";
        return Err(system("open", Path::new(DEV_FUSE), Errno::NODEV.into(), hint));
    }
    let data = CString::new(mount_data(&device, options))
        .map_err(|_| system("mount", mountpoint, io::ErrorKind::InvalidInput.into(), "; an option holds a NUL byte"))?;
    let source = if options.fsname.is_empty() { "clip" } else { &options.fsname };
    rustix::mount::mount(source, mountpoint, FS_TYPE, flags(options), data.as_c_str()).map_err(|errno| {
        let hint = match errno {
            Errno::NODEV => "; the kernel has no FUSE (modprobe fuse)",
            Errno::INVAL if !options.contexts.is_empty() => "; context= needs SELinux, or one of the options is wrong",
            Errno::PERM => "; mounting needs CAP_SYS_ADMIN (in a container: --cap-add SYS_ADMIN)",
            _ => "",
        };
        system("mount", mountpoint, errno.into(), hint)
    })?;
    Ok(device)
}

/// Source: linux fs/fuse/inode.c, `fuse_fs_parameters`. Without default_permissions any user could read every file.
fn mount_data(device: &OwnedFd, options: &MountOptions) -> String {
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let mut data = format!("fd={},rootmode=40000,user_id={uid},group_id={gid},default_permissions", device.as_raw_fd());
    if options.allow_other {
        data.push_str(",allow_other");
    }
    for context in &options.contexts {
        data.push(',');
        data.push_str(context);
    }
    data
}

fn flags(options: &MountOptions) -> MountFlags {
    let mut flags = MountFlags::RDONLY;
    flags.set(MountFlags::NOSUID, !options.suid);
    flags.set(MountFlags::NODEV, !options.dev);
    flags.set(MountFlags::NOEXEC, !options.exec);
    flags
}

/// Takes the topmost mount at `mountpoint` away, without touching the file system.
pub(super) fn umount(mountpoint: &Path, lazily: bool) -> Result<(), Errno> {
    let mut flags = UnmountFlags::NOFOLLOW;
    flags.set(UnmountFlags::DETACH, lazily);
    rustix::mount::unmount(mountpoint, flags)
}

/// Sets the read-ahead of the mounted device. The kernel starts it at 128 KiB, whatever the protocol negotiates. A failure costs
/// speed only and is expected for users other than root.
pub(super) fn set_read_ahead(device: Device, read_ahead_kb: u32) {
    let path = format!("/sys/class/bdi/{}:{}/read_ahead_kb", device.major, device.minor);
    match fs::write(&path, read_ahead_kb.to_string()) {
        Ok(()) => debug!(path, read_ahead_kb, "read-ahead set"),
        Err(error) => debug!(path, read_ahead_kb, %error, "the read-ahead stays at the kernel's default"),
    }
}

/// Ends the connection of the file system `device`.
///
/// Works after a detach, and where nobody has mounted the connections' file system: then through a mount of it that no path leads to.
pub(super) fn abort(device: Device) -> io::Result<()> {
    let connection = format!("{}/abort", device.minor);
    match fs::write(Path::new(CONNECTIONS).join(&connection), "1") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        done => return done,
    }
    let abort = in_force::open_unseen(&connection, OFlags::WRONLY)?;
    rustix::io::write(&abort, b"1")?;
    Ok(())
}

/// A failure that fusermount3 may know a way round: this user may not mount.
pub(super) fn is_not_allowed(error: &MountError) -> bool {
    matches!(error, MountError::System { operation: "mount" | "open", source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
}

pub(super) fn system(operation: &'static str, path: &Path, source: io::Error, hint: &'static str) -> MountError {
    MountError::System { operation, path: path.to_owned(), source: std::sync::Arc::new(source), hint }
}
