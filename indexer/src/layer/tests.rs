#![allow(clippy::unwrap_used)]
mod frames;

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
};

use clip_engine::inflate::{Inflate, Stop, Until};
use clip_format::{checkpoints::SpanStart, limits::WINDOW_BYTES, windows::expand_window};
use flate2::{Compression, FlushCompress, write::GzEncoder};

use super::{
    blocks::{BLOCK_BYTES, StreamSink},
    gzip::GzipSpans,
    spans::SpanDraft,
    stream::BlockBytes,
    *,
};

const SPAN: u64 = 64 << 10;
const LAYER: Digest = Digest::Sha256([0; 32]);

/// Keeps everything, or only the length.
#[derive(Default)]
struct Kept {
    stream: Vec<u8>,
    stream_len: u64,
    discard: bool,
    /// By stream offset, as they are stored.
    windows: Frames,
    cuts: Vec<u64>,
}

impl StreamSink for Kept {
    fn block(&mut self, bytes: BlockBytes, cuts: Vec<usize>, _: u64) -> Result<(), IndexError> {
        self.cuts.extend(cuts.iter().map(|cut| self.stream_len + *cut as u64));
        self.stream_len += bytes.as_slice().len() as u64;
        if !self.discard {
            self.stream.extend_from_slice(bytes.as_slice());
        }
        Ok(())
    }

    fn buffer(&mut self) -> Vec<u8> {
        vec![0; BLOCK_BYTES]
    }
}

/// Bytes like a file system's: text that repeats at all distances, some noise.
fn sample(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u64;
    let mut bytes = Vec::with_capacity(len + 64);
    while bytes.len() < len {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let back = (state >> 33) as usize % 30_000;
        match (state >> 60) % 4 {
            0 | 1 if bytes.len() > back + 40 => bytes.extend_from_within(bytes.len() - back - 40..bytes.len() - back),
            2 => bytes.extend_from_slice(format!("line {} of the sample\n", state >> 50).as_bytes()),
            _ => bytes.extend_from_slice(&state.to_le_bytes()),
        }
    }
    bytes.truncate(len);
    bytes
}

fn gzip(bytes: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(level));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// What the decoder makes of `blob`, with a jury beside it as in the pipeline.
fn decoded(blob: &[u8], chunk: usize, span_bytes: u64, windows: Windows, kept: &mut Kept) -> Result<(Vec<SpanDraft>, u64), IndexError> {
    let (told_sender, told) = bounded(TOLD_MAX);
    let (verdict_sender, verdicts) = bounded(1);
    thread::scope(|scope| {
        let jury = scope.spawn(move || jury::judge_rounds(LAYER, &told, &verdict_sender));
        let judged = match windows {
            Windows::Sparse => Judged::Beside { told: told_sender, verdicts },
            Windows::None => {
                drop(told_sender);
                Judged::Windowless(Box::default())
            }
        };
        let mut spans = GzipSpans::new(LAYER, span_bytes, judged);
        let pushed = blob.chunks(chunk).try_for_each(|piece| spans.push(&Bytes::copy_from_slice(piece), kept));
        let finished = pushed.and_then(|()| spans.finish(kept));
        kept.windows = jury.join().unwrap()?;
        finished
    })
}

/// Of any three spans in a row one is long: what `SPANS_IN_A_ROW_BYTES_MIN` follows from.
fn check_lengths(drafts: &[SpanDraft], len: u64) {
    let ends = drafts.iter().skip(1).map(|draft| draft.stream).chain([len]);
    let lens: Vec<u64> = drafts.iter().zip(ends).map(|(draft, end)| end - draft.stream).collect();
    assert!(lens.windows(3).all(|row| row.iter().any(|&len| len >= SPAN)), "{lens:?}");
}

fn cut(blob: &[u8], chunk: usize, windows: Windows) -> (Vec<SpanDraft>, u64, Kept) {
    let mut kept = Kept::default();
    let (mut drafts, len) = decoded(blob, chunk, SPAN, windows, &mut kept).unwrap();
    let starts: Vec<u64> = drafts.iter().skip(1).map(|draft| draft.stream).collect();
    assert_eq!(kept.cuts, starts, "the hash job's spans are the table's");
    if drafts.last().is_some_and(|draft| draft.stream == len) {
        drafts.pop();
    }
    check_lengths(&drafts, len);
    (drafts, len, kept)
}

