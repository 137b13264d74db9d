//! A whole `.clip`: header, then sections.

use std::sync::Arc;

use crate::{
    bounded::{field, slice_at},
    checkpoints::{Checkpoints, Span},
    erofs::residue::{from_residue, to_residue},
    error::FormatError,
    header::{Compression, HEADER_LEN, Header, Section, SectionKind},
    profile::Profile,
    storage_info::StorageInfo,
};

/// Sections up to this length get the better level. Source: level 12 at 30 MB/s (one core) is a quarter of a second for them.
const SMALL_SECTION_BYTES_MAX: usize = 8 << 20;
/// For small sections. Source: the residue of a 1,196,032-byte index: level 9 gives 79,750 bytes in 21 ms, 12 gives 78,594 in 41 ms, 15
/// gives 77,501 in 87 ms, 19 gives 71,393 in 841 ms, which is as long as all the rest of indexing that image.
pub(crate) const LEVEL_SMALL: i32 = 12;
/// For the others.
const LEVEL_LARGE: i32 = 9;

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
    /// `Exhausted` past a section's limit; `Corrupt` when the spans break an invariant of [`crate::checkpoints::SpanTable`].
    pub fn to_bytes(&self) -> Result<Vec<u8>, FormatError> {
        let storage_info = self.storage_info.to_bytes()?;
        let checkpoints: Arc<Vec<u8>> = Checkpoints::encode(self.spans)?.into();
        Checkpoints::open(checkpoints.clone(), &self.storage_info.layers, self.windows.len() as u64)?;
        let mut bytes = vec![0; HEADER_LEN];
        let header = Header {
            index: append(&mut bytes, SectionKind::Index, self.index)?,
            storage_info: append(&mut bytes, SectionKind::StorageInfo, &storage_info)?,
            checkpoints: append(&mut bytes, SectionKind::Checkpoints, &checkpoints)?,
            windows: append(&mut bytes, SectionKind::Windows, self.windows)?,
            profile: None,
        };
        bytes[..HEADER_LEN].copy_from_slice(&header.to_bytes());
        Ok(bytes)
    }
}

/// The same `.clip` with `profile` embedded, in place of the one that it may have. Cost: a copy of the file, no section is expanded.
///
/// # Errors
/// `Corrupt` when `clip` is none; `Exhausted` past a limit.
pub fn with_profile(clip: &[u8], profile: &Profile) -> Result<Vec<u8>, FormatError> {
    let header = ClipFile::parse(clip)?.header().clone();
    let mut bytes = clip[..(header.windows.position + header.windows.stored_len) as usize].to_vec();
    let profile = append(&mut bytes, SectionKind::Profile, &profile.to_bytes()?)?;
    bytes[..HEADER_LEN].copy_from_slice(&Header { profile: Some(profile), ..header }.to_bytes());
    Ok(bytes)
}

/// Adds `raw` to the file as a section of this kind.
fn append(file: &mut Vec<u8>, kind: SectionKind, raw: &[u8]) -> Result<Section, FormatError> {
    let (max, found) = (kind.raw_len_max(), raw.len() as u64);
    if found > max {
        return Err(FormatError::Limit { what: format!("{}, bytes", kind.as_str()), max, found });
    }
    let position = file.len() as u64;
    match kind.compression() {
        Compression::Stored => file.extend_from_slice(raw),
        Compression::Zstd => file.extend_from_slice(&compressed(kind, raw)?),
        Compression::ZstdResidue => {
            let mut residue = raw.to_vec();
            to_residue(&mut residue);
            file.extend_from_slice(&compressed(kind, &residue)?);
            from_residue(&mut residue);
            if residue != raw {
                return Err(field(kind.as_str(), 0, "an image whose parts do not overlap", "another"));
            }
        }
    }
    Ok(Section { position, stored_len: file.len() as u64 - position, raw_len: found, blake3: *blake3::hash(raw).as_bytes() })
}

fn compressed(kind: SectionKind, raw: &[u8]) -> Result<Vec<u8>, FormatError> {
    let level = if raw.len() <= SMALL_SECTION_BYTES_MAX { LEVEL_SMALL } else { LEVEL_LARGE };
    zstd::bulk::compress(raw, level).map_err(|error| FormatError::Zstd { what: kind.as_str(), reason: error.to_string() })
}

/// An expanded index whose hash was not looked at yet: nobody may be answered from it.
pub struct UncheckedIndex {
    image: Arc<Vec<u8>>,
    header: Header,
}

impl UncheckedIndex {
    /// The image, for work that is safe on any bytes: writing it somewhere, the structural check.
    #[must_use]
    pub fn image(&self) -> &Arc<Vec<u8>> {
        &self.image
    }

    /// The image is what was indexed.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn check_hash(&self) -> Result<(), FormatError> {
        verify(&self.header, SectionKind::Index, &self.image)
    }
}

/// A `.clip` whose header is checked. Sections are expanded and hashed when asked for.
pub struct ClipFile<'a> {
    bytes: &'a [u8],
    header: Header,
}

