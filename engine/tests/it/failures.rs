use std::time::{Duration, Instant};

use clip_engine::{DiskIo, Engine, EngineError, ErrorKind, FillOptions, ImageOptions, ReadStream, registry::Reference};
use clip_format::{units::LayerIndex, windows::WindowsWriter};

use crate::{
    registry::{Answer, Registry, start, warnings},
    sample::{BASE, Layer, Node, clip_bytes, each_disk_io, read, text, wait_finished},
};

/// Claim: wrong bytes from the source are an error for every waiter that names layer and span, nothing of them is kept, and reads work
/// once the source is good again.
#[test]
fn wrong_bytes_are_an_error_and_no_memory_of_it_stays() {
    each_disk_io(|disk_io| {
        let node = Node::ordinary(disk_io);
        let engine = node.start();
        let image = node.open(&engine);
        for layer in [0, 2] {
            let mut bad = node.layers[layer].blob.clone();
            bad.iter_mut().skip(20).step_by(1000).for_each(|byte| *byte ^= 0x55);
            std::fs::write(node.blob(layer), &bad).unwrap();
            std::thread::scope(|scope| {
                for at in [0, 10, 100_000] {
                    let image = &image;
                    scope.spawn(move || {
                        let error = read(image, LayerIndex(layer as u16), at, 400_000).unwrap_err();
                        assert!(matches!(&error, EngineError::Layer { .. }) && error.kind() == ErrorKind::Corrupt, "{error}");
                        assert!(error.to_string().contains("span "), "{error}");
                    });
                }
            });
            std::fs::write(node.blob(layer), &node.layers[layer].blob).unwrap();
            let stream = &node.layers[layer].stream;
            assert!(read(&image, LayerIndex(layer as u16), 0, stream.len()).unwrap() == *stream);
        }
    });
}

/// Claim: a source that is missing or too short is an error, and later reads try again.
#[test]
fn a_missing_or_short_source_is_an_error() {
    let node = Node::ordinary(DiskIo::Auto);
    let engine = node.start();
    let image = node.open(&engine);
    std::fs::remove_file(node.blob(0)).unwrap();
    assert!(matches!(read(&image, BASE, 0, 10).unwrap_err(), EngineError::Io { .. }));
    std::fs::write(node.blob(0), &node.layers[0].blob[..5000]).unwrap();
    read(&image, BASE, 1_500_000, 10).unwrap_err();
    std::fs::write(node.blob(0), &node.layers[0].blob).unwrap();
    assert!(read(&image, BASE, 1_500_000, 10).unwrap() == node.layers[0].stream[1_500_000..1_500_010]);
    assert_eq!(engine.stats().reads_failed, 2);
}

/// Claim: a registry that accepts and never answers gives the reader an error within the timeout, to every reader, and again later.
#[test]
fn a_dead_registry_is_an_error_in_time() {
    each_disk_io(|disk_io| {
        let node = Node::ordinary(disk_io);
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let registry = silent.local_addr().unwrap().to_string();
        let store_ref = Some(Reference { registry, repository: "some/image".to_owned(), tag: None, digest: None });
        let mut config = node.config();
        config.read_timeout = Duration::from_millis(700);
        let engine = Engine::start(config).unwrap();
        let image = engine.open_image(&node.clip(), &ImageOptions { store_ref, ..ImageOptions::default() }).unwrap();
        let digest = node.layers[0].info().digest.to_string();
        for _ in 0..2 {
            let started = Instant::now();
            std::thread::scope(|scope| {
                for reader in 0..12 {
                    let (image, digest) = (&image, &digest);
                    scope.spawn(move || {
                        let error = read(image, BASE, reader * 250_000, 10).unwrap_err();
                        assert!(matches!(&error, EngineError::Deadline { .. }) && error.kind() == ErrorKind::Unavailable, "{error}");
                        let said = error.to_string();
                        assert!(said.contains("of stream bytes ") && said.contains(digest), "{said}");
                    });
                }
            });
            let took = started.elapsed();
            assert!(took > Duration::from_millis(600) && took < Duration::from_millis(3000), "{took:?}");
        }
    });
}

