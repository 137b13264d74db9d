//! The table of spans of each layer: where decoding can start, and what each span's bytes must hash to.
//!
//! Section shape (docs/format.md): a directory of one fixed record a layer, then the span records of all layers.

use std::ops::Range;

use crate::{
    bytes::SharedBytes,
    error::FormatError,
    storage_info::LayerInfo,
    units::{CompressedOffset, LayerIndex, SpanIndex, StreamOffset},
};

/// How decoding may begin at a span's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanStart {
    /// It may not: decode on from the nearest earlier entry.
    Chained,
    /// The blob's bytes are the stream's bytes from here.
    Plain,
    /// A gzip member's header stands at the compressed offset.
    Member,
    /// A deflate block's header follows `bit_offset` used bits of the byte at the compressed offset.
    Deflate {
        /// Bits of that byte that belong to the block before, lowest first. `bit_offset < 8`.
        bit_offset: u8,
        /// The history that the data after it refers to; an empty range where it refers to none.
        window: WindowRange,
    },
}

/// Where a window's zstd frame stands in the windows section, in bytes. Empty = no window is needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WindowRange {
    /// From the start of the windows section.
    pub offset: u64,
    /// Of the zstd frame.
    pub len: u32,
}

/// One span of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// How decoding may begin here.
    pub start: SpanStart,
    /// Where the bytes of the start stand in the blob. For `Chained`: a lower bound, information only.
    pub compressed: CompressedOffset,
    /// Where the span's bytes begin in the layer stream.
    pub stream: StreamOffset,
    /// BLAKE3-256 of the span's decompressed bytes.
    pub digest: [u8; 32],
}

/// The spans of one layer: mmapped or in memory, validated once.
///
/// Invariants: span 0 starts at stream offset 0 and is an entry; stream offsets strictly increase and are below
/// `stream_size`; compressed offsets never decrease and are below `compressed_size`. An empty stream has no spans.
#[derive(Clone)]
pub struct SpanTable {
    bytes: SharedBytes,
    records: Range<usize>,
    stream_size: u64,
    compressed_size: u64,
}

impl SpanTable {
    /// Number of spans.
    #[must_use]
    pub fn len(&self) -> u32 {
        todo!()
    }

    /// True for an empty stream.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Length of the layer stream.
    #[must_use]
    pub fn stream_size(&self) -> u64 {
        self.stream_size
    }

    /// Length of the layer's blob.
    #[must_use]
    pub fn compressed_size(&self) -> u64 {
        self.compressed_size
    }

    /// The record of `span`.
    ///
    /// # Panics
    /// When `span >= len()`: an index that did not come from this table.
    #[must_use]
    pub fn span(&self, span: SpanIndex) -> Span {
        let _ = span;
        todo!()
    }

    /// Where `span` stands in the stream, half-open.
    #[must_use]
    pub fn stream_range(&self, span: SpanIndex) -> Range<u64> {
        let _ = span;
        todo!()
    }

    /// The span that holds `offset`, or `None` at or past the stream's end. Cost: a binary search.
    #[must_use]
    pub fn span_at(&self, offset: StreamOffset) -> Option<SpanIndex> {
        let _ = offset;
        todo!()
    }

    /// The nearest entry at or before `span`.
    #[must_use]
    pub fn entry_of(&self, span: SpanIndex) -> SpanIndex {
        let _ = span;
        todo!()
    }

    /// The first entry after `span`, or `None` when there is none.
    #[must_use]
    pub fn next_entry(&self, span: SpanIndex) -> Option<SpanIndex> {
        let _ = span;
        todo!()
    }

    /// The blob's bytes that decoding from entry `entry` up to the next entry (or the end) needs, half-open: up to and
    /// including the byte that the next entry's bit offset cuts.
    #[must_use]
    pub fn compressed_range(&self, entry: SpanIndex) -> Range<u64> {
        let _ = entry;
        todo!()
    }

    /// BLAKE3 over the stream size, and every span's stream offset and digest: the name of the cache files that hold these spans.
    #[must_use]
    pub fn spans_digest(&self) -> [u8; 32] {
        todo!()
    }
}

/// The checkpoints of all layers, as the section holds them.
#[derive(Clone)]
pub struct Checkpoints {
    layers: Vec<SpanTable>,
}

impl Checkpoints {
    /// The section's bytes: one entry of `layers` a layer, in manifest order.
    ///
    /// # Errors
    /// `Exhausted` past `CHECKPOINTS_BYTES_MAX`.
    pub fn encode(layers: &[Vec<Span>]) -> Result<Vec<u8>, FormatError> {
        let _ = layers;
        todo!()
    }

    /// The meaning of `bytes` for exactly these layers; every invariant of [`SpanTable`] and every window range is checked here.
    ///
    /// # Errors
    /// `Corrupt` with layer and span.
    pub fn open(bytes: SharedBytes, layers: &[LayerInfo], windows_len: u64) -> Result<Self, FormatError> {
        let _ = (bytes, layers, windows_len);
        todo!()
    }

    /// The spans of `layer`.
    ///
    /// # Panics
    /// When the image has no such layer.
    #[must_use]
    pub fn layer(&self, layer: LayerIndex) -> &SpanTable {
        &self.layers[usize::from(layer.get())]
    }

    /// In manifest order.
    #[must_use]
    pub fn layers(&self) -> &[SpanTable] {
        &self.layers
    }
}
