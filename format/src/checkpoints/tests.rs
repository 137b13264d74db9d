#![allow(clippy::unwrap_used)]

use zerocopy::IntoBytes;

use super::*;
use crate::{digest::Digest, error::ErrorKind, storage_info::Codec};

fn layer(codec: Codec, compressed_size: u64, stream_size: u64) -> LayerInfo {
    let digest = Digest::Sha256([1; 32]);
    LayerInfo { digest, diff_id: digest, media_type: String::new(), compressed_size, stream_size, codec }
}

fn span(start: SpanStart, compressed: u64, stream: u64) -> Span {
    Span { start, compressed: CompressedOffset(compressed), stream: StreamOffset(stream), digest: [stream as u8; 32] }
}

fn deflate(bit_offset: u8, offset: u64, len: u32) -> SpanStart {
    SpanStart::Deflate { bit_offset, window: WindowRange { offset, len } }
}

/// Entries at 0, 100, 400 and chained spans at 200, 300; then a plain layer; then an empty one; then frames with a chained span between.
fn sample() -> (Vec<Vec<Span>>, Vec<LayerInfo>) {
    let gzip = vec![
        span(SpanStart::Member, 0, 0),
        span(deflate(3, 0, 10), 40, 100),
        span(SpanStart::Chained, 40, 200),
        span(SpanStart::Chained, 50, 300),
        span(deflate(0, 10, 20), 90, 400),
    ];
    let plain = vec![span(SpanStart::Plain, 0, 0), span(SpanStart::Plain, 512, 512)];
    let frame = |window_log| SpanStart::Frame { window_log };
    let zstd = vec![span(frame(27), 8, 0), span(SpanStart::Chained, 30, 100), span(frame(0), 60, 130)];
    let layers =
        vec![layer(Codec::Gzip, 120, 450), layer(Codec::Plain, 1024, 1024), layer(Codec::Gzip, 20, 0), layer(Codec::Zstd, 70, 131)];
    (vec![gzip, plain, vec![], zstd], layers)
}

fn open(spans: &[Vec<Span>], layers: &[LayerInfo]) -> Result<Checkpoints, FormatError> {
    Checkpoints::open(Arc::new(Checkpoints::encode(spans).unwrap()), layers, 30)
}

#[test]
fn what_is_written_is_read() {
    let (spans, layers) = sample();
    let checkpoints = open(&spans, &layers).unwrap();
    for (number, wanted) in spans.iter().enumerate() {
        let table = checkpoints.layer(LayerIndex(number as u16));
        let found: Vec<_> = (0..table.len()).map(|span| table.span(SpanIndex(span))).collect();
        assert_eq!(&found, wanted);
        assert_eq!(table.is_empty(), wanted.is_empty());
        assert_eq!((table.stream_size(), table.compressed_size()), (layers[number].stream_size, layers[number].compressed_size));
    }
}

#[test]
fn every_offset_belongs_to_the_span_whose_range_holds_it() {
    let (spans, layers) = sample();
    let checkpoints = open(&spans, &layers).unwrap();
    for table in checkpoints.layers() {
        for offset in 0..table.stream_size() {
            let span = table.span_at(StreamOffset(offset)).unwrap();
            assert!(table.stream_range(span).contains(&offset));
        }
        assert_eq!(table.span_at(StreamOffset(table.stream_size())), None);
        assert_eq!(table.span_at(StreamOffset(u64::MAX)), None);
    }
}

#[test]
fn entries_are_found_backwards_and_forwards() {
    let (spans, layers) = sample();
    let checkpoints = open(&spans, &layers).unwrap();
    let gzip = checkpoints.layer(LayerIndex(0));
    let entry = |span| gzip.entry_of(SpanIndex(span)).get();
    assert_eq!([entry(0), entry(1), entry(2), entry(3), entry(4)], [0, 1, 1, 1, 4]);
    let next = |span| gzip.next_entry(SpanIndex(span)).map(SpanIndex::get);
    assert_eq!([next(0), next(1), next(2), next(3), next(4)], [Some(1), Some(4), Some(4), Some(4), None]);
    let plain = checkpoints.layer(LayerIndex(1));
    assert_eq!((plain.entry_of(SpanIndex(1)).get(), plain.next_entry(SpanIndex(0))), (1, Some(SpanIndex(1))));
    assert_eq!(plain.next_entry(SpanIndex(1)), None);
}

#[test]
fn a_compressed_range_holds_the_byte_that_the_next_entrys_bits_cut() {
    let (spans, layers) = sample();
    let checkpoints = open(&spans, &layers).unwrap();
    let gzip = checkpoints.layer(LayerIndex(0));
    assert_eq!(gzip.compressed_range(SpanIndex(0)), 0..41);
    assert_eq!(gzip.compressed_range(SpanIndex(1)), 40..90);
    assert_eq!(gzip.compressed_range(SpanIndex(4)), 90..120);
}

#[test]
fn the_digest_of_spans_depends_on_boundaries_and_digests_but_not_on_windows() {
    let digest = |spans: &[Vec<Span>]| open(spans, &sample().1).unwrap().layer(LayerIndex(0)).spans_digest();
    let (spans, _) = sample();
    let mut other = spans.clone();
    other[0][1].start = deflate(5, 3, 7);
    assert_eq!(digest(&spans), digest(&other));
    other[0][3].stream = StreamOffset(301);
    assert_ne!(digest(&spans), digest(&other));
    other = spans.clone();
    other[0][3].digest[31] ^= 1;
    assert_ne!(digest(&spans), digest(&other));
}

