//! A live mount: its session threads, and how it ends.

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use fuser::{Config, Session, SessionACL};
use rustix::io::Errno;
use tracing::{debug, warn};

use super::{
    fusermount,
    in_force::{self, InForce},
    kernel,
    kernel::system,
    mountinfo::{self, Device},
    options::MountOptions,
};
use crate::{adapter::Adapter, error::MountError, source::ByteSource, tree::Tree};

/// A live mount. Dropping it detaches the mount lazily: it is served until its last user is gone.
pub struct Mounted {
    mountpoint: PathBuf,
    device: Device,
    end: Arc<End>,
}

/// Whether the kernel has let go, and who wants to know.
#[derive(Default)]
struct End {
    state: Mutex<EndState>,
    changed: Condvar,
}

#[derive(Default)]
struct EndState {
    ended: bool,
    /// Empty once `ended`.
    waiting: Vec<Box<dyn FnOnce() + Send>>,
}

impl Mounted {
    /// Where.
    #[must_use]
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    pub(super) fn device(&self) -> Device {
        self.device
    }

    /// Blocks until the kernel has let go of the file system: after an umount by anyone, when the last user is gone.
    pub fn wait(&self) {
        let mut state = self.end.lock();
        while !state.ended {
            state = self.end.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Whether `wait` would return at once.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.end.lock().ended
    }

    /// Calls `ended` from a thread of its own once, when `wait` would return.
    pub fn on_end(&self, ended: Box<dyn FnOnce() + Send>) {
        let mut state = self.end.lock();
        if state.ended {
            drop(state);
            thread::spawn(ended);
        } else {
            state.waiting.push(ended);
        }
    }

    /// What the kernel says of this mount's settings. Cost: a few files of /proc and /sys are read.
    #[must_use]
    pub fn in_force(&self) -> InForce {
        in_force::in_force(&self.mountpoint, self.device)
    }

    /// Detaches the mount from the tree now; open files keep being served. Nothing happens when it is detached already.
    ///
    /// # Errors
    /// `System`; also when another mount covers it.
    pub fn detach(&self) -> Result<(), MountError> {
        detach(&self.mountpoint, self.device)
    }

    /// Ends the connection: every waiting and later request fails with ENOTCONN.
    ///
    /// # Errors
    /// `System`.
    pub fn abort(&self) -> Result<(), MountError> {
        match kernel::abort(self.device) {
            Err(error) if !self.is_ended() => {
                let hint = "; mount -t fusectl fusectl /sys/fs/fuse/connections";
                Err(system("abort the connection of", &self.mountpoint, error, hint))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if !self.is_ended()
            && let Err(error) = self.detach()
        {
            warn!("{error}");
        }
    }
}

impl std::fmt::Debug for Mounted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mounted").field("mountpoint", &self.mountpoint).field("device", &self.device).finish_non_exhaustive()
    }
}

impl End {
    fn lock(&self) -> MutexGuard<'_, EndState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reports the end when the session thread ends, in whatever way.
struct ReportEnd(Arc<End>);

impl Drop for ReportEnd {
    fn drop(&mut self) {
        let waiting = {
            let mut state = self.0.lock();
            state.ended = true;
            std::mem::take(&mut state.waiting)
        };
        self.0.changed.notify_all();
        for ended in waiting {
            ended();
        }
    }
}

/// Serves `connection`, which is mounted at `mountpoint`. Returns when the mount answers; on an error nothing stays mounted.
pub(super) fn serve<B: ByteSource>(
    source: B,
    connection: OwnedFd,
    mountpoint: &Path,
    options: &MountOptions,
) -> Result<Mounted, MountError> {
    let end = Arc::new(End::default());
    let started = start(Adapter::new(Tree::new(source)), connection, mountpoint, options, Arc::clone(&end));
    // The mount answers when its root does. Attributes go through a session thread, so this also proves that these run.
    let answered = started.and_then(|()| {
        rustix::fs::stat(mountpoint).map_err(|errno| system("read the root of the new mount", mountpoint, errno.into(), ""))
    });
    match answered {
        Ok(stat) => {
            let device = Device { major: rustix::fs::major(stat.st_dev), minor: rustix::fs::minor(stat.st_dev) };
            Ok(Mounted { mountpoint: mountpoint.to_owned(), device, end })
        }
        Err(error) => {
            if let Err(left) = take_away(mountpoint) {
                warn!("{left}");
            }
            Err(error)
        }
    }
}

fn start<B: ByteSource>(
    adapter: Adapter<B>,
    connection: OwnedFd,
    mountpoint: &Path,
    options: &MountOptions,
    end: Arc<End>,
) -> Result<(), MountError> {
    let failed = |error| system("start serving", mountpoint, error, "");
    let threads = options.session_threads.max(1);
    let mut config = Config::default();
    config.n_threads = Some(threads);
    // A clone needs to open the device, which fusermount3's users may not be allowed to.
    config.clone_fd = threads > 1 && std::fs::File::options().read(true).write(true).open(kernel::DEV_FUSE).is_ok();
    // Who may enter is decided by the kernel (allow_other and default_permissions).
    config.acl = SessionACL::All;
    let clone_fd = config.clone_fd;
    let session = Session::from_fd(adapter, connection, SessionACL::All, config).map_err(failed)?;
    debug!(mountpoint = %mountpoint.display(), threads, clone_fd, "serving");
    let mountpoint = mountpoint.to_owned();
    let report = ReportEnd(end);
    let run = move || {
        let report = report;
        match session.run() {
            Ok(()) => debug!(mountpoint = %mountpoint.display(), "the kernel has let go"),
            Err(error) => warn!("serving {} ended: {error}", mountpoint.display()),
        }
        drop(report);
    };
    thread::Builder::new().name("clip-fuse".into()).spawn(run).map_err(failed)?;
    Ok(())
}

/// Takes the file system `device` off `mountpoint`, if it is there.
fn detach(mountpoint: &Path, device: Device) -> Result<(), MountError> {
    let mounts = mountinfo::read().map_err(|error| system("read", Path::new("/proc/self/mountinfo"), error, ""))?;
    if !mounts.iter().any(|mount| mount.mountpoint == mountpoint && mount.device == device) {
        return Ok(());
    }
    if mountinfo::topmost(&mounts, mountpoint).is_none_or(|top| top.device != device) {
        return Err(system("umount", mountpoint, Errno::BUSY.into(), "; another mount covers it, umount that first"));
    }
    take_away(mountpoint)
}

/// Lazily takes away whatever is mounted at `mountpoint`.
fn take_away(mountpoint: &Path) -> Result<(), MountError> {
    match kernel::umount(mountpoint, true) {
        // INVAL: somebody else was faster.
        Ok(()) | Err(Errno::INVAL) => Ok(()),
        Err(Errno::PERM) => fusermount::umount(mountpoint, true).map_err(|(error, hint)| system("umount", mountpoint, error, hint)),
        Err(errno) => Err(system("umount", mountpoint, errno.into(), "")),
    }
}
