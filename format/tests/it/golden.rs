//! Bytes of past versions: read for ever, and reproduced by today's writer. Files are added per format version, never edited.
//!
//! `CLIP_GOLDEN_WRITE=1 cargo test -p clip-format golden` writes the ones that are missing.

use std::{path::PathBuf, sync::Arc};

use clip_format::{
    blob_url::BlobUrl,
    checkpoints::{Checkpoints, SpanStart},
    clip_file::{ClipFile, ClipParts, with_profile},
    digest::Digest,
    erofs::{Index, check::check},
    profile::{Profile, ProfileLayer, Run},
    storage_info::{Codec, LayerUrls, StorageInfo},
    units::SpanIndex,
};

use crate::damage::small;
use crate::trees::{Tree, clip, every_kind, spans, storage_info};

fn golden(name: &str, bytes: &[u8]) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if !path.exists() && std::env::var_os("CLIP_GOLDEN_WRITE").is_some() {
        std::fs::write(&path, bytes).unwrap();
    }
    std::fs::read(&path).unwrap()
}

fn read_and_reproduce(name: &str, tree: &Tree, window_bytes: usize) {
    let written = clip(tree, window_bytes);
    let kept = golden(name, &written);
    let file = ClipFile::parse(&kept).unwrap();
    let streams: Vec<u64> = tree.devices.iter().map(|device| device.stream_size).collect();
    assert_eq!(file.storage_info().unwrap(), storage_info(&streams));
    let index = file.index().unwrap();
    assert!(index == tree.image(), "{name}: the index differs");
    check(&Index::open(Arc::new(index)).unwrap()).unwrap();
    let windows = file.windows().unwrap().len() as u64;
    Checkpoints::open(Arc::new(file.checkpoints().unwrap()), &storage_info(&streams).layers, windows).unwrap();
    assert!(kept == written, "{name}: today's writer gives other bytes (another zstd?)");
}

#[test]
fn version_1_of_every_kind_is_read_and_reproduced() {
    read_and_reproduce("v1-every-kind.clip", &every_kind(), 50);
}

#[test]
fn version_1_of_an_empty_image_is_read_and_reproduced() {
    read_and_reproduce("v1-empty.clip", &Tree::new(&[]), 0);
}

#[test]
fn version_1_of_a_small_image_is_read_and_reproduced() {
    read_and_reproduce("v1-small.clip", &small(), 40);
}

/// Also: the URLs of a layer change no byte of the other sections, and none of the storage info before them.
#[test]
fn version_1_of_a_small_image_with_urls_is_read_and_reproduced() {
    let tree = small();
    let streams: Vec<u64> = tree.devices.iter().map(|device| device.stream_size).collect();
    let url = |text: &str| BlobUrl::parse(text).unwrap();
    let urls =
        vec![LayerUrls { layer: 0, urls: vec![url("https://mcr.example/v2/base/blobs/sha256:00"), url("http://mirror.example/b?k=v")] }];
    let info = StorageInfo { urls, ..storage_info(&streams) };
    let (spans, windows) = spans(&streams, 40);
    let written = ClipParts { index: &tree.image(), storage_info: &info, spans: &spans, windows: &windows }.to_bytes().unwrap();
    let kept = golden("v1-small-urls.clip", &written);
    let (old, new) = (clip(&tree, 40), ClipFile::parse(&kept).unwrap());
    let old = ClipFile::parse(&old).unwrap();
    assert_eq!(new.storage_info().unwrap(), info);
    assert_eq!((new.header().index.blake3, new.header().windows.blake3), (old.header().index.blake3, old.header().windows.blake3));
    assert!(kept == written, "today's writer gives other bytes (another zstd?)");
}

/// The small image, whose layers are zstd: of the first every third span is chained, the second is one frame.
fn zstd() -> Vec<u8> {
    let tree = small();
    let streams: Vec<u64> = tree.devices.iter().map(|device| device.stream_size).collect();
    let (mut spans, _) = crate::trees::spans(&streams, 0);
    for (number, span) in spans.iter_mut().flatten().enumerate() {
        let window_log = 21 + number as u8;
        span.start = if number == 2 { SpanStart::Chained } else { SpanStart::Frame { window_log } };
    }
    let mut info = storage_info(&streams);
    for layer in &mut info.layers {
        (layer.codec, layer.media_type) = (Codec::Zstd, "application/vnd.oci.image.layer.v1.tar+zstd".to_owned());
    }
    ClipParts { index: &tree.image(), storage_info: &info, spans: &spans, windows: &[] }.to_bytes().unwrap()
}

#[test]
fn version_1_of_zstd_layers_is_read_and_reproduced() {
    let written = zstd();
    let kept = golden("v1-zstd.clip", &written);
    let file = ClipFile::parse(&kept).unwrap();
    let info = file.storage_info().unwrap();
    assert!(info.layers.iter().all(|layer| layer.codec == Codec::Zstd));
    let tables = Checkpoints::open(Arc::new(file.checkpoints().unwrap()), &info.layers, 0).unwrap();
    let starts: Vec<SpanStart> = (0..3).map(|span| tables.layers()[0].span(SpanIndex(span)).start).collect();
    assert_eq!(starts, [SpanStart::Frame { window_log: 21 }, SpanStart::Frame { window_log: 22 }, SpanStart::Chained]);
    assert!(kept == written, "today's writer gives other bytes (another zstd?)");
}

/// Runs of two layers of the small image, of which the first are neighbours of one another.
pub fn profile() -> Profile {
    let layer = |number, stream_size| ProfileLayer { digest: Digest::Sha256([number; 32]), stream_size, spans_digest: [number + 9; 32] };
    let run = |layer, stream, ms| Run { layer, stream, ms };
    let runs = vec![run(0, 2 << 20..3 << 20, 0), run(0, 0..1 << 20, 3), run(1, 0..2048, 250), run(0, 1 << 20..2 << 20, 70_000)];
    Profile::new(Digest::Sha256([7; 32]), vec![layer(0, 3 << 20), layer(1, 2048)], runs).unwrap()
}

#[test]
fn version_1_of_a_profile_is_read_and_reproduced() {
    let written = profile().to_bytes().unwrap();
    let kept = golden("profile-v1.profile", &written);
    assert_eq!(Profile::from_bytes(&kept).unwrap(), profile());
    assert!(kept == written, "today's writer gives other bytes (another zstd?)");
}

/// Also: embedding a profile leaves every other section as it is, and embedding it again changes nothing.
#[test]
fn version_1_of_a_small_image_with_a_profile_is_read_and_reproduced() {
    let without = clip(&small(), 40);
    let written = with_profile(&without, &profile()).unwrap();
    let kept = golden("v1-small-profile.clip", &written);
    let (old, new) = (ClipFile::parse(&without).unwrap(), ClipFile::parse(&kept).unwrap());
    assert_eq!(old.profile().unwrap(), None);
    assert_eq!(new.profile().unwrap(), Some(profile()));
    assert!(old.index().unwrap() == new.index().unwrap() && old.windows().unwrap() == new.windows().unwrap());
    assert_eq!(new.header().checkpoints, old.header().checkpoints);
    assert!(kept == written && with_profile(&kept, &profile()).unwrap() == kept, "today's writer gives other bytes (another zstd?)");
}