/// Claim: the absolute deadline ends a read that the progress timeout would let wait.
#[test]
fn the_absolute_deadline_holds() {
    let node = Node::ordinary(DiskIo::Auto);
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let registry = silent.local_addr().unwrap().to_string();
    let store_ref = Some(Reference { registry, repository: "some/image".to_owned(), tag: None, digest: None });
    let mut config = node.config();
    config.read_deadline = Some(Duration::from_millis(300));
    let engine = Engine::start(config).unwrap();
    let image = engine.open_image(&node.clip(), &ImageOptions { store_ref, ..ImageOptions::default() }).unwrap();
    let started = Instant::now();
    assert!(matches!(read(&image, BASE, 0, 10).unwrap_err(), EngineError::Deadline { .. }));
    assert!(started.elapsed() < Duration::from_secs(3));
}

/// Claim: an engine that stops answers who still waits, and its threads are gone.
#[test]
fn a_stopping_engine_answers_its_readers() {
    each_disk_io(|disk_io| {
        let node = Node::ordinary(disk_io);
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let registry = silent.local_addr().unwrap().to_string();
        let store_ref = Some(Reference { registry, repository: "some/image".to_owned(), tag: None, digest: None });
        let engine = node.start();
        let image = engine.open_image(&node.clip(), &ImageOptions { store_ref, ..ImageOptions::default() }).unwrap();
        let (answer, answers) = std::sync::mpsc::channel();
        for at in 0..20 {
            let answer = answer.clone();
            image.read(BASE, at * 1000..at * 1000 + 10, Box::new(move |result| answer.send(result).unwrap()));
        }
        drop((answer, image, engine));
        let answers: Vec<_> = answers.iter().collect();
        assert_eq!(answers.len(), 20);
        assert!(answers.iter().all(|answer| matches!(answer, Err(EngineError::Stopped))), "{answers:?}");
        Engine::start(node.config()).unwrap();
    });
}

