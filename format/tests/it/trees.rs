//! Trees to be written: one with every kind of node, and parts to build others.

use std::{collections::BTreeMap, sync::Arc};

use clip_format::{
    checkpoints::{Span, SpanStart},
    clip_file::ClipParts,
    digest::Digest,
    erofs::{Body, Device, FileExtent, Index, InodeSpec, write_image},
    limits::WINDOW_BYTES,
    storage_info::{Codec, ImageConfig, LayerInfo, Platform, Source, StorageInfo},
    units::{CompressedOffset, LayerIndex, StreamOffset},
    windows::WindowsWriter,
};

/// A tree being built; inode 0 is its root.
pub struct Tree {
    pub inodes: Vec<InodeSpec>,
    pub devices: Vec<Device>,
}

pub fn node(permissions: u32, body: Body) -> InodeSpec {
    InodeSpec { permissions, uid: 0, gid: 0, mtime_s: 1_700_000_000, mtime_ns: 0, xattrs: Vec::new(), body }
}

pub fn extent(file_offset: u64, len: u64, layer: u16, stream: u64) -> FileExtent {
    FileExtent { file_offset, len, layer: LayerIndex(layer), stream: StreamOffset(stream) }
}

pub fn regular(size: u64, extents: Vec<FileExtent>) -> InodeSpec {
    node(0o644, Body::Regular { size, extents })
}

impl Tree {
    pub fn new(stream_sizes: &[u64]) -> Self {
        let devices = stream_sizes.iter().enumerate();
        let devices = devices.map(|(number, &stream_size)| Device { stream_size, tag: [b'a' + number as u8; 64] }).collect();
        Self { inodes: vec![node(0o755, Body::Directory(Vec::new()))], devices }
    }

    /// Adds `inode` to directory `dir` under `name`; its place.
    pub fn add(&mut self, dir: usize, name: &[u8], inode: InodeSpec) -> usize {
        let place = self.inodes.len();
        self.inodes.push(inode);
        self.link(dir, name, place);
        place
    }

    pub fn link(&mut self, dir: usize, name: &[u8], place: usize) {
        let Body::Directory(names) = &mut self.inodes[dir].body else { panic!("not a directory") };
        names.push((name.to_vec(), place));
    }

    pub fn directory(&mut self, dir: usize, name: &[u8]) -> usize {
        self.add(dir, name, node(0o755, Body::Directory(Vec::new())))
    }

    pub fn image(&self) -> Vec<u8> {
        write_image(&self.inodes, 0, &self.devices).unwrap()
    }

    /// Every path and its inode's place.
    pub fn paths(&self) -> BTreeMap<Vec<u8>, usize> {
        let mut paths = BTreeMap::from([(Vec::new(), 0)]);
        let mut pending = vec![(Vec::new(), 0)];
        while let Some((path, dir)) = pending.pop() {
            let Body::Directory(names) = &self.inodes[dir].body else { continue };
            for (name, child) in names {
                let path = [path.as_slice(), b"/", name].concat();
                paths.insert(path.clone(), *child);
                pending.push((path, *child));
            }
        }
        paths
    }
}

pub fn index(image: Vec<u8>) -> Index {
    Index::open(Arc::new(image)).unwrap()
}

/// Stream sizes of the layers of [`every_kind`].
pub const STREAMS: [u64; 3] = [4 << 20, 1024, (2 << 20) + 512];

/// One of each kind of node, and of each trap of the layout.
pub fn every_kind() -> Tree {
    let mut tree = Tree::new(&STREAMS);
    tree.inodes[0].mtime_s = -5;
    tree.inodes[0].mtime_ns = 999_999_999;
    files(&mut tree);
    specials(&mut tree);
    names(&mut tree);
    attributes(&mut tree);
    tree
}

