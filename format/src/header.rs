//! The first 512 bytes.
//!
//! The first 54 are the original system's; a section table and a checksum follow. docs/format.md has the table.

use std::mem::offset_of;

use zerocopy::{
    FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{I64, U16, U32, U64},
};

use crate::{
    bounded::{expect_eq, field, record_at},
    error::FormatError,
    limits,
};

/// Length of the header; the index section starts here.
pub const HEADER_LEN: usize = 512;
/// The file's first bytes.
pub const MAGIC: [u8; 9] = *b"\x89CLIP\r\n\x1a\n";
/// The version that is written.
pub const VERSION_WRITTEN: u8 = 1;
/// The versions that are read.
pub const VERSIONS_ACCEPTED: &[u8] = &[1];
/// The storage type that is written and read, zero-padded.
pub const STORAGE_TYPE: [u8; 12] = *b"oci\0\0\0\0\0\0\0\0\0";
/// The flags that are read. None exists yet.
const FLAGS_ACCEPTED: u64 = 0;
/// Places in the section table: five have a kind, one waits for what comes after.
pub(crate) const SECTION_PLACES: usize = 6;
/// Bytes that the header's checksum covers: all before it.
const CHECKED_BYTES: usize = offset_of!(RawHeader, blake3);

/// The header as it stands in the file.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub(crate) struct RawHeader {
    pub magic: [u8; 9],
    pub version: u8,
    pub index_len: I64,
    pub index_position: I64,
    pub storage_info_len: I64,
    pub storage_info_position: I64,
    pub storage_type: [u8; 12],
    pub section_count: U16,
    pub flags: U64,
    pub sections: [RawSection; SECTION_PLACES],
    pub reserved: [u8; 32],
    pub blake3: [u8; 32],
}

/// One place of the section table.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub(crate) struct RawSection {
    pub kind: U16,
    pub compression: U16,
    pub reserved: U32,
    pub position: U64,
    pub stored_len: U64,
    pub raw_len: U64,
    pub blake3: [u8; 32],
}

const _: () = {
    assert!(size_of::<RawHeader>() == HEADER_LEN);
    assert!(size_of::<RawSection>() == 64);
    assert!(offset_of!(RawHeader, version) == 9);
    assert!(offset_of!(RawHeader, section_count) == 54);
    assert!(offset_of!(RawHeader, sections) == 64);
};

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
    /// An access profile; most files have none.
    Profile,
}

/// How a section is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compression {
    /// As it is.
    Stored,
    /// One zstd frame.
    Zstd,
    /// One zstd frame of the index's residue (docs/format.md): numbers that follow from others are taken out of it.
    ZstdResidue,
}

impl SectionKind {
    /// Every kind, in the order that they stand in the file.
    pub const ALL: [SectionKind; 5] = [Self::Index, Self::StorageInfo, Self::Checkpoints, Self::Windows, Self::Profile];
    /// How many of them every file has: the first ones.
    pub const REQUIRED: usize = 4;

    /// As docs/format.md and messages name it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Index => "index section",
            Self::StorageInfo => "storage info section",
            Self::Checkpoints => "checkpoints section",
            Self::Windows => "windows section",
            Self::Profile => "profile section",
        }
    }

    /// How sections of this kind are stored.
    #[must_use]
    pub fn compression(self) -> Compression {
        match self {
            Self::Windows | Self::Profile => Compression::Stored,
            Self::Index => Compression::ZstdResidue,
            Self::StorageInfo | Self::Checkpoints => Compression::Zstd,
        }
    }

    /// Bytes of such a section, expanded, that a reader accepts.
    #[must_use]
    pub fn raw_len_max(self) -> u64 {
        match self {
            Self::Index => limits::INDEX_BYTES_MAX,
            Self::StorageInfo => limits::STORAGE_INFO_BYTES_MAX,
            Self::Checkpoints => limits::CHECKPOINTS_BYTES_MAX,
            Self::Windows => limits::WINDOWS_BYTES_MAX,
            Self::Profile => limits::PROFILE_BYTES_MAX,
        }
    }

    pub(crate) fn number(self) -> u16 {
        match self {
            Self::Index => 1,
            Self::StorageInfo => 2,
            Self::Checkpoints => 3,
            Self::Windows => 4,
            Self::Profile => 5,
        }
    }
}

