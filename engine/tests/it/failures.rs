use std::time::{Duration, Instant};

use clip_engine::{DiskIo, Engine, EngineError, ErrorKind, ImageOptions, registry::Reference};
use clip_format::units::LayerIndex;

use crate::sample::{BASE, Node, each_disk_io, read};

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
        for _ in 0..2 {
            let started = Instant::now();
            std::thread::scope(|scope| {
                for reader in 0..12 {
                    let image = &image;
                    scope.spawn(move || {
                        let error = read(image, BASE, reader * 250_000, 10).unwrap_err();
                        assert!(matches!(&error, EngineError::Deadline { .. }) && error.kind() == ErrorKind::Unavailable, "{error}");
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
        let stats = engine.stats();
        assert!(stats.spans_not_cached > 0 && stats.reads_failed == 0 && stats.spans_repaired == 0, "{stats:?}");
    });
}

/// Claim: an index made from local files cannot be opened without their place, and the error names the option.
#[test]
fn a_local_image_needs_its_source() {
    let node = Node::ordinary(DiskIo::Auto);
    let engine = node.start();
    let error = engine.open_image(&node.clip(), &ImageOptions::default()).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("--source"), "{error}");
}
