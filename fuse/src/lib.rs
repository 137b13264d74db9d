//! The FUSE front end over an index and an engine: a kernel-free file system and a thin adapter.
//!
//! [`tree`] answers every question the kernel may ask from an index and a [`ByteSource`]; it knows no kernel and is tested without
//! one. The adapter turns the FUSE protocol into calls of the tree, and says at the start of a connection that nothing here ever
//! changes, so that the kernel caches names, attributes, links and pages for ever. [`mod@mount`] makes, finds and ends mounts: as root
//! by mount(2) itself, otherwise through fusermount3.
//!
//! A read whose bytes must come over the network is parked: the session thread hands the reply to the engine and takes the next
//! request. No session thread ever waits for anything but the kernel.
#![forbid(unsafe_code)]

mod adapter;
mod errno;
pub mod error;
pub mod mount;
pub mod source;
pub mod tree;
pub mod wire;

pub use error::MountError;
pub use mount::{MountOptions, Mounted, mount, mount_source};
pub use source::ByteSource;
