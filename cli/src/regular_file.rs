//! Files that are named on the command line: anything but a regular one is an error, and waited for by nobody.

use std::{
    io::{Read as _, Result},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clip_engine::files::open_regular;

/// All of the regular file at `path`.
pub fn read_regular(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_regular(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The `path` of `--ca`, absolute; it is a file now: what reads it may be another process, later.
pub fn ca_path(path: &Path) -> anyhow::Result<PathBuf> {
    let path = std::path::absolute(path).with_context(|| path.display().to_string())?;
    open_regular(&path).with_context(|| format!("--ca {}", path.display()))?;
    Ok(path)
}
