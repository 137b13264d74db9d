use std::{
    os::unix::fs::{FileExt, PermissionsExt},
    sync::atomic::{AtomicBool, Ordering},
};

use clip_engine::{DiskIo, Engine, EngineError};
use clip_format::units::LayerIndex;

use crate::sample::{BASE, Node, each_disk_io, read, wait_present};

/// Claim: what was read is served after a restart without a fetch, and nothing in the cache is anybody else's to read.
#[test]
fn the_cache_survives_a_restart() {
    each_disk_io(|disk_io| {
        let node = Node::ordinary(disk_io);
        {
            let engine = node.start();
            let image = node.open(&engine);
            for (number, layer) in node.layers.iter().enumerate() {
                read(&image, LayerIndex(number as u16), 0, layer.stream.len()).unwrap();
                wait_present(&image, LayerIndex(number as u16), 0, layer.stream.len());
            }
        }
        let engine = node.start();
        let image = node.open(&engine);
        for (number, layer) in node.layers.iter().enumerate() {
            assert!(read(&image, LayerIndex(number as u16), 0, layer.stream.len()).unwrap() == layer.stream);
        }
        assert_eq!((engine.stats().spans_fetched, engine.stats().source_reads), (0, 0));
        for file in node.cache_files("stream").into_iter().chain(node.cache_files("spans")) {
            assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
            assert_eq!(std::fs::metadata(file.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
        }
    });
}

/// Claim: bits that flipped on disk while no owner looked are never served: the span is fetched again, others are not.
#[test]
fn a_damaged_span_is_repaired() {
    each_disk_io(|disk_io| {
        let node = Node::ordinary(disk_io);
        let len = node.layers[1].stream.len();
        {
            let engine = node.start();
            let image = node.open(&engine);
            read(&image, LayerIndex(1), 0, len).unwrap();
            wait_present(&image, LayerIndex(1), 0, len);
        }
        for stream in node.cache_files("stream").iter().filter(|path| std::fs::metadata(path).unwrap().len() == len as u64 + 1) {
            let file = std::fs::File::options().read(true).write(true).open(stream).unwrap();
            for at in [5, 300_000] {
                file.write_all_at(&[node.layers[1].stream[at] ^ 1], at as u64).unwrap();
            }
        }
        let engine = node.start();
        let image = node.open(&engine);
        assert!(image.present(LayerIndex(1), 0..10).is_none(), "a damaged span is not handed out");
        assert!(read(&image, LayerIndex(1), 0, len).unwrap() == node.layers[1].stream);
        assert_eq!((engine.stats().spans_repaired, engine.stats().spans_fetched), (2, 2));
    });
}

/// Claim: a cache file that is cut under load never gives a wrong byte or a signal; reads through the file are right or errors.
#[test]
fn a_cache_file_cut_under_load_is_mended() {
    each_disk_io(|disk_io| {
        let node = Node::ordinary(disk_io);
        let engine = node.start();
        let image = node.open(&engine);
        let stream = &node.layers[0].stream;
        read(&image, BASE, 0, stream.len()).unwrap();
        wait_present(&image, BASE, 0, stream.len());
        let file = node.cache_files("stream").into_iter().find(|path| std::fs::metadata(path).unwrap().len() == stream.len() as u64 + 1);
        let file = std::fs::File::options().write(true).open(file.unwrap()).unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for reader in 0..3 {
                let (image, stop) = (&image, &stop);
                scope.spawn(move || {
                    let sink = std::fs::File::options().write(true).open("/dev/null").unwrap();
                    for at in (0..stream.len() - 5000).step_by(4999 + reader).cycle() {
                        if stop.load(Ordering::Relaxed) {
                            return;
                        }
                        assert!(read(image, BASE, at, 5000).unwrap() == stream[at..at + 5000], "at {at}");
                        if let Some(bytes) = image.present(BASE, at as u64..at as u64 + 5000) {
                            let _ = rustix::io::write(&sink, bytes);
                        }
                    }
                });
            }
            for cut in [0, 1_000_001, 5000, 2_999_999, 0, 70_000] {
                std::thread::sleep(std::time::Duration::from_millis(60));
                file.set_len(cut).unwrap();
            }
            std::thread::sleep(std::time::Duration::from_millis(60));
            stop.store(true, Ordering::Relaxed);
        });
        assert!(engine.stats().spans_repaired > 0);
        assert_eq!(engine.stats().reads_failed, 0);
    });
}

