//! The mounts of this mount namespace, from /proc/self/mountinfo: reading it touches none of them, so it works beside hung ones.

use std::{
    ffi::OsString,
    io,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

/// The type of our mounts.
pub(super) const FS_TYPE: &str = "fuse.clip";

/// A device number, major and minor: one file system, however often it is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Device {
    pub(super) major: u32,
    pub(super) minor: u32,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    pub(super) id: u64,
    pub(super) parent: u64,
    pub(super) device: Device,
    pub(super) mountpoint: PathBuf,
    pub(super) fs_type: String,
    pub(super) source: OsString,
    /// Of this mount, then of the file system.
    pub(super) options: String,
}

/// All lines.
///
/// # Errors
/// When /proc is not mounted or not readable.
pub(super) fn read() -> io::Result<Vec<Mount>> {
    Ok(std::fs::read("/proc/self/mountinfo")?.split(|byte| *byte == b'\n').filter_map(parse).collect())
}

/// The mount that a path walk to `mountpoint` ends in.
pub(super) fn topmost<'a>(mounts: &'a [Mount], mountpoint: &Path) -> Option<&'a Mount> {
    let here: Vec<&Mount> = mounts.iter().filter(|mount| mount.mountpoint == mountpoint).collect();
    here.iter().rev().find(|mount| !here.iter().any(|other| other.parent == mount.id)).copied()
}

/// Source: proc_pid_mountinfo(5): id parent major:minor root mountpoint options [tags ...] - type source super-options
fn parse(line: &[u8]) -> Option<Mount> {
    let text = |field: &[u8]| std::str::from_utf8(field).ok().map(str::to_owned);
    let number = |field: &[u8]| text(field)?.parse().ok();
    let mut fields = line.split(|byte| *byte == b' ');
    let (id, parent) = (number(fields.next()?)?, number(fields.next()?)?);
    let device = text(fields.next()?)?;
    let (major, minor) = device.split_once(':')?;
    let mountpoint = unescape(fields.nth(1)?);
    let of_mount = text(fields.next()?)?;
    let mut after = fields.skip_while(|field| *field != b"-").skip(1);
    Some(Mount {
        id,
        parent,
        device: Device { major: major.parse().ok()?, minor: minor.parse().ok()? },
        mountpoint: PathBuf::from(OsString::from_vec(mountpoint)),
        fs_type: text(after.next()?)?,
        source: OsString::from_vec(unescape(after.next()?)),
        options: format!("{of_mount},{}", String::from_utf8_lossy(after.next()?)),
    })
}

/// Undoes the kernel's `\ooo` for blanks, newlines, backslashes and `#`.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        match tail {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..] if *first == b'\\' => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Optional tags and escaped names are read.
    #[test]
    fn lines() {
        let mount =
            parse(br"36 35 0:98 / /mnt/a\040b\134 rw,noatime shared:1 master:2 - fuse.clip /im\011ages/x.clip ro,user_id=0").unwrap();
        assert_eq!((mount.id, mount.parent, mount.device), (36, 35, Device { major: 0, minor: 98 }));
        assert_eq!(mount.mountpoint, Path::new("/mnt/a b\\"));
        assert_eq!((mount.fs_type.as_str(), mount.source.to_str()), ("fuse.clip", Some("/im\tages/x.clip")));
        assert_eq!(mount.options, "rw,noatime,ro,user_id=0");
        assert_eq!(parse(b"36 35 0:98 / /mnt rw - "), None);
        assert_eq!(parse(b""), None);
        assert_eq!(unescape(br"\4\08\\"), br"\4\08\\");
    }

    /// Of mounts over one another the top one is found, in whatever order they are listed.
    #[test]
    fn the_top_of_a_stack() {
        let mount = |id, parent| Mount {
            id,
            parent,
            device: Device { major: 0, minor: 1 },
            mountpoint: "/m".into(),
            fs_type: FS_TYPE.into(),
            source: "x".into(),
            options: String::new(),
        };
        let stack = [mount(12, 10), mount(10, 1), mount(11, 12)];
        assert_eq!(topmost(&stack, Path::new("/m")).map(|mount| mount.id), Some(11));
        assert_eq!(topmost(&stack, Path::new("/n")), None);
    }
}
