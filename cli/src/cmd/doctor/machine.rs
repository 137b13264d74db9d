//! The kernel, FUSE and the cache directory.

use std::{
    fs::OpenOptions,
    os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::Result;
use rustix::fs::FallocateFlags;

use super::Finding;
use crate::{
    owner::{client, server::free_bytes},
    values::size,
};

/// Less room than this is worth a warning. Source: a large image unpacked is 5-20 GB.
const FREE_BYTES_WANTED: u64 = 10 << 30;

/// Everything about this machine.
pub fn examine(cache_dir: Result<PathBuf>) -> Vec<Finding> {
    let root = rustix::process::geteuid().is_root();
    let mut findings = vec![device(), fusermount(root), user_allow_other(root), io_uring()];
    match cache_dir {
        Ok(dir) => findings.extend(cache(&dir)),
        Err(error) => findings.push(Finding::fail("cache directory", error.to_string(), "set HOME, or give --cache-dir DIR")),
    }
    findings
}

fn device() -> Finding {
    const NAME: &str = "/dev/fuse";
    match OpenOptions::new().read(true).write(true).open(NAME) {
        Ok(device) if device.metadata().is_ok_and(|metadata| metadata.rdev() != rustix::fs::makedev(10, 229)) => {
            Finding::fail(NAME, "is another device", "as root: rm /dev/fuse; mknod -m 666 /dev/fuse c 10 229")
        }
        Ok(_) => Finding::ok(NAME, "can be opened"),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            Finding::fail(NAME, error.to_string(), "chmod 666 /dev/fuse as root, or in a container allow the device: --device /dev/fuse")
        }
        Err(error) => {
            let mend =
                "modprobe fuse as root; in a container: --device /dev/fuse --cap-add SYS_ADMIN (clip ls, cat and extract work without it)";
            Finding::fail(NAME, error.to_string(), mend)
        }
    }
}

fn fusermount(root: bool) -> Finding {
    const NAME: &str = "fusermount3";
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found =
        std::env::split_paths(&path).chain(["/usr/bin".into(), "/bin".into()]).map(|dir| dir.join(NAME)).find(|path| path.is_file());
    let mend = "install the package fuse3 (apt-get install fuse3)";
    let Some(found) = found else {
        return if root {
            Finding::ok(NAME, "not installed; root mounts without it")
        } else {
            Finding::fail(NAME, "not installed; only root can mount without it", mend)
        };
    };
    let shown = found.display().to_string();
    match std::fs::metadata(&found) {
        Ok(metadata) if metadata.uid() == 0 && metadata.permissions().mode() & 0o4000 != 0 => Finding::ok(NAME, shown),
        _ if root => Finding::ok(NAME, shown),
        _ => Finding::fail(NAME, format!("{shown} is not set-user-id root"), format!("chown root {shown} && chmod u+s {shown}")),
    }
}

fn user_allow_other(root: bool) -> Finding {
    const NAME: &str = "user_allow_other";
    let text = std::fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    let set = text.lines().any(|line| line.trim() == NAME);
    match (set, root) {
        (true, _) => Finding::ok(NAME, "set in /etc/fuse.conf"),
        (false, true) => Finding::ok(NAME, "not set in /etc/fuse.conf; root does not need it"),
        (false, false) => Finding::warn(
            NAME,
            "not set in /etc/fuse.conf: other users, root too, cannot enter your mounts",
            "add a line user_allow_other to /etc/fuse.conf as root",
        ),
    }
}

fn io_uring() -> Finding {
    const NAME: &str = "io_uring";
    // struct io_uring_params, linux include/uapi/linux/io_uring.h: 120 bytes, zero asks for no feature.
    let mut params = [0_u64; 15];
    // SAFETY: io_uring_setup reads and writes `params`, which is as large as struct io_uring_params and outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 2_u32, params.as_mut_ptr()) };
    if fd < 0 {
        let error = std::io::Error::last_os_error();
        let mend = "works through threads instead, a little slower; to allow it: sysctl kernel.io_uring_disabled=0, and a seccomp profile that permits io_uring_setup";
        return Finding::warn(NAME, error.to_string(), mend);
    }
    // SAFETY: the descriptor was made above and nobody else has it.
    unsafe { libc::close(libc::c_int::try_from(fd).unwrap_or(-1)) };
    Finding::ok(NAME, "allowed")
}