/// Claim: a file that was cut inside a page, where the map reads zeros and no fault, is noticed before its bytes are handed out.
#[test]
fn zeros_behind_a_cut_are_not_handed_out() {
    each_disk_io(|disk_io| {
        let node = Node::ordinary(disk_io);
        let engine = node.start();
        let (image, stream) = (node.open(&engine), &node.layers[0].stream);
        read(&image, BASE, 0, stream.len()).unwrap();
        wait_present(&image, BASE, 0, stream.len());
        let file = node.cache_files("stream").into_iter().find(|path| std::fs::metadata(path).unwrap().len() == stream.len() as u64 + 1);
        std::fs::File::options().write(true).open(file.unwrap()).unwrap().set_len(5000).unwrap();
        assert!(image.present(BASE, 4096..8192).is_none());
        assert!(read(&image, BASE, 4096, 4096).unwrap() == stream[4096..8192]);
        assert!(read(&image, BASE, 0, stream.len()).unwrap() == *stream);
    });
}

/// Claim: a span that somebody overwrites while it is in use, verified, is never served wrong: not while they have the file open, nor
/// afterwards, when the file is trusted again.
#[test]
fn an_overwritten_span_is_never_served() {
    each_disk_io(|disk_io| {
        let node = Node::ordinary(disk_io);
        let engine = node.start();
        let (image, stream) = (node.open(&engine), &node.layers[0].stream);
        read(&image, BASE, 0, stream.len()).unwrap();
        wait_present(&image, BASE, 0, stream.len());
        let path = node.cache_files("stream").into_iter().find(|path| std::fs::metadata(path).unwrap().len() == stream.len() as u64 + 1);
        let file = std::fs::File::options().write(true).open(path.unwrap()).unwrap();
        assert!(image.present(BASE, 0..4096).is_none(), "somebody has it open: nothing is handed out unseen");
        for at in [5, 200_000, 1_000_000] {
            file.write_all_at(&[stream[at] ^ 1], at as u64).unwrap();
            assert!(read(&image, BASE, at & !4095, 4096).unwrap() == stream[at & !4095..][..4096], "at {at}");
        }
        file.write_all_at(&[stream[2_000_000] ^ 1], 2_000_000).unwrap();
        drop(file);
        assert_eq!(engine.stats().spans_repaired, 3);
        wait_present(&image, BASE, 0, 4096);
        assert!(read(&image, BASE, 0, stream.len()).unwrap() == *stream);
        assert_eq!((engine.stats().spans_repaired, engine.stats().reads_failed), (4, 0));
    });
}

/// Claim: another process that only reads a cache file, such as a backup, waits a moment, gets it, and leaves everything as it was.
#[test]
fn a_backup_of_the_cache_is_no_harm() {
    let node = Node::ordinary(DiskIo::Auto);
    let engine = node.start();
    let (image, stream) = (node.open(&engine), &node.layers[0].stream);
    read(&image, BASE, 0, stream.len()).unwrap();
    wait_present(&image, BASE, 0, stream.len());
    let fetched = engine.stats().spans_fetched;
    let started = std::time::Instant::now();
    for path in node.cache_files("stream") {
        let copy = std::fs::read(&path).unwrap();
        assert!(copy.len() != stream.len() + 1 || copy[..stream.len()] == stream[..]);
    }
    assert!(started.elapsed() < std::time::Duration::from_secs(5), "a lease was not given back in time");
    wait_present(&image, BASE, 0, stream.len());
    assert!(read(&image, BASE, 0, stream.len()).unwrap() == *stream);
    assert_eq!((engine.stats().spans_fetched, engine.stats().spans_repaired), (fetched, 0));
}