fn files(tree: &mut Tree) {
    let dir = tree.directory(0, b"files");
    tree.add(dir, b"empty", regular(0, vec![]));
    tree.add(dir, b"one-byte", regular(1, vec![extent(0, 1, 0, 512)]));
    tree.add(dir, b"block", regular(512, vec![extent(0, 512, 1, 512)]));
    let shared = tree.add(dir, b"large", regular((3 << 20) + 17, vec![extent(0, (3 << 20) + 17, 0, 1024)]));
    let other = tree.directory(0, b"links");
    tree.link(other, b"to-large", shared);
    tree.link(dir, b"also-large", shared);
    tree.add(dir, b"joined", regular(2048, vec![extent(0, 1024, 2, 512), extent(1024, 1024, 2, 1536)]));
    tree.add(dir, b"all-hole", regular(100_000, vec![]));
    tree.add(dir, b"huge-hole", regular(1 << 40, vec![]));
    tree.add(dir, b"tail-hole", regular(10_000, vec![extent(0, 4096, 2, 0)]));
    tree.add(dir, b"head-hole", regular(10_000, vec![extent(8192, 1808, 2, 4096)]));
    let pieces = vec![extent(512, 512, 0, 0), extent(1536, 1024, 0, 512), extent(4096, 904, 2, 2 << 20 >> 1)];
    tree.add(dir, b"sparse", regular(5000, pieces));
    let over_4g = (5 << 30) + 3;
    tree.add(dir, b"over-4g", regular(over_4g, vec![extent(1 << 30, 1 << 20, 0, 4096), extent(5 << 30, 3, 2, 512)]));
}

fn specials(tree: &mut Tree) {
    let dir = tree.directory(0, b"specials");
    tree.add(dir, b"null", node(0o666, Body::CharDevice(1, 3)));
    tree.add(dir, b"disk", node(0o660, Body::BlockDevice(259, 70_000)));
    tree.add(dir, b"whiteout", node(0, Body::CharDevice(0, 0)));
    tree.add(dir, b"fifo", node(0o600, Body::Fifo));
    tree.add(dir, b"socket", node(0o755, Body::Socket));
    for len in [1, 60, 384, 447, 448, 449, 512, 1000, 4095] {
        let target: Vec<u8> = (0..len).map(|byte| b'a' + (byte % 23) as u8).collect();
        tree.add(dir, format!("link-{len}").as_bytes(), node(0o777, Body::Symlink(target)));
    }
    tree.add(dir, b"up", node(0o777, Body::Symlink(b"../files/./one-byte".to_vec())));
    tree.add(dir, b"absolute", node(0o777, Body::Symlink(b"/specials".to_vec())));
    tree.add(dir, b"loop", node(0o777, Body::Symlink(b"loop/x".to_vec())));
}

fn names(tree: &mut Tree) {
    let dir = tree.directory(0, b"names");
    for name in [b" ".as_slice(), b"!before-dot", b"-", b"..x", b"...", b"new\nline", b"\xff\xfe", "héllo 🦀".as_bytes(), &[b'n'; 255]] {
        tree.add(dir, name, regular(0, vec![]));
    }
    let many = tree.directory(0, b"many");
    for number in 0..2000 {
        tree.add(many, format!("entry-{number}").as_bytes(), regular(0, vec![]));
    }
    let long = tree.directory(0, b"long-names");
    for number in 0..20u8 {
        tree.add(long, &[[b'a' + number].as_slice(), &[b'z'; 254]].concat(), node(0o644, Body::Fifo));
    }
    let mut deep = tree.directory(0, b"deep");
    for _ in 0..40 {
        deep = tree.directory(deep, b"d");
    }
    tree.directory(0, b"empty-dir");
}

/// A POSIX ACL in the form of the system calls: version 2, then user::rwx, user:7:r--, group::r-x, mask::r-x, other::---.
pub const ACL: &[u8] = b"\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff\x02\0\x04\0\x07\0\0\0\x04\0\x05\0\xff\xff\xff\xff\x10\0\x05\0\xff\xff\xff\xff\x20\0\0\0\xff\xff\xff\xff";