fn cache(dir: &Path) -> Vec<Finding> {
    const NAME: &str = "cache directory";
    let shown = dir.display();
    if let Err(error) = client::create_cache_dir(dir) {
        return vec![Finding::fail(NAME, crate::exit::chain_text(&error), "give a directory that you may write with --cache-dir DIR")];
    }
    if let Err(error) = clip_engine::check_cache_dir(dir) {
        return vec![Finding::fail(NAME, error.to_string(), "mend that, or give another directory with --cache-dir DIR")];
    }
    let mut findings = vec![writable(dir)];
    findings.push(match punch_hole(dir) {
        Ok(()) => Finding::ok("hole punching", format!("works in {shown}")),
        Err(error) => Finding::warn(
            "hole punching",
            format!("{shown}: {error}"),
            "the cache will not be able to give space back; use ext4, xfs, btrfs or tmpfs for it (--cache-dir)",
        ),
    });
    findings.push(free_space(dir));
    findings.push(overlay(dir));
    if client::owner_listens(dir) {
        findings.push(Finding::ok("cache owner", format!("a process serves mounts from {shown}")));
    }
    findings
}

fn writable(dir: &Path) -> Finding {
    const NAME: &str = "cache directory";
    let shown = dir.display();
    match tempfile::tempfile_in(dir) {
        Err(error) => Finding::fail(NAME, format!("{shown}: {error}"), "give a directory that you may write with --cache-dir DIR"),
        Ok(_) => match std::fs::metadata(dir) {
            Ok(metadata) if metadata.permissions().mode() & 0o020 != 0 => {
                Finding::warn(NAME, format!("{shown}: its group may write it"), format!("chmod go-w {shown}"))
            }
            _ => Finding::ok(NAME, format!("{shown} can be written")),
        },
    }
}

fn punch_hole(dir: &Path) -> std::io::Result<()> {
    let file = tempfile::tempfile_in(dir)?;
    file.write_all_at(&[1; 65_536], 0)?;
    rustix::fs::fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, 65_536)?;
    let mut byte = [1];
    file.read_exact_at(&mut byte, 0)?;
    if byte == [0] { Ok(()) } else { Err(std::io::Error::other("a punched hole still holds bytes")) }
}

fn free_space(dir: &Path) -> Finding {
    const NAME: &str = "free space";
    match free_bytes(dir) {
        Ok(free) if free >= FREE_BYTES_WANTED => {
            Finding::ok(NAME, format!("{} for {}; the cache has no limit yet", size(free), dir.display()))
        }
        Ok(free) => Finding::warn(
            NAME,
            format!("{} for {}; the cache has no limit yet", size(free), dir.display()),
            "reads work on a full disk, but what cannot be kept is fetched again; free space, or use another --cache-dir",
        ),
        Err(error) => Finding::warn(NAME, format!("{}: {error}", dir.display()), "look at the file system of the cache directory"),
    }
}

/// Whether overlayfs is there to put a writable layer on a mount.
fn overlay(dir: &Path) -> Finding {
    const NAME: &str = "overlayfs";
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !known.lines().any(|line| line.trim_start_matches("nodev").trim() == "overlay") {
        return Finding::warn(NAME, "the kernel has it not loaded", "modprobe overlay as root; needed for containers, not for clip mount");
    }
    let tmpfile = OpenOptions::new().write(true).custom_flags(libc::O_TMPFILE).mode(0o600).open(dir);
    match tmpfile {
        Ok(_) => Finding::ok(NAME, format!("known to the kernel; {} can hold upper and work directories", dir.display())),
        Err(error) => Finding::warn(
            NAME,
            format!("{}: no O_TMPFILE: {error}", dir.display()),
            "put upper and work directories on ext4, xfs, btrfs or tmpfs (an overlay on an overlay is refused by the kernel)",
        ),
    }
}
