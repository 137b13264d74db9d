//! The section's fixed records, and every check that makes them trusted.

use std::{mem::offset_of, ops::Range, sync::Arc};

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U32, U64},
};

use super::{Span, SpanStart, WindowRange};
use crate::{
    bounded::{expect_eq, field, record_at, slice_at},
    error::FormatError,
    limits,
    storage_info::{Codec, LayerInfo},
    units::{CompressedOffset, StreamOffset},
};

/// The section's first bytes.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub(crate) struct RawHead {
    pub layers: U32,
    pub span_bytes: U32,
    pub reserved: U64,
}

/// One layer of the directory.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub(crate) struct RawLayer {
    pub first_span: U64,
    pub spans: U32,
    pub reserved: U32,
}

/// One span.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub(crate) struct RawSpan {
    pub compressed: U64,
    pub stream: U64,
    pub window_offset: U64,
    pub window_len: U32,
    pub kind: u8,
    pub bit_offset: u8,
    pub window_log: u8,
    pub reserved: u8,
    pub blake3: [u8; 32],
}

pub(super) const HEAD_BYTES: usize = size_of::<RawHead>();
pub(super) const LAYER_BYTES: usize = size_of::<RawLayer>();
pub(super) const SPAN_BYTES: usize = size_of::<RawSpan>();

const _: () = {
    assert!(SPAN_BYTES == 64);
    assert!(HEAD_BYTES == 16);
    assert!(offset_of!(RawSpan, blake3) == 32);
};

pub(crate) const KIND_CHAINED: u8 = 0;
pub(crate) const KIND_PLAIN: u8 = 1;
pub(crate) const KIND_MEMBER: u8 = 2;
pub(crate) const KIND_DEFLATE: u8 = 3;
pub(crate) const KIND_FRAME: u8 = 4;

impl RawSpan {
    fn from_span(span: &Span) -> Self {
        let none = WindowRange::default();
        let (kind, bit_offset, window_log, window) = match span.start {
            SpanStart::Chained => (KIND_CHAINED, 0, 0, none),
            SpanStart::Plain => (KIND_PLAIN, 0, 0, none),
            SpanStart::Member => (KIND_MEMBER, 0, 0, none),
            SpanStart::Deflate { bit_offset, window } => (KIND_DEFLATE, bit_offset, 0, window),
            SpanStart::Frame { window_log } => (KIND_FRAME, 0, window_log, none),
        };
        Self {
            compressed: U64::new(span.compressed.get()),
            stream: U64::new(span.stream.get()),
            window_offset: U64::new(window.offset),
            window_len: U32::new(window.len),
            kind,
            bit_offset,
            window_log,
            reserved: 0,
            blake3: span.digest,
        }
    }

    /// The meaning, or `None` for a kind that is not known.
    pub(super) fn to_span(self) -> Option<Span> {
        let window = WindowRange { offset: self.window_offset.get(), len: self.window_len.get() };
        let start = match self.kind {
            KIND_CHAINED => SpanStart::Chained,
            KIND_PLAIN => SpanStart::Plain,
            KIND_MEMBER => SpanStart::Member,
            KIND_DEFLATE => SpanStart::Deflate { bit_offset: self.bit_offset, window },
            KIND_FRAME => SpanStart::Frame { window_log: self.window_log },
            _ => return None,
        };
        let (compressed, stream) = (CompressedOffset(self.compressed.get()), StreamOffset(self.stream.get()));
        Some(Span { start, compressed, stream, digest: self.blake3 })
    }
}

/// Where the first span record stands.
pub(super) fn spans_start(layers: usize) -> u64 {
    (HEAD_BYTES + layers * LAYER_BYTES) as u64
}

