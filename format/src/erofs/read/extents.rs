//! Which bytes of which layer stream a piece of a file is.

use std::ops::Range;

use super::{Content, Extent, FileType, Index, Inode};
use crate::{
    bounded::{field, record_at},
    erofs::layout::{BLOCK_BYTES, CHUNK_INDEX_BYTES, ChunkIndex, NID_UNIT, NULL_BLOCK},
    error::FormatError,
    units::{LayerIndex, StreamOffset},
};

/// The pieces of one file; ends after the first error.
struct Extents<'a> {
    index: &'a Index,
    table: u64,
    bits: u32,
    size: u64,
    /// What is left to be given.
    range: Range<u64>,
    /// Given first, then nothing more.
    error: Option<FormatError>,
}

impl Extents<'_> {
    /// The piece of the chunk that holds `at`, cut to the file's end.
    fn chunk(&self, at: u64) -> Result<Extent, FormatError> {
        let number = at >> self.bits;
        let place = self.table + number * CHUNK_INDEX_BYTES;
        let raw: &ChunkIndex = record_at(self.index.image(), "chunk index", place)?;
        let start = number << self.bits;
        let file = start..self.size.min(start + (1 << self.bits));
        let block = raw.start.get();
        if block == NULL_BLOCK {
            return Ok(Extent { file, data: None });
        }
        let layer = LayerIndex(raw.device_id.get().wrapping_sub(1));
        let available = self
            .index
            .layer_bytes(layer)
            .ok_or_else(|| field("chunk index device_id", place + 2, format!("1..={}", self.index.layer_count()), raw.device_id))?;
        let stream = u64::from(block) * BLOCK_BYTES;
        let end = stream + (file.end - file.start);
        if end > available || raw.start_high.get() != 0 {
            let expected = format!("data inside the layer's {available} bytes");
            return Err(field("chunk index startblk", place + 4, expected, format!("{stream}..{end}")));
        }
        Ok(Extent { file, data: Some((layer, StreamOffset(stream))) })
    }

    fn advance(&mut self) -> Result<Option<Extent>, FormatError> {
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        if self.range.is_empty() {
            return Ok(None);
        }
        let mut extent = self.chunk(self.range.start)?;
        while extent.file.end < self.range.end {
            let next = self.chunk(extent.file.end)?;
            if !continues(&extent, &next) {
                break;
            }
            extent.file.end = next.file.end;
        }
        let cut = self.range.start - extent.file.start;
        let file = self.range.start..extent.file.end.min(self.range.end);
        self.range.start = file.end;
        Ok(Some(Extent { file, data: extent.data.map(|(layer, stream)| (layer, StreamOffset(stream.get() + cut))) }))
    }
}

/// True when `next` is the same hole, or the same layer's next bytes.
fn continues(extent: &Extent, next: &Extent) -> bool {
    match (extent.data, next.data) {
        (None, None) => true,
        (Some((layer, stream)), Some((next_layer, next_stream))) => {
            layer == next_layer && stream.get() + (extent.file.end - extent.file.start) == next_stream.get()
        }
        _ => false,
    }
}

impl Iterator for Extents<'_> {
    type Item = Result<Extent, FormatError>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = self.advance().transpose();
        if let Some(Err(_)) = item {
            self.range = 0..0;
        }
        item
    }
}

impl Index {
    /// The pieces of `file` that cover `range` (cut to the file's size), in order, holes included, neighbours joined.
    ///
    /// The only item is an error when `file` is not a regular file.
    pub fn extents<'a>(&'a self, file: &Inode, range: Range<u64>) -> impl Iterator<Item = Result<Extent, FormatError>> + use<'a> {
        let range = range.start.min(file.size)..range.end.min(file.size);
        let range = if range.start < range.end { range } else { 0..0 };
        let mut extents = Extents { index: self, table: 0, bits: 0, size: file.size, range: 0..0, error: None };
        match file.content {
            Content::Chunks { bits, table } => extents = Extents { table, bits, range, ..extents },
            Content::None if file.file_type == FileType::Regular => {}
            Content::None | Content::Flat(_) => {
                let found = format!("{:?}", file.file_type);
                extents.error = Some(field("inode type", file.nid.get() * NID_UNIT, "a regular file", found));
            }
        }
        extents
    }

    /// Bytes of `file` that are not holes. Cost: constant, except for a sparse file: a look at each chunk.
    ///
    /// # Errors
    /// `Corrupt`; also when `file` is not a regular file.
    pub fn data_bytes(&self, file: &Inode) -> Result<u64, FormatError> {
        self.extents(file, 0..file.size).try_fold(0, |sum, extent| {
            let extent = extent?;
            Ok(sum + extent.data.map_or(0, |_| extent.file.end - extent.file.start))
        })
    }

    /// Bytes of the chunk table of `file`: what a full look at it costs.
    pub(in crate::erofs) fn chunk_table_bytes(file: &Inode) -> u64 {
        match file.content {
            Content::Chunks { bits, .. } => file.size.div_ceil(1 << bits) * CHUNK_INDEX_BYTES,
            Content::None | Content::Flat(_) => 0,
        }
    }
}
