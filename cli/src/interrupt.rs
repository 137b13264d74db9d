//! SIGINT, SIGTERM and SIGHUP in commands that leave something behind: it is removed before the process ends.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

type Undo = Box<dyn FnOnce() + Send>;

static UNDO: Mutex<Vec<(u64, Undo)>> = Mutex::new(Vec::new());
static STARTED: OnceLock<()> = OnceLock::new();

fn undo_list() -> MutexGuard<'static, Vec<(u64, Undo)>> {
    UNDO.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From here on an interruption runs what was registered by [`on_interrupt`] and ends the process with 128 + the signal's number.
pub fn watch() -> std::io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    if STARTED.set(()).is_err() {
        return Ok(());
    }
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        if let Some(signal) = signals.forever().next() {
            let mut undo = undo_list();
            while let Some((_, undo)) = undo.pop() {
                undo();
            }
            std::process::exit(128 + signal);
        }
    })?;
    Ok(())
}

/// While this lives an interruption waits: for steps that must happen whole or not at all.
pub struct Hold {
    _guard: MutexGuard<'static, Vec<(u64, Undo)>>,
}

/// Makes interruptions wait until the result is dropped.
pub fn hold() -> Hold {
    Hold { _guard: undo_list() }
}

/// A registration; dropping it withdraws it.
pub struct Registered(u64);

/// `undo` will run when the process is interrupted, last registered first.
pub fn on_interrupt(undo: impl FnOnce() + Send + 'static) -> Registered {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let id = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    undo_list().push((id, Box::new(undo)));
    Registered(id)
}

impl Drop for Registered {
    fn drop(&mut self) {
        undo_list().retain(|(id, _)| *id != self.0);
    }
}

/// A directory of this process alone, removed when dropped or interrupted. Made in `$TMPDIR`, else in /var/tmp, since it may grow
/// to the size of an image and /tmp is often memory.
pub struct ScratchDir {
    dir: Option<tempfile::TempDir>,
    _registered: Registered,
}

impl ScratchDir {
    /// A new directory, 0700, whose name starts with `prefix`.
    pub fn new(prefix: &str) -> std::io::Result<Self> {
        watch()?;
        let dir = tempfile::Builder::new().prefix(prefix).tempdir_in(scratch_parent())?;
        let path = dir.path().to_owned();
        let registered = on_interrupt(move || {
            let _ = std::fs::remove_dir_all(&path);
        });
        Ok(Self { dir: Some(dir), _registered: registered })
    }

    /// Where it is.
    pub fn path(&self) -> &std::path::Path {
        self.dir.as_ref().map_or(std::path::Path::new("/"), tempfile::TempDir::path)
    }

    /// It stays.
    pub fn keep(mut self) -> std::path::PathBuf {
        self.dir.take().map(tempfile::TempDir::keep).unwrap_or_default()
    }
}

fn scratch_parent() -> std::path::PathBuf {
    match std::env::var_os("TMPDIR") {
        Some(dir) if !dir.is_empty() => dir.into(),
        _ if std::path::Path::new("/var/tmp").is_dir() => "/var/tmp".into(),
        _ => std::env::temp_dir(),
    }
}
