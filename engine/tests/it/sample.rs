//! Sample layers, a simple indexer for them, and engines over temporary caches.

use std::{
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use clip_engine::{
    BackgroundHandle, DiskIo, Engine, EngineConfig, EngineError, Image, ImageOptions,
    inflate::{Inflate, Stop, Until, checkpoint_place},
    source::BlobSource,
};
use clip_format::{
    checkpoints::{Span, SpanStart},
    clip_file::ClipParts,
    digest::Digest,
    erofs::{Body, Device, InodeSpec, write_image},
    limits::{FRAME_WINDOW_LOG_MAX, WINDOW_BYTES},
    storage_info::{Codec, ImageConfig, LayerInfo, Platform, Source, StorageInfo, Transport},
    units::{CompressedOffset, LayerIndex, StreamOffset},
    windows::WindowsWriter,
};
use flate2::{Compression, write::GzEncoder};
use sha2::Digest as _;
use zstd::zstd_safe::{CCtx, CParameter, compress_bound};

pub const BASE: LayerIndex = LayerIndex(0);

/// Text with short and long repeats; a pure function of `seed`.
pub fn text(len: usize, seed: u64) -> Vec<u8> {
    let mut next = draws(seed);
    let mut out = Vec::with_capacity(len + 512);
    while out.len() < len {
        let draw = next();
        match draw % 4 {
            0 => out.extend_from_slice(format!("{draw:x} ").as_bytes()),
            1 if out.len() > 40_000 => {
                let from = out.len() - 1 - (draw >> 8) as usize % 32_000;
                let till = (from + 3 + (draw >> 32) as usize % 200).min(out.len());
                out.extend_from_within(from..till);
            }
            2 => out.extend(std::iter::repeat_n((draw >> 8) as u8, (draw >> 16) as usize % 100)),
            _ => out.extend_from_slice(&draw.to_le_bytes()),
        }
    }
    out.truncate(len);
    out
}

/// xorshift64.
pub fn draws(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    }
}

pub fn gzip(data: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(level));
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

pub fn zstd_frame(data: &[u8], parameters: &[CParameter]) -> Vec<u8> {
    let mut context = CCtx::create();
    for &parameter in parameters {
        context.set_parameter(parameter).unwrap();
    }
    let mut out = vec![0; compress_bound(data.len())];
    let len = context.compress2(&mut out[..], data).unwrap();
    out.truncate(len);
    out
}

/// One layer: its stream, its blob, and its spans.
#[derive(Clone)]
pub struct Layer {
    pub stream: Vec<u8>,
    pub blob: Vec<u8>,
    pub spans: Vec<Span>,
    pub codec: Codec,
}

impl Layer {
    /// A plain layer whose spans are `span_len` long.
    pub fn plain(stream: Vec<u8>, span_len: usize) -> Self {
        let starts = (0..stream.len()).step_by(span_len);
        let spans = starts.map(|at| (SpanStart::Plain, at as u64, at)).collect();
        Self::new(stream.clone(), stream, spans, Codec::Plain)
    }

    /// A gzip layer, indexed: an entry at the first block boundary `span_len` after the last, a chained span after twice that.
    pub fn gzip(stream: Vec<u8>, blob: Vec<u8>, span_len: usize, windows: &mut WindowsWriter) -> Self {
        let mut starts = vec![(SpanStart::Member, 0, 0)];
        let (mut inflate, mut used, mut made, mut last) = (Inflate::gzip(), 0, 0, 0);
        let mut out = vec![0; stream.len() + 1];
        while made < stream.len() {
            let end = (last + 2 * span_len).min(out.len());
            let until = if made - last >= span_len { Until::Block } else { Until::Full };
            let end = if until == Until::Full { (last + span_len).min(end) } else { end };
            let step = inflate.step(&blob[used..], &mut out[made..end], until).unwrap();
            (used, made) = (used + step.consumed, made + step.produced);
            let start = match step.stop {
                Stop::End => {
                    inflate.reset_gzip();
                    Some((SpanStart::Member, used as u64))
                }
                Stop::Block { unused_bits } => {
                    let (place, bit_offset) = checkpoint_place(used as u64, unused_bits);
                    let mut window = [0; WINDOW_BYTES];
                    let history = &out[made.saturating_sub(WINDOW_BYTES)..made];
                    window[WINDOW_BYTES - history.len()..].copy_from_slice(history);
                    Some((SpanStart::Deflate { bit_offset, window: windows.append(&window).unwrap() }, place.get()))
                }
                Stop::More if made == last + 2 * span_len => Some((SpanStart::Chained, used as u64)),
                Stop::More => None,
            };
            if let Some((start, at)) = start
                && made > last
                && made < stream.len()
            {
                starts.push((start, at, made));
                last = made;
            }
        }
        assert!(out[..made] == stream);
        Self::new(stream, blob, starts, Codec::Gzip)
    }

