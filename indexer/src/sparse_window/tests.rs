#![allow(clippy::unwrap_used)]
use std::io::Write as _;

use clip_engine::inflate::{Inflate, Stop, Until};
use flate2::{Compress, Compression, FlushCompress, write::DeflateEncoder};
use proptest::prelude::*;

use super::*;

/// The oracle: places of the window that two runs of inflate name. Run A's window holds the low 8 bits of each place, run B's the high 7
/// bits under a top bit opposite to A's: an output byte that differs came from the window, and the two values name its place.
fn places_by_markers(deflated: &[u8], bit_offset: u8, first_byte: u8) -> Vec<bool> {
    let low: Vec<u8> = (0..WINDOW_BYTES).map(|place| place as u8).collect();
    let high: Vec<u8> = (0..WINDOW_BYTES).map(|place| (place >> 8) as u8 & 0x7f | !(place as u8) & 0x80).collect();
    let [a, b] = [low, high].map(|markers| {
        let mut inflate = Inflate::raw(Some(markers[..].try_into().unwrap()), bit_offset, first_byte);
        let (mut output, mut used, mut made) = (vec![0; WINDOW_BYTES], 0, 0);
        loop {
            let step = inflate.step(&deflated[used..], &mut output[made..], Until::Full).unwrap();
            (used, made) = (used + step.consumed, made + step.produced);
            if step.stop == Stop::End || made == output.len() || step.consumed + step.produced == 0 {
                output.truncate(made);
                return output;
            }
        }
    });
    let mut places = vec![false; WINDOW_BYTES];
    for (low, high) in a.iter().zip(&b).filter(|(low, high)| low != high) {
        places[usize::from(*low) | usize::from(high & 0x7f) << 8] = true;
    }
    places
}

fn places_by_matches(deflated: &[u8], bit_offset: u8, first_byte: u8, piece: usize) -> (bool, Vec<bool>) {
    let mut probe = WindowProbe::new();
    probe.start(bit_offset, first_byte, WINDOW_BYTES);
    deflated.chunks(piece).for_each(|piece| probe.feed(piece).unwrap());
    let mut window = Box::new([1; WINDOW_BYTES]);
    probe.clear_unused(&mut window);
    let places: Vec<bool> = window.iter().map(|byte| *byte == 1).collect();
    assert_eq!(probe.used().bytes, places.iter().filter(|used| **used).count());
    (probe.is_done(), places)
}

/// Text-like bytes that repeat at all distances, and noise.
fn sample(seed: u64, len: usize) -> Vec<u8> {
    let (mut state, mut bytes) = (seed | 1, Vec::with_capacity(len + 300));
    while bytes.len() < len {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (back, count) = ((state >> 33) as usize % 32_768, (state >> 20) as usize % 290);
        match state >> 61 {
            0..=3 if bytes.len() > back + count => bytes.extend_from_within(bytes.len() - back - count..bytes.len() - back),
            4 => bytes.resize(bytes.len() + count, state as u8),
            5 => bytes.extend_from_slice(format!("{} of them, ", state >> 40).as_bytes()),
            _ => bytes.extend_from_slice(&state.to_le_bytes()[..4]),
        }
    }
    bytes.truncate(len);
    bytes
}

/// Block boundaries of a raw deflate stream, and the stream: where each is, its used bits and its first byte.
fn boundaries(deflated: &[u8]) -> Vec<(usize, u8, u8)> {
    let mut inflate = Inflate::raw(None, 0, 0);
    let (mut used, mut found, mut output) = (0, Vec::new(), vec![0; 1 << 16]);
    loop {
        let step = inflate.step(&deflated[used..], &mut output, Until::Block).unwrap();
        used += step.consumed;
        match step.stop {
            Stop::Block { unused_bits } => {
                let (place, bit_offset) = clip_engine::inflate::checkpoint_place(used as u64, unused_bits);
                let place = place.get() as usize;
                found.push((place + usize::from(bit_offset > 0), bit_offset, deflated[place]));
            }
            Stop::More if step.consumed + step.produced > 0 => {}
            _ => return found,
        }
    }
}

