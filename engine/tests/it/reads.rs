use std::sync::{Barrier, mpsc};

use clip_engine::{DiskIo, EngineError, ErrorKind, ReadStream};
use clip_format::units::LayerIndex;

use crate::sample::{BASE, Node, draws, each_disk_io, read, wait_present};

/// Claim: random reads of every layer, cold and warm, give the bytes of the stream, in both ways of writing the cache.
#[test]
fn random_reads_give_the_stream() {
    each_disk_io(|disk_io| {
        let node = Node::ordinary(disk_io);
        let engine = node.start();
        let image = node.open(&engine);
        let mut next = draws(5);
        for _ in 0..300 {
            let layer = next() as usize % node.layers.len();
            let stream = &node.layers[layer].stream;
            let at = next() as usize % stream.len();
            let len = (next() as usize % 200_000).min(stream.len() - at);
            let found = read(&image, LayerIndex(layer as u16), at, len).unwrap();
            assert!(found == stream[at..at + len], "layer {layer} at {at} for {len}");
        }
        let stats = engine.stats();
        assert_eq!((stats.reads_failed, stats.spans_repaired, stats.spans_not_cached), (0, 0, 0));
        assert!(stats.reads_waited > 0 && stats.slowest_read_us > 0 && stats.slowest_read.starts_with("sha256:"));
    });
}

/// Claim: whole layers read in one go, and in pieces over the largest blocking read, are right, and every span is fetched once.
#[test]
fn whole_layers_are_fetched_once() {
    each_disk_io(|disk_io| {
        let node = Node::ordinary(disk_io);
        let engine = node.start();
        let image = node.open(&engine);
        for _ in 0..2 {
            for (number, layer) in node.layers.iter().enumerate() {
                assert!(read(&image, LayerIndex(number as u16), 0, layer.stream.len()).unwrap() == layer.stream);
            }
        }
        let stats = engine.stats();
        let spans: usize = node.layers.iter().map(|layer| layer.spans.len()).sum();
        assert_eq!(stats.spans_fetched, spans as u64);
        let streams: usize = node.layers.iter().map(|layer| layer.stream.len()).sum();
        assert_eq!(stats.bytes_decoded, streams as u64);
    });
}

/// Claim: many readers of the same absent bytes cause one fetch.
#[test]
fn one_fetch_however_many_readers() {
    each_disk_io(|disk_io| {
        let node = Node::ordinary(disk_io);
        let engine = node.start();
        let image = node.open(&engine);
        let (start, stream) = (Barrier::new(16), &node.layers[0].stream);
        std::thread::scope(|scope| {
            for reader in 0..16 {
                let (image, start) = (&image, &start);
                scope.spawn(move || {
                    start.wait();
                    for at in (0..stream.len() - 9000).step_by(50_000 + reader) {
                        assert!(read(image, BASE, at, 9000).unwrap() == stream[at..at + 9000]);
                    }
                });
            }
        });
        assert_eq!(engine.stats().spans_fetched, node.layers[0].spans.len() as u64);
    });
}

/// Claim: of a layer without chains no byte is fetched twice, whoever reads what at once.
#[test]
fn no_byte_is_fetched_twice() {
    each_disk_io(|disk_io| {
        let node = Node::ordinary(disk_io);
        let engine = node.start();
        let image = node.open(&engine);
        let stream = &node.layers[2].stream;
        std::thread::scope(|scope| {
            for reader in 0..8 {
                let image = &image;
                scope.spawn(move || {
                    for at in (0..stream.len() - 9000).step_by(30_000 + reader) {
                        assert!(read(image, LayerIndex(2), at, 9000).unwrap() == stream[at..at + 9000]);
                    }
                });
            }
        });
        assert_eq!(engine.stats().source_bytes, stream.len() as u64);
    });
}

