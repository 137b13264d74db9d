//! From extents to chunks: one for an ordinary file, several for a sparse one.

use super::{Device, FileExtent};
use crate::{
    bounded::field,
    erofs::layout::{self, BLOCK_BYTES},
    error::FormatError,
    limits,
};

/// Where chunk `n` of a file is: its device id and block, or a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chunk {
    Data { device_id: u16, block: u32 },
    Hole,
}

/// How a file is cut: `count` chunks of `1 << bits` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunking {
    pub bits: u32,
    pub count: u64,
}

/// The extents with neighbours joined that are neighbours in file and stream alike; all checked.
pub(super) fn joined(
    size: u64,
    extents: &[FileExtent],
    devices: &[Device],
    path: &dyn Fn() -> String,
) -> Result<Vec<FileExtent>, FormatError> {
    if size > limits::FILE_BYTES_MAX {
        return Err(FormatError::Limit { what: format!("{}: bytes", path()), max: limits::FILE_BYTES_MAX, found: size });
    }
    let mut joined: Vec<FileExtent> = Vec::with_capacity(extents.len());
    for extent in extents {
        let start = joined.last().map_or(0, |last| last.file_offset + last.len);
        let end = extent.file_offset.checked_add(extent.len);
        if extent.len == 0 || extent.file_offset < start || end.is_none_or(|end| end > size) {
            let expected = format!("a piece inside {start}..{size} in {}", path());
            return Err(field("file extent", extent.file_offset, expected, format!("{} bytes", extent.len)));
        }
        let stream = extent.stream.get();
        let stream_size = devices.get(usize::from(extent.layer.get())).map_or(0, |device| device.stream_size);
        if stream.checked_add(extent.len).is_none_or(|end| end > stream_size) {
            let expected = format!("data inside the {stream_size} bytes of layer {} for {}", extent.layer, path());
            return Err(field("file extent's stream offset", stream, expected, format!("{} bytes", extent.len)));
        }
        match joined.last_mut() {
            Some(last)
                if last.layer == extent.layer
                    && last.file_offset + last.len == extent.file_offset
                    && last.stream.get() + last.len == stream =>
            {
                last.len += extent.len;
            }
            _ => joined.push(*extent),
        }
    }
    for extent in &joined {
        if !extent.stream.get().is_multiple_of(BLOCK_BYTES) {
            return Err(field("file extent's stream offset", extent.stream.get(), "a multiple of 512", path()));
        }
    }
    Ok(joined)
}

/// The largest chunk that every boundary inside the file is a multiple of, or that holds the whole file.
///
/// `extents` come from [`joined`]; `size > 0`.
pub(super) fn chunking(size: u64, extents: &[FileExtent], path: &dyn Fn() -> String) -> Result<Chunking, FormatError> {
    let whole = size.next_power_of_two().trailing_zeros().clamp(layout::BLOCK_BITS, layout::CHUNK_BITS_MAX);
    let boundaries = extents.iter().flat_map(|extent| [extent.file_offset, extent.file_offset + extent.len]);
    let mut bits = whole;
    for boundary in boundaries.filter(|&boundary| boundary != 0 && boundary != size) {
        if !boundary.is_multiple_of(BLOCK_BYTES) {
            return Err(field("sparse file's segment or hole", boundary, "a multiple of 512", path()));
        }
        bits = bits.min(boundary.trailing_zeros());
    }
    let count = size.div_ceil(1 << bits);
    if count > limits::CHUNKS_PER_FILE_MAX {
        let what = format!("{}: chunks of {} bytes in a sparse file", path(), 1u64 << bits);
        return Err(FormatError::Limit { what, max: limits::CHUNKS_PER_FILE_MAX, found: count });
    }
    Ok(Chunking { bits, count })
}

/// The chunks in order. Arguments as [`chunking`] saw them.
pub(super) fn chunks(chunking: Chunking, extents: &[FileExtent]) -> impl Iterator<Item = Chunk> {
    let mut rest = extents;
    (0..chunking.count).map(move |number| {
        let start = number << chunking.bits;
        while let Some((first, others)) = rest.split_first()
            && first.file_offset + first.len <= start
        {
            rest = others;
        }
        match rest.first() {
            Some(extent) if extent.file_offset <= start => {
                let stream = extent.stream.get() + (start - extent.file_offset);
                Chunk::Data { device_id: extent.layer.get() + 1, block: (stream / BLOCK_BYTES) as u32 }
            }
            _ => Chunk::Hole,
        }
    })
}