/// Claim: at every block boundary of streams of all levels, with stored, fixed and dynamic blocks, the matches name exactly the places
/// that the two marker runs name, whatever pieces the input comes in.
#[test]
fn matches_name_the_places_that_marked_windows_name() {
    let mut checked = 0;
    for (seed, level) in [(1, 0), (2, 1), (3, 2), (4, 4), (5, 6), (6, 9)] {
        let plain = sample(seed, 300_000);
        let (mut compress, mut deflated) = (Compress::new(Compression::new(level), false), Vec::with_capacity(1 << 20));
        // Small pieces give fixed blocks, large ones dynamic blocks.
        let sizes = [40, 9000, 100_000, 7, 30_000];
        let mut rest = &plain[..];
        for size in sizes.iter().cycle() {
            let (piece, after) = rest.split_at((*size).min(rest.len()));
            let flush = if after.is_empty() { FlushCompress::Finish } else { FlushCompress::Partial };
            compress.compress_vec(piece, &mut deflated, flush).unwrap();
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
        for (at, bit_offset, first_byte) in boundaries(&deflated) {
            let expected = places_by_markers(&deflated[at..], bit_offset, first_byte);
            for piece in [1 << 20, 1013, 5] {
                let (is_done, found) = places_by_matches(&deflated[at..], bit_offset, first_byte, piece);
                assert!(is_done && found == expected, "level {level}, boundary at {at}, pieces of {piece}");
            }
            checked += usize::from(expected.contains(&true));
        }
    }
    assert!(checked > 60, "{checked} boundaries with history");
}

proptest! {
    /// Claim: whatever the bytes are, a probe neither panics nor runs for ever, and it says the same in any pieces.
    #[test]
    fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..3000), bit_offset in 0_u8..8, piece in 1_usize..400) {
        let outcome = |piece: usize| {
            let mut probe = WindowProbe::new();
            probe.start(bit_offset, 0x55, WINDOW_BYTES);
            let fed = bytes.chunks(piece).try_for_each(|piece| probe.feed(piece));
            (fed.is_ok(), probe.used())
        };
        prop_assert_eq!(outcome(piece), outcome(bytes.len().max(1)));
    }
}

/// Data that refers to nothing before it uses no byte of the window.
#[test]
fn independent_data_uses_nothing() {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(&b"repeat repeat repeat ".repeat(5000)).unwrap();
    let deflated = encoder.finish().unwrap();
    let mut probe = WindowProbe::new();
    probe.start(0, 0, WINDOW_BYTES);
    probe.feed(&deflated).unwrap();
    assert!(probe.is_done() && probe.used() == Used { bytes: 0, pieces: 0 });
}

/// Pieces are runs of neighbours, in whatever order their bytes are referred to.
#[test]
fn used_pieces_are_runs() {
    let mut used = UsedPlaces::none();
    let ranges = [
        (5, 1, 1, 1),
        (7, 1, 2, 2),
        (6, 1, 3, 1),
        (5, 2, 3, 1),
        (0, 1, 4, 2),
        (WINDOW_BYTES - 1, 1, 5, 3),
        (60, 10, 15, 4),
        (1, 100, 102, 2),
    ];
    for (start, length, bytes, pieces) in ranges {
        used.mark(start, length);
        assert_eq!(used.count(), Used { bytes, pieces }, "after {length} at {start}");
    }
}

/// A probe that was used before finds what a new one finds.
#[test]
fn a_probe_starts_anew() {
    let text = b"some text that the second half of the data refers to, ".repeat(3);
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(&text).unwrap();
    encoder.flush().unwrap();
    let first = encoder.get_ref().len();
    encoder.write_all(&text).unwrap();
    let deflated = encoder.finish().unwrap();
    let mut window = Box::new([0; WINDOW_BYTES]);
    window[WINDOW_BYTES - text.len()..].copy_from_slice(&text);
    let mut probe = WindowProbe::new();
    let found = [0, 1].map(|_| {
        probe.start(0, 0, WINDOW_BYTES);
        probe.feed(&deflated[first..]).unwrap();
        let mut sparse = window.clone();
        probe.clear_unused(&mut sparse);
        (probe.is_done(), probe.used().bytes, probe.used().pieces, sparse)
    });
    assert!(found[0] == found[1] && found[0].0 && found[0].1 > 0);
    let mut resumed = Inflate::raw(Some(&found[0].3), 0, 0);
    let mut output = [0; 1000];
    let step = resumed.step(&deflated[first..], &mut output, Until::Full).unwrap();
    assert_eq!(output[..step.produced], text[..]);
}

/// Claim: a probe is over with its 32 KiB of output, also in the midst of a stored block; whatever the pieces of its input.
#[test]
fn a_stored_block_that_goes_on_does_not_hold_a_probe_up() {
    let len = 60_000_u16;
    let mut stored = vec![0];
    stored.extend_from_slice(&len.to_le_bytes());
    stored.extend_from_slice(&(!len).to_le_bytes());
    stored.extend_from_slice(&sample(5, WINDOW_BYTES));
    for piece in [stored.len(), 1000, 1] {
        assert!(places_by_matches(&stored, 0, 0, piece).0, "pieces of {piece}");
        assert!(!places_by_matches(&stored[..stored.len() - 1], 0, 0, piece).0, "a byte less, pieces of {piece}");
    }
}
