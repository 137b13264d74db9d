#![allow(clippy::unwrap_used)]
use super::*;

/// The two marker windows differ everywhere, and together name every place.
#[test]
fn markers_name_every_place() {
    let [low, high] = &MARKERS;
    for place in 0..WINDOW_BYTES {
        assert_ne!(low[place], high[place]);
        assert_eq!(usize::from(low[place]) | usize::from(high[place] & 0x7f) << 8, place);
    }
}

/// Data that refers to nothing before it uses no byte of the window.
#[test]
fn independent_data_uses_nothing() {
    use std::io::Write as _;
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(&b"repeat repeat repeat ".repeat(5000)).unwrap();
    let deflated = encoder.finish().unwrap();
    let mut probe = WindowProbe::new();
    probe.start(0, 0);
    probe.feed(&deflated).unwrap();
    assert!(probe.is_done() && probe.used_bytes() == 0);
}

/// Pieces are runs of neighbours, in whatever order their bytes are referred to.
#[test]
fn used_pieces_are_runs() {
    let mut used = UsedPlaces { marks: Box::new([false; WINDOW_BYTES]), bytes: 0, pieces: 0 };
    for (place, pieces) in [(5, 1), (7, 2), (6, 1), (6, 1), (0, 2), (WINDOW_BYTES - 1, 3), (1, 3)] {
        used.mark(place);
        assert_eq!(used.pieces, pieces, "after {place}");
    }
    assert_eq!(used.bytes, 6);
    used.clear();
    assert_eq!((used.bytes, used.pieces), (0, 0));
}

/// A probe that was used before finds what a new one finds.
#[test]
fn a_probe_starts_anew() {
    use std::io::Write as _;
    let text = b"some text that the second half of the data refers to, ".repeat(3);
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(&text).unwrap();
    encoder.flush().unwrap();
    let first = encoder.get_ref().len();
    encoder.write_all(&text).unwrap();
    let deflated = encoder.finish().unwrap();
    let mut window = Box::new([0; WINDOW_BYTES]);
    window[WINDOW_BYTES - text.len()..].copy_from_slice(&text);
    let mut probe = WindowProbe::new();
    let found = [0, 1].map(|_| {
        probe.start(0, 0);
        probe.feed(&deflated[first..]).unwrap();
        let mut sparse = window.clone();
        probe.clear_unused(&mut sparse);
        (probe.is_done(), probe.used_bytes(), probe.used_pieces(), sparse)
    });
    assert!(found[0] == found[1] && found[0].0 && found[0].1 > 0);
    let mut resumed = Inflate::raw(Some(&found[0].3), 0, 0);
    let mut output = [0; 1000];
    let step = resumed.step(&deflated[first..], &mut output, Until::Full).unwrap();
    assert_eq!(output[..step.produced], text[..]);
}
