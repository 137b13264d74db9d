//! One mount at a time on a mountpoint: between a look at it and the mount nobody else may mount there.

use std::{
    os::fd::OwnedFd,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, Mode, OFlags},
    io::Errno,
};
use tracing::debug;

/// How long others are waited for. Source: a mount takes milliseconds, and a lock that is held for longer is of something else.
const WAIT_MAX: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(2);

/// While this lives no other mount of clip begins at the same directory, by whatever process.
pub(super) struct Turn {
    _lock: Option<OwnedFd>,
}

/// Waits for the turn at `mountpoint`, by a lock on the directory itself: that is the same for all processes and mount namespaces, and
/// leaves nothing behind. Where the directory cannot be locked (no permission to read it, a file system without locks, a lock that is never
/// given up) there is no turn to wait for: two mounts at the same instant may then both succeed.
pub(super) fn wait(mountpoint: &Path) -> Turn {
    let lock = lock(mountpoint, WAIT_MAX);
    if let Err(errno) = &lock {
        debug!(mountpoint = %mountpoint.display(), %errno, "mounting without a lock");
    }
    Turn { _lock: lock.ok() }
}

fn lock(directory: &Path, wait_max: Duration) -> Result<OwnedFd, Errno> {
    let by = Instant::now() + wait_max;
    let directory = rustix::fs::open(directory, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    loop {
        match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(directory),
            Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < by => thread::sleep(PAUSE),
            Err(errno) => return Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Claim: a directory has one turn at a time, one that is never given up is waited for no longer than said, and the next follows.
    #[test]
    fn turns_follow_one_another() {
        let dir = std::env::temp_dir().join(format!("clip-turn-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let first = wait(&dir);
        assert_eq!(lock(&dir, Duration::from_millis(10)).unwrap_err(), Errno::WOULDBLOCK);
        let next = thread::spawn({
            let dir = dir.clone();
            move || wait(&dir)._lock.is_some()
        });
        drop(first);
        assert!(next.join().unwrap());
        assert!(wait(&dir.join("none"))._lock.is_none());
        std::fs::remove_dir(dir).unwrap();
    }
}
