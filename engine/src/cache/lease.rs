//! A lease on a stream file: the kernel asks us before anybody else opens or cuts it.
//!
//! With a write lease nobody else has the file open, and whoever opens or truncates it waits until the lease is given back (fcntl(2),
//! "Leases"; linux fs/locks.c, `__break_lease`). So while the lease stands, the file is what we wrote: a reader of the map need not
//! look whether somebody has cut or overwritten it, which no look before the use could exclude anyway. Where the file system has no
//! leases (NFS), a look at the length before each use must do.

use std::{
    fs::File,
    os::fd::AsRawFd,
    sync::atomic::{AtomicU8, Ordering},
};

use crossbeam::utils::CachePadded;
use rustix::process::Pid;

/// The signal that says that somebody waits for a lease. Source: signal(7): ignored by default, so that one that goes astray does no
/// harm; SIGIO, the default of fcntl(2), ends a process that has no handler.
pub(crate) const LEASE_SIGNAL: libc::c_int = libc::SIGURG;
/// Not in the libc crate for glibc. Source: linux include/uapi/asm-generic/fcntl.h.
const F_SETSIG: libc::c_int = 10;
const F_SETOWN_EX: libc::c_int = 15;
const F_OWNER_TID: libc::c_int = 0;

/// Source: linux include/uapi/asm-generic/fcntl.h, `struct f_owner_ex`.
#[repr(C)]
struct OwnerEx {
    kind: libc::c_int,
    pid: libc::pid_t,
}

/// What is known of others who may change the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Standing {
    /// Nobody else has it open, or will without our knowing.
    Sole = 0,
    /// Somebody may have it open: no byte of it is right before it is hashed, each time.
    Shared = 1,
    /// The file system has no leases: a wrong length is all that can be noticed.
    Unknown = 2,
}

/// The lease of one file. Every call takes that file.
pub(crate) struct Lease {
    standing: CachePadded<AtomicU8>,
    watcher: Option<Pid>,
}

impl Lease {
    /// Asks for the lease; the thread `watcher` gets [`LEASE_SIGNAL`] when somebody wants the file.
    pub(crate) fn take(file: &File, watcher: Option<Pid>) -> Self {
        let lease = Self { standing: CachePadded::new(AtomicU8::new(Standing::Unknown as u8)), watcher };
        match watcher.map(|watcher| ask(file, watcher)) {
            Some(Ok(())) => lease.confirm(),
            Some(Err(error)) if error.raw_os_error() == Some(libc::EAGAIN) => lease.withdraw(),
            Some(Err(error)) => tracing::debug!(%error, "no leases on files of the cache: their length is looked at before each use"),
            None => {}
        }
        lease
    }

    /// Cost: a load from a cache line that is seldom written.
    pub(crate) fn standing(&self) -> Standing {
        match self.standing.load(Ordering::Acquire) {
            0 => Standing::Sole,
            1 => Standing::Shared,
            _ => Standing::Unknown,
        }
    }

    /// Somebody waits for us to give the lease back.
    pub(crate) fn is_wanted(&self, file: &File) -> bool {
        // SAFETY: F_GETLEASE takes no argument and touches no memory of ours.
        self.standing() == Standing::Sole && unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLEASE) } != libc::F_WRLCK
    }

    /// From now on no byte is right before it is hashed. The other still waits.
    pub(crate) fn withdraw(&self) {
        self.standing.store(Standing::Shared as u8, Ordering::SeqCst);
    }

    /// Whoever waits for the file gets it.
    pub(crate) fn give_back(&self, file: &File) {
        if let Err(error) = set(file, libc::F_UNLCK) {
            tracing::debug!(%error, "a lease was gone already");
        }
    }

    /// The lease again, if nobody else has the file open any more. To be followed by [`Self::confirm`] when what was known of the file
    /// has been forgotten.
    pub(crate) fn retake(&self, file: &File) -> bool {
        self.standing() == Standing::Shared && self.watcher.is_some_and(|watcher| ask(file, watcher).is_ok())
    }

    /// The file is ours alone again.
    pub(crate) fn confirm(&self) {
        self.standing.store(Standing::Sole as u8, Ordering::Release);
    }
}

/// Takes the lease; `watcher` hears of who wants the file.
///
/// Who hears, and by which signal, is said anew each time: the kernel forgets both with a lease (linux fs/locks.c, `lease_modify`), and its
/// defaults would end the process.
fn ask(file: &File, watcher: Pid) -> std::io::Result<()> {
    let owner = OwnerEx { kind: F_OWNER_TID, pid: watcher.as_raw_nonzero().get() };
    // SAFETY: F_SETOWN_EX reads one f_owner_ex, which `owner` is, and F_SETSIG takes a number.
    let said = unsafe {
        libc::fcntl(file.as_raw_fd(), F_SETOWN_EX, &raw const owner) == 0 && libc::fcntl(file.as_raw_fd(), F_SETSIG, LEASE_SIGNAL) == 0
    };
    if said { set(file, libc::F_WRLCK) } else { Err(std::io::Error::last_os_error()) }
}

fn set(file: &File, kind: libc::c_int) -> std::io::Result<()> {
    // SAFETY: F_SETLEASE takes a number.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::{Duration, Instant};

    use super::*;

    fn soon(mut holds: impl FnMut() -> bool) {
        let started = Instant::now();
        while !holds() {
            assert!(started.elapsed() < Duration::from_secs(10), "not in time");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Claim: whoever opens the file for writing, for reading, or cuts it by its name waits until the lease is given back, and as long as
    /// they have it open the file is not known to be ours alone.
    #[test]
    fn others_wait_for_the_lease() {
        let named = tempfile::NamedTempFile::new().unwrap();
        let lease = Lease::take(named.as_file(), Some(rustix::thread::gettid()));
        let path = named.path();
        let by_name = |path: &std::path::Path| {
            let file = rustix::fs::open(path, rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::TRUNC, rustix::fs::Mode::empty());
            File::from(file.unwrap())
        };
        let opens: [&(dyn Fn(&std::path::Path) -> File + Sync); 3] =
            [&|path| File::open(path).unwrap(), &|path| File::options().write(true).open(path).unwrap(), &by_name];
        for open in opens {
            assert_eq!((lease.standing(), lease.is_wanted(named.as_file())), (Standing::Sole, false));
            std::thread::scope(|scope| {
                let other = scope.spawn(|| open(path));
                soon(|| lease.is_wanted(named.as_file()));
                lease.withdraw();
                assert!(!other.is_finished());
                lease.give_back(named.as_file());
                let other = other.join().unwrap();
                assert_eq!(lease.standing(), Standing::Shared);
                assert!(!lease.retake(named.as_file()), "the other has it open");
                drop(other);
            });
            assert!(lease.retake(named.as_file()));
            lease.confirm();
        }
    }

    /// Claim: without somebody to be told, or with the file open elsewhere already, nothing is promised.
    #[test]
    fn no_lease_no_promise() {
        let named = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(Lease::take(named.as_file(), None).standing(), Standing::Unknown);
        let _other = File::open(named.path()).unwrap();
        assert_eq!(Lease::take(named.as_file(), Some(rustix::thread::gettid())).standing(), Standing::Shared);
    }
}
