#![allow(clippy::unwrap_used)]
use super::*;

/// The two marker windows differ everywhere, and together name every place.
#[test]
fn markers_name_every_place() {
    let [low, high] = marker_windows();
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
    let mut probe = WindowProbe::new(0, 0);
    probe.feed(&deflated).unwrap();
    assert!(probe.is_done() && !probe.any_used());
}