impl<'a> ClipFile<'a> {
    /// Checks the header and that the sections are `bytes`, without gap or overlap.
    ///
    /// # Errors
    /// `Corrupt` or `Unsupported`, naming the field.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, FormatError> {
        let header = Header::from_bytes(bytes)?;
        header.check_file_len(bytes.len() as u64)?;
        Ok(Self { bytes, header })
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
        self.expanded(SectionKind::Index)
    }

    /// The raw EROFS image, whose hash is left to [`UncheckedIndex::check_hash`]: what costs time beside it need not wait for it.
    /// Cost: as `index`.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn unchecked_index(&self) -> Result<UncheckedIndex, FormatError> {
        let stored = self.stored(SectionKind::Index)?;
        Ok(UncheckedIndex { image: unresidued(&self.header, SectionKind::Index, stored)?.into(), header: self.header.clone() })
    }

    /// The storage info, hash checked.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn storage_info(&self) -> Result<StorageInfo, FormatError> {
        StorageInfo::from_bytes(&self.expanded(SectionKind::StorageInfo)?)
    }

    /// The raw checkpoints section, hash checked.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn checkpoints(&self) -> Result<Vec<u8>, FormatError> {
        self.expanded(SectionKind::Checkpoints)
    }

    /// The windows section (stored as it is), hash checked.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn windows(&self) -> Result<&'a [u8], FormatError> {
        let stored = self.stored(SectionKind::Windows)?;
        verify(&self.header, SectionKind::Windows, stored)?;
        Ok(stored)
    }

    /// The embedded access profile, hash and every invariant checked; `None` when there is none.
    ///
    /// # Errors
    /// `Corrupt`; `Unsupported` for a later version of profiles.
    pub fn profile(&self) -> Result<Option<Profile>, FormatError> {
        if self.header.profile.is_none() {
            return Ok(None);
        }
        profile_of(&self.header, self.stored(SectionKind::Profile)?).map(Some)
    }

    fn stored(&self, kind: SectionKind) -> Result<&'a [u8], FormatError> {
        let section = section_of(&self.header, kind)?;
        slice_at(self.bytes, kind.as_str(), section.position, section.stored_len)
    }

    fn expanded(&self, kind: SectionKind) -> Result<Vec<u8>, FormatError> {
        expanded(&self.header, kind, self.stored(kind)?)
    }
}

/// The storage info from its section's stored bytes alone, hash checked: for whoever has read the header and wants to know where the
/// layers are, and not to read the rest of the file.
///
/// # Errors
/// `Corrupt`.
pub fn storage_info_of(header: &Header, stored: &[u8]) -> Result<StorageInfo, FormatError> {
    StorageInfo::from_bytes(&expanded(header, SectionKind::StorageInfo, stored)?)
}

/// The embedded profile from its section's stored bytes alone, as [`storage_info_of`].
///
/// # Errors
/// `Corrupt`; `Unsupported` for a later version of profiles.
pub fn profile_of(header: &Header, stored: &[u8]) -> Result<Profile, FormatError> {
    verify(header, SectionKind::Profile, stored)?;
    Profile::from_bytes(stored)
}

fn section_of(header: &Header, kind: SectionKind) -> Result<&Section, FormatError> {
    header.section(kind).ok_or_else(|| field(kind.as_str(), 0, "one", "none"))
}

fn expanded(header: &Header, kind: SectionKind, stored: &[u8]) -> Result<Vec<u8>, FormatError> {
    let raw = unresidued(header, kind, stored)?;
    verify(header, kind, &raw)?;
    Ok(raw)
}

fn unresidued(header: &Header, kind: SectionKind, stored: &[u8]) -> Result<Vec<u8>, FormatError> {
    let mut raw = expand(kind.as_str(), stored, section_of(header, kind)?.raw_len)?;
    if kind.compression() == Compression::ZstdResidue {
        from_residue(&mut raw);
    }
    Ok(raw)
}

fn verify(header: &Header, kind: SectionKind, raw: &[u8]) -> Result<(), FormatError> {
    let (expected, found) = (section_of(header, kind)?.blake3, blake3::hash(raw));
    if found == expected {
        return Ok(());
    }
    Err(FormatError::Hash { what: kind.as_str(), expected: hex::encode(expected), found: found.to_hex().to_string() })
}

/// One zstd frame, `raw_len` bytes expanded, and nothing behind it. Memory is reserved for them, and used by what really comes out.
pub(crate) fn expand(what: &'static str, stored: &[u8], raw_len: u64) -> Result<Vec<u8>, FormatError> {
    let failed = |reason: String| FormatError::Zstd { what, reason };
    let frame =
        zstd::zstd_safe::find_frame_compressed_size(stored).map_err(|code| failed(zstd::zstd_safe::get_error_name(code).to_owned()))?;
    if frame != stored.len() {
        return Err(failed(format!("{} bytes left over after the frame", stored.len() - frame)));
    }
    let mut raw = Vec::new();
    let has_room = usize::try_from(raw_len).is_ok_and(|len| raw.try_reserve_exact(len).is_ok());
    if !has_room {
        return Err(FormatError::Memory { what, bytes: raw_len });
    }
    let mut decompressor = zstd::bulk::Decompressor::new().map_err(|error| failed(error.to_string()))?;
    decompressor.decompress_to_buffer(stored, &mut raw).map_err(|error| failed(error.to_string()))?;
    match raw.len() as u64 {
        found if found == raw_len => Ok(raw),
        found => Err(FormatError::Truncated { what, offset: 0, expected: raw_len, found }),
    }
}
