//! Bytes of past versions: read for ever, and reproduced by today's writer. Files are added per format version, never edited.
//!
//! `CLIP_GOLDEN_WRITE=1 cargo test -p clip-format golden` writes the ones that are missing.

use std::{path::PathBuf, sync::Arc};

use clip_format::{
    checkpoints::Checkpoints,
    clip_file::ClipFile,
    erofs::{Index, check::check},
};

use crate::damage::small;
use crate::trees::{Tree, clip, every_kind, storage_info};

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
