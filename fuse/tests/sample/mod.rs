//! A small image with one of everything, over layers in memory that can be present, fetched, held back or failing.
#![allow(dead_code, missing_docs, clippy::unwrap_used)]

use std::{
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use clip_engine::{Bytes, EngineError, image::ReadDone};
use clip_format::{
    erofs::{Body, Device, FileExtent, Index, InodeSpec, write_image},
    units::{LayerIndex, StreamOffset},
};
use clip_fuse::ByteSource;

/// How a layer's bytes can be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Supply {
    /// At once, without a read.
    Present,
    /// By a read that another thread answers.
    Fetched,
    /// By a read that is answered when the test says so.
    Held,
    /// Not: every read fails.
    Failing,
}

pub struct Shelf {
    pub index: Index,
    pub layers: Vec<Vec<u8>>,
    pub supply: Mutex<Vec<Supply>>,
    held: Mutex<Vec<(LayerIndex, Range<u64>, ReadDone)>>,
    pub reads: AtomicUsize,
    pub damaged: AtomicBool,
    pub notes: Mutex<Vec<(LayerIndex, Range<u64>, u64)>>,
}

#[derive(Clone)]
pub struct Source(pub Arc<Shelf>);

impl Source {
    pub fn supply(&self, layer: u16, supply: Supply) {
        self.0.supply.lock().unwrap()[usize::from(layer)] = supply;
    }

    pub fn held(&self) -> usize {
        self.0.held.lock().unwrap().len()
    }

    /// Answers every read that was held back, the last one first.
    pub fn release(&self) {
        let held = std::mem::take(&mut *self.0.held.lock().unwrap());
        for (layer, range, done) in held.into_iter().rev() {
            done(Ok(Bytes::copy_from_slice(self.bytes(layer, range))));
        }
    }

    pub fn bytes(&self, layer: LayerIndex, range: Range<u64>) -> &[u8] {
        &self.0.layers[usize::from(layer.get())][range.start as usize..range.end as usize]
    }

    pub fn reads(&self) -> usize {
        self.0.reads.load(Ordering::SeqCst)
    }
}

impl ByteSource for Source {
    type Stream = ();

    fn index(&self) -> &Index {
        &self.0.index
    }

    fn is_sound(&self) -> bool {
        !self.0.damaged.load(Ordering::SeqCst)
    }

    fn present(&self, layer: LayerIndex, range: Range<u64>) -> Option<&[u8]> {
        let supply = *self.0.supply.lock().unwrap().get(usize::from(layer.get()))?;
        let inside = self.0.layers[usize::from(layer.get())].len() as u64 >= range.end;
        (supply == Supply::Present && inside).then(|| self.bytes(layer, range))
    }

    fn read(&self, layer: LayerIndex, range: Range<u64>, done: ReadDone) {
        self.0.reads.fetch_add(1, Ordering::SeqCst);
        let inside = self.0.layers.get(usize::from(layer.get())).is_some_and(|layer| layer.len() as u64 >= range.end);
        let supply = if inside { self.0.supply.lock().unwrap()[usize::from(layer.get())] } else { Supply::Failing };
        match supply {
            Supply::Present => done(Ok(Bytes::copy_from_slice(self.bytes(layer, range)))),
            Supply::Fetched => {
                let source = self.clone();
                std::thread::spawn(move || done(Ok(Bytes::copy_from_slice(source.bytes(layer, range)))));
            }
            Supply::Held => self.0.held.lock().unwrap().push((layer, range, done)),
            Supply::Failing => {
                std::thread::spawn(move || {
                    done(Err(EngineError::Deadline { what: "GET blob".into(), waited: std::time::Duration::from_secs(30) }))
                });
            }
        }
    }

    fn note_read(&self, (): &(), layer: LayerIndex, range: Range<u64>, file_end: u64) {
        self.0.notes.lock().unwrap().push((layer, range, file_end));
    }
}

