//! Mount options as mount(8) writes them.

use crate::error::MountError;

/// What one page fault reads around itself, and what a sequential reader is ahead.
///
/// Source: `python3 -c 'import numpy, pandas'` in a chroot of a 321 MB image, cold cache and page cache, 3 runs each on 2 cores: 128, 256
/// and 512 KiB decode the same 126.6 MB in 1.08-1.35, 1.08-1.14 and 1.09-1.14 s, 1 MiB decodes 1 % more in 1.14-1.18 s. Of the equals
/// the largest, for whoever reads files from end to end.
const READ_AHEAD_KB: u32 = 512;
/// Threads that read requests, at most. Source: one thread serves 2.4 GB/s of first reads of a trivial file system, so that four are over
/// what a disk brings.
const SESSION_THREADS_MAX: usize = 4;

/// How an image is mounted. Built from `-o` lists by [`MountOptions::apply`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// First column of /proc/self/mounts. Default: the path of the `.clip`.
    pub fsname: String,
    /// Honour set-user-id bits. Default: true for root.
    pub suid: bool,
    /// Device files work. Default: true for root.
    pub dev: bool,
    /// Programs can be run. Default: true.
    pub exec: bool,
    /// Others than the mounting user may enter. Default: true for root.
    pub allow_other: bool,
    /// SELinux `context=`, `fscontext=`, `defcontext=`, `rootcontext=` options, passed to the kernel as given.
    pub contexts: Vec<String>,
    /// Threads that read requests. Default min(cores, 4).
    pub session_threads: usize,
    /// The device's read-ahead. Default: 512 (half a span); only root can set it.
    pub read_ahead_kb: u32,
}

