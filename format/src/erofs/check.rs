//! The full structural check, run once when an index is expanded.

use super::read::Index;
use crate::error::FormatError;

/// What a checked index holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Regular files (inodes).
    pub regular_files: u64,
    /// Directories.
    pub directories: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Devices, fifos and sockets.
    pub special_files: u64,
    /// Names, `.` and `..` not counted.
    pub names: u64,
    /// Sum of the sizes of regular files.
    pub file_bytes: u64,
    /// Inodes with at least one extended attribute.
    pub inodes_with_xattrs: u64,
}

/// Walks the whole tree: every inode, name, extent and xattr is readable, names are sorted and unique, each directory has one parent,
/// link counts are right, every extent lies within its layer's stream.
///
/// # Errors
/// `Corrupt`, naming the nid and the field.
pub fn check(index: &Index) -> Result<Counts, FormatError> {
    let _ = index;
    todo!()
}
