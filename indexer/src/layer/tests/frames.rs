use ::zstd::zstd_safe::{CCtx, CParameter, compress_bound};
use clip_engine::zstd::{Zstd, ZstdStop};
use clip_format::units::CompressedOffset;
use proptest::prelude::*;

use super::*;

/// A frame of `data`, as one that is written piece by piece: without its size, with a checksum.
fn streamed_frame(data: &[u8], window_log: u32) -> Vec<u8> {
    let flags = [CParameter::ContentSizeFlag(false), CParameter::ChecksumFlag(true)];
    // A window is not made larger than the data, whose size is known here; the header of a long one says all of it.
    frame(data, &[&flags[..], &[CParameter::WindowLog(window_log)]].concat())
}

fn frame(data: &[u8], parameters: &[CParameter]) -> Vec<u8> {
    let mut context = CCtx::create();
    for &parameter in parameters {
        context.set_parameter(parameter).unwrap();
    }
    let mut out = vec![0; compress_bound(data.len())];
    let len = context.compress2(&mut out[..], data).unwrap();
    out.truncate(len);
    out
}

fn skippable(body: &[u8]) -> Vec<u8> {
    [&[0x5e, 0x2a, 0x4d, 0x18][..], &(body.len() as u32).to_le_bytes(), body].concat()
}

fn spans_of(blob: &[u8], chunk: usize) -> Result<(Vec<SpanDraft>, u64, Kept), IndexError> {
    let (decoders, cancel) = (DecoderMemory::default(), Cancel::new());
    let (mut spans, mut kept) = (ZstdSpans::new(LAYER, SPAN, DecoderShare::new(&decoders, &cancel)), Kept::default());
    blob.chunks(chunk).try_for_each(|piece| spans.push(piece, &mut kept))?;
    let (drafts, len) = spans.finish(&mut kept)?;
    Ok((drafts, len, kept))
}

/// The drafts of `blob`, which must not depend on how it comes in; from every entry the rest of `plain` decodes within its window.
fn checked_drafts(blob: &[u8], plain: &[u8], chunks: &[usize]) -> Vec<SpanDraft> {
    let (mut drafts, len, kept) = spans_of(blob, blob.len().max(1)).unwrap();
    assert!(len == plain.len() as u64 && kept.stream == plain);
    for &chunk in chunks {
        let other = spans_of(blob, chunk).unwrap();
        assert!(other.0 == drafts && other.2.cuts == kept.cuts, "chunks of {chunk}");
    }
    let cuts: Vec<u64> = drafts.iter().skip(1).map(|draft| draft.stream).collect();
    assert_eq!(kept.cuts, cuts, "the hash job's spans are the table's");
    drafts.pop_if(|last| last.stream == len);
    check_lengths(&drafts, len);
    for (place, draft) in drafts.iter().enumerate() {
        let next = drafts.get(place + 1);
        let end = next.map_or(len, |next| next.stream);
        assert!(draft.stream < end && end - draft.stream <= 2 * SPAN, "span {place} of {} bytes", end - draft.stream);
        assert!(next.is_none_or(|next| draft.compressed <= next.compressed), "span {place}");
        let SpanStart::Frame { window_log } = draft.start else {
            assert_eq!(draft.start, SpanStart::Chained);
            continue;
        };
        let entry_end = drafts[place + 1..].iter().find(|draft| draft.start != SpanStart::Chained).map_or(len, |draft| draft.stream);
        let wanted = &plain[draft.stream as usize..entry_end as usize];
        assert!(resumed(&blob[draft.compressed.get() as usize..], window_log, wanted.len()) == wanted, "entry {place}");
    }
    drafts
}

fn resumed(blob: &[u8], window_log: u8, len: usize) -> Vec<u8> {
    let (mut zstd, mut used, mut made, mut out) = (Zstd::new(window_log), 0, 0, vec![0; len]);
    while made < len {
        let step = zstd.step(&blob[used..], &mut out[made..]).unwrap();
        assert!(step.consumed + step.produced > 0 || step.stop != ZstdStop::More, "stuck at {used}");
        (used, made) = (used + step.consumed, made + step.produced);
    }
    out
}

fn kinds(drafts: &[SpanDraft]) -> String {
    drafts.iter().map(|draft| if draft.start == SpanStart::Chained { 'c' } else { 'e' }).collect()
}

/// Claim: small frames are joined into spans that begin at frames; a frame of over twice the span size is an entry and chained spans,
/// and the next frame is an entry again.
#[test]
fn spans_begin_at_frames() {
    let plain = sample(4 << 20);
    let frames = |lens: &[usize]| {
        let (mut at, mut blob) = (0, Vec::new());
        for &len in lens {
            blob.extend(frame(&plain[at..at + len], &[]));
            at += len;
        }
        (blob, at)
    };
    let small = vec![10_000; 100];
    // Seven frames reach the span size; nothing is longer than that and a frame.
    let cases: [(&[usize], &str); 8] = [
        (&small, &"e".repeat(15)),
        (&[1_000_000], "eccccccccccccccc"),
        (&[131_072], "e"),
        (&[131_073], "ecc"),
        (&[60_000, 100_000, 65_536, 65_536], "eeee"),
        (&[60_000, 300_000, 1000, 1000], "eecccce"),
        (&[0, 0, 100_000, 0, 100_000], "ee"),
        (&[131_072, 131_072], "ee"),
    ];
    for (lens, expected) in cases {
        let (blob, len) = frames(lens);
        let drafts = checked_drafts(&blob, &plain[..len], &[1000, 131_075]);
        assert_eq!(kinds(&drafts), expected, "{lens:?}: {drafts:?}");
    }
}

