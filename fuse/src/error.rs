//! What can go wrong while mounting and unmounting.

use std::{path::PathBuf, sync::Arc};

use thiserror::Error;

/// Why a mount or umount did not happen.
#[derive(Clone, Debug, Error)]
pub enum MountError {
    /// A system call or fusermount3 failed.
    #[error("{operation} {path}: {source}{hint}")]
    System {
        /// `mount`, `open` ...
        operation: &'static str,
        /// The mountpoint or device.
        path: PathBuf,
        /// The system's word.
        #[source]
        source: Arc<std::io::Error>,
        /// What to do next, prefixed by "; "; or empty.
        hint: &'static str,
    },
    /// The mountpoint is no directory, does not exist, or is a live mount already.
    #[error("mountpoint {path}: expected {expected}, found {found}")]
    Mountpoint {
        /// As given.
        path: PathBuf,
        /// What would have been right.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// An `-o` option that is unknown or has a bad value.
    #[error("mount option {option:?}: {reason}")]
    Option {
        /// As given.
        option: String,
        /// Why not.
        reason: String,
    },
    /// Processes use the mount.
    #[error("{path} is in use by {users}; end them or use --lazy")]
    Busy {
        /// The mountpoint.
        path: PathBuf,
        /// `bash (pid 12), python3 (pid 13)`.
        users: String,
    },
}