impl Compression {
    pub(crate) fn number(self) -> u16 {
        match self {
            Self::Stored => 0,
            Self::Zstd => 1,
            Self::ZstdResidue => 2,
        }
    }
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
///
/// Invariants: the index starts at byte 512, and each of the other sections where the one before it ends.
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
    /// The access profile that is embedded, if one is.
    pub profile: Option<Section>,
}

impl Header {
    /// The section of this kind; only of the last kind there may be none.
    #[must_use]
    pub fn section(&self, kind: SectionKind) -> Option<&Section> {
        match kind {
            SectionKind::Index => Some(&self.index),
            SectionKind::StorageInfo => Some(&self.storage_info),
            SectionKind::Checkpoints => Some(&self.checkpoints),
            SectionKind::Windows => Some(&self.windows),
            SectionKind::Profile => self.profile.as_ref(),
        }
    }

    /// Length of the whole file: the end of the last section.
    #[must_use]
    pub fn file_len(&self) -> u64 {
        let last = self.profile.as_ref().unwrap_or(&self.windows);
        last.position.saturating_add(last.stored_len)
    }

    /// A file of `found` bytes holds every section, and nothing else.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn check_file_len(&self, found: u64) -> Result<(), FormatError> {
        let (expected, head) = (self.file_len(), HEADER_LEN as u64);
        if found < expected {
            let (expected, found) = (expected - head, found.saturating_sub(head));
            return Err(FormatError::Truncated { what: "sections", offset: head, expected, found });
        }
        expect_eq("file length", 0, expected, found)
    }

    /// The 512 bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let mut sections = [RawSection::new_zeroed(); SECTION_PLACES];
        let present = SectionKind::ALL.into_iter().filter_map(|kind| Some((kind, self.section(kind)?)));
        let mut section_count = 0;
        for (place, (kind, section)) in sections.iter_mut().zip(present) {
            section_count += 1;
            *place = RawSection {
                kind: U16::new(kind.number()),
                compression: U16::new(kind.compression().number()),
                reserved: U32::new(0),
                position: U64::new(section.position),
                stored_len: U64::new(section.stored_len),
                raw_len: U64::new(section.raw_len),
                blake3: section.blake3,
            };
        }
        let mut raw = RawHeader {
            magic: MAGIC,
            version: VERSION_WRITTEN,
            index_len: signed(self.index.stored_len),
            index_position: signed(self.index.position),
            storage_info_len: signed(self.storage_info.stored_len),
            storage_info_position: signed(self.storage_info.position),
            storage_type: STORAGE_TYPE,
            section_count: U16::new(section_count),
            flags: U64::new(0),
            sections,
            reserved: [0; 32],
            blake3: [0; 32],
        };
        raw.blake3 = *blake3::hash(&raw.as_bytes()[..CHECKED_BYTES]).as_bytes();
        let mut bytes = [0; HEADER_LEN];
        bytes.copy_from_slice(raw.as_bytes());
        bytes
    }

    /// The meaning of the file's first 512 bytes; what follows them is not looked at.
    ///
    /// # Errors
    /// `Corrupt` or `Unsupported`, naming the field.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, FormatError> {
        let found = &bytes[..bytes.len().min(MAGIC.len())];
        if found != MAGIC {
            return Err(field("header magic", 0, MAGIC.escape_ascii(), format!("{} (this is not a .clip file)", found.escape_ascii())));
        }
        let raw: &RawHeader = record_at(bytes, "header", 0)?;
        // Before the checksum: a later version may keep its checksum elsewhere.
        if !VERSIONS_ACCEPTED.contains(&raw.version) {
            return Err(unknown("header version", format!("versions {VERSIONS_ACCEPTED:?}"), raw.version));
        }
        let expected = blake3::hash(&raw.as_bytes()[..CHECKED_BYTES]);
        if expected != raw.blake3 {
            let (expected, found) = (hex::encode(raw.blake3), expected.to_hex().to_string());
            return Err(FormatError::Hash { what: "header", expected, found });
        }
        if raw.storage_type != STORAGE_TYPE {
            return Err(unknown("header storage type", STORAGE_TYPE.escape_ascii(), raw.storage_type.escape_ascii()));
        }
        if raw.flags.get() & !FLAGS_ACCEPTED != 0 {
            return Err(unknown("header flags", format!("{FLAGS_ACCEPTED:#x}"), format!("{:#x}", raw.flags)));
        }
        raw.check_sections()
    }

    /// BLAKE3 of the 512 bytes. They hold the BLAKE3 of every section, so this names the whole `.clip`: the image id.
    #[must_use]
    pub fn image_id(&self) -> [u8; 32] {
        *blake3::hash(&self.to_bytes()).as_bytes()
    }
}