/// A file system of `bytes` at a directory, gone when dropped.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(dir: std::path::PathBuf, bytes: u64) -> Option<Self> {
        std::fs::create_dir_all(&dir).unwrap();
        let options = std::ffi::CString::new(format!("size={bytes},mode=700")).unwrap();
        rustix::mount::mount("clip-test", &dir, "tmpfs", rustix::mount::MountFlags::empty(), options.as_c_str()).ok()?;
        Some(Self(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}

/// Claim: on a full disk every read is right, spans that do not fit are counted, and those that fit stay served from the cache.
#[test]
fn a_full_disk_passes_reads_through() {
    each_disk_io(|disk_io| {
        let node = Node::ordinary(disk_io);
        let Some(_disk) = SmallDisk::mount(node.cache(), 1 << 20) else {
            return eprintln!("not run: only root can mount a small file system");
        };
        let engine = node.start();
        let image = node.open(&engine);
        for _ in 0..3 {
            for (number, layer) in node.layers.iter().enumerate() {
                assert!(read(&image, LayerIndex(number as u16), 0, layer.stream.len()).unwrap() == layer.stream);
            }
        }
        // What a write became of is counted when it ends, a reader does not wait for that.
        for _ in 0..1000 {
            if engine.stats().spans_not_cached > 0 {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let stats = engine.stats();
        assert!(stats.spans_not_cached > 0 && stats.reads_failed == 0 && stats.spans_repaired == 0, "{stats:?}");
    });
}

/// Claim: a fill ends when the disk is full, rather than decode the rest for nothing.
#[test]
fn a_full_disk_ends_a_fill() {
    each_disk_io(|disk_io| {
        let node = Node::new(vec![Layer::plain(text(4 << 20, 77), 64 << 10)], WindowsWriter::default(), disk_io);
        let Some(_disk) = SmallDisk::mount(node.cache(), 1 << 20) else {
            return eprintln!("not run: only root can mount a small file system");
        };
        let engine = node.start();
        let image = node.open(&engine);
        let fill = image.fill(FillOptions { bytes_per_second: Some(4 << 20) });
        wait_finished(&fill);
        let stats = engine.stats();
        assert!(stats.spans_not_cached > 0 && stats.bytes_decoded < 3 << 20, "{stats:?}");
        assert!(read(&image, BASE, 0, 4 << 20).unwrap() == node.layers[0].stream);
    });
}

/// Claim: a fill from a registry that refuses ends after a few requests, and readers still try for themselves.
#[test]
fn a_fill_gives_up() {
    let node = Node::new(vec![Layer::plain(text(8 << 20, 78), 64 << 10)], WindowsWriter::default(), DiskIo::Auto);
    let refuse = |number, _: &std::ops::Range<usize>| if number < 30 { Answer::Refuse("404 X") } else { Answer::Bytes };
    let registry = Registry::start(node.layers[0].blob.clone(), refuse);
    let engine = start(&node, Duration::from_secs(5), |config| config.request_bytes_max = 64 << 10);
    let image = registry.open(&engine, &node);
    let fill = image.fill(FillOptions::default());
    wait_finished(&fill);
    assert!(engine.stats().requests < 20, "{:?}", engine.stats());
    while engine.stats().requests < 30 {
        read(&image, BASE, 0, 10).unwrap_err();
    }
    assert!(read(&image, BASE, 0, 8 << 20).unwrap() == node.layers[0].stream);
}

/// Claim: an index made from local files cannot be opened without their place, and the error names the option.
#[test]
fn a_local_image_needs_its_source() {
    let node = Node::ordinary(DiskIo::Auto);
    let engine = node.start();
    let error = engine.open_image(&node.clip(), &ImageOptions::default()).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("--source"), "{error}");
}

/// Claim: a body that stops in the middle fails the readers of what did not come within the timeout, though the client would try for
/// longer; what came is served, and later reads try again.
#[test]
fn a_body_that_stalls_is_an_error_in_time() {
    each_disk_io(|disk_io| {
        let stream = text(2 << 20, 71);
        let node = Node::new(vec![Layer::plain(stream.clone(), 64 << 10)], WindowsWriter::default(), disk_io);
        let registry =
            Registry::start(node.layers[0].blob.clone(), |number, _| if number == 0 { Answer::Stall(200_000) } else { Answer::Bytes });
        let engine = start(&node, Duration::from_millis(1000), |_| {});
        let image = registry.open(&engine, &node);
        let (started, (answer, answers)) = (Instant::now(), std::sync::mpsc::channel());
        image.read(BASE, 0..1 << 20, Box::new(move |result| answer.send(result.map(drop)).unwrap()));
        assert!(read(&image, BASE, 0, 190_000).unwrap() == stream[..190_000]);
        assert!(started.elapsed() < Duration::from_millis(900), "spans are served as they come: {:?}", started.elapsed());
        assert!(matches!(answers.recv().unwrap(), Err(EngineError::Deadline { .. })));
        assert!((900..4000).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
        assert!(read(&image, BASE, 0, stream.len()).unwrap() == stream);
    });
}

/// Claim: a registry that asks to be left alone for longer than the timeout is an error within it.
#[test]
fn a_registry_that_says_later_is_an_error_in_time() {
    let node = Node::ordinary(DiskIo::Auto);
    let registry = Registry::start(node.layers[0].blob.clone(), |_, _| Answer::Refuse("503 X\r\nretry-after: 20"));
    let engine = start(&node, Duration::from_millis(600), |_| {});
    let (image, started) = (registry.open(&engine, &node), Instant::now());
    read(&image, BASE, 0, 10).unwrap_err();
    assert!(started.elapsed() < Duration::from_millis(2500), "{:?}", started.elapsed());
}

/// Claim: a reader far into a read-ahead whose registry has died is answered within the timeout, not after one timeout for each of the
/// read-ahead's requests.
#[test]
fn a_read_ahead_fails_as_a_whole() {
    each_disk_io(|disk_io| {
        let stream = text(2 << 20, 72);
        let node = Node::new(vec![Layer::plain(stream.clone(), 64 << 10)], WindowsWriter::default(), disk_io);
        let registry = Registry::start(node.layers[0].blob.clone(), |_, _| Answer::Stall(0));
        let engine = start(&node, Duration::from_millis(600), |config| config.request_bytes_max = 64 << 10);
        let (image, reader, end) = (registry.open(&engine, &node), ReadStream::default(), stream.len() as u64);
        for at in (0..12).map(|step| step * (64 << 10)) {
            image.note_read(&reader, BASE, at..at + (64 << 10), end);
        }
        std::thread::sleep(Duration::from_millis(50));
        let started = Instant::now();
        std::thread::scope(|scope| {
            for at in (0..end as usize).step_by(64 << 10) {
                let image = &image;
                scope.spawn(move || read(image, BASE, at, 10).unwrap_err());
            }
        });
        assert!(started.elapsed() < Duration::from_millis(2000), "{:?}", started.elapsed());
    });
}

/// Claim: images that share a layer and a dead registry do not wait for each other in turn.
#[test]
fn a_shared_dead_registry_is_waited_for_once() {
    let node = Node::new(vec![Layer::plain(text(100_000, 73), 64 << 10)], WindowsWriter::default(), DiskIo::Auto);
    let registry = Registry::start(node.layers[0].blob.clone(), |_, _| Answer::Stall(0));
    let engine = start(&node, Duration::from_millis(600), |_| {});
    let images: Vec<_> = (0..6)
        .map(|number| {
            std::fs::write(node.clip(), clip_bytes(&node.layers, WindowsWriter::default(), &number.to_string())).unwrap();
            registry.open(&engine, &node)
        })
        .collect();
    let started = Instant::now();
    std::thread::scope(|scope| {
        for image in &images {
            scope.spawn(move || assert!(matches!(read(image, BASE, 0, 10), Err(EngineError::Deadline { .. }))));
        }
    });
    assert!(started.elapsed() < Duration::from_millis(1100), "{:?}", started.elapsed());
}

/// Claim: a failed fetch is one warning that names layer and cause, and a reader that asks again and again writes no flood.
#[test]
fn a_failed_fetch_is_one_line_and_many_are_few() {
    let node = Node::new(vec![Layer::plain(text(100_000, 74), 64 << 10)], WindowsWriter::default(), DiskIo::Auto);
    let registry = Registry::start(node.layers[0].blob.clone(), |_, _| Answer::Refuse("404 X"));
    let engine = start(&node, Duration::from_secs(5), |_| {});
    let (image, layer) = (registry.open(&engine, &node), node.layers[0].info().digest.to_string());
    let lines = || warnings().lock().unwrap().iter().filter(|line| line.contains(&format!("layer={layer}"))).cloned().collect::<Vec<_>>();
    lines();
    read(&image, BASE, 0, 90_000).unwrap_err();
    let first = lines();
    assert!(first.len() == 1 && first[0].contains("a fetch failed") && first[0].contains("status 404"), "{first:?}");
    for _ in 0..200 {
        read(&image, BASE, 0, 10).unwrap_err();
    }
    assert!((1..=20).contains(&lines().len()), "{}", lines().len());
}

/// Claim: a fetch that brings wrong bytes for many spans is one warning.
#[test]
fn wrong_bytes_of_many_spans_are_one_line() {
    let node = Node::new(vec![Layer::plain(text(600_000, 75), 64 << 10)], WindowsWriter::default(), DiskIo::Auto);
    std::fs::write(node.blob(0), text(600_000, 76)).unwrap();
    let layer = format!("layer={}", node.layers[0].info().digest);
    warnings();
    let engine = node.start();
    let image = node.open(&engine);
    read(&image, BASE, 0, 600_000).unwrap_err();
    // Stopped, so that every job has ended.
    drop((image, engine));
    let lines: Vec<_> = warnings().lock().unwrap().iter().filter(|line| line.contains(&layer)).cloned().collect();
    assert!(lines.len() == 1 && lines[0].contains("BLAKE3"), "{lines:?}");
}

/// Claim: an answer that panics in an engine thread loses nobody else's: each other reader is answered, and the engine goes on.
#[test]
fn a_panic_in_an_engine_thread_leaves_nobody_waiting() {
    each_disk_io(|disk_io| {
        let node = Node::ordinary(disk_io);
        let (engine, stream) = (node.start(), &node.layers[0].stream);
        let image = node.open(&engine);
        let (answer, answers) = std::sync::mpsc::channel();
        for number in 0..30 {
            let answer = answer.clone();
            let done = move |result: Result<clip_engine::Bytes, EngineError>| {
                assert!(number != 3, "a panic that this test wants");
                answer.send(result).unwrap();
            };
            let read = || image.read(BASE, number * 7000..number * 7000 + 100_000, Box::new(done));
            // Where all of it is there already, the panic is our own.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(read));
        }
        drop(answer);
        let mut count = 0;
        while let Ok(result) = answers.recv_timeout(Duration::from_secs(20)) {
            count += 1;
            assert!(matches!(result, Ok(_) | Err(EngineError::Stopped)), "{result:?}");
        }
        assert_eq!(count, 29);
        assert!(read(&image, BASE, 0, stream.len()).unwrap() == *stream);
    });
}
