//! Layers and loads at the edges of what is ordinary.

use std::{
    os::unix::fs::PermissionsExt,
    sync::mpsc,
    time::{Duration, Instant},
};

use clip_engine::{DiskIo, Engine, EngineError, ImageOptions, ReadStream};
use clip_format::{
    checkpoints::SpanStart,
    limits::WINDOW_BYTES,
    storage_info::{Codec, Source},
    units::LayerIndex,
    windows::WindowsWriter,
};
use flate2::{Compression, write::GzEncoder};

use crate::{
    registry::{Answer, Registry, start},
    sample::{BASE, Layer, Node, clip_bytes, clip_bytes_from, each_disk_io, gzip, read, text, wait_present},
};

/// Claim: layers without a span, of one span, and of one span longer than the whole budget are read as any other.
#[test]
fn layers_of_no_span_and_of_one() {
    each_disk_io(|disk_io| {
        let (mut windows, long) = (WindowsWriter::default(), text(3 << 20, 41));
        let layers = vec![
            Layer::plain(Vec::new(), 1000),
            Layer::plain(vec![7; 512], 1000),
            Layer::gzip(long.clone(), gzip(&long, 6), 4 << 20, &mut windows),
        ];
        let node = Node::new(layers, windows, disk_io);
        let mut config = node.config();
        config.bytes_in_flight_max = 1 << 20;
        let engine = Engine::start(config).unwrap();
        let image = node.open(&engine);
        assert_eq!(image.present(LayerIndex(0), 0..0), Some(&[][..]));
        assert!(read(&image, LayerIndex(0), 0, 0).unwrap().is_empty());
        assert!(matches!(read(&image, LayerIndex(0), 0, 1), Err(EngineError::Invalid { .. })));
        image.note_read(&ReadStream::default(), LayerIndex(0), 0..0, 0);
        for layer in [1, 2] {
            let stream = &node.layers[layer].stream;
            assert!(read(&image, LayerIndex(layer as u16), 0, stream.len()).unwrap() == *stream);
            wait_present(&image, LayerIndex(layer as u16), 0, stream.len());
        }
        assert_eq!(engine.stats().spans_fetched, 2);
    });
}

/// Claim: an index that names a registry or a repository by a path or a URL is refused before anything is looked up under that name: no
/// settings of its own choice, no other host. A `.clip` and a source that are no regular files are refused, too, and nobody waits for them.
#[test]
fn an_index_cannot_lead_elsewhere() {
    let node = Node::new(vec![Layer::plain(vec![7; 5000], 1000)], WindowsWriter::default(), DiskIo::Auto);
    let mut config = node.config();
    config.client.hosts_dir = Some(node.dir.path().join("certs.d"));
    let engine = Engine::start(config).unwrap();
    let open = |registry: &str, repository: &str| {
        let (registry, repository) = (registry.to_owned(), repository.to_owned());
        let source = Source::Registry { registry, repository, reference: "latest".to_owned() };
        std::fs::write(node.clip(), clip_bytes_from(source, &node.layers, WindowsWriter::default())).unwrap();
        engine.open_image(&node.clip(), &ImageOptions::default()).map(drop).map_err(|error| error.to_string())
    };
    assert_eq!(open("registry.invalid:5000", "team/app"), Ok(()));
    for registry in ["../evil", "/etc", "..", "localhost:x@evil.invalid", "registry.invalid/v2", ""] {
        let error = open(registry, "team/app").unwrap_err();
        assert!(error.contains("registry of the reference") && error.contains(registry), "{registry:?}: {error}");
    }
    for repository in ["../../any/path?q#", "team/../app", ""] {
        assert!(open("registry.invalid", repository).is_err(), "{repository:?}");
    }
    let fifo = node.dir.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
    let error = engine.open_image(&fifo, &ImageOptions::default()).map(drop).unwrap_err().to_string();
    assert!(error.contains("found a FIFO"), "{error}");
    std::fs::remove_file(node.blob(0)).unwrap();
    std::fs::rename(&fifo, node.blob(0)).unwrap();
    std::fs::write(node.clip(), clip_bytes(&node.layers, WindowsWriter::default(), "")).unwrap();
    let error = read(&node.open(&engine), LayerIndex(0), 0, 10).unwrap_err().to_string();
    assert!(error.contains("found a FIFO"), "{error}");
}

/// Claim: thousands of parked reads of one layer, from one thread, are each answered once, with one fetch a span.
#[test]
fn thousands_of_waiters_are_answered() {
    each_disk_io(|disk_io| {
        let node = Node::ordinary(disk_io);
        let (engine, stream) = (node.start(), &node.layers[0].stream);
        let image = node.open(&engine);
        let (answer, answers) = mpsc::channel();
        for number in 0..5000 {
            let (answer, at) = (answer.clone(), number * 629 % (stream.len() - 2000));
            let done = Box::new(move |result: Result<clip_engine::Bytes, EngineError>| answer.send((at, result.unwrap())).unwrap());
            image.read(BASE, at as u64..at as u64 + 2000, done);
        }
        drop(answer);
        let mut count = 0;
        for (at, bytes) in answers {
            count += 1;
            assert!(bytes == stream[at..at + 2000]);
        }
        assert_eq!((count, engine.stats().spans_fetched), (5000, node.layers[0].spans.len() as u64));
    });
}

