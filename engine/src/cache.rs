//! What the engine keeps on disk: layer streams with their presence, expanded images, and the lock that makes one process the owner.
//!
//! Nothing here trusts what it finds: lengths are checked when a file is opened, layer bytes against their span's digest before they
//! are served, image files against the header's.

pub(crate) mod background;
pub(crate) mod image_dir;
pub(crate) mod layer_file;
pub(crate) mod lease;
pub(crate) mod lock;
pub(crate) mod presence;
pub(crate) mod room;

use std::{
    fs::{DirBuilder, File, OpenOptions},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::Path,
};

use crate::error::EngineError;

/// Creates `path` and its missing parents, for the owner alone.
pub(crate) fn create_dir(path: &Path) -> Result<(), EngineError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| EngineError::io("create directory", path, error))
}

/// The cache directory `path` is ours, and nobody else may put files into it: what was verified once is trusted while the owner runs, so
/// whoever can write here can change what every mount shows. Write permission of our group is only warned about: umask 002 is common
/// where each user has a group.
///
/// # Errors
/// `Invalid` with owner and mode; `Io`.
pub(crate) fn check_owner(path: &Path) -> Result<(), EngineError> {
    check_cache_dir(path)?;
    let found = std::fs::metadata(path).map_err(|error| EngineError::io("stat", path, error))?;
    if found.mode() & 0o020 != 0 {
        tracing::warn!(path = %path.display(), group = found.gid(), "the cache directory's group may change what mounts show; chmod 700 it");
    }
    Ok(())
}

/// The cache directory `path` is this user's, and others may not write to it: what listens or lies there is this user's too.
///
/// # Errors
/// `Invalid` with owner and mode; `Io`.
pub fn check_cache_dir(path: &Path) -> Result<(), EngineError> {
    let found = std::fs::metadata(path).map_err(|error| EngineError::io("stat", path, error))?;
    let (us, mode) = (rustix::process::geteuid().as_raw(), found.mode() & 0o7777);
    if !found.is_dir() || found.uid() != us || mode & 0o002 != 0 {
        let what = format!("cache directory {}", path.display());
        let expected = format!("a directory of user {us} that others may not write to (chmod 700)");
        return Err(EngineError::Invalid { what, expected, found: format!("owner {}, mode {mode:o}", found.uid()) });
    }
    Ok(())
}

/// Opens `path` for reading and writing, creating it for the owner alone; never through a symbolic link.
pub(crate) fn open_private(path: &Path) -> std::io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC;
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(flags).open(path)
}
