#![allow(clippy::unwrap_used)]

use super::*;
use crate::error::ErrorKind;

fn info(layers: usize) -> StorageInfo {
    let layer = LayerInfo {
        digest: Digest::Sha256([1; 32]),
        diff_id: Digest::Sha512([2; 64]),
        media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
        compressed_size: 1 << 40,
        stream_size: u64::MAX,
        codec: Codec::Gzip,
    };
    StorageInfo {
        source: Source::Local { transport: Transport::OciArchive, path: b"/images/\xff.tar".to_vec(), reference: Some("v1".to_owned()) },
        manifest_digest: Digest::Sha256([9; 32]),
        platform: Platform { os: "linux".to_owned(), architecture: "arm64".to_owned(), variant: Some("v8".to_owned()) },
        config: ImageConfig {
            env: vec!["A=b".to_owned()],
            labels: vec![("k".to_owned(), "v".to_owned())],
            history: vec![HistoryEntry { empty_layer: true, ..HistoryEntry::default() }],
            ..ImageConfig::default()
        },
        layers: vec![layer; layers],
    }
}

#[test]
fn what_is_written_is_read_and_the_same_each_time() {
    for layers in [0, 1, limits::LAYERS_MAX] {
        let bytes = info(layers).to_bytes().unwrap();
        assert_eq!(bytes, info(layers).to_bytes().unwrap());
        assert_eq!(StorageInfo::from_bytes(&bytes).unwrap(), info(layers));
    }
}

#[test]
fn too_many_layers_are_refused() {
    let bytes = info(limits::LAYERS_MAX + 1).to_bytes().unwrap();
    let error = StorageInfo::from_bytes(&bytes).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exhausted);
}

#[test]
fn bytes_that_are_missing_or_left_over_are_corrupt() {
    let bytes = info(2).to_bytes().unwrap();
    for len in 0..bytes.len() {
        assert_eq!(StorageInfo::from_bytes(&bytes[..len]).unwrap_err().kind(), ErrorKind::Corrupt);
    }
    let more = [bytes.as_slice(), b"x"].concat();
    assert!(StorageInfo::from_bytes(&more).unwrap_err().to_string().contains("1 bytes left over"));
}

#[test]
fn a_text_that_says_it_is_huge_allocates_nothing() {
    // Source::Registry, then a string of 2^63 bytes.
    let bytes = [&[0, 253][..], &(1u64 << 63).to_le_bytes()].concat();
    assert!(StorageInfo::from_bytes(&bytes).is_err());
}

#[test]
fn a_flip_of_any_byte_never_panics() {
    let mut bytes = info(3).to_bytes().unwrap();
    for position in 0..bytes.len() {
        for mask in [0xff, 0x80, 1] {
            bytes[position] ^= mask;
            let _ = StorageInfo::from_bytes(&bytes);
            bytes[position] ^= mask;
        }
    }
}
