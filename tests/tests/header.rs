//! The first bytes of a `.clip` are the original system's: magic, version 1, index at 512, storage type "oci", lengths and positions right.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use clip_format::clip_file::ClipFile;
use clip_tests::{
    clip::Clip,
    images::sample::{self, Sample},
};

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Read by hand at the offsets that the original system wrote, and by `clip_format`: both see the same sections.
#[test]
fn the_first_54_bytes_are_the_original_ones() {
    let sample = Sample::new().unwrap();
    let clip = Clip::new();
    let file = clip.index(&sample.layout.reference(sample::TAG), "sample", &[]).unwrap();
    let bytes = std::fs::read(file).unwrap();
    assert_eq!(&bytes[..9], b"\x89CLIP\r\n\x1a\n");
    assert_eq!(bytes[9], 1, "version");
    let (index_len, index_position) = (number(&bytes, 10), number(&bytes, 18));
    let (info_len, info_position) = (number(&bytes, 26), number(&bytes, 34));
    assert_eq!(index_position, 512);
    assert_eq!(&bytes[42..54], b"oci\0\0\0\0\0\0\0\0\0");
    let parsed = ClipFile::parse(&bytes).unwrap();
    let header = parsed.header();
    assert_eq!((header.index.position, header.index.stored_len), (index_position, index_len));
    assert_eq!((header.storage_info.position, header.storage_info.stored_len), (info_position, info_len));
    let ends = [&header.index, &header.storage_info, &header.checkpoints, &header.windows].map(|part| part.position + part.stored_len);
    assert_eq!(ends.into_iter().max(), Some(bytes.len() as u64), "the sections end where the file does");
}

/// Claim: a version, magic or storage type that is not ours is refused by name, in a header whose checksum is right.
#[test]
fn other_versions_are_refused_by_name() {
    let sample = Sample::new().unwrap();
    let clip = Clip::new();
    let file = clip.index(&sample.layout.reference(sample::TAG), "sample", &[]).unwrap();
    let good = std::fs::read(&file).unwrap();
    for (at, value, word) in [(9, 2, "version"), (0, 0x88, "magic"), (42, b'x', "storage type")] {
        let mut bytes = good.clone();
        bytes[at] = value;
        let checksum = blake3::hash(&bytes[..480]);
        bytes[480..512].copy_from_slice(checksum.as_bytes());
        std::fs::write(&file, &bytes).unwrap();
        let message = clip.fails(&["inspect", file.to_str().unwrap()]).unwrap();
        assert!(message.contains(&format!("header {word}")), "byte {at}: {message}");
    }
}
