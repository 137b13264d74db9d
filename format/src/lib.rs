//! The `.clip` file: bytes to meaning and back. No I/O, no threads, no unsafe.
#![forbid(unsafe_code)]

pub mod blob_url;
mod book;
mod bounded;
pub mod bytes;
pub mod checkpoints;
pub mod clip_file;
pub mod digest;
pub mod erofs;
pub mod error;
pub mod header;
pub mod limits;
pub mod profile;
pub mod storage_info;
pub mod units;
pub mod windows;
