use std::sync::Arc;

use clip_engine::{DiskIo, Engine, EngineError, Image, source::BlobSource};
use clip_format::windows::WindowsWriter;

use crate::sample::{BASE, Layer, Node, clip_bytes, each_disk_io, gzip, read, text, wait_present};

/// Another `.clip` in the node's directory over the same blob, indexed with spans of `span_len`.
fn second(node: &Node, engine: &Engine, span_len: usize, blob: BlobSource) -> Arc<Image> {
    let (mut windows, first) = (WindowsWriter::default(), &node.layers[0]);
    let layer = Layer::gzip(first.stream.clone(), first.blob.clone(), span_len, &mut windows);
    let path = node.dir.path().join(format!("second-{span_len}.clip"));
    std::fs::write(&path, clip_bytes(&[layer], windows, "second")).unwrap();
    let options = clip_engine::ImageOptions { local_blobs: Some(vec![blob]), ..Default::default() };
    engine.open_image(&path, &options).unwrap()
}

fn one_layer(disk_io: DiskIo) -> Node {
    let (mut windows, stream) = (WindowsWriter::default(), text(1 << 20, 21));
    let layer = Layer::gzip(stream.clone(), gzip(&stream, 6), 64 << 10, &mut windows);
    Node::new(vec![layer], windows, disk_io)
}

fn blob(node: &Node, name: &str) -> BlobSource {
    BlobSource::File { path: node.dir.path().join(name), offset: 0, size: node.layers[0].blob.len() as u64 }
}

/// Claim: two images with the same spans of a layer share its bytes; images with other spans share none.
#[test]
fn equal_spans_are_shared_and_others_are_not() {
    each_disk_io(|disk_io| {
        let node = one_layer(disk_io);
        let engine = node.start();
        let image = node.open(&engine);
        let len = node.layers[0].stream.len();
        read(&image, BASE, 0, len).unwrap();
        wait_present(&image, BASE, 0, len);
        let fetched = engine.stats().spans_fetched;
        let same = second(&node, &engine, 64 << 10, blob(&node, "nowhere"));
        assert!(same.id() != image.id());
        assert!(read(&same, BASE, 0, len).unwrap() == node.layers[0].stream);
        assert_eq!(engine.stats().spans_fetched, fetched, "nothing is fetched for the second image");
        let other = second(&node, &engine, 128 << 10, blob(&node, "blob0"));
        assert!(other.present(BASE, 0..10).is_none());
        assert!(read(&other, BASE, 0, len).unwrap() == node.layers[0].stream);
        assert!(engine.stats().spans_fetched > fetched);
        assert_eq!(node.cache_files("stream").len(), 2);
    });
}

/// Claim: the same image opened twice with the same options is the same, with other options another.
#[test]
fn the_same_image_is_the_same() {
    let node = one_layer(DiskIo::Auto);
    let engine = node.start();
    let image = node.open(&engine);
    assert!(Arc::ptr_eq(&image, &node.open(&engine)));
    let mut options = node.options();
    options.local_blobs = Some(vec![blob(&node, "elsewhere")]);
    assert!(!Arc::ptr_eq(&image, &engine.open_image(&node.clip(), &options).unwrap()));
}

/// Claim: when the source of one image fails, readers of another image that waited for its fetch try their own.
#[test]
fn a_bad_source_does_not_fail_other_images() {
    each_disk_io(|disk_io| {
        let node = one_layer(disk_io);
        let mut bad = node.layers[0].blob.clone();
        bad.iter_mut().skip(20).step_by(500).for_each(|byte| *byte ^= 0x55);
        std::fs::write(node.dir.path().join("bad"), &bad).unwrap();
        let stream = &node.layers[0].stream;
        for _ in 0..10 {
            let engine = node.start();
            let good = node.open(&engine);
            let hostile = second(&node, &engine, 64 << 10, blob(&node, "bad"));
            let (answer, answers) = std::sync::mpsc::channel();
            hostile.read(BASE, 0..stream.len() as u64, Box::new(move |result| answer.send(result).unwrap()));
            assert!(read(&good, BASE, 0, stream.len()).unwrap() == *stream);
            assert!(matches!(answers.recv().unwrap(), Err(EngineError::Layer { .. })) || engine.stats().reads_failed == 0);
            drop((good, hostile, engine));
            std::fs::remove_dir_all(node.cache()).unwrap();
        }
    });
}
