//! The FUSE front end over an index and an engine: a kernel-free file system and a thin adapter.

pub mod error;
pub mod mount;
pub mod tree;

pub use error::MountError;
pub use mount::{MountOptions, Mounted, mount};
