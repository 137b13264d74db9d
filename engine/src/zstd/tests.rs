#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use zstd::zstd_safe::{CCtx, CParameter};

use super::*;

/// A frame of `data` with these parameters.
fn frame(data: &[u8], parameters: &[CParameter]) -> Vec<u8> {
    let mut context = CCtx::create();
    for &parameter in parameters {
        context.set_parameter(parameter).unwrap();
    }
    let mut out = vec![0; zstd::zstd_safe::compress_bound(data.len())];
    let len = context.compress2(&mut out[..], data).unwrap();
    out.truncate(len);
    out
}

fn skippable(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[0x50 + kind, 0x2a, 0x4d, 0x18][..], &(body.len() as u32).to_le_bytes(), body].concat()
}

/// A place where decoding can start: offsets in the blob and in the stream, and the window.
type Entry = (usize, usize, u8);

/// Everything that `blob` decodes to, cut into pieces of these lengths, and where frames begin.
fn decoded(blob: &[u8], piece: usize, room: usize) -> Result<(Vec<u8>, Vec<Entry>), ZstdError> {
    let (mut zstd, mut out, mut entries) = (Zstd::new(FRAME_WINDOW_LOG_MAX), Vec::new(), Vec::new());
    let (mut buffer, mut used) = (vec![0; room], 0);
    loop {
        let input = &blob[used..blob.len().min(used + piece)];
        let step = zstd.step(input, &mut buffer)?;
        used += step.consumed;
        out.extend_from_slice(&buffer[..step.produced]);
        if let ZstdStop::FrameStart { header_len, window_log, .. } = step.stop {
            entries.push((used - usize::from(header_len), out.len(), window_log));
        }
        if step.stop == ZstdStop::More && step.consumed == 0 && step.produced == 0 {
            assert!(used == blob.len(), "no progress at {used}");
            return match zstd.is_within() {
                None => Ok((out, entries)),
                Some(place) => Err(ZstdError::Data { reason: place.to_owned() }),
            };
        }
    }
}

fn text(len: usize) -> Vec<u8> {
    (0..).flat_map(|number: u32| format!("{number} and {:x};", number.wrapping_mul(2_654_435_761)).into_bytes()).take(len).collect()
}

/// Claim: frames, empty frames and skippable frames in any order decode to their contents one after another, however input and output
/// are cut; each frame's place is right, and its window is what its header says.
#[test]
fn frames_follow_each_other() {
    let (one, two) = (text(300_000), vec![7; 200_000]);
    let no_size = [CParameter::ContentSizeFlag(false), CParameter::ChecksumFlag(true), CParameter::WindowLog(18)];
    let parts = [
        (skippable(0, b"first"), &[][..]),
        (frame(&one, &[CParameter::ChecksumFlag(true)]), &one[..]),
        (frame(&[], &[]), &[][..]),
        (frame(&[], &no_size), &[][..]),
        (skippable(15, &[]), &[][..]),
        (frame(&two, &no_size), &two[..]),
        (frame(&one[..1], &[]), &one[..1]),
        (skippable(14, &[9; 70_000]), &[][..]),
    ];
    let blob: Vec<u8> = parts.iter().flat_map(|part| part.0.clone()).collect();
    let plain: Vec<u8> = parts.iter().flat_map(|part| part.1.to_vec()).collect();
    let whole = decoded(&blob, blob.len(), 1 << 20).unwrap();
    assert!(whole.0 == plain);
    assert_eq!(whole.1.len(), 5);
    for (piece, room) in [(1, 1 << 20), (7, 100), (blob.len(), 1), (blob.len(), 131_072), (131_075, 4096)] {
        let found = decoded(&blob, piece, room).unwrap();
        assert!(found == whole, "pieces of {piece}, {room} bytes of room");
    }
    for &(at, stream, _) in &whole.1 {
        assert!(decoded(&blob[at..], 9999, 9999).unwrap().0 == plain[stream..], "from {at}");
    }
    let windows: Vec<u8> = whole.1.iter().map(|entry| entry.2).collect();
    assert_eq!(windows, [19, 0, 10, 18, 0], "a frame that is one segment needs what it holds");
}

/// Claim: a stream that breaks off anywhere but between frames is told, with what it breaks off in.
#[test]
fn a_stream_that_breaks_off_is_told() {
    let blob = [skippable(3, b"skip me"), frame(&text(1000), &[CParameter::ChecksumFlag(true)])].concat();
    let within = |len: usize| decoded(&blob[..len], 11, 4096).map_err(|error| error.to_string());
    assert!(within(0).is_ok() && within(15).is_ok() && within(blob.len()).is_ok());
    for len in (1..15).chain(16..blob.len()) {
        let expected = match len {
            1..=7 | 16..=21 => "the header of a zstd frame",
            8..=14 => "a skippable frame",
            _ => "a zstd frame",
        };
        assert_eq!(within(len).unwrap_err(), expected, "after {len} bytes");
    }
}