impl MountOptions {
    /// The defaults for this user.
    #[must_use]
    pub fn new(fsname: String) -> Self {
        let root = rustix::process::geteuid().is_root();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            fsname,
            suid: root,
            dev: root,
            exec: true,
            allow_other: root,
            contexts: Vec::new(),
            session_threads: cores.min(SESSION_THREADS_MAX),
            read_ahead_kb: READ_AHEAD_KB,
        }
    }

    /// Applies one comma-separated `-o` list as mount(8) would: ro, suid, nosuid, dev, nodev, exec, noexec, defaults, fsname=, allow_other,
    /// context= ..., the options that only fstab and systemd read (auto, noauto, _netdev, nofail, user, x-*), noatime and its kin.
    /// Returns options that are not mount(8)'s but may be the caller's (`cache-dir=...`), for the caller to use or refuse.
    ///
    /// A later option overrides an earlier one; `user` and `users` imply noexec, nosuid and nodev, `owner` and `group` nosuid and nodev,
    /// as mount(8) says. A comma inside double quotes is no separator. mount(8) itself adds `rw` to the list that it gives to a helper when
    /// fstab says neither `ro` nor `rw`, so a `mount.clip` takes that away first.
    ///
    /// # Errors
    /// `Option` for `rw` and for bad values.
    pub fn apply(&mut self, list: &str) -> Result<Vec<String>, MountError> {
        let mut others = Vec::new();
        for option in split(list)? {
            let (name, value) = option.split_once('=').map_or((option, None), |(name, value)| (name, Some(value)));
            match (name, value) {
                ("fsname", Some(value)) => self.fsname = fsname(option, value)?,
                ("context" | "fscontext" | "defcontext" | "rootcontext", Some(value)) => {
                    if value.is_empty() || value.contains('\0') {
                        return Err(bad(option, "expected a security context"));
                    }
                    self.contexts.push(option.to_owned());
                }
                ("subtype", Some("clip")) | ("comment" | "uhelper" | "helper", Some(_)) => {}
                ("subtype", _) => return Err(bad(option, "the subtype is always clip")),
                ("fsname" | "context" | "fscontext" | "defcontext" | "rootcontext", None) => return Err(bad(option, "needs a value")),
                (name, _) if name.starts_with("x-") || name.starts_with("X-") => {}
                (name, None) if self.apply_flag(name)? => {}
                _ => others.push(option.to_owned()),
            }
        }
        Ok(others)
    }

    /// False when mount(8) does not know `flag`.
    fn apply_flag(&mut self, flag: &str) -> Result<bool, MountError> {
        match flag {
            "rw" => return Err(bad(flag, "an image is read-only; mount an overlay over it to write")),
            "remount" | "bind" | "rbind" | "move" => return Err(bad(flag, "an image can only be mounted anew")),
            "defaults" => {
                let defaults = Self::new(String::new());
                (self.suid, self.dev, self.exec) = (defaults.suid, defaults.dev, defaults.exec);
            }
            "suid" => self.suid = true,
            "nosuid" => self.suid = false,
            "dev" => self.dev = true,
            "nodev" => self.dev = false,
            "exec" => self.exec = true,
            "noexec" => self.exec = false,
            "user" | "users" => (self.suid, self.dev, self.exec) = (false, false, false),
            "owner" | "group" => (self.suid, self.dev) = (false, false),
            "allow_other" => self.allow_other = true,
            // What the mount is in any case, or what cannot matter to a tree that never changes.
            "ro" | "default_permissions" | "async" | "sync" | "dirsync" | "silent" | "loud" | "quiet" | "mand" | "nomand" => {}
            "iversion" | "noiversion" | "atime" | "noatime" | "diratime" | "nodiratime" | "relatime" | "norelatime" => {}
            "strictatime" | "nostrictatime" | "lazytime" | "nolazytime" => {}
            // What only fstab and systemd read.
            "auto" | "noauto" | "nouser" | "nousers" | "noowner" | "nogroup" | "_netdev" | "_rnetdev" | "nofail" => {}
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// The options of a list, empty ones left out.
fn split(list: &str) -> Result<Vec<&str>, MountError> {
    let (mut options, mut start, mut quoted) = (Vec::new(), 0, false);
    for (at, byte) in list.bytes().enumerate() {
        match byte {
            b'"' => quoted = !quoted,
            b',' if !quoted => {
                options.push(&list[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    if quoted {
        return Err(bad(&list[start..], "a double quote is not closed"));
    }
    options.push(&list[start..]);
    options.retain(|option| !option.is_empty());
    Ok(options)
}

fn fsname(option: &str, value: &str) -> Result<String, MountError> {
    let value = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(value);
    if value.is_empty() || value.contains('\0') {
        return Err(bad(option, "expected a name"));
    }
    Ok(value.to_owned())
}

fn bad(option: &str, reason: &str) -> MountError {
    MountError::Option { option: option.to_owned(), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn options() -> MountOptions {
        MountOptions { suid: true, dev: true, allow_other: true, ..MountOptions::new("image.clip".into()) }
    }

    /// What fstab and systemd write is understood, and what is not mount(8)'s goes back to the caller.
    #[test]
    fn mount8_lists() {
        let mut applied = options();
        let others = applied
            .apply("ro,nosuid,nodev,noexec,noatime,_netdev,nofail,noauto,x-systemd.automount,,cache-dir=/c,plain-http,fsname=web")
            .unwrap();
        assert_eq!(others, ["cache-dir=/c", "plain-http"]);
        assert_eq!(applied, MountOptions { suid: false, dev: false, exec: false, fsname: "web".into(), ..options() });
    }

    /// The last word counts, and `user` implies what mount(8) says it implies.
    #[test]
    fn later_options_override() {
        let mut applied = options();
        applied.apply("nosuid,suid,user,exec").unwrap();
        assert_eq!((applied.suid, applied.dev, applied.exec), (false, false, true));
        applied.apply("suid,dev,noexec").unwrap();
        assert_eq!((applied.suid, applied.dev, applied.exec), (true, true, false));
    }

    /// A security context keeps its quotes and its commas.
    #[test]
    fn contexts_with_commas() {
        let mut applied = options();
        let others = applied.apply(r#"context="system_u:object_r:container_file_t:s0:c1,c2",fsname="a,b""#).unwrap();
        assert!(others.is_empty());
        assert_eq!(applied.contexts, [r#"context="system_u:object_r:container_file_t:s0:c1,c2""#]);
        assert_eq!(applied.fsname, "a,b");
    }

    /// What cannot be done is refused by name.
    #[test]
    fn refusals_name_the_option() {
        for list in ["ro,rw", "remount", "context=", "fsname", "subtype=squash", "fsname=\"a"] {
            let error = options().apply(list).unwrap_err();
            assert!(matches!(error, MountError::Option { .. }), "{list}: {error}");
        }
    }
}
