//! Mounting, unmounting, and the settings that are made from outside the file system.
//!
//! Mounts are looked for in /proc/self/mountinfo, never by looking at the mountpoint: a look at a mount whose server hangs would hang
//! too. The one question that must be asked of the mount itself, whether it is dead, is asked from a thread that may be left behind.

mod fusermount;
mod in_force;
mod kernel;
mod mountinfo;
mod options;
mod session;
mod turn;
mod users;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use clip_engine::Image;
use rustix::io::Errno;
use tracing::{debug, info};

pub use self::{in_force::InForce, options::MountOptions, session::Mounted};
use self::{
    kernel::system,
    mountinfo::{FS_TYPE, Mount},
};
use crate::{error::MountError, source::ByteSource};

/// How long a mount may take to say that it lives. A dead one answers at once, a living one from memory. Source: chosen so that a
/// loaded node's scheduling delays are well inside and a user still waits for it.
const PROBE: Duration = Duration::from_secs(2);
/// A mount in use by nobody who can be seen is tried again: a process between fork and exec holds copies of its parent's open files, and
/// a path walk the mount itself. Source: racing mounts and umounts beside forks met it about once in 18; both last microseconds.
const NOBODY_ROUNDS_MAX: u32 = 10;
const NOBODY_PAUSE: Duration = Duration::from_millis(20);
/// Dead mounts over one another that one mount clears away. Source: nobody has more by accident.
const CLEARED_MAX: usize = 16;
/// Symbolic links that the mountpoint may be behind. Source: linux include/linux/namei.h, MAXSYMLINKS.
const LINKS_MAX: usize = 40;

/// Mounts `image` at `mountpoint` and serves it. Returns when the mount answers. A dead mount of ours at the same place is cleared first.
///
/// # Errors
/// See [`MountError`].
pub fn mount(image: Arc<Image>, mountpoint: &Path, options: &MountOptions) -> Result<Mounted, MountError> {
    mount_source(image, mountpoint, options)
}

/// As [`mount`], from any source of bytes.
///
/// # Errors
/// See [`MountError`].
pub fn mount_source<B: ByteSource>(source: B, mountpoint: &Path, options: &MountOptions) -> Result<Mounted, MountError> {
    let mountpoint = place(mountpoint).map_err(|error| no_mountpoint(mountpoint, error))?;
    clear_dead(&mountpoint)?;
    let found = fs::metadata(&mountpoint).map_err(|error| no_mountpoint(&mountpoint, error))?;
    if !found.is_dir() {
        return Err(MountError::Mountpoint { path: mountpoint, expected: "a directory", found: "a file".into() });
    }
    let turn = turn::wait(&mountpoint);
    clear_dead(&mountpoint)?;
    let connection = connect(&mountpoint, options)?;
    drop(turn);
    let mounted = session::serve(source, connection, &mountpoint, options)?;
    kernel::set_read_ahead(mounted.device(), options.read_ahead_kb);
    if tracing::enabled!(tracing::Level::DEBUG) {
        debug!(mountpoint = %mountpoint.display(), fsname = options.fsname, in_force = ?mounted.in_force(), "mounted");
    }
    Ok(mounted)
}

fn connect(mountpoint: &Path, options: &MountOptions) -> Result<std::os::fd::OwnedFd, MountError> {
    if !rustix::process::geteuid().is_root() {
        return fusermount::mount(mountpoint, options);
    }
    match kernel::mount(mountpoint, options) {
        Err(error) if kernel::is_not_allowed(&error) => {
            debug!("{error}; trying fusermount3");
            // What the kernel said is the better advice to root.
            fusermount::mount(mountpoint, options).map_err(|_| error)
        }
        done => done,
    }
}

/// Takes dead clip mounts off `mountpoint`, and refuses a live one.
fn clear_dead(mountpoint: &Path) -> Result<(), MountError> {
    for _ in 0..CLEARED_MAX {
        let mounts = read_mounts()?;
        let Some(top) = mountinfo::topmost(&mounts, mountpoint).filter(|top| top.fs_type == FS_TYPE) else { return Ok(()) };
        if is_dead(std::slice::from_ref(&top.mountpoint)) != [true] {
            let found = format!("a live clip mount of {}; clip umount it first", top.source.display());
            return Err(MountError::Mountpoint { path: mountpoint.to_owned(), expected: "a directory without a clip mount", found });
        }
        info!(mountpoint = %mountpoint.display(), "clearing a dead mount");
        umount(mountpoint, Detach::Lazily)?;
    }
    let found = format!("more than {CLEARED_MAX} dead clip mounts; clip umount --lazy them first");
    Err(MountError::Mountpoint { path: mountpoint.to_owned(), expected: "a directory without a clip mount", found })
}

fn no_mountpoint(path: &Path, error: io::Error) -> MountError {
    let found = match error.kind() {
        io::ErrorKind::NotFound => "nothing; create it first (mkdir -p)".to_owned(),
        io::ErrorKind::NotADirectory => "a path through a file".to_owned(),
        _ => return system("look at", path, error, ""),
    };
    MountError::Mountpoint { path: path.to_owned(), expected: "an existing directory", found }
}

/// How `umount` treats a mount in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detach {
    /// Fail with the users' pids.
    IfIdle,
    /// Detach now, serve until the last user is gone.
    Lazily,
}

