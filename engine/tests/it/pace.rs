//! Connections: how many, how they are used again, and those that fall behind.

use std::time::{Duration, Instant};

use clip_engine::{DiskIo, FillOptions};
use clip_format::{checkpoints::SpanStart, storage_info::Codec, windows::WindowsWriter};

use crate::{
    registry::{Answer, Registry, start},
    sample::{BASE, Layer, Node, read, text, wait_finished},
};

/// A layer that costs nothing to decode, of spans of 256 KiB.
fn plain(len: usize) -> Node {
    Node::new(vec![Layer::plain(text(len, 91), 256 << 10)], WindowsWriter::default(), DiskIo::Auto)
}

/// Bytes at `mib_per_second`.
fn at_rate(mib_per_second: u32) -> Answer {
    Answer::Trickle(16 << 10, Duration::from_secs(1) / (64 * mib_per_second))
}

/// Claim: connections that are starved while others run are given up, their rest comes over others, and next to nothing is fetched twice.
#[test]
fn starved_connections_are_left() {
    const LEN: usize = 48 << 20;
    let node = plain(LEN);
    // Two of the requests get 1 MiB/s, which is 4 s for each of theirs, the others 16 MiB/s.
    let registry = Registry::start(node.layers[0].blob.clone(), |number, _| at_rate(if matches!(number, 1 | 4) { 1 } else { 16 }));
    let engine = start(&node, Duration::from_secs(20), |_| {});
    let (image, started) = (registry.open(&engine, &node), Instant::now());
    wait_finished(&image.fill(FillOptions::default()));
    let (took, stats) = (started.elapsed(), engine.stats());
    assert!((1..=3).contains(&stats.stragglers_cancelled), "{stats:?}");
    assert!(stats.bytes_fetched < (LEN + LEN / 50) as u64, "{stats:?}");
    assert!(took < Duration::from_millis(3900), "{took:?} where the starved alone would take 4 s");
    assert!(read(&image, BASE, 0, LEN).unwrap() == node.layers[0].stream);
}

/// Claim: where all connections are equally slow, none is given up.
#[test]
fn a_slow_network_is_borne() {
    let node = plain(12 << 20);
    let registry = Registry::start(node.layers[0].blob.clone(), |_, _| at_rate(2));
    let engine = start(&node, Duration::from_secs(20), |_| {});
    let image = registry.open(&engine, &node);
    wait_finished(&image.fill(FillOptions::default()));
    let stats = engine.stats();
    assert_eq!((stats.stragglers_cancelled, stats.bytes_fetched), (0, 12 << 20), "{stats:?}");
}

/// Claim: a cold import opens no more connections than may be used at once, on however many shards its requests are.
#[test]
fn connections_are_used_again() {
    let node = plain(24 << 20);
    let registry = Registry::start(node.layers[0].blob.clone(), |_, _| Answer::Bytes);
    let engine = start(&node, Duration::from_secs(20), |config| config.request_bytes_max = 512 << 10);
    let image = registry.open(&engine, &node);
    let fill = image.fill(FillOptions::default());
    std::thread::scope(|scope| {
        for reader in 0..6 {
            let image = &image;
            scope.spawn(move || {
                for step in 0..40 {
                    read(image, BASE, (step * 6 + reader) * 100_000, 1000).unwrap();
                }
            });
        }
    });
    wait_finished(&fill);
    let stats = engine.stats();
    assert!(stats.requests >= 48, "{stats:?}");
    // A request that ends early closes its connection: a reader has taken the last of what it was to bring.
    assert!(stats.connections <= 8, "{} connections for {} requests", stats.connections, stats.requests);
}

/// Claim: a gap that costs less than another request is bridged, its bytes are skipped and counted, and what was there is not decoded again.
#[test]
fn small_gaps_are_bridged() {
    let stream = text(1 << 20, 92);
    let starts = (0..=30).map(|span| span * 1000).chain([600_000, 700_000, 800_000]);
    let starts = starts.map(|at| (SpanStart::Plain, at as u64, at)).collect();
    let layer = Layer::new(stream.clone(), stream.clone(), starts, Codec::Plain);
    let node = Node::new(vec![layer], WindowsWriter::default(), DiskIo::Auto);
    let registry = Registry::start(node.layers[0].blob.clone(), |_, _| Answer::Bytes);
    let engine = start(&node, Duration::from_secs(20), |_| {});
    let image = registry.open(&engine, &node);
    // The registry is measured by a few bodies, then a comb of spans is there already.
    for at in [600_000, 700_000, 800_000] {
        read(&image, BASE, at, 100_000).unwrap();
    }
    for span in [5, 10, 15, 20] {
        read(&image, BASE, span * 1000, 10).unwrap();
    }
    let before = engine.stats();
    assert!(read(&image, BASE, 0, 30_000).unwrap() == stream[..30_000]);
    let after = engine.stats();
    assert_eq!((after.requests - before.requests, after.gap_bytes), (1, 4000), "{after:?}");
    assert_eq!(after.bytes_decoded - before.bytes_decoded, 26_000);
    assert!(after.requests_joined > before.requests_joined);
}
