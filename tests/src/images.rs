//! The images of the tests: a small Debian one written by foreign tools, and synthetic ones written member by member.

pub mod debian;
pub mod deflate;
pub mod estargz;
pub mod huge;
pub mod layout;
pub mod nasty;
pub mod sample;
pub mod tar_writer;

pub use layout::{Compression, Layout};
pub use tar_writer::{Headers, Member, TarWriter};
