use clip_engine::DiskIo;
use clip_format::{checkpoints::SpanStart, windows::WindowsWriter};

use crate::sample::{BASE, Layer, Node, each_disk_io, gzip, read, text};

/// One deflate block of 6 MiB (level 1 of zlib-rs makes no other), so all spans but the first are chained.
fn one_block(disk_io: DiskIo) -> Node {
    let mut windows = WindowsWriter::default();
    let stream = text(6 << 20, 11);
    let layer = Layer::gzip(stream.clone(), gzip(&stream, 1), 64 << 10, &mut windows);
    let chained = layer.spans.iter().filter(|span| span.start == SpanStart::Chained).count();
    assert!(chained > 40 && chained == layer.spans.len() - 1, "{chained} of {}", layer.spans.len());
    Node::new(vec![layer], windows, disk_io)
}

/// Claim: chained spans read in any order are right.
#[test]
fn chained_spans_are_right_in_any_order() {
    each_disk_io(|disk_io| {
        let node = one_block(disk_io);
        let engine = node.start();
        let image = node.open(&engine);
        let stream = &node.layers[0].stream;
        for at in [5 << 20, 0, 3 << 20, (6 << 20) - 100, 1 << 20] {
            let len = (300_000).min(stream.len() - at);
            assert!(read(&image, BASE, at, len).unwrap() == stream[at..at + len], "at {at}");
        }
    });
}

/// Claim: an early span of a long chain does not fetch the whole chain, and reading on decodes no byte twice.
#[test]
fn a_chain_is_decoded_once_when_read_in_order() {
    each_disk_io(|disk_io| {
        let node = one_block(disk_io);
        let mut config = node.config();
        config.request_bytes_max = 256 << 10;
        let engine = clip_engine::Engine::start(config).unwrap();
        let image = node.open(&engine);
        let stream = &node.layers[0].stream;
        read(&image, BASE, 0, 1000).unwrap();
        let early = engine.stats().source_bytes;
        assert!(early < node.layers[0].blob.len() as u64 / 2, "{early} of {}", node.layers[0].blob.len());
        for at in (0..stream.len()).step_by(256 << 10) {
            let len = (256 << 10).min(stream.len() - at);
            assert!(read(&image, BASE, at, len).unwrap() == stream[at..at + len]);
        }
        // A decoder is put aside a moment after its last span is delivered: a reader that is quicker starts over, rarely.
        let decoded = engine.stats().bytes_decoded;
        assert!(decoded < 2 * stream.len() as u64, "{decoded} of {}", stream.len());
    });
}