/// Unmounts a clip mount at `mountpoint`, live or dead, root or through fusermount3. Waits for no file system, so a mount whose
/// server hangs can be taken away too.
///
/// # Errors
/// `Busy` naming the processes; `Mountpoint` when it is no clip mount.
pub fn umount(mountpoint: &Path, detach: Detach) -> Result<(), MountError> {
    let mountpoint = place(mountpoint).map_err(|error| no_mountpoint(mountpoint, error))?;
    let mounts = read_mounts()?;
    let refused = |found: String| MountError::Mountpoint { path: mountpoint.clone(), expected: "a clip mount", found };
    let top = match mountinfo::topmost(&mounts, &mountpoint) {
        Some(top) if top.fs_type == FS_TYPE => top,
        Some(top) => return Err(refused(format!("a mount of type {}", top.fs_type))),
        None => return Err(refused("no mount".into())),
    };
    let mut rounds = 0;
    while !take_off(&mountpoint, detach)? {
        let users = users::users(top.device);
        if users.is_some() || rounds == NOBODY_ROUNDS_MAX {
            let unseen = || "something that this user may not see (another user's process, or one in another namespace)".into();
            return Err(MountError::Busy { path: mountpoint, users: users.unwrap_or_else(unseen) });
        }
        rounds += 1;
        thread::sleep(NOBODY_PAUSE);
    }
    Ok(())
}

/// Takes the topmost mount at `mountpoint` away. False: it is in use.
fn take_off(mountpoint: &Path, detach: Detach) -> Result<bool, MountError> {
    let lazily = detach == Detach::Lazily;
    match kernel::umount(mountpoint, lazily) {
        Ok(()) => Ok(true),
        Err(Errno::BUSY) => Ok(false),
        Err(Errno::PERM) => match fusermount::umount(mountpoint, lazily) {
            Ok(()) => Ok(true),
            Err((error, _)) if error.kind() == io::ErrorKind::ResourceBusy => Ok(false),
            Err((error, hint)) => Err(system("umount", mountpoint, error, hint)),
        },
        Err(errno) => Err(system("umount", mountpoint, errno.into(), "")),
    }
}

/// A clip mount of this mount namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry {
    /// Where.
    pub mountpoint: PathBuf,
    /// First column.
    pub fsname: String,
    /// The connection is dead (ENOTCONN). A mount that does not answer in time is not known to be dead.
    pub dead: bool,
}

/// Every clip mount of this mount namespace, from /proc/self/mountinfo (type `fuse.clip`).
///
/// # Errors
/// `System`.
pub fn mounts() -> Result<Vec<MountEntry>, MountError> {
    let clip: Vec<Mount> = read_mounts()?.into_iter().filter(|mount| mount.fs_type == FS_TYPE).collect();
    let mountpoints: Vec<PathBuf> = clip.iter().map(|mount| mount.mountpoint.clone()).collect();
    let dead = is_dead(&mountpoints);
    let entry = |(mount, dead): (Mount, bool)| MountEntry {
        mountpoint: mount.mountpoint,
        fsname: mount.source.to_string_lossy().into_owned(),
        dead,
    };
    Ok(clip.into_iter().zip(dead).map(entry).collect())
}

fn read_mounts() -> Result<Vec<Mount>, MountError> {
    mountinfo::read().map_err(|error| system("read", Path::new("/proc/self/mountinfo"), error, ""))
}

/// Whether the server of each mount is gone. All are asked at one time, and one that hangs costs a thread and [`PROBE`].
///
/// It is statfs(2) that tells: stat(2) is answered from the kernel's cache, which outlives the server.
fn is_dead(mountpoints: &[PathBuf]) -> Vec<bool> {
    let (send, receive) = mpsc::channel();
    let mut asked = 0;
    for (at, mountpoint) in mountpoints.iter().cloned().enumerate() {
        let send = send.clone();
        let ask = move || {
            let dead = matches!(rustix::fs::statfs(&mountpoint), Err(Errno::NOTCONN | Errno::CONNABORTED));
            // Nobody listens any more after PROBE.
            let _ = send.send((at, dead));
        };
        asked += usize::from(thread::Builder::new().name("clip-probe".into()).spawn(ask).is_ok());
    }
    let deadline = Instant::now() + PROBE;
    let mut dead = vec![false; mountpoints.len()];
    for _ in 0..asked {
        match receive.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok((at, is_dead)) => dead[at] = is_dead,
            Err(_) => break,
        }
    }
    dead
}

/// The path as mountinfo writes it: absolute and without links, found without looking at what is mounted there.
fn place(path: &Path) -> io::Result<PathBuf> {
    let mut path = std::path::absolute(path)?;
    for _ in 0..LINKS_MAX {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return path.canonicalize() };
        let place = parent.canonicalize()?.join(name);
        match fs::read_link(&place) {
            Ok(target) => path = place.parent().unwrap_or(Path::new("/")).join(target),
            Err(_) => return Ok(place),
        }
    }
    Err(Errno::LOOP.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Relative paths, links, trailing slashes and dots all lead to the name that mountinfo has.
    #[test]
    fn place_is_what_mountinfo_says() {
        let dir = std::env::temp_dir().join(format!("clip-place-{}", std::process::id()));
        fs::create_dir_all(dir.join("real/m")).unwrap();
        std::os::unix::fs::symlink("real", dir.join("link")).unwrap();
        std::os::unix::fs::symlink("link/m", dir.join("last")).unwrap();
        let real = dir.canonicalize().unwrap().join("real/m");
        for path in ["real/m", "link/m", "last", "link/m/", "real/m/.", "real/../link/m", "real/m/../m", "real/m/../../last/"] {
            assert_eq!(place(&dir.join(path)).unwrap(), real, "{path}");
        }
        assert_eq!(place(Path::new("/")).unwrap(), Path::new("/"));
        assert_eq!(place(&dir.join("none/m")).unwrap_err().kind(), io::ErrorKind::NotFound);
        fs::remove_dir_all(dir).unwrap();
    }
}