/// Makes the sample's spans wrong in one way.
type Break = fn(&mut Vec<Vec<Span>>);

#[test]
fn every_broken_invariant_is_corrupt() {
    let cases: [(&str, Break); 17] = [
        ("the first span is chained", |spans| spans[0][0].start = SpanStart::Chained),
        ("the first span starts late", |spans| spans[0][0].stream = StreamOffset(1)),
        ("stream offsets repeat", |spans| spans[0][2].stream = StreamOffset(100)),
        ("stream offsets fall", |spans| spans[0][2].stream = StreamOffset(50)),
        ("a span starts at the end", |spans| spans[0][4].stream = StreamOffset(450)),
        ("compressed offsets fall", |spans| spans[0][3].compressed = CompressedOffset(39)),
        ("a compressed offset is at the end", |spans| spans[0][4].compressed = CompressedOffset(120)),
        ("a window is outside", |spans| spans[0][4].start = deflate(0, 11, 20)),
        ("a window wraps", |spans| spans[0][4].start = deflate(0, u64::MAX, 20)),
        ("an empty window has a place", |spans| spans[0][4].start = deflate(0, 5, 0)),
        ("a bit offset of 8", |spans| spans[0][4].start = deflate(8, 0, 0)),
        ("a gzip layer is entered as plain", |spans| spans[0][4].start = SpanStart::Plain),
        ("a plain layer's offsets differ", |spans| spans[1][1].compressed = CompressedOffset(511)),
        ("no spans", |spans| spans[1].clear()),
        ("a frame of more history than any decoder has room for", |spans| spans[3][2].start = SpanStart::Frame { window_log: 28 }),
        ("a zstd layer is entered as gzip", |spans| spans[3][2].start = SpanStart::Member),
        ("a gzip layer is entered as zstd", |spans| spans[0][4].start = SpanStart::Frame { window_log: 10 }),
    ];
    for (what, breaks) in cases {
        let (mut spans, layers) = sample();
        breaks(&mut spans);
        let error = open(&spans, &layers).err().unwrap_or_else(|| panic!("{what}: accepted"));
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
    }
}

#[test]
fn a_span_longer_than_any_buffer_is_corrupt() {
    let spans = vec![vec![span(SpanStart::Member, 0, 0)]];
    let fits = 2 * limits::SPAN_BYTES_MAX;
    assert!(open(&spans, &[layer(Codec::Gzip, 100, fits)]).is_ok());
    assert!(open(&spans, &[layer(Codec::Gzip, 100, fits + 1)]).is_err());
}

/// Claim: spans may be as short as a byte, but not many in a row, wherever they are and however long the others are.
#[test]
fn many_short_spans_in_a_row_are_corrupt() {
    let (count, bytes_min) = (limits::SPANS_IN_A_ROW as u64, limits::SPANS_IN_A_ROW_BYTES_MIN);
    let check = |starts: &[u64], stream_size: u64| {
        let spans = starts.iter().map(|&at| span(SpanStart::Plain, at, at)).collect();
        open(&[spans], &[layer(Codec::Plain, stream_size, stream_size)]).map(|_| ())
    };
    let few: Vec<u64> = (0..count - 1).collect();
    assert!(check(&few, count - 1).is_ok(), "a small layer of short spans");
    let row: Vec<u64> = (0..count).collect();
    assert!(check(&row, bytes_min).is_ok() && check(&row, bytes_min - 1).is_err());
    for behind in [0, 1, 100] {
        // Large spans, then a row of short ones, then a large one.
        let mut starts: Vec<u64> = (0..behind).map(|number| number << 20).collect();
        starts.extend((0..count).map(|number| (behind << 20) + number));
        starts.push((behind << 20) + bytes_min - 1);
        let error = check(&starts, (behind + 10) << 20).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().contains("32 spans in a row of at least 524288 bytes"), "{error}");
    }
}

#[test]
fn other_layers_lengths_and_kinds_are_errors() {
    let (spans, layers) = sample();
    let bytes = Checkpoints::encode(&spans).unwrap();
    let open = |bytes: &[u8], layers: &[LayerInfo]| Checkpoints::open(Arc::new(bytes.to_vec()), layers, 30);
    assert!(open(&bytes, &layers[..2]).is_err());
    for len in 0..bytes.len() {
        assert!(open(&bytes[..len], &layers).is_err(), "{len} bytes");
    }
    assert!(open(&[bytes.as_slice(), &[0]].concat(), &layers).is_err());
    let mut kind = bytes.clone();
    kind[16 + 4 * 16 + 28] = 5;
    assert_eq!(open(&kind, &layers).err().unwrap().kind(), ErrorKind::Unsupported);
    let mut flipped = bytes.clone();
    for position in 0..bytes.len() {
        flipped[position] ^= 0xff;
        if let Ok(checkpoints) = open(&flipped, &layers) {
            assert_eq!(checkpoints.layers().len(), 4);
        }
        flipped[position] ^= 0xff;
    }
    assert_eq!(RawSpan::ref_from_bytes(&bytes[80..144]).unwrap().as_bytes().len(), 64);
}
