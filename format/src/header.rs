//! The first 512 bytes.

use crate::error::FormatError;

/// Length of the header; the index section starts here.
pub const HEADER_LEN: usize = 512;
/// The file's first bytes.
pub const MAGIC: [u8; 9] = *b"\x89CLIP\r\n\x1a\n";
/// The version that is written.
pub const VERSION_WRITTEN: u8 = 1;

/// A section of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SectionKind {
    /// The EROFS image.
    Index,
    /// The storage info.
    StorageInfo,
    /// The tables of spans.
    Checkpoints,
    /// The windows.
    Windows,
}

/// Where one section stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Section {
    /// From the file's start.
    pub position: u64,
    /// As stored.
    pub stored_len: u64,
    /// Expanded.
    pub raw_len: u64,
    /// BLAKE3-256 of the expanded bytes.
    pub blake3: [u8; 32],
}

/// A checked header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The EROFS image.
    pub index: Section,
    /// The storage info.
    pub storage_info: Section,
    /// The tables of spans.
    pub checkpoints: Section,
    /// The windows.
    pub windows: Section,
}

impl Header {
    /// The 512 bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        todo!()
    }

    /// The meaning of the file's first 512 bytes.
    ///
    /// # Errors
    /// `Corrupt` or `Unsupported`, naming the field.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, FormatError> {
        let _ = bytes;
        todo!()
    }

    /// BLAKE3 of the 512 bytes. They hold the BLAKE3 of every section, so this names the whole `.clip`: the image id.
    #[must_use]
    pub fn image_id(&self) -> [u8; 32] {
        *blake3::hash(&self.to_bytes()).as_bytes()
    }
}