/// `len` is what the caller counted.
pub(super) fn encode(layers: &[Vec<Span>], len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len);
    let head = RawHead { layers: U32::new(layers.len() as u32), span_bytes: U32::new(SPAN_BYTES as u32), reserved: U64::new(0) };
    bytes.extend_from_slice(head.as_bytes());
    let mut first = 0;
    for spans in layers {
        let (first_span, count) = (U64::new(first), U32::new(spans.len() as u32));
        bytes.extend_from_slice(RawLayer { first_span, spans: count, reserved: U32::new(0) }.as_bytes());
        first += spans.len() as u64;
    }
    for span in layers.iter().flatten() {
        bytes.extend_from_slice(RawSpan::from_span(span).as_bytes());
    }
    bytes
}

pub(super) fn check_head(section: &[u8], layers: usize) -> Result<(), FormatError> {
    let head: &RawHead = record_at(section, "checkpoints head", 0)?;
    if head.span_bytes.get() as usize != SPAN_BYTES || head.reserved.get() != 0 {
        return Err(FormatError::Unknown {
            what: "checkpoints record length",
            expected: SPAN_BYTES.to_string(),
            found: format!("{}, reserved {}", head.span_bytes, head.reserved),
        });
    }
    expect_eq("checkpoints layer count", 0, layers as u64, u64::from(head.layers.get()))
}

/// Number of spans of layer `number`, whose first must be span `first` of the section.
pub(super) fn span_count(section: &[u8], number: usize, first: u64) -> Result<u32, FormatError> {
    let at = (HEAD_BYTES + number * LAYER_BYTES) as u64;
    let layer: &RawLayer = record_at(section, "checkpoints layer record", at)?;
    expect_eq("checkpoints first span of a layer", at, first, layer.first_span.get())?;
    expect_eq("checkpoints layer reserved bytes", at + 12, 0, layer.reserved.get())?;
    Ok(layer.spans.get())
}

/// The byte range of `count` records from record `first`.
pub(super) fn spans_range(section: &[u8], layers: usize, first: u64, count: u32) -> Result<Range<usize>, FormatError> {
    // Below 2^32 layers * 2^32 spans * 64 bytes, but for what is checked before: the sum cannot wrap.
    let start = spans_start(layers) + first * SPAN_BYTES as u64;
    let len = u64::from(count) * SPAN_BYTES as u64;
    slice_at(section, "checkpoints span records", start, len)?;
    Ok(start as usize..(start + len) as usize)
}

/// The entries among `spans`, in order.
pub(super) fn entries(spans: &[RawSpan]) -> Arc<[u32]> {
    spans.iter().enumerate().filter(|(_, span)| span.kind != KIND_CHAINED).map(|(number, _)| number as u32).collect()
}

/// What the records of one layer are checked against.
pub(super) struct Layer<'a> {
    pub number: usize,
    pub info: &'a LayerInfo,
    pub windows_len: u64,
    /// Where the layer's first record stands in the section.
    pub at: u64,
}

impl Layer<'_> {
    fn wrong(&self, what: &'static str, span: usize, expected: impl ToString, found: impl ToString) -> FormatError {
        let found = format!("{} (layer {}, span {span})", found.to_string(), self.number);
        field(what, self.at + (span * SPAN_BYTES) as u64, expected, found)
    }
}

/// Checks every invariant of one layer's spans; true when some span is chained.
pub(super) fn check_spans(spans: &[RawSpan], layer: &Layer<'_>) -> Result<bool, FormatError> {
    let stream_size = layer.info.stream_size;
    if spans.is_empty() != (stream_size == 0) {
        let expected = format!("spans that cover {stream_size} bytes");
        return Err(layer.wrong("span count", 0, expected, spans.len()));
    }
    let mut chained = false;
    let mut compressed_min = 0;
    for (number, span) in spans.iter().enumerate() {
        check_start(span, number, layer)?;
        chained |= span.kind == KIND_CHAINED;
        let start = span.stream.get();
        let end = spans.get(number + 1).map_or(stream_size, |next| next.stream.get());
        if number == 0 && (start != 0 || span.kind == KIND_CHAINED) {
            return Err(layer.wrong("span stream offset", 0, "an entry at 0", format!("kind {} at {start}", span.kind)));
        }
        if start >= end || end > stream_size || end - start > 2 * limits::SPAN_BYTES_MAX {
            let expected = format!("a span of 1..={} bytes inside {stream_size}", 2 * limits::SPAN_BYTES_MAX);
            return Err(layer.wrong("span stream offset", number, expected, format!("{start}..{end}")));
        }
        check_row(spans, number, end, layer)?;
        let compressed = span.compressed.get();
        if compressed < compressed_min || compressed >= layer.info.compressed_size {
            let expected = format!("{compressed_min}..{}", layer.info.compressed_size);
            return Err(layer.wrong("span compressed offset", number, expected, compressed));
        }
        compressed_min = compressed;
    }
    Ok(chained)
}

