use clip_engine::DiskIo;
use clip_format::{checkpoints::SpanStart, storage_info::Codec, windows::WindowsWriter};

use crate::{
    registry::warnings,
    sample::{BASE, Layer, Node, each_disk_io, gzip, read, text},
};

/// Next to one deflate block of 6 MiB (level 1 of zlib-rs makes no others), so nearly all spans are chained.
fn one_block(disk_io: DiskIo) -> Node {
    let mut windows = WindowsWriter::default();
    let stream = text(6 << 20, 11);
    let layer = Layer::gzip(stream.clone(), gzip(&stream, 1), 64 << 10, &mut windows);
    let chained = layer.spans.iter().filter(|span| span.start == SpanStart::Chained).count();
    assert!(chained > 40 && chained >= layer.spans.len() - 3, "{chained} of {}", layer.spans.len());
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

/// Claim: readers spread over a chain, all at once, get the right bytes, and the chain is decoded once for all of them.
#[test]
fn many_readers_share_a_chain() {
    each_disk_io(|disk_io| {
        let node = one_block(disk_io);
        let engine = node.start();
        let image = node.open(&engine);
        let stream = &node.layers[0].stream;
        std::thread::scope(|scope| {
            for reader in 0..16 {
                let image = &image;
                scope.spawn(move || {
                    for round in 0..6 {
                        let at = (round << 20) + reader * 60_000;
                        assert!(read(image, BASE, at, 50_000).unwrap() == stream[at..at + 50_000]);
                    }
                });
            }
        });
        let (decoded, len) = (engine.stats().bytes_decoded, stream.len() as u64);
        assert!(decoded <= len, "{decoded} of {len}");
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
        // One chunk in use, two that wait, one that waits to wait.
        assert!(early <= 4 * (256 << 10), "{early} of {}", node.layers[0].blob.len());
        for at in (0..stream.len()).step_by(256 << 10) {
            let len = (256 << 10).min(stream.len() - at);
            assert!(read(&image, BASE, at, len).unwrap() == stream[at..at + len]);
        }
        assert_eq!(engine.stats().bytes_decoded, stream.len() as u64);
    });
}

/// Claim: opening an image says once how many of its layers have long stretches without an entry, and says nothing of an image without.
#[test]
fn slow_layers_are_said_when_an_image_is_opened() {
    let lines = warnings();
    // Never decoded here, so the blob may be anything.
    let starts = |chained: SpanStart| {
        (0..40).map(|span| (if span == 0 { SpanStart::Plain } else { chained }, span << 20, (span as usize) << 20)).collect::<Vec<_>>()
    };
    let stream = vec![0; 40 << 20];
    let fast = Layer::new(stream.clone(), stream.clone(), starts(SpanStart::Plain), Codec::Plain);
    let gzip_starts = starts(SpanStart::Chained).into_iter().map(|(start, at, from)| match start {
        SpanStart::Plain => (SpanStart::Member, at, from),
        other => (other, at, from),
    });
    let slow = Layer::new(stream.clone(), stream, gzip_starts.collect(), Codec::Gzip);
    for (layers, expected) in [(vec![fast.clone()], 0), (vec![slow.clone(), fast, slow], 1)] {
        let node = Node::new(layers, WindowsWriter::default(), DiskIo::Auto);
        let engine = node.start();
        let image = node.open(&engine);
        let again = node.open(&engine);
        assert!(std::sync::Arc::ptr_eq(&image, &again));
        let id = hex::encode(image.id());
        let said: Vec<String> = lines.lock().unwrap().iter().filter(|line| line.contains(&id)).cloned().collect();
        assert_eq!(said.len(), expected, "{said:?}");
        assert!(said.iter().all(|line| line.contains("layers=2") && line.contains("longest_mib=40")), "{said:?}");
    }
}