/// Claim: present bytes are handed out without a fetch, absent ones are not, and both views agree.
#[test]
fn present_is_what_was_read() {
    each_disk_io(|disk_io| {
        let node = Node::ordinary(disk_io);
        let engine = node.start();
        let image = node.open(&engine);
        assert!(image.present(BASE, 0..100).is_none());
        read(&image, BASE, 0, 100).unwrap();
        wait_present(&image, BASE, 0, 100);
        let bytes = image.present(BASE, 10..90).unwrap();
        assert!(bytes == &node.layers[0].stream[10..90]);
        assert!(image.present(BASE, 2_000_000..2_000_100).is_none());
        assert!(image.present(LayerIndex(9), 0..1).is_none());
        assert_eq!(image.present(BASE, 5..5), Some(&[][..]));
    });
}

/// Claim: a read past the stream or of no layer is an error, not a panic; an empty read is empty.
#[test]
fn reads_outside_are_errors() {
    let node = Node::ordinary(DiskIo::Auto);
    let engine = node.start();
    let image = node.open(&engine);
    let len = node.layers[0].stream.len();
    for (layer, at, len) in [(0, len - 1, 2), (0, len, 1), (3, 0, 1), (0, usize::MAX - 5, 4)] {
        let error = read(&image, LayerIndex(layer), at, len).unwrap_err();
        assert!(matches!(error, EngineError::Invalid { .. }) && error.kind() == ErrorKind::Unsupported, "{error}");
    }
    assert!(read(&image, BASE, len, 0).unwrap().is_empty());
}

/// Claim: a parked read may ask for a range of several spans and is answered once with all of it.
#[test]
fn parked_reads_are_answered_once() {
    let node = Node::ordinary(DiskIo::Auto);
    let engine = node.start();
    let image = node.open(&engine);
    let (answer, answers) = mpsc::channel();
    for at in (0..1_000_000u64).step_by(100_000) {
        let answer = answer.clone();
        image.read(BASE, at..at + 300_000, Box::new(move |result| answer.send((at, result.unwrap())).unwrap()));
    }
    drop(answer);
    let mut count = 0;
    for (at, bytes) in answers {
        count += 1;
        assert!(bytes == node.layers[0].stream[at as usize..at as usize + 300_000]);
    }
    assert_eq!(count, 10);
}

/// Claim: a sequential reader's bytes are there before it asks; a random reader causes no read-ahead.
#[test]
fn sequential_readers_are_read_ahead_for() {
    each_disk_io(|disk_io| {
        let node = Node::ordinary(disk_io);
        let engine = node.start();
        let image = node.open(&engine);
        let end = node.layers[0].stream.len();
        let stream = ReadStream::default();
        for at in (0..6).map(|step| step * (32 << 10)) {
            image.note_read(&stream, BASE, at..at + (32 << 10), end as u64);
            read(&image, BASE, at as usize, 32 << 10).unwrap();
        }
        wait_present(&image, BASE, 192 << 10, 64 << 10);
        let random = ReadStream::default();
        let fetched = engine.stats().spans_fetched;
        for at in [2u64 << 20, 1 << 20, 2_500_000] {
            image.note_read(&random, BASE, at..at + 4096, end as u64);
        }
        assert_eq!(engine.stats().spans_fetched, fetched);
    });
}

/// Claim: a budget smaller than one span, one connection and one shard only make reads slower.
#[test]
fn the_smallest_limits_still_read() {
    each_disk_io(|disk_io| {
        let node = Node::ordinary(disk_io);
        let mut config = node.config();
        (config.shards, config.bytes_in_flight_max, config.connections_max) = (1, 1, 1);
        (config.connections_per_layer_max, config.request_bytes_max) = (1, 1000);
        let engine = clip_engine::Engine::start(config).unwrap();
        let image = node.open(&engine);
        assert!(read(&image, BASE, 0, 1 << 20).unwrap() == node.layers[0].stream[..1 << 20]);
    });
}
