//! A whole `.clip`: header, then sections.

use crate::{checkpoints::Span, error::FormatError, header::Header, storage_info::StorageInfo};

/// What an indexer hands over to be written.
pub struct ClipParts<'a> {
    /// The EROFS image, raw.
    pub index: &'a [u8],
    /// Source, config and layers.
    pub storage_info: &'a StorageInfo,
    /// One entry a layer, in manifest order.
    pub spans: &'a [Vec<Span>],
    /// The windows section.
    pub windows: &'a [u8],
}

impl ClipParts<'_> {
    /// The file's bytes: a pure function of the parts.
    ///
    /// # Errors
    /// `Exhausted` past a section's limit.
    pub fn to_bytes(&self) -> Result<Vec<u8>, FormatError> {
        todo!()
    }
}

/// A `.clip` whose header is checked. Sections are expanded and hashed when asked for.
pub struct ClipFile<'a> {
    bytes: &'a [u8],
    header: Header,
}

impl<'a> ClipFile<'a> {
    /// Checks the header and that every section lies within `bytes`, without overlap.
    ///
    /// # Errors
    /// `Corrupt` or `Unsupported`, naming the field.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, FormatError> {
        let _ = bytes;
        todo!()
    }

    /// The header.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The raw EROFS image, hash checked. Cost: one zstd expansion into a vector of `raw_len`.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn index(&self) -> Result<Vec<u8>, FormatError> {
        todo!()
    }

    /// The storage info, hash checked.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn storage_info(&self) -> Result<StorageInfo, FormatError> {
        todo!()
    }

    /// The raw checkpoints section, hash checked.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn checkpoints(&self) -> Result<Vec<u8>, FormatError> {
        todo!()
    }

    /// The windows section (stored as it is), hash checked.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn windows(&self) -> Result<&'a [u8], FormatError> {
        todo!()
    }
}