/// Claim: what cannot be decoded is refused by its name: garbage, a wrong checksum, a dictionary, a window larger than allowed.
#[test]
fn what_cannot_be_decoded_is_named() {
    let good = frame(&text(1000), &[CParameter::ChecksumFlag(true)]);
    let failed = |blob: &[u8]| decoded(blob, 100, 4096).unwrap_err();
    assert_eq!(failed(&[&good[..], b"garbage"].concat()), ZstdError::Magic { found: *b"garb" });
    assert_eq!(failed(&[&good[..], &[0; 4]].concat()), ZstdError::Magic { found: [0; 4] });
    let mut wrong = good.clone();
    *wrong.last_mut().unwrap() ^= 1;
    assert!(failed(&wrong).to_string().contains("checksum"), "{}", failed(&wrong));
    let dictionary = zstd::dict::from_continuous(&text(100_000), &[1000; 100], 10_000).unwrap();
    let mut context = CCtx::create();
    context.load_dictionary(&dictionary).unwrap();
    let mut with_dictionary = vec![0; 10_000];
    let len = context.compress2(&mut with_dictionary[..], &text(500)).unwrap();
    assert!(matches!(failed(&with_dictionary[..len]), ZstdError::Dictionary { id } if id != 0));
    for (log, fits) in [(27, true), (28, false)] {
        // No size, a window and nothing else; then an empty last block.
        let blob = [&[0x28, 0xb5, 0x2f, 0xfd, 0, (log - 10) << 3][..], &[1, 0, 0]].concat();
        assert_eq!(decoded(&blob, 1, 10).is_ok(), fits, "2^{log}");
        assert!(fits || failed(&blob) == ZstdError::Window { found: 1 << log, max: 1 << 27 });
    }
    assert!(Zstd::new(17).step(&frame(&text(300_000), &[]), &mut [0; 100]).is_err(), "the index promised less");
}

/// Claim: a frame that has more content than its header says is refused, and alike by a decoder that has room left from a larger frame
/// and by one that enters at it; up to the first byte too many its content is there.
#[test]
fn content_beyond_the_promise_is_refused_wherever_decoding_began() {
    // A content size of four bytes, a window of 512 KiB, and one raw block of 1000 bytes that is not the last.
    let frame_of = |content: u32| {
        let block = (1000u32 << 3).to_le_bytes();
        [&[0x28, 0xb5, 0x2f, 0xfd, 0x80, 0x48][..], &content.to_le_bytes(), &block[..3], &[5; 1000]].concat()
    };
    let large = frame(&text(300_000), &[]);
    for content in [0, 1, 999] {
        for (piece, room) in [(4096, 4096), (100, 4096), (4096, 100), (1, 1)] {
            let lone = decoded(&frame_of(content), piece, room).unwrap_err();
            let after = decoded(&[&large[..], &frame_of(content)].concat(), piece, room).unwrap_err();
            // Alone, libzstd may see it first: its buffer is as large as the promise.
            assert!(matches!(lone, ZstdError::Data { .. }), "{content} {piece} {room}: {lone}");
            assert!(after.to_string().contains("more content"), "{content} {piece} {room}: {after}");
        }
    }
    let whole = decoded(&frame_of(1000), 100, 100).unwrap_err();
    assert_eq!(whole.to_string(), "a zstd frame", "what was promised is decoded, and the rest is missing");
}

/// Claim: arbitrary bytes after a frame's magic number are an error or some output, never a panic or a call without an end.
#[test]
fn damage_is_an_error_or_output() {
    let good = frame(&text(3000), &[]);
    for at in 4..good.len() {
        for bit in 0..8 {
            let mut blob = good.clone();
            blob[at] ^= 1 << bit;
            drop(decoded(&blob, 64, 999));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Claim: whatever frames a stream is made of, it decodes to their contents, and from each frame's start to the rest.
    #[test]
    fn every_frame_is_an_entry(
        parts in prop::collection::vec((0..400_000usize, -5..6i32, any::<[bool; 3]>()), 1..6),
        piece in 1..300_000usize,
        room in 1..300_000usize,
    ) {
        let (mut blob, mut plain) = (Vec::new(), Vec::new());
        for (len, level, [checksum, size, skip]) in parts {
            let data = text(len);
            blob.extend(if skip { skippable(1, &data[..len.min(99)]) } else { Vec::new() });
            let flags = [CParameter::CompressionLevel(level), CParameter::ChecksumFlag(checksum), CParameter::ContentSizeFlag(size)];
            blob.extend(frame(&data, &flags));
            plain.extend(data);
        }
        let (piece, room) = (piece.max(blob.len() / 3000), room.max(plain.len() / 3000));
        let (found, entries) = decoded(&blob, piece, room).unwrap();
        prop_assert!(found == plain);
        for (at, stream, _) in entries {
            prop_assert!(decoded(&blob[at..], blob.len(), 1 << 20).unwrap().0 == plain[stream..]);
        }
    }
}