/// Claim: the first span of a large frame is no longer than the span size where the header says how large it is, and twice that where nobody
/// knows yet; the others are of the span size either way. Frames of up to twice the span size are not cut.
#[test]
fn a_large_frame_is_not_waited_for() {
    let plain = sample(400_000);
    for (blob, first) in [(frame(&plain, &[]), SPAN), (streamed_frame(&plain, 17), 2 * SPAN)] {
        let drafts = checked_drafts(&blob, &plain, &[1, 4097]);
        let expected: Vec<u64> = std::iter::once(0).chain((first..400_000).step_by(SPAN as usize)).collect();
        assert_eq!(drafts.iter().map(|draft| draft.stream).collect::<Vec<_>>(), expected);
    }
    let blob = [frame(&plain[..120_000], &[]), streamed_frame(&plain[120_000..250_000], 17)].concat();
    assert_eq!(kinds(&checked_drafts(&blob, &plain[..250_000], &[1000])), "ee");
}

/// Claim: skippable frames are in no span, wherever they are, and an entry needs room for the largest window up to the next one.
#[test]
fn skippable_frames_are_passed_over() {
    let plain = sample(260_000);
    let first = [skippable(b"a table"), streamed_frame(&plain[..50_000], 17)].concat();
    let second = [skippable(&[1; 5000]), streamed_frame(&plain[50_000..120_000], 19)].concat();
    let third = streamed_frame(&plain[120_000..], 17);
    let blob = [&first[..], &second, &third, &skippable(&[]), &skippable(&[7; 100_000])].concat();
    let drafts = checked_drafts(&blob, &plain, &[1, 4097]);
    let entry = |at: usize, stream, window_log| SpanDraft {
        start: SpanStart::Frame { window_log },
        compressed: CompressedOffset(at as u64),
        stream,
    };
    assert_eq!(drafts[0], entry(15, 0, 17));
    assert_eq!(drafts[1], entry(first.len() + second.len(), 120_000, 17), "{drafts:?}");
    assert!(kinds(&drafts) == "eec" && matches!(drafts[2].start, SpanStart::Chained));
}

/// Claim: blobs without a byte of stream are layers without spans.
#[test]
fn nothing_is_no_span() {
    for blob in [frame(&[], &[]), skippable(b"only this"), [frame(&[], &[]), skippable(&[]), streamed_frame(&[], 17)].concat()] {
        assert_eq!(checked_drafts(&blob, &[], &[1]), []);
    }
}

/// Claim: a truncated, damaged or trailed blob is an error that says where, and what was expected; so is one that needs too much.
#[test]
fn bad_zstd_blobs_are_told() {
    let blob = [streamed_frame(&sample(300_000), 17), skippable(b"the end")].concat();
    let told = |blob: &[u8]| spans_of(blob, 4096).map(|_| ()).unwrap_err().to_string();
    assert!(told(&blob[..blob.len() - 1]).contains("expected the rest of a skippable frame, found the end of the blob"));
    assert!(told(&blob[..50_000]).contains("blob offset 50000, "), "{}", told(&blob[..50_000]));
    let mut damaged = blob.clone();
    damaged[blob.len() - 16] ^= 1;
    assert!(told(&damaged).contains("stream offset 300000: expected valid zstd data, found") && told(&damaged).contains("checksum"));
    for tail in [&b"junk"[..], &[0; 512]] {
        let error = told(&[&blob, tail].concat());
        assert!(error.contains("expected another zstd frame") && error.contains(&hex::encode(&tail[..4])), "{error}");
    }
    let large = [&[0x28, 0xb5, 0x2f, 0xfd, 0, 18 << 3][..], &[1, 0, 0]].concat();
    let error = told(&large);
    assert!(error.contains("window of 268435456 bytes is not supported") && error.contains("at most 134217728"), "{error}");
    // A dictionary's id of one byte.
    let error = told(&[&[0x28, 0xb5, 0x2f, 0xfd, 1, 0, 42][..], &[1, 0, 0]].concat());
    assert!(error.contains("dictionary 42"), "{error}");
}