/// Decodes from `draft` to the end of the stream, over member ends.
fn resume(blob: &[u8], draft: &SpanDraft, window: Option<&[u8; WINDOW_BYTES]>) -> Vec<u8> {
    let mut place = draft.compressed.get() as usize;
    let mut raw = false;
    let mut inflate = match draft.start {
        SpanStart::Deflate { bit_offset, .. } => {
            raw = true;
            let inflate = Inflate::raw(window, bit_offset, blob[place]);
            place += usize::from(bit_offset > 0);
            inflate
        }
        _ => Inflate::gzip(),
    };
    let (mut stream, mut buffer) = (Vec::new(), vec![0; 100_000]);
    loop {
        let step = inflate.step(&blob[place..], &mut buffer, Until::Full).unwrap();
        stream.extend_from_slice(&buffer[..step.produced]);
        place += step.consumed;
        if step.stop == Stop::End {
            place += if raw { 8 } else { 0 };
            if blob[place..].iter().all(|byte| *byte == 0) {
                return stream;
            }
            raw = false;
            inflate.reset_gzip();
        } else {
            assert!(step.consumed + step.produced > 0, "stuck at {place}");
        }
    }
}

/// Every entry of `blob` gives exactly the stream's bytes from there on, with its window as it is stored.
fn check_resumes(what: &str, blob: &[u8], plain: &[u8], windows: Windows) -> usize {
    for chunk in [blob.len(), 4093] {
        let (drafts, len, kept) = cut(blob, chunk, windows);
        assert_eq!(len, plain.len() as u64, "{what}");
        assert!(kept.stream == plain, "{what}: the stream itself");
        for (place, draft) in drafts.iter().enumerate() {
            let end = drafts.get(place + 1).map_or(len, |next| next.stream);
            assert!(draft.stream < end && end - draft.stream <= 2 * SPAN, "{what}: span {place} of {} bytes", end - draft.stream);
            if draft.start == SpanStart::Chained {
                continue;
            }
            let frame = kept.windows.iter().find(|(at, _)| *at == draft.stream).map(|(_, frame)| frame.clone()).unwrap_or_default();
            let range = WindowRange { offset: 0, len: frame.len() as u32 };
            // A window that is stored as nothing is one of zeros: zlib takes no distance that reaches past its history.
            let stored = expand_window(&frame, range).unwrap().unwrap_or_else(|| Box::new([0; WINDOW_BYTES]));
            assert!(resume(blob, draft, Some(&stored)) == plain[draft.stream as usize..], "{what}: entry {place} of {}", drafts.len());
        }
    }
    cut(blob, blob.len(), windows).0.iter().filter(|draft| draft.start != SpanStart::Chained).count()
}

/// Resuming at every checkpoint gives the bytes that plain decompression gives. zlib-rs writes its level 1 as one block however long
/// the data is: a layer like that has hardly an entry, and chained spans. (The sample's blocks are of half a MiB.)
#[test]
fn resumes_exactly_at_every_checkpoint() {
    let plain = sample(3 << 20);
    for (level, entries_min) in [(1, 1), (2, 6), (6, 6), (9, 6)] {
        let entries = check_resumes(&format!("level {level}"), &gzip(&plain, level), &plain, Windows::Sparse);
        assert!(entries >= entries_min, "level {level}: {entries} entries in 48 span sizes");
    }
}

/// So it is for what GNU gzip itself writes at -1, -6 and -9.
#[test]
fn resumes_exactly_in_what_gzip_writes() {
    let plain = sample(3 << 20);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&plain).unwrap();
    for level in ["-1", "-6", "-9"] {
        let output = std::process::Command::new("gzip").args([level, "--stdout"]).arg(file.path()).output().unwrap();
        let entries = check_resumes(&format!("gzip {level}"), &output.stdout, &plain, Windows::Sparse);
        assert!(entries >= 6, "gzip {level}: {entries} entries in 48 span sizes");
    }
}

/// Many small members, members of all sizes and trailing zeros: no span is tiny, none is over twice the span size.
#[test]
fn members_do_not_make_tiny_spans() {
    let plain = sample(1 << 20);
    let small: Vec<u8> = plain.chunks(3000).flat_map(|piece| gzip(piece, 6)).chain([0; 100]).collect();
    let entries = check_resumes("small members", &small, &plain, Windows::Sparse);
    assert!((8..=17).contains(&entries), "{entries}");
    let mixed: Vec<u8> =
        [&plain[..0], &plain[..200_000], &plain[200_000..200_001], &plain[200_001..]].iter().flat_map(|piece| gzip(piece, 9)).collect();
    check_resumes("mixed members", &mixed, &plain, Windows::Sparse);
    assert!(check_resumes("small members, no windows", &small, &plain, Windows::None) >= 8);
}

