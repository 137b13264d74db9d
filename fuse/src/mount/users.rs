//! Who keeps a mount busy.

use std::{fs, path::Path};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use super::mountinfo::{self, Device};

/// Users that an error names; the rest is a number. Source: a screenful.
const NAMED_MAX: usize = 20;

/// `bash (pid 12), a mount at /mnt/x`, from what this process may see of others; `None` when it sees nobody.
///
/// Never waits for the file system: attributes are asked for as the kernel has them cached (`AT_STATX_DONT_SYNC`).
pub(super) fn users(device: Device) -> Option<String> {
    let mut users = mounts_inside(device);
    users.extend(processes(device));
    let more = users.len().saturating_sub(NAMED_MAX);
    users.truncate(NAMED_MAX);
    if more > 0 {
        users.push(format!("{more} more"));
    }
    if users.is_empty() { None } else { Some(users.join(", ")) }
}

/// Mounts on directories of the file system.
fn mounts_inside(device: Device) -> Vec<String> {
    let mounts = mountinfo::read().unwrap_or_default();
    let ours: Vec<u64> = mounts.iter().filter(|mount| mount.device == device).map(|mount| mount.id).collect();
    let inside = mounts.iter().filter(|mount| ours.contains(&mount.parent));
    inside.map(|mount| format!("a mount at {}", mount.mountpoint.display())).collect()
}

fn processes(device: Device) -> Vec<String> {
    let Ok(proc) = fs::read_dir("/proc") else { return Vec::new() };
    let mut users = Vec::new();
    for process in proc.flatten() {
        let pid = process.file_name();
        let Some(pid) = pid.to_str().filter(|pid| pid.bytes().all(|byte| byte.is_ascii_digit())) else { continue };
        if uses(&process.path(), device) {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            users.push(format!("{} (pid {pid})", name.trim_end()));
        }
    }
    users
}

fn uses(process: &Path, device: Device) -> bool {
    let links = ["cwd", "root", "exe"];
    links.iter().any(|link| is_on(&process.join(link), device))
        || fs::read_dir(process.join("fd")).is_ok_and(|fds| fds.flatten().any(|fd| is_on(&fd.path(), device)))
        || fs::read_to_string(process.join("maps")).is_ok_and(|maps| maps.lines().any(|map| maps_file_of(map, device)))
}

fn is_on(link: &Path, device: Device) -> bool {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    statx(CWD, link, flags, StatxFlags::TYPE).is_ok_and(|stat| (stat.stx_dev_major, stat.stx_dev_minor) == (device.major, device.minor))
}

/// Source: proc_pid_maps(5): address perms offset dev inode pathname, `dev` in hexadecimal
fn maps_file_of(map: &str, device: Device) -> bool {
    let number = |hex| u32::from_str_radix(hex, 16).ok();
    map.split_ascii_whitespace()
        .nth(3)
        .and_then(|dev| dev.split_once(':'))
        .is_some_and(|(major, minor)| number(major) == Some(device.major) && number(minor) == Some(device.minor))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mapped files are found by their device.
    #[test]
    fn maps_lines() {
        let line = "7f0c8a000000-7f0c8a021000 r-xp 00000000 00:2f 4711                       /mnt/a b/lib.so";
        assert!(maps_file_of(line, Device { major: 0, minor: 0x2f }));
        assert!(!maps_file_of(line, Device { major: 0, minor: 0x2e }));
        assert!(!maps_file_of("7f0c8a000000-7f0c8a021000 rw-p", Device { major: 0, minor: 0 }));
    }
}
