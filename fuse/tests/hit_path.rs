//! A read of bytes that are in the cache costs nothing but its reply: no allocation by the threads that answer.
#![allow(missing_docs, clippy::unwrap_used)]

mod place;
mod sample;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    fs::{self, File},
    os::fd::AsRawFd,
    os::unix::fs::FileExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use clip_engine::{Engine, EngineConfig, Image, ImageOptions, source::BlobSource};
use clip_format::{
    checkpoints::{Span, SpanStart},
    clip_file::ClipParts,
    digest::Digest,
    storage_info::{Codec, ImageConfig, LayerInfo, Platform, Source as Origin, StorageInfo, Transport},
    units::{CompressedOffset, StreamOffset},
};
use clip_fuse::{ByteSource, MountOptions, mount};
use place::{Place, can_mount};
use sample::{FILE_AT, FILE_LEN};

/// Allocations by session threads since the start.
static BY_SESSIONS: AtomicU64 = AtomicU64::new(0);

/// Counts what fuser's session threads allocate.
struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

thread_local! {
    /// Not looked yet, no, yes.
    static IS_SESSION: Cell<Option<bool>> = const { Cell::new(None) };
}

fn is_session() -> bool {
    let known = IS_SESSION.try_with(Cell::get).unwrap_or(Some(false));
    known.unwrap_or_else(|| {
        let mut name = [0_u8; 16];
        // SAFETY: PR_GET_NAME writes at most 16 bytes.
        unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
        let is = name.starts_with(b"fuser-");
        // A thread has its name some time after its first allocation.
        if is {
            let _ = IS_SESSION.try_with(|known| known.set(Some(true)));
        }
        is
    })
}

// SAFETY: every call is the system allocator's, with the same arguments.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_session() {
            BY_SESSIONS.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

const SPAN: usize = 256 << 10;

/// The sample as a `.clip` over plain layers, and its blobs, in `dir`.
fn open(dir: &Path) -> Arc<Image> {
    let (source, index) = sample::source_and_index(true);
    let layers = &source.0.layers;
    let (mut infos, mut spans, mut blobs) = (Vec::new(), Vec::new(), Vec::new());
    for (number, layer) in layers.iter().enumerate() {
        let digest = Digest::Sha256([number as u8; 32]);
        let (compressed_size, stream_size) = (layer.len() as u64, layer.len() as u64);
        infos.push(LayerInfo { digest, diff_id: digest, media_type: String::new(), compressed_size, stream_size, codec: Codec::Plain });
        let span = |(at, bytes): (usize, &[u8])| Span {
            start: SpanStart::Plain,
            compressed: CompressedOffset((at * SPAN) as u64),
            stream: StreamOffset((at * SPAN) as u64),
            digest: *blake3::hash(bytes).as_bytes(),
        };
        spans.push(layer.chunks(SPAN).enumerate().map(span).collect::<Vec<_>>());
        let path = dir.join(format!("blob{number}"));
        fs::write(&path, layer).unwrap();
        blobs.push(BlobSource::File { path, offset: 0, size: stream_size });
    }
    let storage_info = StorageInfo {
        source: Origin::Local { transport: Transport::Oci, path: b"/nowhere".to_vec(), reference: None },
        manifest_digest: Digest::Sha256([9; 32]),
        platform: Platform { os: "linux".into(), architecture: "amd64".into(), variant: None },
        config: ImageConfig::default(),
        layers: infos,
        urls: Vec::new(),
    };
    let clip = ClipParts { index: &index, storage_info: &storage_info, spans: &spans, windows: &[] }.to_bytes().unwrap();
    fs::write(dir.join("x.clip"), clip).unwrap();
    let engine = Engine::start(EngineConfig::new(dir.join("cache"))).unwrap();
    engine.open_image(&dir.join("x.clip"), &ImageOptions { local_blobs: Some(blobs), ..ImageOptions::default() }).unwrap()
}

/// Reads `part` of `file` past whatever the page cache has of it.
fn read_anew(file: &File, part: &mut [u8], at: u64) {
    // SAFETY: no memory is involved.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    file.read_exact_at(part, at).unwrap();
}

/// Thousands of requests that are answered from the cache and the index allocate nothing in the threads that answer them.
#[test]
fn hits_allocate_nothing() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let image = open(&place.0);
    let _mounted = mount(image.clone(), &place.m(), &MountOptions::new("x".into())).unwrap();
    let file = File::open(place.m().join("file")).unwrap();
    let expected = sample::source(true).0.layers[0][FILE_AT..FILE_AT + FILE_LEN].to_vec();
    let mut whole = vec![0; FILE_LEN];
    let last = FILE_AT as u64 + FILE_LEN as u64;
    while image.present(clip_format::units::LayerIndex(0), FILE_AT as u64..last).is_none() {
        read_anew(&file, &mut whole, 0);
        assert!(whole == expected);
    }
    // What a thread allocates once (its part of the counters, the names of missing files) is not what a request costs.
    let paths: Vec<_> = (0..2000).map(|number| place.m().join(format!("missing-{number}"))).collect();
    let mut part = vec![0; 4096];
    let mut ask = |paths: &[std::path::PathBuf]| {
        for (number, path) in paths.iter().enumerate() {
            let at = (number * 7919 * 4096) % (FILE_LEN - 4096);
            read_anew(&file, &mut part, at as u64);
            assert!(part == expected[at..at + 4096]);
            assert!(fs::symlink_metadata(path).is_err());
        }
        read_anew(&file, &mut whole, 0);
        assert!(whole == expected);
    };
    ask(&paths[..1000]);
    let before = BY_SESSIONS.load(Ordering::Relaxed);
    ask(&paths[1000..]);
    assert_eq!(BY_SESSIONS.load(Ordering::Relaxed) - before, 0);
    assert!(image.undamaged().is_ok() && image.is_sound());
}
