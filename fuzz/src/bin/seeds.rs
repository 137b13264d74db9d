//! Writes the seed corpora: `seeds GOLDEN_DIR CORPUS_DIR`.

use std::{fs, path::Path};

use clip_format::{
    checkpoints::{Checkpoints, Span, SpanStart, WindowRange},
    clip_file::ClipFile,
    erofs::{Body, Device, FileExtent, InodeSpec, write_image},
    units::{CompressedOffset, LayerIndex, StreamOffset},
};

/// Largest index of a golden file that is a seed. libFuzzer makes inputs as long as the largest seed, and each costs its length: the
/// golden index of every kind (248 KiB) gave 1,800 runs a second, without it there are 29,000, which reach more code in the same 5 s.
const INDEX_SEED_BYTES_MAX: usize = 16 << 10;

/// Raw deflate, one block of fixed codes: `abc` six times.
const FIXED: &[u8] = &[0x4b, 0x4c, 0x4a, 0x4e, 0x44, 0x45, 0x00];
/// Raw deflate, a stored block of three bytes.
const STORED: &[u8] = &[0x01, 0x03, 0x00, 0xfc, 0xff, b'a', b'b', b'c'];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [golden, corpus] = arguments.as_slice() else { return Err("usage: seeds GOLDEN_DIR CORPUS_DIR".into()) };
    put(Path::new(corpus), "tar_entries", "archive", &archive())?;
    for (name, deflated) in [("fixed-codes", FIXED), ("stored", STORED)] {
        put(Path::new(corpus), "token_walk", name, &[&[0, 3], deflated].concat())?;
    }
    put(Path::new(corpus), "zstd_spans", "frames", &frames()?)?;
    put(Path::new(corpus), "erofs", "small-of-every-kind", &index()?)?;
    for entry in fs::read_dir(golden)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let bytes = fs::read(&path)?;
        if name.ends_with(".profile") {
            put(Path::new(corpus), "profile", &name, &bytes)?;
            put(Path::new(corpus), "profile", &format!("{name}-body"), &body(&bytes)?)?;
        } else {
            seeds(Path::new(corpus), &name, &bytes)?;
        }
    }
    Ok(())
}

/// The profile's body, behind its counts, as the target takes it.
fn body(profile: &[u8]) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    let counts = [&profile[10..12], &profile[12..14]].concat();
    let raw_len = u64::from_le_bytes(profile[32..40].try_into()?);
    let body = zstd::bulk::decompress(&profile[104..], usize::try_from(raw_len)?)?;
    Ok([counts, body].concat())
}

fn seeds(corpus: &Path, name: &str, clip: &[u8]) -> Result<(), Box<dyn std::error::Error>> {
    let file = ClipFile::parse(clip)?;
    put(corpus, "header", name, clip)?;
    let index = file.index()?;
    if index.len() <= INDEX_SEED_BYTES_MAX {
        put(corpus, "erofs", name, &index)?;
    }
    put(corpus, "storage_info", name, &file.storage_info()?.to_bytes()?)?;
    put(corpus, "checkpoints", name, &three_layers()?)?;
    Ok(())
}

/// Frames of several kinds with skippable ones between, behind the lengths of the pieces they come in.
fn frames() -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    let mut bytes = vec![9, 30];
    for (number, len) in [300, 0, 40, 1000].into_iter().enumerate() {
        let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1)?;
        encoder.include_checksum(number % 2 == 0)?;
        let data: Vec<u8> = (0..len).map(|at: u32| (at * at >> 3) as u8).collect();
        std::io::Write::write_all(&mut encoder, &data)?;
        bytes.extend(encoder.finish()?);
        bytes.extend([&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat());
    }
    Ok(bytes)
}

/// Checkpoints for the layers that the target opens them with.
fn three_layers() -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    let span = |start, compressed, stream| Span {
        start,
        compressed: CompressedOffset(compressed),
        stream: StreamOffset(stream),
        digest: [stream as u8; 32],
    };
    let deflate = |bit_offset, offset, len| SpanStart::Deflate { bit_offset, window: WindowRange { offset, len } };
    let gzip = vec![
        span(SpanStart::Member, 0, 0),
        span(deflate(5, 0, 900), 130_000, 1 << 20),
        span(SpanStart::Chained, 130_000, 3 << 19),
        span(deflate(0, 900, 800), 260_000, 2 << 20),
    ];
    let plain = vec![span(SpanStart::Plain, 0, 0), span(SpanStart::Plain, 1 << 20, 1 << 20)];
    let frame = |window_log| SpanStart::Frame { window_log };
    let zstd = vec![span(frame(23), 0, 0), span(SpanStart::Chained, 40_000, 1 << 19), span(frame(17), 150_000, 1 << 20)];
    Ok(Checkpoints::encode(&[gzip, plain, zstd])?)
}