    /// A zstd layer of frames of these lengths, each an entry, with chained spans every `span_len` bytes inside.
    pub fn zstd(stream: Vec<u8>, frames: &[usize], span_len: usize, parameters: &[CParameter]) -> Self {
        let (mut blob, mut starts, mut at) = (Vec::new(), Vec::new(), 0);
        for &len in frames {
            starts.push((SpanStart::Frame { window_log: FRAME_WINDOW_LOG_MAX }, blob.len() as u64, at));
            let inside = (span_len..len).step_by(span_len);
            starts.extend(inside.map(|place| (SpanStart::Chained, blob.len() as u64, at + place)));
            blob.extend(zstd_frame(&stream[at..at + len], parameters));
            at += len;
        }
        assert_eq!(at, stream.len());
        Self::new(stream, blob, starts, Codec::Zstd)
    }

    /// With spans at `starts`: how each is entered, its place in the blob and its place in the stream.
    pub fn new(stream: Vec<u8>, blob: Vec<u8>, starts: Vec<(SpanStart, u64, usize)>, codec: Codec) -> Self {
        let ends = starts.iter().skip(1).map(|start| start.2).chain([stream.len()]);
        let span = |(&(start, at, from), end): (&(SpanStart, u64, usize), usize)| Span {
            start,
            compressed: CompressedOffset(at),
            stream: StreamOffset(from as u64),
            digest: *blake3::hash(&stream[from..end]).as_bytes(),
        };
        let spans = starts.iter().zip(ends).map(span).collect();
        Self { stream, blob, spans, codec }
    }

    pub fn info(&self) -> LayerInfo {
        LayerInfo {
            digest: Digest::Sha256(sha2::Sha256::digest(&self.blob).into()),
            diff_id: Digest::Sha256(sha2::Sha256::digest(&self.stream).into()),
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
            compressed_size: self.blob.len() as u64,
            stream_size: self.stream.len() as u64,
            codec: self.codec,
        }
    }
}

/// The bytes of a `.clip` over `layers`; `note` makes images differ that are otherwise the same.
pub fn clip_bytes(layers: &[Layer], windows: WindowsWriter, note: &str) -> Vec<u8> {
    let source = Source::Local { transport: Transport::Oci, path: b"/nowhere".to_vec(), reference: Some(note.to_owned()) };
    clip_bytes_from(source, layers, windows)
}

/// As [`clip_bytes`], with any source.
pub fn clip_bytes_from(source: Source, layers: &[Layer], windows: WindowsWriter) -> Vec<u8> {
    let root =
        InodeSpec { permissions: 0o755, uid: 0, gid: 0, mtime_s: 0, mtime_ns: 0, xattrs: Vec::new(), body: Body::Directory(Vec::new()) };
    let devices: Vec<Device> = layers.iter().map(|layer| Device { stream_size: layer.stream.len() as u64, tag: [b'0'; 64] }).collect();
    let storage_info = StorageInfo {
        source,
        manifest_digest: Digest::Sha256([1; 32]),
        platform: Platform { os: "linux".to_owned(), architecture: "amd64".to_owned(), variant: None },
        config: ImageConfig::default(),
        layers: layers.iter().map(Layer::info).collect(),
        urls: Vec::new(),
    };
    let spans: Vec<Vec<Span>> = layers.iter().map(|layer| layer.spans.clone()).collect();
    let index = write_image(&[root], 0, &devices).unwrap();
    ClipParts { index: &index, storage_info: &storage_info, spans: &spans, windows: &windows.into_bytes() }.to_bytes().unwrap()
}