fn flushed(plain: &[u8], flush: FlushCompress) -> Vec<u8> {
    flushed_by_turns(plain, &[flush])
}

/// One member, flushed every 10,000 bytes, each time in the next of the ways `flushes`.
fn flushed_by_turns(plain: &[u8], flushes: &[FlushCompress]) -> Vec<u8> {
    let mut compress = flate2::Compress::new(Compression::new(6), false);
    let mut raw = Vec::with_capacity(plain.len() + 100_000);
    for (piece, flush) in plain.chunks(10_000).zip(flushes.iter().cycle()) {
        let before = compress.total_in();
        let mut rest = piece;
        while !rest.is_empty() {
            compress.compress_vec(rest, &mut raw, *flush).unwrap();
            rest = &piece[(compress.total_in() - before) as usize..];
        }
    }
    raw.reserve(1000);
    compress.compress_vec(&[], &mut raw, FlushCompress::Finish).unwrap();
    let whole = gzip(plain, 1);
    let head = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    [&head[..], &raw, &whole[whole.len() - 8..]].concat()
}

/// Streams with sync flushes resume exactly; with full flushes they have entries that need no window at all.
#[test]
fn flushed_streams_resume() {
    let plain = sample(1 << 20);
    check_resumes("sync flushes", &flushed(&plain, FlushCompress::Sync), &plain, Windows::Sparse);
    check_resumes("sync flushes, no windows", &flushed(&plain, FlushCompress::Sync), &plain, Windows::None);
    let full = flushed(&plain, FlushCompress::Full);
    assert!(check_resumes("full flushes, no windows", &full, &plain, Windows::None) >= 8);
    let (_, _, kept) = cut(&full, full.len(), Windows::None);
    assert!(kept.windows.is_empty(), "no windows were asked for");
}

/// Claim: a quarter of a million blocks without output after a candidate for a checkpoint are not kept for its probe, change no byte, and
/// the spans do not depend on how they come in.
#[test]
fn blocks_without_output_are_not_kept() {
    const EMPTY: [u8; 5] = [0, 0, 0, 0xff, 0xff];
    let plain = sample(400_000);
    let mut compress = flate2::Compress::new(Compression::new(6), false);
    let (mut raw, mut pieces) = (Vec::new(), plain.chunks(10_000).peekable());
    while let Some(piece) = pieces.next() {
        raw.reserve(30_000);
        let flush = if pieces.peek().is_some() { FlushCompress::Sync } else { FlushCompress::Finish };
        compress.compress_vec(piece, &mut raw, flush).unwrap();
        // Behind the first that may be an entry, and behind the last of a round.
        if [80_000, 120_000].contains(&compress.total_in()) {
            raw.extend(EMPTY.repeat(1 << 18));
        }
    }
    let whole = gzip(&plain, 1);
    let blob = [&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255], &raw[..], &whole[whole.len() - 8..]].concat();
    check_resumes("empty blocks", &blob, &plain, Windows::Sparse);
    check_resumes("empty blocks, no windows", &blob, &plain, Windows::None);
    let (told_sender, told) = bounded(TOLD_MAX);
    let (counted_sender, counted) = bounded(TOLD_MAX);
    let (verdict_sender, verdicts) = bounded(1);
    let fed = thread::scope(|scope| {
        scope.spawn(move || jury::judge_rounds(LAYER, &counted, &verdict_sender).map(|_| ()));
        let counter = scope.spawn(move || {
            let mut fed = BTreeMap::new();
            for (round, evidence) in told {
                *fed.entry(round).or_insert(0) += if let jury::Evidence::Bytes(bytes) = &evidence { bytes.len() } else { 0 };
                counted_sender.send((round, evidence)).unwrap();
            }
            fed
        });
        let mut spans = GzipSpans::new(LAYER, SPAN, Judged::Beside { told: told_sender, verdicts });
        blob.chunks(50_000).try_for_each(|piece| spans.push(&Bytes::copy_from_slice(piece), &mut Kept::default())).unwrap();
        drop(spans);
        counter.join().unwrap()
    });
    assert!(fed.values().any(|&fed| fed == (1 << 20) + (SPAN as usize >> 1)) && fed.values().all(|&fed| fed <= 2 << 20), "{fed:?}");
}

