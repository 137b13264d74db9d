//! zstd layers: many frames are entered anywhere, a single big one is streamed through once.

use std::{
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use clip_engine::{DiskIo, Engine, FillOptions, Image};
use clip_format::windows::WindowsWriter;
use zstd::zstd_safe::CParameter;

use crate::{
    registry::{Answer, Registry, start},
    sample::{BASE, Layer, Node, clip_bytes, draws, each_disk_io, read, text, wait_finished, wait_present},
};

const MIB: usize = 1 << 20;

/// One layer that is one frame, of `mib` MiB, in spans of 1 MiB.
fn one_frame(mib: usize, disk_io: DiskIo) -> Node {
    let stream = text(mib * MIB, 91);
    let layer = Layer::zstd(stream, &[mib * MIB], MIB, &[CParameter::ChecksumFlag(true), CParameter::CompressionLevel(1)]);
    Node::new(vec![layer], WindowsWriter::default(), disk_io)
}

/// Bytes that the registry has sent of blobs, when nothing is under way any more.
fn fetched(engine: &Engine) -> u64 {
    let bytes = || engine.stats().source_bytes + engine.stats().bytes_fetched;
    let mut before = bytes();
    loop {
        std::thread::sleep(Duration::from_millis(50));
        let now = bytes();
        if now == before {
            return now;
        }
        before = now;
    }
}

/// Claim: a layer of many frames is read at random with no more than each read's own frames, and what is read whole afterwards is decoded
/// once, but for the starts of frames in which more than four random reads have ended.
#[test]
fn many_frames_are_entered_anywhere() {
    each_disk_io(|disk_io| {
        let (frames, mut next) = ([60_000, 200_000, 1, 300_000, 130_000].repeat(6), draws(92));
        let stream = text(frames.iter().sum(), 93);
        let layer = Layer::zstd(stream.clone(), &frames, 64 << 10, &[]);
        let node = Node::new(vec![layer], WindowsWriter::default(), disk_io);
        let engine = node.start();
        let image = node.open(&engine);
        for _ in 0..10 {
            let at = next() as usize % (stream.len() - 5000);
            assert!(read(&image, BASE, at, 5000).unwrap() == stream[at..at + 5000], "at {at}");
        }
        let decoded = engine.stats().bytes_decoded;
        assert!(decoded < 10 * 2 * 300_000 && decoded < stream.len() as u64, "{decoded}");
        assert!(read(&image, BASE, 0, stream.len()).unwrap() == stream);
        let (whole, len) = (engine.stats().bytes_decoded, stream.len() as u64);
        assert!((len..=len + decoded).contains(&whole), "{whole} of {len}, {decoded} before");
    });
}

/// Claim: two readers of one layer that is one frame, each reading all of it, one from the start and one from the middle on, fetch it once.
#[test]
fn two_readers_of_one_frame_fetch_it_once() {
    each_disk_io(|disk_io| {
        let node = one_frame(40, disk_io);
        let (blob, stream) = (node.layers[0].blob.len() as u64, &node.layers[0].stream);
        let registry = Registry::start(node.layers[0].blob.clone(), |_, _| Answer::Bytes);
        let engine = start(&node, Duration::from_secs(20), |_| {});
        let image = registry.open(&engine, &node);
        std::thread::scope(|scope| {
            for first in [0, 20] {
                let image = &image;
                scope.spawn(move || {
                    for step in 0..160 {
                        let at = (first * MIB + step * (MIB / 4)) % (40 * MIB);
                        assert!(read(image, BASE, at, 1000).unwrap() == stream[at..at + 1000]);
                    }
                });
            }
        });
        let fetched = fetched(&engine);
        println!("two readers of one frame: {fetched} of {blob} bytes fetched, {:.3}", fetched as f64 / blob as f64);
        let asked = registry.asked.lock().unwrap().clone();
        assert!(fetched as f64 <= 1.05 * blob as f64, "{fetched} of {blob}, {asked:?}, {:?}", engine.stats());
        assert_eq!(engine.stats().bytes_decoded, stream.len() as u64);
        let window = 1 << 27;
        assert!((window..=2 * window).contains(&engine.stats().decoder_bytes_peak), "{:?}", engine.stats());
    });
}

/// Claim: one read at a layer's start makes the rest come, too, and nobody asks the registry again for what follows.
#[test]
fn what_follows_a_read_comes_without_being_asked_for() {
    each_disk_io(|disk_io| {
        let node = one_frame(24, disk_io);
        let engine = node.start();
        let image = node.open(&engine);
        read(&image, BASE, 10, 10).unwrap();
        wait_present(&image, BASE, 0, 24 * MIB);
        let stats = engine.stats();
        assert_eq!((stats.source_bytes, stats.bytes_decoded), (node.layers[0].blob.len() as u64, 24 * MIB as u64));
        assert_eq!(stats.spans_prefetched, 23);
        assert!(image.present(BASE, 0..24 * MIB as u64).unwrap() == node.layers[0].stream);
    });
}

/// Claim: without read-ahead a job stops where its reader is served, and the next goes on from there.
#[test]
fn without_read_ahead_nothing_follows() {
    let node = one_frame(24, DiskIo::Auto);
    let mut config = node.config();
    config.read_ahead_bytes_max = 0;
    let engine = Engine::start(config).unwrap();
    let image = node.open(&engine);
    for mib in [0, 7, 15, 23] {
        assert!(read(&image, BASE, mib * MIB, 10).unwrap() == node.layers[0].stream[mib * MIB..mib * MIB + 10]);
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(engine.stats().bytes_decoded, (mib as u64 + 1) << 20);
    }
}

/// The image of `node`, whose registry sends `piece` bytes every 10 ms.
fn slow(node: &Node, piece: usize) -> (Engine, Registry) {
    let registry = Registry::start(node.layers[0].blob.clone(), move |_, _| Answer::Trickle(piece, Duration::from_millis(10)));
    (start(node, Duration::from_secs(20), |_| {}), registry)
}

/// Reads 10 bytes at each of `places` at once, and gives the place of each answer as they come.
fn answers(image: &Arc<Image>, places: &[usize]) -> mpsc::Receiver<(usize, Vec<u8>)> {
    let (sender, answers) = mpsc::channel();
    for &at in places {
        let sender = sender.clone();
        let done = Box::new(move |result: Result<clip_engine::Bytes, clip_engine::EngineError>| {
            drop(sender.send((at, result.unwrap().to_vec())));
        });
        image.read(BASE, at as u64..at as u64 + 10, done);
    }
    answers
}

/// Claim: readers at several depths of one frame, in whatever order they come, join one stream and are each served as their bytes pass,
/// not at its end.
#[test]
fn readers_are_served_as_their_bytes_pass() {
    each_disk_io(|disk_io| {
        let node = one_frame(20, disk_io);
        let stream = &node.layers[0].stream;
        // About a second for the whole blob.
        let (engine, registry) = slow(&node, node.layers[0].blob.len() / 100);
        let (image, began) = (registry.open(&engine, &node), Instant::now());
        let places: Vec<usize> = [12, 3, 19, 7, 0].map(|mib| mib * MIB + 77).to_vec();
        let answers = answers(&image, &places);
        let mut came = Vec::new();
        for _ in &places {
            let (at, bytes) = answers.recv().unwrap();
            assert!(bytes == stream[at..at + 10]);
            came.push((at / MIB, began.elapsed()));
        }
        assert!(came.iter().map(|(mib, _)| *mib).eq([0, 3, 7, 12, 19]), "{came:?}");
        assert!(came[0].1 * 4 < came[4].1 && came[2].1 * 4 < came[4].1 * 3, "{came:?}");
        assert_eq!((registry.asked.lock().unwrap().len(), engine.stats().bytes_decoded), (1, stream.len() as u64));
    });
}

/// Claim: a reader that comes while a stream goes on for nobody, ahead of it or behind it, waits for its own bytes only, and restarts nothing;
/// one that has gone away does not, either.
#[test]
fn a_late_reader_joins_the_stream() {
    let node = one_frame(20, DiskIo::Auto);
    let (engine, registry) = slow(&node, node.layers[0].blob.len() / 100);
    let image = registry.open(&engine, &node);
    drop(answers(&image, &[0]));
    std::thread::sleep(Duration::from_millis(300));
    for mib in [1, 15, 14, 2, 19] {
        assert!(read(&image, BASE, mib * MIB, 10).unwrap() == node.layers[0].stream[mib * MIB..mib * MIB + 10], "{mib}");
    }
    assert_eq!((registry.asked.lock().unwrap().len(), engine.stats().bytes_decoded), (1, 20 << 20));
}

/// Claim: when the registry fails in the middle, all who wait get one error; whoever reads later goes on where the decoder stood, in the
/// middle of a span, and nothing is fetched or decoded twice.
#[test]
fn a_failure_in_the_middle_is_gone_on_from() {
    each_disk_io(|disk_io| {
        let node = one_frame(20, disk_io);
        let (blob, stream) = (node.layers[0].blob.len(), &node.layers[0].stream);
        // Past the middle, but not at the end of any piece.
        let enough = blob / 2 + 12_345;
        let script = move |number, range: &std::ops::Range<usize>| match number {
            0 => Answer::Stall(enough - range.start),
            1..=4 => Answer::Stall(0),
            _ => Answer::Bytes,
        };
        let registry = Registry::start(node.layers[0].blob.clone(), script);
        let engine = start(&node, Duration::from_millis(700), |_| {});
        let image = registry.open(&engine, &node);
        let errors: Vec<String> = std::thread::scope(|scope| {
            let image = &image;
            let readers = [16, 18, 19].map(|mib| scope.spawn(move || read(image, BASE, mib * MIB, 10).unwrap_err().to_string()));
            readers.into_iter().map(|reader| reader.join().unwrap()).collect()
        });
        assert!(errors.iter().all(|error| *error == errors[0]), "{errors:?}");
        let mut answer = read(&image, BASE, 17 * MIB, 10);
        for _ in 0..4 {
            if answer.is_ok() {
                break;
            }
            answer = read(&image, BASE, 17 * MIB, 10);
        }
        assert!(answer.unwrap() == stream[17 * MIB..17 * MIB + 10]);
        assert!(read(&image, BASE, 0, stream.len()).unwrap() == *stream);
        let (asked, stats) = (registry.asked.lock().unwrap().clone(), engine.stats());
        assert!(asked[1..].iter().all(|&at| at >= enough - 600_000), "{asked:?}, {enough}");
        assert_eq!(stats.bytes_decoded, stream.len() as u64, "{asked:?}");
    });
}

/// Claim: wrong bytes in the middle are an error that names the span, and a later read begins at the frame again and is right.
#[test]
fn damage_in_the_middle_is_told_and_passes() {
    each_disk_io(|disk_io| {
        let node = one_frame(20, disk_io);
        let mut damaged = node.layers[0].blob.clone();
        let at = damaged.len() / 2;
        damaged[at] ^= 0x55;
        std::fs::write(node.blob(0), &damaged).unwrap();
        let engine = node.start();
        let image = node.open(&engine);
        let error = read(&image, BASE, 19 * MIB, 10).unwrap_err().to_string();
        assert!(error.contains("expected bytes that decompress") || error.contains("BLAKE3"), "{error}");
        std::fs::write(node.blob(0), &node.layers[0].blob).unwrap();
        assert!(read(&image, BASE, 0, 20 * MIB).unwrap() == node.layers[0].stream);
    });
}

/// Claim: decoders of large windows take no more memory together than they may, those that stand still give way, and all reads end.
#[test]
fn memory_of_decoders_is_bounded() {
    let layers: Vec<Layer> = (0..4).map(|seed| Layer::zstd(text(6 * MIB, 95 + seed), &[6 * MIB], MIB, &[])).collect();
    let node = Node::new(layers, WindowsWriter::default(), DiskIo::Auto);
    let mut config = node.config();
    config.decoder_bytes_max = 140 << 20;
    let engine = Engine::start(config).unwrap();
    let image = node.open(&engine);
    // Chains this short do not run ahead: each leaves a decoder.
    for mib in 0..6 {
        std::thread::scope(|scope| {
            for layer in 0..4u16 {
                let (image, stream) = (&image, &node.layers[usize::from(layer)].stream);
                scope.spawn(move || {
                    let found = read(image, clip_format::units::LayerIndex(layer), mib * MIB, 100).unwrap();
                    assert!(found == stream[mib * MIB..mib * MIB + 100]);
                });
            }
        });
    }
    let peak = engine.stats().decoder_bytes_peak;
    assert!(((1 << 27)..=140 << 20).contains(&peak), "{peak}");
}

/// Claim: a fill streams a layer of one frame through once, within its memory.
#[test]
fn a_fill_streams_one_frame() {
    each_disk_io(|disk_io| {
        let node = one_frame(40, disk_io);
        let mut config = node.config();
        config.set_memory_max(16 << 20);
        let engine = Engine::start(config).unwrap();
        let image = node.open(&engine);
        wait_finished(&image.fill(FillOptions::default()));
        wait_present(&image, BASE, 0, 40 * MIB);
        let stats = engine.stats();
        assert_eq!((stats.source_bytes, stats.bytes_decoded), (node.layers[0].blob.len() as u64, 40 * MIB as u64));
        assert!(stats.bytes_in_flight_peak <= 13 << 20, "{stats:?}");
    });
}

/// Claim: two images that share a layer of one frame share the job that streams it, wherever in it their readers are.
#[test]
fn images_share_one_stream() {
    each_disk_io(|disk_io| {
        let node = one_frame(20, disk_io);
        let (engine, registry) = slow(&node, node.layers[0].blob.len() / 100);
        let path = node.dir.path().join("second.clip");
        std::fs::write(&path, clip_bytes(&node.layers, WindowsWriter::default(), "second")).unwrap();
        let (first, second) = (registry.open(&engine, &node), registry.open_clip(&engine, &path));
        assert!(first.id() != second.id());
        let ours = answers(&first, &[MIB]);
        std::thread::sleep(Duration::from_millis(200));
        for mib in [10, 3, 19] {
            assert!(read(&second, BASE, mib * MIB, 10).unwrap() == node.layers[0].stream[mib * MIB..mib * MIB + 10]);
        }
        assert_eq!(ours.iter().count(), 1);
        assert_eq!((registry.asked.lock().unwrap().len(), engine.stats().bytes_decoded), (1, 20 << 20));
    });
}
