//! Tar bytes, in pieces of any size, to entries: what a member is, and what is wrong where there is none.
//!
//! Ambiguous archives are read as Go's `archive/tar` reads them, since that is what the reference unpackers stand on: link, directory
//! and device members have no data whatever their size field says, a size in a PAX record wins over the header's, a GNU long name wins
//! over a PAX path, and global PAX headers are checked but change nothing.

pub mod gnu_sparse;
pub mod header;
mod parser;
pub mod pax;
pub mod tally;

use std::fmt;

pub use parser::TarParser;

/// Bytes of one extended header (PAX records, a GNU long name, a sparse map). Source: Go archive/tar `maxSpecialFileSize`, libarchive.
pub const SPECIAL_BYTES_MAX: u64 = 1 << 20;
/// Bytes of one member's path. Source: PATH_MAX less the NUL, linux/limits.h: no unpacker could create a longer one.
pub const PATH_BYTES_MAX: usize = 4095;
/// Largest major number of a device. Source: linux/kdev_t.h, `new_encode_dev` keeps 12 bits.
pub const DEVICE_MAJOR_MAX: u32 = 0xfff;
/// Largest minor number of a device. Source: linux/kdev_t.h, `new_encode_dev` keeps 20 bits.
pub const DEVICE_MINOR_MAX: u32 = 0xf_ffff;

/// One member of a layer's tar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where its first header stands in the stream. Units: bytes, a multiple of 512.
    pub offset: u64,
    /// As the archive names it: not normalised, not confined.
    pub path: Vec<u8>,
    /// Permission, suid, sgid and sticky bits. `<= 0o7777`
    pub permissions: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since 1970, negative before.
    pub mtime_s: i64,
    /// `< 1_000_000_000`
    pub mtime_ns: u32,
    /// Full names and values, sorted by name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// What it is.
    pub kind: EntryKind,
}

/// What a member is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A file: its length and where its data is; what no extent covers is a hole.
    Regular {
        /// In bytes.
        size: u64,
        /// Sorted, not overlapping, none empty.
        data: Vec<DataExtent>,
    },
    /// A directory.
    Directory,
    /// A symbolic link to this target.
    Symlink(Vec<u8>),
    /// One more name for the member or lower file at this path.
    HardLink(Vec<u8>),
    /// Major and minor.
    CharDevice(u32, u32),
    /// Major and minor.
    BlockDevice(u32, u32),
    /// S_IFIFO
    Fifo,
}

impl EntryKind {
    /// The kind in words, for messages.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            EntryKind::Regular { .. } => "a regular file",
            EntryKind::Directory => "a directory",
            EntryKind::Symlink(_) => "a symbolic link",
            EntryKind::HardLink(_) => "a hard link",
            EntryKind::CharDevice(..) => "a character device",
            EntryKind::BlockDevice(..) => "a block device",
            EntryKind::Fifo => "a fifo",
        }
    }
}

/// A piece of a file's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataExtent {
    /// Where in the file.
    pub file_offset: u64,
    /// In bytes, over 0.
    pub len: u64,
    /// Where in the layer stream.
    pub stream: u64,
}

/// Why the bytes are no tar archive that can be unpacked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TarError {
    /// Where in the stream the header in question stands.
    pub offset: u64,
    /// The member's name, as far as it was known.
    pub member: Vec<u8>,
    /// What would have been right.
    pub expected: String,
    /// What stands there.
    pub found: String,
    /// Valid by some standard, but not read here.
    pub unsupported: bool,
}

impl TarError {
    /// `stream offset 512, member "etc/passwd"`
    #[must_use]
    pub fn place(&self) -> String {
        place(self.offset, &self.member)
    }
}

impl fmt::Display for TarError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: expected {}, found {}", self.place(), self.expected, self.found)
    }
}

/// `stream offset 512, member "etc/passwd"`, or the offset alone where no name is known.
#[must_use]
pub fn place(offset: u64, member: &[u8]) -> String {
    if member.is_empty() {
        return format!("stream offset {offset}");
    }
    let shown: String = String::from_utf8_lossy(member).chars().take(256).collect();
    format!("stream offset {offset}, member {shown:?}")
}

/// A wrong field, before the parser adds where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// What would have been right.
    pub expected: String,
    /// What stands there.
    pub found: String,
    /// Valid by some standard, but not read here.
    pub unsupported: bool,
}

impl Wrong {
    /// Expected this, found that.
    pub fn new(expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self { expected: expected.into(), found: found.into(), unsupported: false }
    }
}

#[cfg(test)]
mod tests;