/// Claim: cache files of a wrong length, of a wrong kind or full of ones begin anew or are verified; never a wrong byte.
#[test]
fn a_hostile_cache_directory_is_no_harm() {
    let node = Node::ordinary(DiskIo::Auto);
    let spoil: [&dyn Fn(&std::path::Path); 5] = [
        &|dir| std::fs::File::options().write(true).open(dir.join("stream")).unwrap().set_len(1 << 30).unwrap(),
        &|dir| std::fs::write(dir.join("spans"), [0xff; 3]).unwrap(),
        &|dir| {
            let len = std::fs::metadata(dir.join("spans")).unwrap().len() as usize;
            std::fs::write(dir.join("spans"), vec![0xff; len]).unwrap();
        },
        &|dir| {
            std::fs::remove_file(dir.join("stream")).unwrap();
            std::fs::create_dir(dir.join("stream")).unwrap();
        },
        &|dir| {
            std::fs::remove_file(dir.join("stream")).unwrap();
            std::os::unix::fs::symlink("/etc/passwd", dir.join("stream")).unwrap();
        },
    ];
    for (number, spoil) in spoil.iter().enumerate() {
        {
            let engine = node.start();
            let image = node.open(&engine);
            assert!(read(&image, BASE, 0, 200_000).unwrap() == node.layers[0].stream[..200_000], "case {number}");
        }
        let streams = std::fs::read_dir(node.cache().join("layers/sha256")).unwrap();
        for layer in streams {
            for dir in std::fs::read_dir(layer.unwrap().path()).unwrap() {
                spoil(&dir.unwrap().path());
            }
        }
    }
    let engine = node.start();
    assert!(read(&node.open(&engine), BASE, 0, 200_000).unwrap() == node.layers[0].stream[..200_000]);
}

/// Claim: a second engine on one cache directory is refused with the owner's pid, until the last engine and image are gone.
#[test]
fn one_owner_per_directory() {
    let node = Node::ordinary(DiskIo::Auto);
    let engine = node.start();
    let image = node.open(&engine);
    for keeps in 0..2 {
        match Engine::start(node.config()).map(|_| ()) {
            Err(EngineError::CacheBusy { pid, .. }) => assert_eq!(pid, std::process::id(), "{keeps}"),
            other => panic!("{other:?}"),
        }
        if keeps == 0 {
            read(&image, BASE, 0, 10).unwrap();
        }
    }
    drop(engine);
    assert!(Engine::start(node.config()).is_err(), "the image keeps the engine");
    read(&image, BASE, 2_000_000, 10).unwrap();
    drop(image);
    Engine::start(node.config()).unwrap();
}

/// Claim: an expanded image that was damaged is noticed in the background or at open, and made again.
#[test]
fn a_damaged_expanded_image_is_made_again() {
    let node = Node::ordinary(DiskIo::Auto);
    let dir = {
        let engine = node.start();
        let image = node.open(&engine);
        node.cache().join("images").join(hex::encode(image.id()))
    };
    for name in ["checkpoints", "storage_info", "index.erofs", "windows"] {
        let path = dir.join(name);
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.len() - 1;
        bytes[at] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        // A small one is hashed before the image is opened, so there is no moment in which damage could be read.
        drop(node.start().open_image(&node.clip(), &node.options()).unwrap());
        assert!(std::fs::read(&path).unwrap()[at] != bytes[at], "{name}");
    }
    let engine = node.start();
    assert!(read(&node.open(&engine), BASE, 0, 1000).unwrap() == node.layers[0].stream[..1000]);
}

/// Claim: a truncated or damaged `.clip` is an error that names it, and leaves nothing in the cache.
#[test]
fn a_bad_clip_is_refused() {
    let node = Node::ordinary(DiskIo::Auto);
    let engine = node.start();
    let good = std::fs::read(node.clip()).unwrap();
    for at in [0, 9, 100, 511, 600, good.len() / 2, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 0x40;
        for bad in [&bad[..], &good[..at]] {
            std::fs::write(node.clip(), bad).unwrap();
            let error = engine.open_image(&node.clip(), &node.options()).map(|_| ()).unwrap_err();
            assert!(matches!(&error, EngineError::Format { path, .. } if *path == node.clip()), "{at}: {error}");
        }
    }
    let left = std::fs::read_dir(node.cache().join("images")).map_or(0, Iterator::count);
    assert_eq!(left, 0);
}