/// An index with inodes of every kind, attributes that are shared and not, a hard link, a sparse file over two layers, and a directory
/// of several blocks.
fn index() -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    let spec = |body, xattrs| InodeSpec { permissions: 0o755, uid: 70_000, gid: 5, mtime_s: 1_700_000_000, mtime_ns: 7, xattrs, body };
    let xattr = |name: &str, value: &[u8]| (name.as_bytes().to_vec(), value.to_vec());
    let extent = |file_offset, len, layer, stream| FileExtent { file_offset, len, layer: LayerIndex(layer), stream: StreamOffset(stream) };
    let shared = || vec![xattr("security.capability", b"0123456789abcdef0123"), xattr("user.a", b"b")];
    let root = [("bin", 1), ("link", 3), ("dev", 4), ("disk", 5), ("pipe", 6), ("socket", 7), ("sparse", 8), ("sparse too", 8)];
    let many = (0..24).map(|number| (format!("a name that is long enough {number}").into_bytes(), 2)).collect();
    let regular = |size, extents| Body::Regular { size, extents };
    let specs = [
        spec(Body::Directory(root.map(|(name, place)| (name.as_bytes().to_vec(), place)).to_vec()), Vec::new()),
        spec(Body::Directory(many), shared()),
        spec(regular(700, vec![extent(0, 700, 0, 512)]), shared()),
        spec(Body::Symlink(b"bin/a name that is long enough 3".to_vec()), Vec::new()),
        spec(Body::CharDevice(1, 3), Vec::new()),
        spec(Body::BlockDevice(259, 70_000), Vec::new()),
        spec(Body::Fifo, vec![xattr("trusted.own", b"")]),
        spec(Body::Socket, Vec::new()),
        spec(regular(16 << 10, vec![extent(512, 1024, 0, 2048), extent(8 << 10, 5120, 1, 512)]), Vec::new()),
    ];
    let device = |stream_size| Device { stream_size, tag: [b'0'; 64] };
    Ok(write_image(&specs, 0, &[device(8192), device(16_384)])?)
}

/// Members of most kinds, behind the byte that asks the target for checksums and pieces of 126 bytes.
fn archive() -> Vec<u8> {
    let mut bytes = Vec::new();
    member(&mut bytes, b'L', "././@LongLink", &[&[b'n'; 120][..], b"\0"].concat());
    member(&mut bytes, b'0', "cut short", b"the file's bytes");
    member(&mut bytes, b'x', "pax", b"22 mtime=1234567890.5\n21 path=from the pax\n25 SCHILY.xattr.user.a=b\n");
    member(&mut bytes, b'2', "link", b"");
    member(
        &mut bytes,
        b'x',
        "pax",
        b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n26 GNU.sparse.name=sparse\n28 GNU.sparse.realsize=4096\n",
    );
    let map: Vec<u8> = b"1\n512\n512\n".iter().copied().chain([0; 502]).chain([7; 512]).collect();
    member(&mut bytes, b'0', "sparse", &map);
    member(&mut bytes, b'5', "directory/", b"");
    bytes.extend([0; 1024]);
    [&[1 | 25 << 1], &bytes[..]].concat()
}

/// A ustar member; the target fills in checksums.
fn member(archive: &mut Vec<u8>, kind: u8, name: &str, content: &[u8]) {
    let mut header = [0; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..107].copy_from_slice(b"0000644");
    header[108..115].copy_from_slice(b"0000000");
    header[116..123].copy_from_slice(b"0000000");
    header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
    header[136..147].copy_from_slice(b"14712345670");
    header[156] = kind;
    header[157..163].copy_from_slice(b"target");
    header[257..265].copy_from_slice(b"ustar\x0000");
    archive.extend(header);
    archive.extend(content);
    archive.resize(archive.len().next_multiple_of(512), 0);
}

fn put(corpus: &Path, target: &str, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let dir = corpus.join(target);
    fs::create_dir_all(&dir)?;
    fs::write(dir.join(format!("golden-{name}")), bytes)
}