/// Checks that the spans up to `number`, which ends at `end`, are not too short all together: each costs whoever reads it, whatever its length.
fn check_row(spans: &[RawSpan], number: usize, end: u64, layer: &Layer<'_>) -> Result<(), FormatError> {
    let Some(first) = (number + 1).checked_sub(limits::SPANS_IN_A_ROW) else { return Ok(()) };
    let start = spans[first].stream.get();
    if end.saturating_sub(start) >= limits::SPANS_IN_A_ROW_BYTES_MIN {
        return Ok(());
    }
    let expected = format!("{} spans in a row of at least {} bytes", limits::SPANS_IN_A_ROW, limits::SPANS_IN_A_ROW_BYTES_MIN);
    Err(layer.wrong("span stream offset", first, expected, format!("{start}..{end}")))
}

/// Checks kind, bit offset and window of one record.
fn check_start(span: &RawSpan, number: usize, layer: &Layer<'_>) -> Result<(), FormatError> {
    let fits = match (span.kind, layer.info.codec) {
        (KIND_CHAINED, _) | (KIND_PLAIN, Codec::Plain) | (KIND_MEMBER | KIND_DEFLATE, Codec::Gzip) | (KIND_FRAME, Codec::Zstd) => true,
        (KIND_PLAIN | KIND_MEMBER | KIND_DEFLATE | KIND_FRAME, _) => false,
        (kind, _) => {
            let expected = "span kinds 0 to 4".to_owned();
            let found = format!("{kind} (layer {}, span {number})", layer.number);
            return Err(FormatError::Unknown { what: "span kind", expected, found });
        }
    };
    if !fits {
        return Err(layer.wrong("span kind", number, format!("one for a {:?} layer", layer.info.codec), span.kind));
    }
    if span.kind == KIND_PLAIN && span.compressed.get() != span.stream.get() {
        return Err(layer.wrong("span compressed offset", number, span.stream, span.compressed));
    }
    let bits_max = if span.kind == KIND_DEFLATE { 7 } else { 0 };
    if span.bit_offset > bits_max || span.reserved != 0 {
        let found = format!("{}, reserved {}", span.bit_offset, span.reserved);
        return Err(layer.wrong("span bit offset", number, format!("0..={bits_max}"), found));
    }
    let log_max = if span.kind == KIND_FRAME { limits::FRAME_WINDOW_LOG_MAX } else { 0 };
    if span.window_log > log_max {
        return Err(layer.wrong("span window log", number, format!("0..={log_max}"), span.window_log));
    }
    let (offset, len) = (span.window_offset.get(), span.window_len.get());
    let len_max = if span.kind == KIND_DEFLATE { limits::WINDOW_FRAME_BYTES_MAX } else { 0 };
    let inside = offset.checked_add(u64::from(len)).is_some_and(|end| end <= layer.windows_len);
    if len > len_max || !inside || (len == 0 && offset != 0) {
        let expected = format!("up to {len_max} bytes inside the {} of the windows section", layer.windows_len);
        return Err(layer.wrong("span window", number, expected, format!("{len} bytes at {offset}")));
    }
    Ok(())
}
