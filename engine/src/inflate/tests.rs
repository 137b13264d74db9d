#![allow(clippy::unwrap_used)]

use std::io::Write;

use flate2::{Compression, write::GzEncoder};

use super::*;

/// Text with short and long repeats, so that blocks refer far back; a pure function of `seed`.
fn sample(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut out = Vec::with_capacity(len + 512);
    while out.len() < len {
        let draw = next();
        match draw % 4 {
            0 => out.extend_from_slice(format!("{draw:x} ").as_bytes()),
            1 if out.len() > 40_000 => {
                let from = out.len() - 1 - (draw >> 8) as usize % 32_000;
                let till = (from + 3 + (draw >> 32) as usize % 200).min(out.len());
                out.extend_from_within(from..till);
            }
            2 => out.extend(std::iter::repeat_n((draw >> 8) as u8, (draw >> 16) as usize % 100)),
            _ => out.extend_from_slice(&draw.to_le_bytes()),
        }
    }
    out.truncate(len);
    out
}

fn gzip(data: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(level));
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// Decodes one whole stream in pieces of `piece` input bytes; gives the output and the block stops (consumed, unused bits, produced).
fn decode(mut inflate: Inflate, input: &[u8], piece: usize, until: Until) -> (Vec<u8>, Vec<(u64, u8, usize)>, usize) {
    let (mut out, mut stops, mut used) = (Vec::new(), Vec::new(), 0);
    let mut buffer = vec![0; 70_000];
    loop {
        let till = (used + piece).min(input.len());
        let step = inflate.step(&input[used..till], &mut buffer, until).unwrap();
        used += step.consumed;
        out.extend_from_slice(&buffer[..step.produced]);
        match step.stop {
            Stop::End => return (out, stops, used),
            Stop::Block { unused_bits } => stops.push((used as u64, unused_bits, out.len())),
            Stop::More => assert!(step.consumed + step.produced > 0, "stuck at {used} of {}", input.len()),
        }
    }
}

/// Claim: decoding resumed at every block boundary gives the bytes that decoding from the start gives, at every level.
#[test]
fn resume_at_every_block_boundary_is_byte_exact() {
    let data = sample(3 << 20, 7);
    // Level 1 of zlib-rs makes one block of it all.
    for level in [3, 6, 9] {
        let blob = gzip(&data, level);
        let (plain, stops, used) = decode(Inflate::gzip(), &blob, blob.len(), Until::Block);
        assert!(plain == data && used == blob.len());
        assert!(stops.len() > 5, "level {level} made {} blocks", stops.len());
        assert!(stops.iter().any(|stop| stop.1 != 0), "some block must start within a byte");
        let mut inflate = Inflate::gzip();
        for (consumed, unused_bits, produced) in stops {
            let (place, bit_offset) = checkpoint_place(consumed, unused_bits);
            let mut window = [0; WINDOW_BYTES];
            let history = &data[produced.saturating_sub(WINDOW_BYTES)..produced];
            window[WINDOW_BYTES - history.len()..].copy_from_slice(history);
            let at = place.get() as usize;
            inflate.reset_raw(Some(&window), bit_offset, blob[at]);
            let from = if bit_offset == 0 { at } else { at + 1 };
            let (rest, _, used) = decode(std::mem::replace(&mut inflate, Inflate::gzip()), &blob[from..], 10_000, Until::Full);
            assert!(rest == data[produced..], "level {level}, block at {produced}");
            assert_eq!(from + used + 8, blob.len(), "the trailer is still in the input");
        }
    }
}

/// Claim: stops, outputs and places do not depend on how the input is cut.
#[test]
fn stops_do_not_depend_on_input_pieces() {
    let data = sample(400_000, 3);
    let blob = gzip(&data, 6);
    let whole = decode(Inflate::gzip(), &blob, blob.len(), Until::Block);
    for piece in [1, 7, 4096] {
        assert!(decode(Inflate::gzip(), &blob, piece, Until::Block) == whole, "piece {piece}");
    }
}

/// Claim: the end of a gzip header is no block boundary, and the last block's end is the stream's end.
#[test]
fn header_and_last_block_are_not_reported() {
    let blob = gzip(b"one block", 6);
    let (out, stops, _) = decode(Inflate::gzip(), &blob, blob.len(), Until::Block);
    assert_eq!((out.as_slice(), stops.len()), (&b"one block"[..], 0));
}

/// Claim: a damaged trailer, a damaged header and random bytes are errors with zlib's words, and the decoder can be reset after.
#[test]
fn damage_is_an_error_and_reset_recovers() {
    let blob = gzip(b"some bytes", 6);
    let mut inflate = Inflate::gzip();
    let mut buffer = [0; 100];
    for at in [0, blob.len() - 6, blob.len() - 1] {
        let mut bad = blob.clone();
        bad[at] ^= 0x10;
        inflate.reset_gzip();
        let error = inflate.step(&bad, &mut buffer, Until::Full).unwrap_err();
        assert!(error.reason.contains("incorrect"), "{error}");
    }
    inflate.reset_gzip();
    let step = inflate.step(&blob, &mut buffer, Until::Full).unwrap();
    assert_eq!(step, Step { consumed: blob.len(), produced: 10, stop: Stop::End });
}

/// Claim: a decoder moves between threads in the middle of a stream.
#[test]
fn a_decoder_is_send() {
    let data = sample(100_000, 1);
    let blob = gzip(&data, 6);
    let (mut inflate, mut out) = (Inflate::gzip(), vec![0; data.len()]);
    let first = inflate.step(&blob[..blob.len() / 2], &mut out, Until::Full).unwrap();
    let (_, rest) = out.split_at_mut(first.produced);
    std::thread::scope(|scope| scope.spawn(|| inflate.step(&blob[first.consumed..], rest, Until::Full).unwrap()).join().unwrap());
    assert!(out == data);
}

/// Claim: places translate to span records: whole bytes stay, cut bytes are counted from their lowest bit.
#[test]
fn places_are_the_byte_that_holds_the_next_bit() {
    assert_eq!(checkpoint_place(100, 0), (CompressedOffset(100), 0));
    assert_eq!(checkpoint_place(100, 1), (CompressedOffset(99), 7));
    assert_eq!(checkpoint_place(100, 7), (CompressedOffset(99), 1));
}
