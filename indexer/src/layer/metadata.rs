//! What the members of all layers of an image take in memory: their names, targets, attributes and extents.

use std::sync::atomic::{AtomicU64, Ordering};

use clip_format::error::FormatError;

use crate::error::IndexError;

/// Bytes of all layers together, each time that a layer stands in the manifest. Source: an index of INDEX_BYTES_MAX could not hold more.
const METADATA_BYTES_MAX: u64 = 4 << 30;

/// How much of it there is.
#[derive(Default)]
pub(crate) struct Metadata(AtomicU64);

impl Metadata {
    /// There are `bytes` more.
    ///
    /// # Errors
    /// `Limit`.
    pub(crate) fn add(&self, bytes: u64) -> Result<(), IndexError> {
        let found = self.0.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        if found <= METADATA_BYTES_MAX {
            return Ok(());
        }
        let what = "bytes of names and attributes in all layers".to_owned();
        Err(IndexError::Format(FormatError::Limit { what, max: METADATA_BYTES_MAX, found }))
    }
}

/// What the members of one layer take. Dropping it, as when the layer is read again, gives that back.
pub(super) struct MetadataShare<'a> {
    metadata: &'a Metadata,
    bytes: u64,
}

impl<'a> MetadataShare<'a> {
    /// Of nothing yet.
    pub(super) fn new(metadata: &'a Metadata) -> Self {
        Self { metadata, bytes: 0 }
    }

    /// There are `bytes` more.
    ///
    /// # Errors
    /// `Limit`.
    pub(super) fn grow(&mut self, bytes: u64) -> Result<(), IndexError> {
        self.bytes += bytes;
        self.metadata.add(bytes)
    }

    /// The members stay: how much they take.
    pub(super) fn keep(mut self) -> u64 {
        std::mem::take(&mut self.bytes)
    }
}

impl Drop for MetadataShare<'_> {
    fn drop(&mut self) {
        self.metadata.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Claim: layers side by side share one limit, a layer that is read again counts once, and one that stands in the image twice counts twice.
    #[test]
    fn layers_share_a_limit() {
        let metadata = Metadata::default();
        let (mut first, mut second) = (MetadataShare::new(&metadata), MetadataShare::new(&metadata));
        assert!(first.grow(3 << 30).is_ok() && second.grow(1 << 30).is_ok());
        let error = second.grow(1).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("in all layers") && error.contains("4294967297"), "{error}");
        drop(second);
        let mut again = MetadataShare::new(&metadata);
        assert!(again.grow(1 << 20).is_ok());
        let kept = again.keep();
        assert!(kept == 1 << 20 && metadata.add(kept).is_ok() && metadata.add(1 << 30).is_err());
    }
}