/// A checkpoint whose data refers only to zeros before it has a window that is stored as nothing; given one of zeros, it resumes.
/// Without any it does not: zlib refuses a distance that reaches past its history.
#[test]
fn a_checkpoint_after_zeros_resumes_with_a_window_of_zeros() {
    let plain = vec![0; 1 << 20];
    let blob = flushed(&plain, FlushCompress::Sync);
    let (drafts, _, kept) = cut(&blob, blob.len(), Windows::Sparse);
    assert!(!kept.windows.is_empty());
    for (at, frame) in &kept.windows {
        assert!(frame.is_empty(), "stream offset {at}: a window of zeros takes no bytes");
        let draft = drafts.iter().find(|draft| draft.stream == *at).unwrap();
        let SpanStart::Deflate { bit_offset, .. } = draft.start else { panic!("stream offset {at}: a window, but no checkpoint") };
        let place = draft.compressed.get() as usize;
        let mut bare = Inflate::raw(None, bit_offset, blob[place]);
        bare.step(&blob[place + usize::from(bit_offset > 0)..], &mut [0; 1000], Until::Full).unwrap_err();
        assert!(resume(&blob, draft, Some(&[0; WINDOW_BYTES])) == plain[draft.stream as usize..]);
    }
    check_resumes("zeros", &blob, &plain, Windows::Sparse);
}

/// The pieces that a blob comes in change nothing: not the spans, not the windows.
#[test]
fn spans_do_not_depend_on_the_chunks() {
    let plain = sample(700_000);
    let members = plain.chunks(90_000).flat_map(|piece| gzip(piece, 6)).collect();
    let flushes = [FlushCompress::Sync, FlushCompress::Full].map(|flush| flushed(&plain, flush));
    let zeros = gzip(&vec![0; 2 << 20], 9);
    let blobs: [(&str, Vec<u8>); 5] = [
        ("one member", gzip(&sample(3 << 20), 6)),
        ("members", members),
        ("sync", flushes[0].clone()),
        ("full", flushes[1].clone()),
        ("zeros", zeros),
    ];
    for (what, blob) in blobs {
        for windows in [Windows::Sparse, Windows::None] {
            let (drafts, _, kept) = cut(&blob, blob.len(), windows);
            for chunk in [1, 13, 300, 4096, 70_001] {
                let (other_drafts, _, other) = cut(&blob, chunk, windows);
                assert!(drafts == other_drafts && kept.windows == other.windows, "{what}, {windows:?}, chunks of {chunk}");
            }
        }
    }
}

/// Of several boundaries the cheapest is taken: where every third needs no window, no span needs one.
#[test]
fn the_cheapest_boundary_is_taken() {
    let plain = sample(2 << 20);
    let blob = flushed_by_turns(&plain, &[FlushCompress::Sync, FlushCompress::Sync, FlushCompress::Full]);
    for windows in [Windows::Sparse, Windows::None] {
        let (drafts, _, kept) = cut(&blob, blob.len(), windows);
        assert!(kept.windows.is_empty(), "{windows:?}: {} windows", kept.windows.len());
        assert!(drafts.iter().all(|draft| draft.start != SpanStart::Chained) && drafts.len() >= 20, "{windows:?}: {} spans", drafts.len());
        check_resumes("every third flush is full", &blob, &plain, windows);
    }
}

/// Without windows an ordinary stream has one entry and chained spans.
#[test]
fn without_windows_spans_are_chained() {
    let plain = sample(1 << 20);
    let entries = check_resumes("no windows", &gzip(&plain, 6), &plain, Windows::None);
    assert_eq!(entries, 1);
}

/// A deflate block of 1 GiB of zeros passes through in bounded memory, cut into chained spans.
#[test]
fn a_giant_block_is_cut_in_bounded_memory() {
    let piece = vec![0; 1 << 20];
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    for _ in 0..1024 {
        encoder.write_all(&piece).unwrap();
    }
    let blob = encoder.finish().unwrap();
    let mut kept = Kept { discard: true, ..Kept::default() };
    let (drafts, len) = decoded(&blob, 65_536, 1 << 20, Windows::Sparse, &mut kept).unwrap();
    assert_eq!((len, kept.stream_len), (1 << 30, 1 << 30));
    assert!(drafts.windows(2).all(|pair| pair[1].stream - pair[0].stream <= 2 << 20));
    assert!(drafts.len() >= 512);
}

