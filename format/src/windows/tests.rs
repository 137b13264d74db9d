#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

#[test]
fn an_all_zero_window_takes_no_bytes() {
    let mut writer = WindowsWriter::default();
    assert_eq!(writer.append(&[0; WINDOW_BYTES]).unwrap(), WindowRange::default());
    assert!(writer.is_empty());
    assert_eq!(expand_window(&writer.into_bytes(), WindowRange::default()).unwrap(), None);
}

#[test]
fn a_window_of_pure_noise_is_within_the_limit_of_a_frame() {
    let mut window = [0; WINDOW_BYTES];
    blake3::Hasher::new().finalize_xof().fill(&mut window);
    let mut writer = WindowsWriter::default();
    let range = writer.append(&window).unwrap();
    assert!(range.len <= limits::WINDOW_FRAME_BYTES_MAX);
    assert_eq!(writer.len(), u64::from(range.len));
    assert_eq!(*expand_window(&writer.into_bytes(), range).unwrap().unwrap(), window);
}

#[test]
fn a_frame_that_expands_to_another_length_is_corrupt() {
    for len in [WINDOW_BYTES - 1, WINDOW_BYTES + 1, 10 * WINDOW_BYTES, 0] {
        let frame = zstd::bulk::compress(&vec![7; len], 3).unwrap();
        let range = WindowRange { offset: 0, len: frame.len() as u32 };
        assert!(expand_window(&frame, range).is_err(), "{len} bytes");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn sparse_windows_come_back(pieces in proptest::collection::vec((0..WINDOW_BYTES, 1usize..300, any::<u8>()), 0..40)) {
        let mut window = [0u8; WINDOW_BYTES];
        for (start, len, fill) in pieces {
            window[start..(start + len).min(WINDOW_BYTES)].fill(fill);
        }
        let mut writer = WindowsWriter::default();
        writer.append(&[1; WINDOW_BYTES]).unwrap();
        let range = writer.append(&window).unwrap();
        let (mut used, mut fresh) = (WindowCompressor::new().unwrap(), WindowCompressor::new().unwrap());
        used.compress(&[1; WINDOW_BYTES]).unwrap();
        prop_assert_eq!(used.compress(&window).unwrap(), fresh.compress(&window).unwrap());
        let found = expand_window(&writer.into_bytes(), range).unwrap();
        prop_assert_eq!(found.map_or([0; WINDOW_BYTES], |found| *found), window);
    }
}
