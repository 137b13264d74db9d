//! Every regular file says where its bytes are, every layer is listed with its checkpoints, and indexes that differ never share bytes.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::{io::Read, path::Path};

use clip_format::{
    checkpoints::Span,
    clip_file::ClipParts,
    erofs::{FileType, Index, check::check},
    units::SpanIndex,
};
use clip_tests::{
    clip::Clip,
    faults::{Fault, Server},
    images::{
        Compression, Layout, debian,
        sample::{self, Sample},
    },
    machine::{Need, lacks},
    spans::{Parts, is_entry},
};

/// Paths of all regular files.
fn regular_files(index: &Index) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let mut waiting = vec![(Vec::new(), index.inode(index.root()).unwrap())];
    while let Some((path, dir)) = waiting.pop() {
        for entry in index.dir_entries(&dir, 0).map(Result::unwrap).filter(|entry| entry.name != b"." && entry.name != b"..") {
            let path = [&path[..], b"/", entry.name].concat();
            match entry.file_type {
                FileType::Directory => waiting.push((path, index.inode(entry.nid).unwrap())),
                FileType::Regular => found.push(path),
                _ => {}
            }
        }
    }
    found
}

/// The layer and stream offset that the index gives for each file are where its bytes stand in the decompressed layer.
#[test]
fn every_regular_file_says_where_its_bytes_are() {
    let sample = Sample::new().unwrap();
    let clip = Clip::new();
    let file = clip.index(&sample.layout.reference(sample::TAG), "sample", &[]).unwrap();
    let parts = Parts::read(&file).unwrap();
    let index = parts.tree().unwrap();
    let streams: Vec<Vec<u8>> = parts
        .storage_info
        .layers
        .iter()
        .map(|info| {
            let blob = std::fs::read(sample.layout.blob_path(&info.digest.to_string()).unwrap()).unwrap();
            let mut stream = Vec::new();
            flate2::read::MultiGzDecoder::new(&blob[..]).read_to_end(&mut stream).unwrap();
            stream
        })
        .collect();
    assert_eq!(regular_files(&index).len(), sample.files.len());
    for (path, contents) in &sample.files {
        let inode = index.resolve(path.as_bytes()).unwrap().unwrap();
        assert_eq!(inode.size, contents.len() as u64, "{path}");
        let mut bytes = Vec::new();
        for extent in index.extents(&inode, 0..inode.size).map(Result::unwrap) {
            let (layer, offset) = extent.data.unwrap();
            let start = usize::try_from(offset.get()).unwrap();
            let len = usize::try_from(extent.file.end - extent.file.start).unwrap();
            bytes.extend_from_slice(&streams[usize::from(layer.get())][start..start + len]);
        }
        assert!(bytes == *contents, "{path}");
    }
}

/// The layers stand in manifest order with the manifest's digests, each with spans that cover its stream and stay below twice the span
/// size; the index passes the full structural check.
#[test]
fn layers_stand_in_manifest_order_with_their_spans() {
    if lacks(debian::NEEDS) {
        return;
    }
    let layout: &Layout = debian::layout().unwrap();
    let clip = Clip::new();
    for (name, span_size) in [("1MiB", 1u64 << 20), ("256KiB", 256 << 10)] {
        let file = clip.index(&layout.reference(debian::APP), name, &["--span-size", name]).unwrap();
        let parts = Parts::read(&file).unwrap();
        let digests: Vec<String> = parts.storage_info.layers.iter().map(|layer| layer.digest.to_string()).collect();
        assert_eq!(digests, layout.layer_digests(debian::APP).unwrap());
        for (info, table) in parts.storage_info.layers.iter().zip(parts.checkpoints.layers()) {
            assert_eq!(table.stream_size(), info.stream_size);
            let mut at = 0;
            for span in (0..table.len()).map(SpanIndex) {
                let range = table.stream_range(span);
                assert_eq!(range.start, at, "a gap before span {}", span.get());
                assert!(range.end - range.start <= 2 * span_size, "span {} has {} bytes", span.get(), range.end - range.start);
                at = range.end;
            }
            assert_eq!(at, info.stream_size);
            assert!(table.is_empty() || is_entry(&table.span(SpanIndex(0)).start));
        }
        check(&parts.tree().unwrap()).unwrap();
    }
}