/// Positions and lengths are below 2^63: the limits say so.
fn signed(value: u64) -> I64 {
    I64::new(i64::try_from(value).unwrap_or(i64::MAX))
}

fn unknown(what: &'static str, expected: impl ToString, found: impl ToString) -> FormatError {
    FormatError::Unknown { what, expected: expected.to_string(), found: found.to_string() }
}

impl RawHeader {
    fn check_sections(&self) -> Result<Header, FormatError> {
        let count = usize::from(self.section_count.get());
        if !(SectionKind::REQUIRED..=SectionKind::ALL.len()).contains(&count) {
            let expected = format!("{} or {}", SectionKind::REQUIRED, SectionKind::ALL.len());
            return Err(unknown("header section count", expected, count));
        }
        let mut sections = [Section { position: 0, stored_len: 0, raw_len: 0, blake3: [0; 32] }; SectionKind::ALL.len()];
        let mut position = HEADER_LEN as u64;
        for ((number, kind), section) in SectionKind::ALL.into_iter().take(count).enumerate().zip(&mut sections) {
            let at = (offset_of!(RawHeader, sections) + number * size_of::<RawSection>()) as u64;
            *section = self.sections[number].check(kind, at, position)?;
            position += section.stored_len;
        }
        let unused = self.sections[count..].as_bytes().iter().chain(&self.reserved);
        if unused.into_iter().any(|&byte| byte != 0) {
            return Err(unknown("header reserved bytes", "zeros", "others"));
        }
        let [index, storage_info, checkpoints, windows, profile] = sections;
        expect_eq("header index length", 10, index.stored_len as i64, self.index_len.get())?;
        expect_eq("header index position", 18, index.position as i64, self.index_position.get())?;
        expect_eq("header storage info length", 26, storage_info.stored_len as i64, self.storage_info_len.get())?;
        expect_eq("header storage info position", 34, storage_info.position as i64, self.storage_info_position.get())?;
        let profile = (count == SectionKind::ALL.len()).then_some(profile);
        Ok(Header { index, storage_info, checkpoints, windows, profile })
    }
}

impl RawSection {
    /// `at` is this record's own place, `position` where the section must begin.
    fn check(&self, kind: SectionKind, at: u64, position: u64) -> Result<Section, FormatError> {
        if self.kind.get() != kind.number() {
            return Err(unknown("header section kind", format!("{} ({})", kind.number(), kind.as_str()), self.kind));
        }
        let compression = kind.compression().number();
        if self.compression.get() != compression || self.reserved.get() != 0 {
            return Err(unknown("header section compression", compression, self.compression));
        }
        expect_eq("header section position", at + 8, position, self.position.get())?;
        let (stored_len, raw_len) = (self.stored_len.get(), self.raw_len.get());
        let max = kind.raw_len_max();
        if raw_len > max || stored_len > zstd_bound(max) {
            let found = raw_len.max(stored_len);
            return Err(FormatError::Limit { what: format!("{}, bytes", kind.as_str()), max, found });
        }
        if kind.compression() == Compression::Stored {
            expect_eq("header section stored length", at + 16, raw_len, stored_len)?;
        }
        Ok(Section { position, stored_len, raw_len, blake3: self.blake3 })
    }
}

/// Stored bytes of what is `raw` bytes expanded, at most. Source: ZSTD_COMPRESSBOUND in zstd.h, rounded up.
fn zstd_bound(raw: u64) -> u64 {
    raw + (raw >> 8) + 1024
}

#[cfg(test)]
mod tests;