/// A directory with a `.clip`, its blobs and a cache.
pub struct Node {
    pub dir: tempfile::TempDir,
    pub layers: Vec<Layer>,
    pub disk_io: DiskIo,
}

impl Node {
    pub fn new(layers: Vec<Layer>, windows: WindowsWriter, disk_io: DiskIo) -> Self {
        let node = Self { dir: tempfile::tempdir().unwrap(), layers, disk_io };
        std::fs::write(node.clip(), clip_bytes(&node.layers, windows, "")).unwrap();
        for (number, layer) in node.layers.iter().enumerate() {
            std::fs::write(node.blob(number), &layer.blob).unwrap();
        }
        node
    }

    /// Two gzip layers and a plain one, of 64 KiB spans.
    pub fn ordinary(disk_io: DiskIo) -> Self {
        let (mut windows, one, two) = (WindowsWriter::default(), text(3 << 20, 1), text(700_000, 2));
        let members = [gzip(&one[..1 << 20], 6), gzip(&one[1 << 20..], 9), vec![0; 512]].concat();
        let layers = vec![
            Layer::gzip(one, members, 64 << 10, &mut windows),
            Layer::gzip(two.clone(), gzip(&two, 6), 64 << 10, &mut windows),
            Layer::plain(text(1 << 20, 3), 100_000),
        ];
        Self::new(layers, windows, disk_io)
    }

    pub fn clip(&self) -> PathBuf {
        self.dir.path().join("image.clip")
    }

    pub fn blob(&self, layer: usize) -> PathBuf {
        self.dir.path().join(format!("blob{layer}"))
    }

    pub fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    pub fn config(&self) -> EngineConfig {
        let mut config = EngineConfig::new(self.cache());
        config.shards = 2;
        config.disk_io = self.disk_io;
        config.read_timeout = Duration::from_secs(10);
        config
    }

    pub fn start(&self) -> Engine {
        Engine::start(self.config()).unwrap()
    }

    pub fn options(&self) -> ImageOptions {
        let blob =
            |(number, layer): (usize, &Layer)| BlobSource::File { path: self.blob(number), offset: 0, size: layer.blob.len() as u64 };
        ImageOptions { local_blobs: Some(self.layers.iter().enumerate().map(blob).collect()), ..ImageOptions::default() }
    }

    pub fn open(&self, engine: &Engine) -> Arc<Image> {
        engine.open_image(&self.clip(), &self.options()).unwrap()
    }

    /// Every file below the cache called `name`.
    pub fn cache_files(&self, name: &str) -> Vec<PathBuf> {
        files_below(&self.cache().join("layers"), name)
    }
}

fn files_below(dir: &Path, name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            found.extend(files_below(&entry.path(), name));
        } else if entry.file_name() == name {
            found.push(entry.path());
        }
    }
    found
}

pub fn read(image: &Arc<Image>, layer: LayerIndex, at: usize, len: usize) -> Result<Vec<u8>, EngineError> {
    let mut buffer = vec![0; len];
    image.read_exact_at(layer, at as u64, &mut buffer)?;
    Ok(buffer)
}

/// Waits until the spans that hold `at..at + len` are in the cache.
pub fn wait_present(image: &Arc<Image>, layer: LayerIndex, at: usize, len: usize) {
    for _ in 0..1000 {
        if image.present(layer, at as u64..(at + len) as u64).is_some() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("{at}..{} of layer {layer} never became present", at + len);
}

/// Waits until background work is over.
pub fn wait_finished(work: &BackgroundHandle) {
    let started = Instant::now();
    while !work.progress().is_finished {
        assert!(started.elapsed() < Duration::from_secs(60), "{:?}", work.progress());
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Runs a test in each way of writing the cache.
pub fn each_disk_io(test: impl Fn(DiskIo)) {
    for disk_io in [DiskIo::Uring, DiskIo::Pool] {
        test(disk_io);
    }
}
