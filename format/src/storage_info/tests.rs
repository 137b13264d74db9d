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
        urls: Vec::new(),
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
    assert!(StorageInfo::from_bytes(&more).unwrap_err().to_string().contains("found 120"));
    let more = [with_urls(3).to_bytes().unwrap().as_slice(), b"x"].concat();
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

fn with_urls(layers: usize) -> StorageInfo {
    let url = |text: &str| BlobUrl::parse(text).unwrap();
    let urls = vec![
        LayerUrls { layer: 0, urls: vec![url("https://a.example/blob?sig=1"), url("http://b.example/blob")] },
        LayerUrls { layer: 2, urls: vec![url("https://c.example")] },
    ];
    StorageInfo { urls, ..info(layers) }
}

/// Claim: URLs are read as they were written, behind bytes that are the same without them; each cut and flip is an error or other URLs.
#[test]
fn urls_are_an_addition() {
    let (without, with) = (info(3).to_bytes().unwrap(), with_urls(3).to_bytes().unwrap());
    assert!(with.starts_with(&without));
    assert_eq!(StorageInfo::from_bytes(&with).unwrap(), with_urls(3));
    assert_eq!((with_urls(3).urls_of(0).len(), with_urls(3).urls_of(1).len(), with_urls(3).urls_of(2).len()), (2, 0, 1));
    for len in without.len() + 1..with.len() {
        assert!(StorageInfo::from_bytes(&with[..len]).is_err());
    }
    for at in without.len()..with.len() {
        let mut flipped = with.clone();
        for mask in [0xff, 0x80, 1] {
            flipped[at] = with[at] ^ mask;
            let _ = StorageInfo::from_bytes(&flipped);
        }
    }
}

/// Claim: no hostile `.clip` brings URLs of layers that are not there, too many, out of order, or that are no web addresses.
#[test]
fn hostile_urls_are_refused() {
    let base = info(3).to_bytes().unwrap();
    let attempt = |addition: u8, urls: &[(u16, Vec<&str>)]| {
        let urls: Vec<(u16, Vec<String>)> =
            urls.iter().map(|(layer, urls)| (*layer, urls.iter().map(|url| (*url).to_owned()).collect())).collect();
        let more = bincode::encode_to_vec((addition, urls), bincode::config::standard()).unwrap();
        StorageInfo::from_bytes(&[&base[..], &more].concat())
    };
    let good = "http://h/";
    assert!(attempt(1, &[(2, vec![good])]).is_ok());
    assert!(attempt(1, &[(1, vec![good; 17])]).is_err());
    for bad in [&[][..], &[(3, vec![good])], &[(1, vec![])], &[(1, vec![good]), (1, vec![good])], &[(2, vec![good]), (0, vec![good])]] {
        assert_eq!(attempt(1, bad).unwrap_err().kind(), ErrorKind::Corrupt, "{bad:?}");
    }
    let error = attempt(1, &[(0, vec!["http://u:s3cret@h/"])]).unwrap_err().to_string();
    assert!(error.contains("user and password") && !error.contains("s3cret"), "{error}");
    assert_eq!(attempt(2, &[(0, vec![good])]).unwrap_err().kind(), ErrorKind::Unsupported);
}
