//! The plain loops that figures are held against: what the work itself costs, without an engine, a cache or a mount.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
};

use anyhow::{Context, Result, ensure};
use clip_engine::inflate::{Inflate, Stop, Until};
use clip_format::{
    checkpoints::{SpanStart, SpanTable},
    units::{SpanIndex, StreamOffset},
    windows::expand_window,
};
use flate2::{Decompress, FlushDecompress, Status};

use crate::corpus::{Layer, REPOSITORY};

/// Bytes that one step of a loop reads or inflates. Source: the kernel's largest FUSE request, and the default span.
pub const PIECE_BYTES: usize = 1 << 20;

/// Inflates a gzip blob of one member in memory, into a buffer that is used again, and returns how many bytes came out. The member's
/// CRC-32 and length are checked by zlib-rs.
///
/// # Errors
/// When the blob is no whole gzip member.
pub fn inflate(blob: &[u8]) -> Result<u64> {
    let mut inflate = Decompress::new_gzip(15);
    let mut buffer = vec![0; PIECE_BYTES];
    loop {
        let before = (inflate.total_in(), inflate.total_out());
        let input = &blob[usize::try_from(before.0)?..];
        if inflate.decompress(input, &mut buffer, FlushDecompress::None)? == Status::StreamEnd {
            return Ok(inflate.total_out());
        }
        ensure!((inflate.total_in(), inflate.total_out()) != before, "the gzip member ends too early, at {} bytes", before.0);
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
    connection: BufReader<TcpStream>,
    request: String,
    table: &'a SpanTable,
    windows: &'a [u8],
    compressed: Vec<u8>,
    span: Vec<u8>,
}

impl<'a> SpanLoop<'a> {
    /// Connects to the registry at `address` for the blob of `layer`.
    ///
    /// # Errors
    /// The system's.
    pub fn connect(address: SocketAddr, layer: &Layer, table: &'a SpanTable, windows: &'a [u8]) -> Result<Self> {
        let stream = TcpStream::connect(address).context("connect to the registry")?;
        stream.set_nodelay(true)?;
        let request = format!("GET /v2/{REPOSITORY}/blobs/{} HTTP/1.1\r\nHost: {address}\r\nRange: bytes=", layer.digest);
        Ok(Self { connection: BufReader::new(stream), request, table, windows, compressed: Vec::new(), span: Vec::new() })
    }

    /// The bytes at `at` of the layer's stream, which lie in one span.
    ///
    /// # Errors
    /// When the registry, the data or the range is not as expected.
    pub fn read(&mut self, at: u64, out: &mut [u8]) -> Result<()> {
        let span = self.table.span_at(StreamOffset(at)).context("an offset past the stream")?;
        let entry = self.table.entry_of(span);
        self.fetch(entry)?;
        self.inflate(entry, span)?;
        let range = self.table.stream_range(span);
        let start = usize::try_from(at - range.start)?;
        out.copy_from_slice(self.span.get(start..start + out.len()).context("a range over more than one span")?);
        Ok(())
    }

    fn fetch(&mut self, entry: SpanIndex) -> Result<()> {
        let range = self.table.compressed_range(entry);
        write!(self.connection.get_mut(), "{}{}-{}\r\n\r\n", self.request, range.start, range.end - 1)?;
        let mut line = String::new();
        self.connection.read_line(&mut line)?;
        ensure!(line.starts_with("HTTP/1.1 206"), "expected 206, found {line:?}");
        while line.trim_end() != "" {
            line.clear();
            self.connection.read_line(&mut line)?;
        }
        self.compressed.resize(usize::try_from(range.end - range.start)?, 0);
        Ok(self.connection.read_exact(&mut self.compressed)?)
    }

    /// Decodes from `entry`; chained spans on the way are decoded and dropped.
    fn inflate(&mut self, entry: SpanIndex, span: SpanIndex) -> Result<()> {
        let (mut decoder, mut used) = start(self.table, self.windows, entry, &self.compressed)?;
        for at in entry.get()..=span.get() {
            let range = self.table.stream_range(SpanIndex(at));
            self.span.resize(usize::try_from(range.end - range.start)?, 0);
            let mut made = 0;
            while made < self.span.len() {
                let step = decoder.step(&self.compressed[used..], &mut self.span[made..], Until::Full)?;
                (used, made) = (used + step.consumed, made + step.produced);
                ensure!(made == self.span.len() || step.stop == Stop::More && step.produced > 0, "span {at} ends too early");
            }
        }
        let expected = self.table.span(span).digest;
        ensure!(*blake3::hash(&self.span).as_bytes() == expected, "span {span} has another BLAKE3");
        Ok(())
    }
}

/// A decoder that stands at `entry`, and how much of the entry's compressed bytes it has taken.
///
/// # Errors
/// When the window is damaged, or the span is no gzip entry.
pub fn start(table: &SpanTable, windows: &[u8], entry: SpanIndex, compressed: &[u8]) -> Result<(Inflate, usize)> {
    match table.span(entry).start {
        SpanStart::Member => Ok((Inflate::gzip(), 0)),
        SpanStart::Deflate { bit_offset, window } => {
            let window = expand_window(windows, window)?;
            let first = *compressed.first().context("an entry without bytes")?;
            Ok((Inflate::raw(window.as_deref(), bit_offset, first), usize::from(bit_offset > 0)))
        }
        other => anyhow::bail!("a gzip layer with an entry of kind {other:?}"),
    }
}
