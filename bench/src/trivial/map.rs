//! A map of a file that is only ever handed to system calls.
#![allow(unsafe_code)]

use std::{fs::File, path::Path};

use anyhow::{Context, Result};
use memmap2::Mmap;

/// The bytes of `path`, mapped.
///
/// # Errors
/// The system's.
pub(super) fn map(path: &Path) -> Result<Mmap> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    // SAFETY: the map is passed to writev(2) and never looked at, so a file that changes or shrinks under it gives other bytes or EFAULT.
    let map = unsafe { Mmap::map(&file) };
    map.with_context(|| format!("map {}", path.display()))
}