/// Indexes of one layer with 1 MiB and with 256 KiB spans keep their bytes apart, and both read right.
#[test]
fn other_span_sizes_keep_their_own_cache_files() {
    if lacks(&[Need::Root, Need::Fuse]) {
        return;
    }
    let sample = Sample::new().unwrap();
    let server = Server::start(&sample.layout).unwrap();
    let clip = Clip::new();
    let reference = server.reference("sample", sample::TAG);
    let large = clip.index(&reference, "large", &["--span-size", "1MiB"]).unwrap();
    let small = clip.index(&reference, "small", &["--span-size", "256KiB"]).unwrap();
    let digest = &sample.layout.layer_digests(sample::TAG).unwrap()[0];
    for file in [&large, &small] {
        server.forget();
        let mount = clip.mount(file, &[]).unwrap();
        for (path, contents) in &sample.files {
            assert!(std::fs::read(mount.path(path)).unwrap() == *contents, "{path}");
        }
        assert!(!server.seen_of(digest).is_empty(), "{}: bytes of another index were used", file.display());
    }
    let hex = digest.strip_prefix("sha256:").unwrap();
    let dirs = std::fs::read_dir(clip.cache_dir().join("layers/sha256").join(hex)).unwrap().count();
    assert_eq!(dirs, 2, "one directory an index");
}

/// A `.clip` that reads where `theirs` reads, whose digests are those of the layers' inverted bytes: what a hostile author can write.
fn forge(theirs: &Path, layout: &Layout) -> Vec<u8> {
    let parts = Parts::read(theirs).unwrap();
    let layers = parts.storage_info.layers.iter().zip(parts.checkpoints.layers());
    let spans: Vec<Vec<Span>> = layers
        .map(|(info, table)| {
            let mut evil = std::fs::read(layout.blob_path(&info.digest.to_string()).unwrap()).unwrap();
            evil.iter_mut().for_each(|byte| *byte = !*byte);
            (0..table.len())
                .map(|span| {
                    let range = table.stream_range(SpanIndex(span));
                    let bytes = &evil[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()];
                    Span { digest: *blake3::hash(bytes).as_bytes(), ..table.span(SpanIndex(span)) }
                })
                .collect()
        })
        .collect();
    let forged = ClipParts { index: &parts.index, storage_info: &parts.storage_info, spans: &spans, windows: &parts.windows };
    forged.to_bytes().unwrap()
}

/// A hostile `.clip` names a good image's layers, a registry of its own and the digests of that registry's bytes: it reads those, from a
/// cache file of its own, and the good image on the same cache reads the right ones, whichever came first.
#[test]
fn a_clip_with_its_own_registry_poisons_nobody() {
    if lacks(&[Need::Root, Need::Fuse]) {
        return;
    }
    // Plain layers: there a blob's inverted bytes are the stream's.
    let sample = Sample::compressed(&Compression::Plain).unwrap();
    let good = Server::start(&sample.layout).unwrap();
    let hostile = Server::start(&sample.layout).unwrap();
    for hostile_first in [true, false] {
        let clip = Clip::new();
        hostile.fault(Fault::None);
        let ours = clip.index(&good.reference("sample", sample::TAG), "good", &[]).unwrap();
        let theirs = clip.index(&hostile.reference("evil", sample::TAG), "hostile", &[]).unwrap();
        std::fs::write(&theirs, forge(&theirs, &sample.layout)).unwrap();
        hostile.fault(Fault::WrongBytes);
        let layers = [&ours, &theirs].map(|file| Parts::read(file).unwrap().storage_info.layers);
        assert_eq!(layers[0], layers[1], "both name the same layers");
        let order = if hostile_first { [&theirs, &ours, &theirs] } else { [&ours, &theirs, &ours] };
        let mounts: Vec<_> = order.iter().map(|file| (*file == &theirs, clip.mount(file, &[]).unwrap())).collect();
        for (evil, mount) in &mounts {
            for (path, contents) in &sample.files {
                let expected: Vec<u8> = contents.iter().map(|byte| if *evil { !*byte } else { *byte }).collect();
                let found = std::fs::read(mount.path(path)).unwrap_or_else(|error| panic!("{path} (evil: {evil}): {error}"));
                assert!(found == expected, "{path} (evil: {evil}): bytes of the other .clip");
            }
        }
    }
}
