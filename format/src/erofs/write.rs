//! Writing an index from a merged tree.
//!
//! Three steps, each a pure function of the one before: the survey (order, parents, link counts, sorted entries), the plan (which form
//! each inode takes and where it stands), the bytes.

mod encode;
mod plan;
mod sparse;
mod survey;

use crate::{
    error::FormatError,
    units::{LayerIndex, StreamOffset},
};

/// One device of the image: a layer stream.
#[derive(Clone, Copy, Debug)]
pub struct Device {
    /// Length of the layer stream; the device is that, rounded up to 512.
    pub stream_size: u64,
    /// Shown as the device's tag: first 64 bytes of the digest's hex.
    pub tag: [u8; 64],
}

/// One inode of the tree to be written. Directories name others by their place in the slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InodeSpec {
    /// Permission, suid, sgid and sticky bits; the type bits come from `body`.
    pub permissions: u32,
    /// 32 bits.
    pub uid: u32,
    /// 32 bits.
    pub gid: u32,
    /// Seconds since 1970, negative before.
    pub mtime_s: i64,
    /// `< 1_000_000_000`
    pub mtime_ns: u32,
    /// Full names (`security.capability`) and values, any order; namespaces that EROFS lacks must be gone already
    /// ([`xattr_is_storable`]).
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// What it is.
    pub body: Body,
}

/// What an inode is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// Names (without `.` and `..`), any order, each with its inode's place in the slice.
    Directory(Vec<(Vec<u8>, usize)>),
    /// A file's length and its data, in order; what no extent covers is a hole.
    Regular {
        /// In bytes.
        size: u64,
        /// Sorted, not overlapping.
        extents: Vec<FileExtent>,
    },
    /// The target.
    Symlink(Vec<u8>),
    /// Major and minor.
    CharDevice(u32, u32),
    /// Major and minor.
    BlockDevice(u32, u32),
    /// S_IFIFO
    Fifo,
    /// S_IFSOCK
    Socket,
}

/// A piece of a file's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileExtent {
    /// Where in the file.
    pub file_offset: u64,
    /// In bytes, over 0.
    pub len: u64,
    /// Which layer.
    pub layer: LayerIndex,
    /// Where in its stream: a multiple of 512.
    pub stream: StreamOffset,
}

/// True when the image can hold an extended attribute of this full name: `user.*`, `trusted.*`, `security.*` and the two POSIX ACLs,
/// the part after the prefix 1 to 255 bytes.
#[must_use]
pub fn xattr_is_storable(name: &[u8]) -> bool {
    super::layout::split_xattr_name(name).is_some_and(|(_, rest)| rest.len() <= 255 && !rest.contains(&0))
}

/// The image's bytes: a pure function of its arguments. Every inode is reached from `root`; nlink is counted here.
///
/// # Errors
/// `Exhausted` with the path for a sparse file of too many chunks, a name or target too long, xattrs over the limit; `Corrupt` with the
/// path for data that is not 512-aligned, for names and trees that cannot be; `Unsupported` for an xattr that is not storable.
pub fn write_image(inodes: &[InodeSpec], root: usize, devices: &[Device]) -> Result<Vec<u8>, FormatError> {
    let survey = survey::Survey::new(inodes, root)?;
    let plan = plan::Plan::new(&survey, devices)?;
    encode::encode(&survey, &plan, devices)
}
