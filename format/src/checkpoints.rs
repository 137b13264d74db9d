//! The table of spans of each layer: where decoding can start, and what each span's bytes must hash to.
//!
//! Section shape (docs/format.md): a directory of one fixed record a layer, then the span records of all layers.

pub(crate) mod record;

use std::{ops::Range, sync::Arc};

use zerocopy::FromBytes;

use crate::{
    bytes::SharedBytes,
    error::FormatError,
    limits,
    storage_info::LayerInfo,
    units::{CompressedOffset, LayerIndex, SpanIndex, StreamOffset},
};
use record::{LAYER_BYTES, RawSpan, SPAN_BYTES};

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
        /// The history that the data after it refers to; an empty range where that is zeros or nothing.
        window: WindowRange,
    },
    /// A zstd frame's header stands at the compressed offset; no window is needed.
    Frame {
        /// The most history that any frame up to the next entry refers to is `2^window_log` bytes: what a decoder that enters here has to
        /// have room for. `window_log <= FRAME_WINDOW_LOG_MAX`.
        window_log: u8,
    },
}

/// Where a window's zstd frame stands in the windows section, in bytes. Empty = a window of zeros: the data after the checkpoint refers
/// to no history, or to zeros only.
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
/// `stream_size`; compressed offsets never decrease and are below `compressed_size`; no span is longer than
/// `2 * SPAN_BYTES_MAX`; any `SPANS_IN_A_ROW` of them have `SPANS_IN_A_ROW_BYTES_MIN` bytes at least. An empty stream has no spans.
#[derive(Clone)]
pub struct SpanTable {
    bytes: SharedBytes,
    records: Range<usize>,
    /// The entries in rising order; `None` when every span is one.
    entries: Option<Arc<[u32]>>,
    stream_size: u64,
    compressed_size: u64,
}

impl SpanTable {
    /// The records. Both slices lie inside: `open` checked, and shared bytes never shrink.
    fn records(&self) -> &[RawSpan] {
        <[RawSpan]>::ref_from_bytes(&(*self.bytes).as_ref()[self.records.clone()]).unwrap_or_default()
    }

    fn record(&self, span: SpanIndex) -> &RawSpan {
        &self.records()[span.get() as usize]
    }

    /// Number of spans.
    #[must_use]
    pub fn len(&self) -> u32 {
        (self.records.len() / SPAN_BYTES) as u32
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
        self.record(span).to_span().expect("every record was checked when the table was opened")
    }

    /// Where `span` stands in the stream, half-open.
    ///
    /// # Panics
    /// When `span >= len()`: an index that did not come from this table.
    #[must_use]
    pub fn stream_range(&self, span: SpanIndex) -> Range<u64> {
        let records = self.records();
        let next = records.get(span.get() as usize + 1).map_or(self.stream_size, |record| record.stream.get());
        records[span.get() as usize].stream.get()..next
    }

    /// The span that holds `offset`, or `None` at or past the stream's end. Cost: a binary search.
    #[must_use]
    pub fn span_at(&self, offset: StreamOffset) -> Option<SpanIndex> {
        if offset.get() >= self.stream_size {
            return None;
        }
        let after = self.records().partition_point(|record| record.stream.get() <= offset.get());
        Some(SpanIndex(after.checked_sub(1)? as u32))
    }

    /// The nearest entry at or before `span`. Cost: at most a binary search.
    ///
    /// # Panics
    /// When the table is empty: an index that did not come from this table.
    #[must_use]
    pub fn entry_of(&self, span: SpanIndex) -> SpanIndex {
        assert!(!self.is_empty(), "a span of an empty table");
        match &self.entries {
            None => span,
            Some(entries) => SpanIndex(entries[entries.partition_point(|&entry| entry <= span.get()) - 1]),
        }
    }

    /// The first entry after `span`, or `None` when there is none.
    #[must_use]
    pub fn next_entry(&self, span: SpanIndex) -> Option<SpanIndex> {
        match &self.entries {
            None => span.checked_add(1).filter(|next| next.get() < self.len()),
            Some(entries) => entries.get(entries.partition_point(|&entry| entry <= span.get())).map(|&entry| SpanIndex(entry)),
        }
    }

    /// The blob's bytes that decoding from entry `entry` up to the next entry (or the end) needs, half-open: up to and
    /// including the byte that the next entry's bit offset cuts.
    ///
    /// # Panics
    /// When `entry >= len()`: an index that did not come from this table.
    #[must_use]
    pub fn compressed_range(&self, entry: SpanIndex) -> Range<u64> {
        let start = self.record(entry).compressed.get();
        let end = self.next_entry(entry).map_or(self.compressed_size, |next| {
            let next = self.record(next);
            next.compressed.get() + u64::from(next.bit_offset != 0)
        });
        start..end
    }

    /// BLAKE3 over the stream size, and every span's stream offset and digest: the name of the cache files that hold these spans.
    #[must_use]
    pub fn spans_digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.stream_size.to_le_bytes());
        for record in self.records() {
            hasher.update(&record.stream.get().to_le_bytes());
            hasher.update(&record.blake3);
        }
        *hasher.finalize().as_bytes()
    }

    /// BLAKE3 over every record: two tables of one layer that have the same are entered alike, but for what their windows hold.
    #[must_use]
    pub fn records_digest(&self) -> [u8; 32] {
        *blake3::hash(&(*self.bytes).as_ref()[self.records.clone()]).as_bytes()
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
        let spans: u64 = layers.iter().map(|spans| spans.len() as u64).sum();
        let found = record::spans_start(layers.len()) + spans * SPAN_BYTES as u64;
        if found > limits::CHECKPOINTS_BYTES_MAX {
            let what = "checkpoints, bytes".to_owned();
            return Err(FormatError::Limit { what, max: limits::CHECKPOINTS_BYTES_MAX, found });
        }
        Ok(record::encode(layers, found as usize))
    }

    /// The meaning of `bytes` for exactly these layers; every invariant of [`SpanTable`] and every window range is checked here.
    ///
    /// # Errors
    /// `Corrupt` with layer and span.
    pub fn open(bytes: SharedBytes, layers: &[LayerInfo], windows_len: u64) -> Result<Self, FormatError> {
        let section = (*bytes).as_ref();
        record::check_head(section, layers.len())?;
        let mut tables = Vec::with_capacity(layers.len());
        let mut first = 0;
        for (number, layer) in layers.iter().enumerate() {
            let count = record::span_count(section, number, first)?;
            let records = record::spans_range(section, layers.len(), first, count)?;
            let spans = <[RawSpan]>::ref_from_bytes(&section[records.clone()]).unwrap_or_default();
            let chained = record::check_spans(spans, &record::Layer { number, info: layer, windows_len, at: records.start as u64 })?;
            let entries = chained.then(|| record::entries(spans));
            let (stream_size, compressed_size) = (layer.stream_size, layer.compressed_size);
            tables.push(SpanTable { bytes: bytes.clone(), records, entries, stream_size, compressed_size });
            first += u64::from(count);
        }
        let expected = record::spans_start(layers.len()) + first * SPAN_BYTES as u64;
        crate::bounded::expect_eq("checkpoints length", 0, expected, section.len() as u64)?;
        Ok(Self { layers: tables })
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

const _: () = assert!(LAYER_BYTES == 16);

#[cfg(test)]
mod tests;
