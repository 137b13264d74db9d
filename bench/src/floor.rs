//! The plain loops that figures are held against: what the work itself costs, without an engine, a cache or a mount.

use std::{io::Read as _, path::Path};

use anyhow::{Context, Result, ensure};
use clip_engine::inner_loops::resume;
use clip_format::{
    checkpoints::SpanTable,
    storage_info::Codec,
    units::{SpanIndex, StreamOffset},
};
use flate2::{Decompress, FlushDecompress, Status};

use crate::origin::Ranges;

/// Bytes that one step of a loop reads or inflates. Source: the kernel's largest FUSE request, and the default span.
pub const PIECE_BYTES: usize = 1 << 20;

/// Who decodes a layer of `codec` for a floor, in words.
#[must_use]
pub fn decoder(codec: Codec) -> &'static str {
    match codec {
        Codec::Gzip => "zlib-rs inflates",
        Codec::Zstd => "libzstd decodes",
        Codec::Plain => "a loop passes over",
    }
}

/// Decodes a blob in memory, into a buffer that is used again, and returns how many bytes came out.
///
/// # Errors
/// When the blob is damaged.
pub fn inflate(codec: Codec, blob: &[u8]) -> Result<u64> {
    let mut made = 0;
    decode(codec, blob, |bytes| {
        made += bytes.len() as u64;
        Ok(())
    })?;
    Ok(made)
}

/// Decodes a blob in memory and hands what came out to `take`, piece by piece. Each gzip member's CRC-32 and length are checked by zlib-rs,
/// each zstd frame's checksum by libzstd.
///
/// # Errors
/// When the blob is no whole gzip members or zstd frames, and those of `take`.
pub fn decode(codec: Codec, blob: &[u8], mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    match codec {
        Codec::Plain => return blob.chunks(PIECE_BYTES).try_for_each(take),
        Codec::Zstd => return decode_frames(blob, take),
        Codec::Gzip => {}
    }
    let (mut used, mut buffer) = (0, vec![0; PIECE_BYTES]);
    while used < blob.len() {
        let mut inflate = Decompress::new_gzip(15);
        loop {
            let before = (inflate.total_in(), inflate.total_out());
            let input = &blob[used + usize::try_from(before.0)?..];
            let status = inflate.decompress(input, &mut buffer, FlushDecompress::None)?;
            take(&buffer[..usize::try_from(inflate.total_out() - before.1)?])?;
            if status == Status::StreamEnd {
                break;
            }
            ensure!(
                (inflate.total_in(), inflate.total_out()) != before,
                "a gzip member ends too early, at {} bytes",
                used as u64 + before.0
            );
        }
        used += usize::try_from(inflate.total_in())?;
        // Some writers pad with zeros. Source: gzip(1): trailing zeros are ignored.
        if blob[used..].iter().all(|byte| *byte == 0) {
            break;
        }
    }
    Ok(())
}

/// As [`decode`], of zstd frames, whose checksums are checked by libzstd.
fn decode_frames(blob: &[u8], mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let (mut frames, mut buffer) = (zstd::stream::read::Decoder::with_buffer(blob)?, vec![0; PIECE_BYTES]);
    loop {
        match frames.read(&mut buffer)? {
            0 => return Ok(()),
            len => take(&buffer[..len])?,
        }
    }
}

/// Reads the whole of `path` into `buffer`, a piece at a time.
///
/// # Errors
/// The system's; when the file is shorter.
pub fn read_file(path: &Path, buffer: &mut [u8]) -> Result<()> {
    let mut file = std::fs::File::open(path).with_context(|| format!("open {}", path.display()))?;
    for piece in buffer.chunks_mut(PIECE_BYTES) {
        file.read_exact(piece).with_context(|| format!("read {}", path.display()))?;
    }
    Ok(())
}

/// Fetch, inflate and verify of the spans of one layer, one after another, over one connection that is already open.
pub struct SpanLoop<'a> {
    ranges: Ranges,
    table: &'a SpanTable,
    windows: &'a [u8],
    compressed: Vec<u8>,
    span: Vec<u8>,
}

impl<'a> SpanLoop<'a> {
    /// A loop over the blob that `ranges` reads.
    #[must_use]
    pub fn new(ranges: Ranges, table: &'a SpanTable, windows: &'a [u8]) -> Self {
        Self { ranges, table, windows, compressed: Vec::new(), span: Vec::new() }
    }

    /// The bytes at `at` of the layer's stream, which lie in one span.
    ///
    /// # Errors
    /// When the registry, the data or the range is not as expected.
    pub fn read(&mut self, at: u64, out: &mut [u8]) -> Result<()> {
        let span = self.table.span_at(StreamOffset(at)).context("an offset past the stream")?;
        self.decode(span)?;
        let range = self.table.stream_range(span);
        let start = usize::try_from(at - range.start)?;
        out.copy_from_slice(self.span.get(start..start + out.len()).context("a range over more than one span")?);
        Ok(())
    }

    /// Fetches, decodes and verifies `span`.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn decode(&mut self, span: SpanIndex) -> Result<()> {
        self.ranges.read(self.table.compressed_range(self.table.entry_of(span)), &mut self.compressed)?;
        Ok(resume(self.table, self.windows, span, &self.compressed, &mut self.span)?)
    }
}
