//! What the engine keeps on disk: layer streams with their presence, expanded images, and the lock that makes one process the owner.
//!
//! Nothing here trusts what it finds: lengths are checked when a file is opened, layer bytes against their span's digest before they
//! are served, image files against the header's.

pub(crate) mod image_dir;
pub(crate) mod layer_file;
pub(crate) mod lock;
pub(crate) mod presence;

use std::{
    fs::{DirBuilder, File, OpenOptions},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

use crate::error::EngineError;

/// Creates `path` and its missing parents, for the owner alone.
pub(crate) fn create_dir(path: &Path) -> Result<(), EngineError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| EngineError::io("create directory", path, error))
}

/// Opens `path` for reading and writing, creating it for the owner alone; never through a symbolic link.
pub(crate) fn open_private(path: &Path) -> std::io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC;
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(flags).open(path)
}