/// Claim: a chained span whose compressed bytes a kept decoder has used up already, its output held back, is read without a byte more.
#[test]
fn a_decoder_that_has_all_its_bytes_goes_on() {
    const FIRST: usize = 64 << 10;
    for tail in [1, 2, 20, 100, 257, 258, 300, 500, 514, 515, 516, 517, 700, 1000, 2000] {
        let mut stream = vec![0; FIRST + tail];
        let mut encoder = GzEncoder::new(Vec::new(), Compression::new(6));
        std::io::Write::write_all(&mut encoder, &stream).unwrap();
        std::io::Write::flush(&mut encoder).unwrap();
        let more = text(50_000, 51);
        std::io::Write::write_all(&mut encoder, &more).unwrap();
        let (boundary, blob) = (stream.len(), encoder.finish().unwrap());
        stream.extend(more);
        let (place, bit_offset) = first_boundary(&blob, boundary);
        let mut windows = WindowsWriter::default();
        let window = windows.append(&[0; WINDOW_BYTES]).unwrap();
        let starts =
            vec![(SpanStart::Member, 0, 0), (SpanStart::Chained, 0, FIRST), (SpanStart::Deflate { bit_offset, window }, place, boundary)];
        let node = Node::new(vec![Layer::new(stream.clone(), blob, starts, Codec::Gzip)], windows, DiskIo::Auto);
        let engine = node.start();
        let image = node.open(&engine);
        read(&image, BASE, 0, 10).unwrap();
        wait_present(&image, BASE, 0, FIRST);
        assert!(read(&image, BASE, FIRST, tail).unwrap() == stream[FIRST..boundary], "tail {tail}");
        assert!(read(&image, BASE, 0, stream.len()).unwrap() == stream);
    }
}

/// Where the first deflate block boundary at `stream` bytes is.
fn first_boundary(blob: &[u8], stream: usize) -> (u64, u8) {
    use clip_engine::inflate::{Inflate, Stop, Until, checkpoint_place};
    let (mut inflate, mut used, mut made, mut out) = (Inflate::gzip(), 0, 0, vec![0; stream + 1]);
    loop {
        let step = inflate.step(&blob[used..], &mut out[made..], Until::Block).unwrap();
        (used, made) = (used + step.consumed, made + step.produced);
        match step.stop {
            Stop::Block { unused_bits } if made == stream => {
                let (place, bits) = checkpoint_place(used as u64, unused_bits);
                return (place.get(), bits);
            }
            Stop::End => panic!("no block boundary"),
            _ => {}
        }
    }
}

/// Claim: a reader in front of a slow read-ahead does not wait for the rest of it: what the next request does not bring is not claimed.
#[test]
fn read_ahead_leaves_the_way_free() {
    each_disk_io(|disk_io| {
        let stream = text(4 << 20, 61);
        let node = Node::new(vec![Layer::plain(stream.clone(), 64 << 10)], WindowsWriter::default(), disk_io);
        // The requests of read-ahead, which are as long as may be, trickle; those of readers do not.
        let slow = |_, range: &std::ops::Range<usize>| {
            if range.len() > 70_000 { Answer::Trickle(16 << 10, Duration::from_millis(100)) } else { Answer::Bytes }
        };
        let registry = Registry::start(node.layers[0].blob.clone(), slow);
        let engine = start(&node, Duration::from_secs(10), |config| config.request_bytes_max = 256 << 10);
        let (image, ahead) = (registry.open(&engine, &node), ReadStream::default());
        for at in [0, 32 << 10, 64 << 10, 96 << 10, 128 << 10, 192 << 10, 256 << 10, 320 << 10, 384 << 10, 512 << 10] {
            image.note_read(&ahead, BASE, at..at + (128 << 10), stream.len() as u64);
        }
        std::thread::sleep(Duration::from_millis(200));
        assert!(!registry.asked.lock().unwrap().is_empty(), "there is read-ahead");
        let started = Instant::now();
        for at in [3 << 20, 2 << 20, (4 << 20) - 10] {
            assert!(read(&image, BASE, at, 10).unwrap() == stream[at..at + 10]);
        }
        assert!(started.elapsed() < Duration::from_millis(1400), "{:?}", started.elapsed());
    });
}

/// Claim: read-ahead asks for nothing behind the end of the file that is read, nor of the layer.
#[test]
fn read_ahead_ends_with_the_file() {
    let stream = text(2 << 20, 62);
    let node = Node::new(vec![Layer::plain(stream.clone(), 64 << 10)], WindowsWriter::default(), DiskIo::Auto);
    for file_end in [512 << 10, 2 << 20, u64::MAX] {
        let engine = node.start();
        let (image, reader) = (node.open(&engine), ReadStream::default());
        let end = file_end.min(stream.len() as u64);
        for at in (0..end).step_by(32 << 10) {
            image.note_read(&reader, BASE, at..at + (32 << 10), file_end);
            read(&image, BASE, at as usize, 32 << 10).unwrap();
        }
        wait_present(&image, BASE, 0, end as usize);
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(engine.stats().bytes_decoded, end);
        drop((image, engine));
        std::fs::remove_dir_all(node.cache()).unwrap();
    }
}

/// Claim: a cache directory that others may write to, or that is somebody else's, is refused with what to do.
#[test]
fn a_cache_directory_of_others_is_refused() {
    let node = Node::ordinary(DiskIo::Auto);
    std::fs::create_dir(node.cache()).unwrap();
    std::fs::set_permissions(node.cache(), std::fs::Permissions::from_mode(0o1777)).unwrap();
    let error = Engine::start(node.config()).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("1777") && error.to_string().contains("chmod 700"), "{error}");
    std::fs::set_permissions(node.cache(), std::fs::Permissions::from_mode(0o755)).unwrap();
    drop(Engine::start(node.config()).unwrap());
    if std::os::unix::fs::chown(node.cache(), Some(12_345), None).is_ok() {
        let error = Engine::start(node.config()).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("owner 12345"), "{error}");
    }
}