/// A frame of 1 GiB of zeros passes through in bounded memory, cut into chained spans.
#[test]
fn a_giant_frame_is_cut_in_bounded_memory() {
    let mut encoder = ::zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
    let piece = vec![0; 1 << 20];
    for _ in 0..1024 {
        encoder.write_all(&piece).unwrap();
    }
    let blob = encoder.finish().unwrap();
    let mut kept = Kept { discard: true, ..Kept::default() };
    let (decoders, cancel) = (DecoderMemory::default(), Cancel::new());
    let mut spans = ZstdSpans::new(LAYER, 1 << 20, DecoderShare::new(&decoders, &cancel));
    blob.chunks(65_536).try_for_each(|piece| spans.push(piece, &mut kept)).unwrap();
    let (drafts, len) = spans.finish(&mut kept).unwrap();
    assert_eq!((len, kept.stream_len), (1 << 30, 1 << 30));
    assert!(kinds(&drafts[..512]) == format!("e{}", "c".repeat(511)));
}

/// A layer of one file whose blob is `blob`, under `media_type`, which names `codec`.
fn layer(file: &tempfile::NamedTempFile, blob: &[u8], stream: &[u8], media_type: &str, codec: Codec) -> LayerInput {
    std::fs::write(file.path(), blob).unwrap();
    LayerInput {
        index: LayerIndex(0),
        digest: digest_of(&LAYER, blob),
        diff_id: digest_of(&LAYER, stream),
        media_type: media_type.to_owned(),
        codec,
        blob: BlobSource::File { path: file.path().to_owned(), offset: 0, size: blob.len() as u64 },
    }
}

/// Claim: the blob's own first bytes decide what it is, whatever the media type says: one warning that names both, and the same spans.
#[test]
fn a_media_type_that_lies_is_a_warning() {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(700_000);
    builder.append_data(&mut header, "file", &sample(700_000)[..]).unwrap();
    let stream = builder.into_inner().unwrap();
    let blobs = [
        (Codec::Plain, "not compressed", stream.clone()),
        (Codec::Gzip, "gzip", gzip(&stream, 6)),
        (Codec::Zstd, "zstd", frame(&stream, &[])),
        (Codec::Zstd, "zstd", [skippable(b"first"), frame(&stream, &[])].concat()),
    ];
    let file = tempfile::NamedTempFile::new().unwrap();
    for (codec, is, blob) in &blobs {
        for (said, media_type) in [(Codec::Plain, "a/tar"), (Codec::Gzip, "a/tar+gzip"), (Codec::Zstd, "a/tar+zstd")] {
            let output = indexed(&layer(&file, blob, &stream, media_type, said), DiffIds::Checked).unwrap();
            assert!(output.info.codec == *codec && output.entries.len() == 1, "{is} as {media_type}");
            let expected = if said == *codec { vec![] } else { vec![format!("says {media_type}, but the blob is {is}; read as it is")] };
            assert_eq!(output.warnings.len(), expected.len(), "{:?}", output.warnings);
            assert!(output.warnings.iter().zip(&expected).all(|(found, expected)| found.contains(expected)), "{:?}", output.warnings);
        }
    }
}

/// Claim: a layer that is one long frame says in its warning that it is read from its start.
#[test]
fn one_long_frame_is_warned_of() {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(40 << 20);
    builder.append_data(&mut header, "file", std::io::repeat(7).take(40 << 20)).unwrap();
    let stream = builder.into_inner().unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let output = indexed(&layer(&file, &frame(&stream, &[]), &stream, "a/tar+zstd", Codec::Zstd), DiffIds::Trusted).unwrap();
    assert!(output.warnings.len() == 1 && output.warnings[0].contains("one zstd frame"), "{:?}", output.warnings);
}

/// Claim: where frames make the shortest spans there can be, long ones are between.
#[test]
fn the_shortest_spans_have_long_ones_between() {
    let (span, plain) = (SPAN as usize, sample(3 << 20));
    let (mut blob, mut at) = (Vec::new(), 0);
    for len in std::iter::repeat_n([1, 2 * span + 1], 20).flatten() {
        blob.extend(frame(&plain[at..at + len], &[]));
        at += len;
    }
    let drafts = checked_drafts(&blob, &plain[..at], &[1000]);
    assert_eq!(kinds(&drafts), "eecc".repeat(20), "an entry of a byte, two long ones, and a chained one of a byte");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Claim: whatever frames a layer is made of, the stream is right, spans tile it, and every entry resumes within its window.
    #[test]
    fn any_frames_resume_at_every_entry(
        parts in prop::collection::vec((prop_oneof![0..2000usize, 0..200_000usize, 100_000..500_000usize], -3..4i32, any::<[bool; 3]>()), 1..8),
        chunk in 500..300_000usize,
    ) {
        let plain = sample(parts.iter().map(|part| part.0).sum());
        let (mut blob, mut at) = (Vec::new(), 0);
        for (len, level, [checksum, size, skip]) in parts {
            blob.extend(if skip { skippable(&plain[..len.min(300).min(plain.len())]) } else { Vec::new() });
            let flags = [CParameter::CompressionLevel(level), CParameter::ChecksumFlag(checksum), CParameter::ContentSizeFlag(size)];
            blob.extend(frame(&plain[at..at + len], &flags));
            at += len;
        }
        checked_drafts(&blob, &plain, &[chunk]);
    }
}