/// Lengths and places of the sample's files.
pub const FILE_LEN: usize = 2_500_000;
pub const FILE_AT: usize = 512;
pub const SLOW_LEN: usize = 100_000;
pub const SPARSE_LEN: u64 = 1 << 20;
pub const SPARSE_PIECE: u64 = 64 << 10;
pub const SPARSE_SECOND: u64 = 512 << 10;
pub const MANY: usize = 10_000;
pub const CAPABILITY: &[u8] = &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn noise(len: usize, mut seed: u64) -> Vec<u8> {
    let next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// user::rw-, user:1000:r--, group::---, mask::r--, other::---. Source: linux include/uapi/linux/posix_acl_xattr.h
fn acl() -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, rights, id) in [(1_u16, 6_u16, u32::MAX), (2, 4, 1000), (4, 0, u32::MAX), (16, 4, u32::MAX), (32, 0, u32::MAX)] {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&rights.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

struct Builder {
    inodes: Vec<InodeSpec>,
}

impl Builder {
    fn add(&mut self, permissions: u32, body: Body) -> usize {
        let spec = InodeSpec { permissions, uid: 0, gid: 0, mtime_s: 1_700_000_000, mtime_ns: 123_456_789, xattrs: Vec::new(), body };
        self.inodes.push(spec);
        self.inodes.len() - 1
    }

    fn file(&mut self, permissions: u32, layer: u16, stream: usize, len: usize) -> usize {
        let extent = FileExtent { file_offset: 0, len: len as u64, layer: LayerIndex(layer), stream: StreamOffset(stream as u64) };
        let extents = if len == 0 { vec![] } else { vec![extent] };
        self.add(permissions, Body::Regular { size: len as u64, extents })
    }

    fn directory(&mut self, entries: &[(&str, usize)]) -> usize {
        let entries = entries.iter().map(|(name, inode)| (name.as_bytes().to_vec(), *inode)).collect();
        self.add(0o755, Body::Directory(entries))
    }
}

/// The sample, with xattrs or without, all layers present.
pub fn source(xattrs: bool) -> Source {
    source_and_index(xattrs).0
}

/// As [`source`], and the bytes of its index.
pub fn source_and_index(xattrs: bool) -> (Source, Vec<u8>) {
    let program = std::fs::read("/usr/bin/id").unwrap_or_default();
    let program_at = (FILE_AT + FILE_LEN).next_multiple_of(512);
    let mut base = noise(program_at, 1);
    base.extend_from_slice(&program);
    let layers = vec![base, noise(1 << 20, 2)];

    let mut image = Builder { inodes: Vec::new() };
    let file = image.file(0o644, 0, FILE_AT, FILE_LEN);
    let slow = image.file(0o644, 1, 1024, SLOW_LEN);
    let secret = image.file(0o600, 0, 4096, 100);
    let setuid = image.file(0o4755, 0, program_at, program.len());
    let empty = image.file(0o644, 0, 0, 0);
    let old = image.file(0o644, 0, 0, 10);
    (image.inodes[old].mtime_s, image.inodes[old].mtime_ns) = (-5, 250_000_000);
    let owned = image.file(0o640, 0, 0, 10);
    (image.inodes[owned].uid, image.inodes[owned].gid) = (100_000, 200_000);
    let piece =
        |file_offset, layer, stream| FileExtent { file_offset, len: SPARSE_PIECE, layer: LayerIndex(layer), stream: StreamOffset(stream) };
    let sparse = image.add(0o644, Body::Regular { size: SPARSE_LEN, extents: vec![piece(0, 0, 1024), piece(SPARSE_SECOND, 1, 65_536)] });
    let marked = image.file(0o644, 0, 512, 20);
    if xattrs {
        image.inodes[marked].xattrs =
            vec![(b"user.comment".to_vec(), b"hello".to_vec()), (b"security.capability".to_vec(), CAPABILITY.to_vec())];
    }
    let shared = image.file(0o640, 0, 1024, 50);
    if xattrs {
        image.inodes[shared].xattrs = vec![(b"system.posix_acl_access".to_vec(), acl())];
    }
    let null = image.add(0o666, Body::CharDevice(1, 3));
    let disk = image.add(0o660, Body::BlockDevice(259, 70_000));
    let fifo = image.add(0o644, Body::Fifo);
    let socket = image.add(0o755, Body::Socket);
    let link = image.add(0o777, Body::Symlink(b"file".to_vec()));
    let far = image.add(0o777, Body::Symlink(vec![b'x'; 3000]));
    let names: Vec<String> = (0..MANY).map(|number| format!("entry-{number:05}")).collect();
    let many: Vec<(&str, usize)> = names.iter().map(|name| (name.as_str(), empty)).collect();
    let many = image.directory(&many);
    let inner = image.directory(&[("deep", old)]);
    let merged = image.directory(&[("inner", inner), ("null", null), ("disk", disk), ("fifo", fifo), ("socket", socket)]);
    let root = image.directory(&[
        ("file", file),
        ("hard", file),
        ("slow", slow),
        ("secret", secret),
        ("id", setuid),
        ("empty", empty),
        ("old", old),
        ("owned", owned),
        ("sparse", sparse),
        ("marked", marked),
        ("shared", shared),
        ("link", link),
        ("far", far),
        ("many", many),
        ("dir", merged),
    ]);
    let devices: Vec<Device> = layers.iter().map(|layer| Device { stream_size: layer.len() as u64, tag: [b'0'; 64] }).collect();
    let bytes = write_image(&image.inodes, root, &devices).unwrap();
    (over(Index::open(Arc::new(bytes.clone())).unwrap(), layers), bytes)
}

/// A tree of one file, one directory, one link and one xattr, and the bytes of its index.
pub fn tiny() -> (Source, Vec<u8>) {
    let layers = vec![noise(4096, 3)];
    let mut image = Builder { inodes: Vec::new() };
    let file = image.file(0o644, 0, 512, 1000);
    image.inodes[file].xattrs = vec![(b"user.a".to_vec(), b"b".to_vec())];
    let hole = FileExtent { file_offset: 512, len: 512, layer: LayerIndex(0), stream: StreamOffset(0) };
    let sparse = image.add(0o644, Body::Regular { size: 2048, extents: vec![hole] });
    let link = image.add(0o777, Body::Symlink(b"file".to_vec()));
    let dir = image.directory(&[("file", file), ("sparse", sparse)]);
    let root = image.directory(&[("dir", dir), ("link", link)]);
    let bytes = write_image(&image.inodes, root, &[Device { stream_size: 4096, tag: [b'0'; 64] }]).unwrap();
    (over(Index::open(Arc::new(bytes.clone())).unwrap(), layers), bytes)
}

/// All layers present. Reads outside of a layer (a damaged index asks for them) fail.
pub fn over(index: Index, layers: Vec<Vec<u8>>) -> Source {
    Source(Arc::new(Shelf {
        index,
        supply: Mutex::new(vec![Supply::Present; layers.len()]),
        layers,
        held: Mutex::default(),
        reads: AtomicUsize::new(0),
        damaged: AtomicBool::new(false),
        notes: Mutex::default(),
    }))
}

/// The bytes that /sparse must read as.
pub fn sparse_bytes(source: &Source) -> Vec<u8> {
    let mut bytes = vec![0; SPARSE_LEN as usize];
    let (first, second) = (SPARSE_PIECE as usize, SPARSE_SECOND as usize);
    bytes[..first].copy_from_slice(source.bytes(LayerIndex(0), 1024..1024 + SPARSE_PIECE));
    bytes[second..second + first].copy_from_slice(source.bytes(LayerIndex(1), 65_536..65_536 + SPARSE_PIECE));
    bytes
}
