//! What can be wrong with the bytes of a `.clip`, each with where, what was expected and what was found.

use thiserror::Error;

/// What an error means to whoever must act on it. Retry and errno look at nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// Bytes contradict their own description or their digest.
    Corrupt,
    /// It may work later: network, registry, a deadline.
    Unavailable,
    /// Credentials or permissions are missing.
    Denied,
    /// A limit, the disk or the memory is used up.
    Exhausted,
    /// Valid, but not something this version does.
    Unsupported,
}

/// A `.clip` that cannot be read, or a tree that cannot be written as one.
#[derive(Debug, Clone, Error)]
pub enum FormatError {
    /// Text that should be `sha256:<64 hex>` or `sha512:<128 hex>` is not.
    #[error("digest: expected sha256:<64 lower-case hex digits> or sha512:<128>, found {found:?}")]
    Digest {
        /// The text, cut to 160 characters.
        found: String,
    },
    /// A layer's URL is not one that clip goes to.
    #[error("URL of a layer: expected {expected}, found {found:?}")]
    Url {
        /// What would have been right.
        expected: &'static str,
        /// The text without user, password and query, cut to 160 characters.
        found: String,
    },
    /// A field's value cannot be.
    #[error("{what} at byte {offset}: expected {expected}, found {found}")]
    Field {
        /// The field, as docs/format.md names it.
        what: &'static str,
        /// Where in the section or file it stands.
        offset: u64,
        /// What would have been right.
        expected: String,
        /// What stands there.
        found: String,
    },
    /// The bytes end before what they describe does.
    #[error("{what} at byte {offset}: expected {expected} more bytes, found {found}")]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Where it starts.
        offset: u64,
        /// Bytes needed.
        expected: u64,
        /// Bytes there.
        found: u64,
    },
    /// A hash over bytes differs from the one recorded.
    #[error("{what}: expected BLAKE3 {expected}, found {found}; the file is damaged, index the image again")]
    Hash {
        /// The section or header.
        what: &'static str,
        /// Hex.
        expected: String,
        /// Hex.
        found: String,
    },
    /// A version, flag, codec or kind that this program does not know.
    #[error("{what}: this version of clip reads {expected}, found {found}; use a newer clip or index the image again")]
    Unknown {
        /// The field.
        what: &'static str,
        /// What is known.
        expected: String,
        /// What stands there.
        found: String,
    },
    /// Something is larger than the format's limit.
    #[error("{what}: at most {max}, found {found}")]
    Limit {
        /// What was counted, with the path where there is one.
        what: String,
        /// The limit.
        max: u64,
        /// The count.
        found: u64,
    },
    /// The machine has no room for a section's expanded bytes.
    #[error("{what}: no memory for its {bytes} bytes")]
    Memory {
        /// The section.
        what: &'static str,
        /// Its expanded length.
        bytes: u64,
    },
    /// An access profile of which no layer is in the image.
    #[error(
        "the profile is of another image: it was recorded from {recorded}, and this image is {image}; no layer that it needs is in both, so record one of this image (clip record)"
    )]
    OtherImage {
        /// The profile's manifest and layers.
        recorded: String,
        /// The image's.
        image: String,
    },
    /// A section's compression failed.
    #[error("{what}: zstd: {reason}")]
    Zstd {
        /// The section or window.
        what: &'static str,
        /// zstd's own words.
        reason: String,
    },
    /// The storage info's encoding failed.
    #[error("storage info: {reason}")]
    Bincode {
        /// bincode's own words.
        reason: String,
    },
}

impl FormatError {
    /// What this means to whoever must act on it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            FormatError::Digest { .. }
            | FormatError::Url { .. }
            | FormatError::Field { .. }
            | FormatError::Truncated { .. }
            | FormatError::Hash { .. }
            | FormatError::Zstd { .. }
            | FormatError::Bincode { .. } => ErrorKind::Corrupt,
            FormatError::Unknown { .. } | FormatError::OtherImage { .. } => ErrorKind::Unsupported,
            FormatError::Limit { .. } | FormatError::Memory { .. } => ErrorKind::Exhausted,
        }
    }
}