/// A truncated, damaged or trailed blob is an error that says where.
#[test]
fn bad_blobs_are_told() {
    let blob = gzip(&sample(300_000), 6);
    let push = |blob: &[u8]| {
        let mut kept = Kept::default();
        decoded(blob, blob.len(), SPAN, Windows::Sparse, &mut kept).map(|_| ())
    };
    assert!(push(&blob[..blob.len() - 1]).unwrap_err().to_string().contains("end of the blob"));
    let mut damaged = blob.clone();
    damaged[blob.len() - 6] ^= 1;
    assert!(push(&damaged).unwrap_err().to_string().contains("blob offset"));
    assert!(push(&[blob.clone(), b"junk".to_vec()].concat()).unwrap_err().to_string().contains("another gzip member"));
    assert!(push(&[blob.clone(), vec![0, 0, 1]].concat()).unwrap_err().to_string().contains("zeros or nothing"));
    assert!(push(&[blob, vec![0; 9000]].concat()).is_ok());
}

/// A tar stream of one file, as a gzip blob in a file, and the layer that it is.
fn layer_of(file: &tempfile::NamedTempFile, contents: &[u8], diff_id: Digest) -> LayerInput {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(contents.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, "file", contents).unwrap();
    let blob = gzip(&builder.into_inner().unwrap(), 6);
    std::fs::write(file.path(), &blob).unwrap();
    LayerInput {
        index: LayerIndex(0),
        digest: digest_of(&LAYER, &blob),
        diff_id,
        media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
        codec: Codec::Gzip,
        blob: BlobSource::File { path: file.path().to_owned(), offset: 0, size: blob.len() as u64 },
    }
}

fn indexed(input: &LayerInput, diff_ids: DiffIds) -> Result<LayerOutput, IndexError> {
    let client = Client::new(clip_engine::registry::ClientConfig::default()).unwrap();
    let (cancel, decoders, metadata) = (&Cancel::new(), &DecoderMemory::default(), &Metadata::default());
    let progress = &crate::progress::NoProgress;
    let (client, windows) = (&client, Windows::Sparse);
    let settings = LayerSettings { span_bytes: SPAN, windows, diff_ids, client, decoders, metadata, cancel, progress };
    index_layer(input, &settings).map(|output| output.expect("nothing stops it"))
}

/// Claim: a wrong diff_id is an error that names both, unless diff_ids are trusted: then it is passed on as it is, and all else is the same.
#[test]
fn a_wrong_diff_id_is_told_unless_it_is_trusted() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let wrong = layer_of(&file, &sample(1 << 20), Digest::Sha256([7; 32]));
    let Err(IndexError::Layer { place, expected, found, .. }) = indexed(&wrong, DiffIds::Checked) else { panic!("a wrong diff_id") };
    assert!(place.contains("diff_id") && expected == wrong.diff_id.to_string(), "{place}: {expected}");
    let right = LayerInput { diff_id: found.parse().unwrap(), ..wrong.clone() };
    let [checked, trusted] =
        [(&right, DiffIds::Checked), (&wrong, DiffIds::Trusted)].map(|(input, diff_ids)| indexed(input, diff_ids).unwrap());
    assert!(checked.info.diff_id == right.diff_id && trusted.info.diff_id == wrong.diff_id);
    assert!(checked.spans == trusted.spans && checked.frames == trusted.frames && !checked.frames.is_empty());
    assert!(checked.cpu.windows > Duration::ZERO && checked.cpu.windows < checked.cpu.all, "{:?}", checked.cpu);
}

/// Claim: the digest of the blob is checked, whether diff_ids are or not.
#[test]
fn the_blobs_digest_is_always_checked() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut input = layer_of(&file, &sample(100_000), Digest::Sha256([7; 32]));
    input.digest = Digest::Sha256([8; 32]);
    for diff_ids in [DiffIds::Checked, DiffIds::Trusted] {
        let error = indexed(&input, diff_ids).err().unwrap().to_string();
        assert!(error.contains("the blob as a whole"), "{error}");
    }
}

/// Claim: what is no tar archive is told as the tar parser's error, although it is found beside the decoder.
#[test]
fn no_tar_is_told_with_its_place() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut input = layer_of(&file, b"", Digest::Sha256([7; 32]));
    let blob = gzip(&sample(3 << 20), 6);
    std::fs::write(file.path(), &blob).unwrap();
    input.digest = digest_of(&LAYER, &blob);
    input.blob = BlobSource::File { path: file.path().to_owned(), offset: 0, size: blob.len() as u64 };
    let Err(IndexError::Layer { place, .. }) = indexed(&input, DiffIds::Trusted) else { panic!("no tar") };
    assert!(place.contains("stream offset 0"), "{place}");
}
