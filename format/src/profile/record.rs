//! The fixed records of a profile.

use std::mem::offset_of;

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64},
};

use super::{Counts, ProfileLayer, VERSIONS_ACCEPTED};
use crate::{bounded::expect_eq, digest::Digest, error::FormatError, limits};

/// The file's first bytes.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub(crate) struct RawProfile {
    pub magic: [u8; 8],
    pub version: U16,
    pub layers: U16,
    pub runs: U32,
    pub flags: U64,
    pub stored_len: U64,
    pub raw_len: U64,
    pub body_blake3: [u8; 32],
    pub blake3: [u8; 32],
}

/// A digest with its algorithm.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub(crate) struct RawDigest {
    pub algorithm: u8,
    pub reserved: [u8; 7],
    pub bytes: [u8; 64],
}

/// One layer.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub(crate) struct RawProfileLayer {
    pub digest: RawDigest,
    pub stream_size: U64,
    pub spans_blake3: [u8; 32],
}

pub(super) const HEAD_LEN: usize = size_of::<RawProfile>();
/// Bytes that the head's checksum covers: all before it.
const CHECKED_BYTES: usize = offset_of!(RawProfile, blake3);

const _: () = {
    assert!(HEAD_LEN == 104);
    assert!(size_of::<RawDigest>() == 72);
    assert!(size_of::<RawProfileLayer>() == 112);
};

const SHA256: u8 = 1;
const SHA512: u8 = 2;

fn unknown(what: &'static str, expected: impl ToString, found: impl ToString) -> FormatError {
    FormatError::Unknown { what, expected: expected.to_string(), found: found.to_string() }
}

impl RawProfile {
    pub(super) fn checksum(&self) -> [u8; 32] {
        *blake3::hash(&self.as_bytes()[..CHECKED_BYTES]).as_bytes()
    }

    /// Checks everything but the magic and what depends on the body.
    pub(super) fn check(&self) -> Result<Counts, FormatError> {
        // Before the checksum: a later version may keep its checksum elsewhere.
        if !VERSIONS_ACCEPTED.contains(&self.version.get()) {
            return Err(unknown("profile version", format!("versions {VERSIONS_ACCEPTED:?}"), self.version));
        }
        let found = self.checksum();
        if found != self.blake3 {
            return Err(FormatError::Hash { what: "profile head", expected: hex::encode(self.blake3), found: hex::encode(found) });
        }
        if self.flags.get() != 0 {
            return Err(unknown("profile flags", 0, format!("{:#x}", self.flags)));
        }
        super::limit("profile body, bytes", limits::PROFILE_BODY_BYTES_MAX, self.raw_len.get())?;
        Ok(Counts { layers: self.layers.get(), runs: self.runs.get() })
    }
}

impl RawDigest {
    pub(super) fn from_digest(digest: &Digest) -> Self {
        let mut raw = Self { algorithm: 0, reserved: [0; 7], bytes: [0; 64] };
        match digest {
            Digest::Sha256(bytes) => {
                raw.algorithm = SHA256;
                raw.bytes[..32].copy_from_slice(bytes);
            }
            Digest::Sha512(bytes) => {
                raw.algorithm = SHA512;
                raw.bytes = *bytes;
            }
        }
        raw
    }

    /// `at` is where the record stands in the body.
    pub(super) fn to_digest(self, at: u64) -> Result<Digest, FormatError> {
        let mut short = [0; 32];
        short.copy_from_slice(&self.bytes[..32]);
        let (digest, unused) = match self.algorithm {
            SHA256 => (Digest::Sha256(short), &self.bytes[32..]),
            SHA512 => (Digest::Sha512(self.bytes), &[][..]),
            other => return Err(unknown("profile digest algorithm", "1 (sha256) and 2 (sha512)", other)),
        };
        let used = self.reserved.iter().chain(unused).any(|&byte| byte != 0);
        expect_eq("profile digest reserved bytes", at, "zeros", if used { "others" } else { "zeros" })?;
        Ok(digest)
    }
}

impl RawProfileLayer {
    pub(super) fn from_layer(layer: &ProfileLayer) -> Self {
        let digest = RawDigest::from_digest(&layer.digest);
        Self { digest, stream_size: U64::new(layer.stream_size), spans_blake3: layer.spans_digest }
    }

    pub(super) fn to_layer(self, at: u64) -> Result<ProfileLayer, FormatError> {
        let digest = self.digest.to_digest(at)?;
        Ok(ProfileLayer { digest, stream_size: self.stream_size.get(), spans_digest: self.spans_blake3 })
    }
}