fn attributes(tree: &mut Tree) {
    let dir = tree.directory(0, b"attributes");
    let mut set = |name: &str, xattrs: &[(&str, &[u8])], mut inode: InodeSpec| {
        inode.xattrs = xattrs.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.to_vec())).collect();
        inode.uid = 100_000;
        inode.gid = u32::MAX - 1;
        inode.mtime_s = i64::from(i32::MAX) + 12;
        inode.mtime_ns = 123_456_789;
        tree.add(dir, name.as_bytes(), inode);
    };
    set("capable", &[("security.capability", b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0")], regular(3, vec![extent(0, 3, 0, 512)]));
    set("several", &[("user.b", b"2"), ("user.a", b""), ("trusted.t", b"x\0y")], node(0o6755, Body::Regular { size: 0, extents: vec![] }));
    set("acl", &[("system.posix_acl_access", ACL)], node(0o750, Body::Directory(vec![])));
    let long = vec![b'v'; 3000];
    set("wide", &[("user.wide", &long), ("user.z", b"end")], node(0o1777, Body::Directory(vec![])));
    set("wide-file", &[("user.wide", &long)], regular(5000, vec![extent(0, 512, 0, 0), extent(4096, 904, 0, 8192)]));
    set("link", &[("trusted.on-link", b"yes")], node(0o777, Body::Symlink(b"capable".to_vec())));
}

/// A storage info whose layers have these stream sizes and a tenth of that in the blob.
pub fn storage_info(streams: &[u64]) -> StorageInfo {
    let layers = streams.iter().enumerate().map(|(number, &stream_size)| LayerInfo {
        digest: Digest::Sha256([number as u8; 32]),
        diff_id: Digest::Sha256([0x80 | number as u8; 32]),
        media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
        compressed_size: stream_size / 10 + 1000,
        stream_size,
        codec: Codec::Gzip,
    });
    StorageInfo {
        source: Source::Registry {
            registry: "docker.io".to_owned(),
            repository: "library/sample".to_owned(),
            reference: "latest".to_owned(),
        },
        manifest_digest: Digest::Sha256([7; 32]),
        platform: Platform { os: "linux".to_owned(), architecture: "amd64".to_owned(), variant: None },
        config: ImageConfig { env: vec!["PATH=/usr/bin:/bin".to_owned()], cmd: vec!["/bin/sh".to_owned()], ..ImageConfig::default() },
        layers: layers.collect(),
        urls: Vec::new(),
    }
}

/// A span each MiB of each layer, all entries, and their windows with `window_bytes` bytes of history in use.
pub fn spans(streams: &[u64], window_bytes: usize) -> (Vec<Vec<Span>>, Vec<u8>) {
    let mut windows = WindowsWriter::default();
    let mut random = blake3::Hasher::new().finalize_xof();
    let mut layers = Vec::new();
    for &stream_size in streams {
        let mut spans = Vec::new();
        for stream in (0..stream_size).step_by(1 << 20) {
            let mut digest = [0; 32];
            random.fill(&mut digest);
            let start = if stream == 0 {
                SpanStart::Member
            } else {
                let mut window = [0; WINDOW_BYTES];
                random.fill(&mut window[WINDOW_BYTES - window_bytes..]);
                SpanStart::Deflate { bit_offset: (stream >> 20) as u8 % 8, window: windows.append(&window).unwrap() }
            };
            spans.push(Span { start, compressed: CompressedOffset(stream / 10), stream: StreamOffset(stream), digest });
        }
        layers.push(spans);
    }
    (layers, windows.into_bytes())
}

/// The whole file of a tree.
pub fn clip(tree: &Tree, window_bytes: usize) -> Vec<u8> {
    let streams: Vec<u64> = tree.devices.iter().map(|device| device.stream_size).collect();
    let (spans, windows) = spans(&streams, window_bytes);
    let parts = ClipParts { index: &tree.image(), storage_info: &storage_info(&streams), spans: &spans, windows: &windows };
    parts.to_bytes().unwrap()
}
