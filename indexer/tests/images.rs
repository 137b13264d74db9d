//! Whole images, from local layouts to `.clip`s.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{fs, io::Write as _, path::Path, sync::Arc};

use clip_engine::source::BlobSource;
use clip_format::{
    checkpoints::{Checkpoints, SpanStart},
    clip_file::ClipFile,
    erofs::{Index, check::check},
    units::{LayerIndex, StreamOffset},
};
use clip_indexer::{ImageRef, IndexError, IndexOptions, Indexed, Windows, index_image, local_blobs, progress::NoProgress};
use sha2::{Digest as _, Sha256};

fn sha(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn layer(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, data) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(5);
        builder.append_data(&mut header, name, *data).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

struct Layout<'a> {
    dir: &'a Path,
}

impl Layout<'_> {
    fn blob(&self, bytes: &[u8]) -> String {
        let digest = sha(bytes);
        let path = self.dir.join("blobs/sha256");
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join(&digest[7..]), bytes).unwrap();
        digest
    }

    fn descriptor(&self, media_type: &str, bytes: &[u8]) -> serde_json::Value {
        serde_json::json!({ "mediaType": media_type, "digest": self.blob(bytes), "size": bytes.len() })
    }

    /// Writes an image of these (blob, stream, media type) layers under the tag `t`.
    fn image(&self, layers: &[(Vec<u8>, Vec<u8>, &str)]) {
        let diff_ids: Vec<String> = layers.iter().map(|(_, stream, _)| sha(stream)).collect();
        let config = serde_json::json!({
            "architecture": "amd64", "os": "linux",
            "config": { "Env": ["A=b"], "Cmd": ["sh"] },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = self.descriptor("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
        let blobs: Vec<_> = layers.iter().map(|(blob, _, media_type)| self.descriptor(media_type, blob)).collect();
        let manifest = serde_json::json!({ "schemaVersion": 2, "config": config, "layers": blobs });
        let mut manifest = self.descriptor("application/vnd.oci.image.manifest.v1+json", manifest.to_string().as_bytes());
        manifest["annotations"] = serde_json::json!({ "org.opencontainers.image.ref.name": "t" });
        let index = serde_json::json!({ "schemaVersion": 2, "manifests": [manifest] });
        fs::write(self.dir.join("index.json"), index.to_string()).unwrap();
        fs::write(self.dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    }
}

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

fn options(image: &str) -> IndexOptions {
    let mut options = IndexOptions::new(image.parse::<ImageRef>().unwrap());
    options.platform = Some(clip_format::storage_info::Platform { os: "linux".into(), architecture: "amd64".into(), variant: None });
    options.span_bytes = 64 << 10;
    options
}

fn index(image: &str) -> Result<Indexed, IndexError> {
    index_image(&options(image), &NoProgress)
}

/// Text that compresses, unlike any other seed's.
fn text(seed: u32, len: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut state = seed;
    while bytes.len() < len {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        bytes.extend_from_slice(format!("{seed} says {}\n", state >> 20).as_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn file_bytes(clip: &[u8], streams: &[Vec<u8>], path: &str) -> Option<Vec<u8>> {
    let raw: Arc<dyn AsRef<[u8]> + Send + Sync> = Arc::new(ClipFile::parse(clip).unwrap().index().unwrap());
    let index = Index::open(raw).unwrap();
    let inode = index.resolve(path.as_bytes()).unwrap()?;
    let mut bytes = vec![0; inode.size as usize];
    for extent in index.extents(&inode, 0..inode.size) {
        let extent = extent.unwrap();
        if let Some((layer, stream)) = extent.data {
            let len = (extent.file.end - extent.file.start) as usize;
            let from = stream.get() as usize;
            bytes[extent.file.start as usize..extent.file.end as usize]
                .copy_from_slice(&streams[usize::from(layer.get())][from..from + len]);
        }
    }
    Some(bytes)
}

/// A gzip and a plain layer give a `.clip` whose tree, extents, spans and digests are those of the layers; the same options give the
/// same bytes whatever the number of threads.
#[test]
fn a_layout_becomes_a_clip() {
    let dir = tempfile::tempdir().unwrap();
    let (lower_text, upper_text) = (text(1, 700_000), text(2, 300_000));
    let lower = layer(&[("etc/a", &lower_text), ("etc/secret", b"s3cret"), ("keep", b"kept")]);
    let upper = layer(&[("etc/.wh.secret", b""), ("etc/a", &upper_text)]);
    let image = [(gzip(&lower), lower.clone(), GZIP), (upper.clone(), upper.clone(), TAR)];
    Layout { dir: dir.path() }.image(&image);
    let reference = format!("oci:{}:t", dir.path().display());
    let indexed = index(&reference).unwrap();
    assert!(indexed.summary.warnings.is_empty(), "{:?}", indexed.summary.warnings);
    let streams = [lower, upper];
    assert_eq!(file_bytes(&indexed.clip, &streams, "/etc/a").unwrap(), upper_text);
    assert_eq!(file_bytes(&indexed.clip, &streams, "/keep").unwrap(), b"kept");
    assert!(file_bytes(&indexed.clip, &streams, "/etc/secret").is_none());
    assert!(file_bytes(&indexed.clip, &streams, "/etc/.wh.secret").is_none());

    let clip = ClipFile::parse(&indexed.clip).unwrap();
    let info = clip.storage_info().unwrap();
    check(&Index::open(Arc::new(clip.index().unwrap())).unwrap()).unwrap();
    let windows = clip.windows().unwrap().len() as u64;
    let table = Checkpoints::open(Arc::new(clip.checkpoints().unwrap()), &info.layers, windows).unwrap();
    for (place, stream) in streams.iter().enumerate() {
        let spans = table.layer(LayerIndex(place as u16));
        for span in 0..spans.len() {
            let span = clip_format::units::SpanIndex(span);
            let range = spans.stream_range(span);
            assert_eq!(spans.span(span).digest, *blake3::hash(&stream[range.start as usize..range.end as usize]).as_bytes());
        }
        assert_eq!(spans.span_at(StreamOffset(stream.len() as u64)), None);
    }
    assert_eq!(info.config.cmd, ["sh"]);

    let mut single = options(&reference);
    single.jobs = 1;
    assert!(index_image(&single, &NoProgress).unwrap().clip == indexed.clip);
    let blobs = local_blobs(&info, dir.path()).unwrap();
    assert_eq!(blobs.iter().map(BlobSource::size).collect::<Vec<_>>(), [image[0].0.len() as u64, image[1].0.len() as u64]);
}

/// A layer whose diff_id or digest is another's is refused with the layer, expected and found; nothing is written.
#[test]
fn wrong_digests_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout { dir: dir.path() };
    let stream = layer(&[("a", b"1")]);
    layout.image(&[(gzip(&stream), b"another stream".to_vec(), GZIP)]);
    let reference = format!("oci:{}", dir.path().display());
    let error = index(&reference).err().unwrap().to_string();
    assert!(error.contains("diff_id") && error.contains(&sha(&stream)), "{error}");

    let blob = gzip(&stream);
    layout.image(&[(blob.clone(), stream, GZIP)]);
    // Another byte of the gzip header: the same stream from another blob.
    let mut other = blob.clone();
    other[9] ^= 1;
    fs::write(dir.path().join("blobs/sha256").join(&sha(&blob)[7..]), other).unwrap();
    let error = index(&reference).err().unwrap().to_string();
    assert!(error.contains(&sha(&blob)) && error.contains("the blob as a whole"), "{error}");
}

/// The blob's own bytes decide its codec, with a warning; what begins as zstd and is none is refused by name.
#[test]
fn media_types_and_magic() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout { dir: dir.path() };
    let stream = layer(&[("a", b"1")]);
    let reference = format!("oci:{}", dir.path().display());
    layout.image(&[(stream.clone(), stream.clone(), GZIP)]);
    let indexed = index(&reference).unwrap();
    assert!(indexed.summary.warnings[0].contains("not compressed"), "{:?}", indexed.summary.warnings);
    layout.image(&[(b"\x28\xb5\x2f\xfd....".to_vec(), stream.clone(), GZIP)]);
    assert!(index(&reference).err().unwrap().to_string().contains("zstd"));
    layout.image(&[(stream.clone(), stream, "application/vnd.oci.image.layer.v1.tar+zstd")]);
    assert!(index(&reference).unwrap().summary.warnings[0].contains("not compressed"));
}

/// One corrupt layer among many stops the others, and its error is the one that is given.
#[test]
fn one_bad_layer_ends_all() {
    let dir = tempfile::tempdir().unwrap();
    let mut layers: Vec<_> = (0..6).map(|seed| layer(&[("f", &text(seed, 400_000))])).map(|stream| (gzip(&stream), stream, GZIP)).collect();
    let half = layers[3].0.len() / 2;
    layers[3].0.truncate(half);
    Layout { dir: dir.path() }.image(&layers);
    let error = index(&format!("oci:{}", dir.path().display())).err().unwrap().to_string();
    assert!(error.contains(&sha(&layers[3].0)) && error.contains("end of the blob"), "{error}");
}

/// An image without layers, and a layer without bytes, are images.
#[test]
fn empty_images_and_layers() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout { dir: dir.path() };
    let reference = format!("oci:{}", dir.path().display());
    layout.image(&[]);
    assert_eq!(index(&reference).unwrap().summary.files, 1);
    layout.image(&[(gzip(b""), Vec::new(), GZIP), (Vec::new(), Vec::new(), TAR)]);
    let indexed = index(&reference).unwrap();
    assert_eq!(indexed.summary.layers.iter().map(|layer| layer.spans).sum::<u64>(), 0);
}

/// The same layout in a tar gives the same tree, with the blobs read in place; a compressed archive is refused.
#[test]
fn an_oci_archive_is_read_in_place() {
    let dir = tempfile::tempdir().unwrap();
    let stream = layer(&[("a", &text(7, 200_000))]);
    Layout { dir: dir.path() }.image(&[(gzip(&stream), stream.clone(), GZIP)]);
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("image.tar");
    let mut builder = tar::Builder::new(fs::File::create(&path).unwrap());
    builder.append_dir_all(".", dir.path()).unwrap();
    builder.finish().unwrap();
    let indexed = index(&format!("oci-archive:{}:t", path.display())).unwrap();
    assert_eq!(file_bytes(&indexed.clip, std::slice::from_ref(&stream), "/a").unwrap(), text(7, 200_000));
    let info = ClipFile::parse(&indexed.clip).unwrap().storage_info().unwrap();
    let blobs = local_blobs(&info, &path).unwrap();
    let BlobSource::File { offset, size, .. } = &blobs[0] else { panic!("a file") };
    let archive = fs::read(&path).unwrap();
    assert_eq!(sha(&archive[*offset as usize..(*offset + *size) as usize]), info.layers[0].digest.to_string());
    let compressed = out.path().join("image.tar.gz");
    fs::write(&compressed, gzip(&archive)).unwrap();
    assert!(index(&format!("oci-archive:{}", compressed.display())).err().unwrap().to_string().contains("gzip-compressed"));
    let error = index(&format!("oci-archive:{}:other", path.display())).err().unwrap().to_string();
    assert!(error.contains("\"other\"") && error.contains('t'), "{error}");
}

/// What `docker save` writes, old form: plain layers, one of them a symbolic link to another's file.
#[test]
fn a_docker_archive_is_read_in_place() {
    let dir = tempfile::tempdir().unwrap();
    let stream = layer(&[("a", &text(9, 200_000))]);
    let zipped = layer(&[("b", b"bee")]);
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux",
        "rootfs": { "diff_ids": [sha(&stream), sha(&stream), sha(&zipped)] },
    });
    let manifest = serde_json::json!([{
        "Config": "c.json", "RepoTags": ["busybox:latest"], "Layers": ["1/layer.tar", "2/layer.tar", "3/layer.tar"],
    }]);
    let path = dir.path().join("saved.tar");
    let mut builder = tar::Builder::new(fs::File::create(&path).unwrap());
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, name, bytes).unwrap();
    };
    add("c.json", config.to_string().as_bytes());
    add("1/layer.tar", &stream);
    add("3/layer.tar", &gzip(&zipped));
    add("manifest.json", manifest.to_string().as_bytes());
    let mut link = tar::Header::new_gnu();
    link.set_entry_type(tar::EntryType::Symlink);
    link.set_size(0);
    builder.append_link(&mut link, "2/layer.tar", "../1/layer.tar").unwrap();
    builder.finish().unwrap();
    for tag in ["", ":busybox", ":busybox:latest", ":docker.io/library/busybox:latest"] {
        let indexed = index(&format!("docker-archive:{}{tag}", path.display())).unwrap();
        let streams = [stream.clone(), stream.clone(), zipped.clone()];
        assert_eq!(file_bytes(&indexed.clip, &streams, "/b").unwrap(), b"bee");
        assert_eq!(indexed.summary.layers[0].info.digest.to_string(), sha(&stream));
        let info = ClipFile::parse(&indexed.clip).unwrap().storage_info().unwrap();
        assert_eq!(local_blobs(&info, &path).unwrap().len(), 3);
    }
    assert!(index(&format!("docker-archive:{}:alpine", path.display())).is_err());
}

/// `--windows none` keeps no window, and only the stream's start can be entered in an ordinary gzip layer.
#[test]
fn no_windows_means_none() {
    let dir = tempfile::tempdir().unwrap();
    let stream = layer(&[("a", &text(3, 900_000))]);
    Layout { dir: dir.path() }.image(&[(gzip(&stream), stream, GZIP)]);
    let mut options = options(&format!("oci:{}", dir.path().display()));
    options.windows = Windows::None;
    let indexed = index_image(&options, &NoProgress).unwrap();
    assert_eq!((indexed.summary.windows_bytes, indexed.summary.layers[0].entries), (0, 1));
    let clip = ClipFile::parse(&indexed.clip).unwrap();
    let info = clip.storage_info().unwrap();
    let table = Checkpoints::open(Arc::new(clip.checkpoints().unwrap()), &info.layers, 0).unwrap();
    assert_eq!(table.layers()[0].span(clip_format::units::SpanIndex(0)).start, SpanStart::Member);
    options.windows = Windows::Sparse;
    let sparse = index_image(&options, &NoProgress).unwrap().summary;
    assert!(sparse.windows_bytes > 0 && sparse.layers[0].entries > 5);
}

/// A long stretch that cannot be entered is said once a layer, with its place, what a read of it costs, and why: one deflate block, as
/// zlib-rs writes level 1, or no windows.
#[test]
fn long_stretches_without_an_entry_are_said_with_their_reason() {
    let dir = tempfile::tempdir().unwrap();
    let stream = layer(&[("a", &text(3, 1 << 20).repeat(40))]);
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(1));
    encoder.write_all(&stream).unwrap();
    let one_block = encoder.finish().unwrap();
    let blocks = gzip(&stream);
    Layout { dir: dir.path() }.image(&[(blocks.clone(), stream.clone(), GZIP), (one_block.clone(), stream.clone(), GZIP)]);
    let mut options = options(&format!("oci:{}", dir.path().display()));
    options.span_bytes = 1 << 20;
    let warnings = |options: &IndexOptions| index_image(options, &NoProgress).unwrap().summary.warnings;
    let found = warnings(&options);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains(&sha(&one_block)) && found[0].contains("40 MiB: it is one deflate block"), "{found:?}");
    assert!(found[0].contains("between stream offsets 0 and 41"), "{found:?}");

    options.windows = Windows::None;
    let found = warnings(&options);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].contains(&sha(&blocks)) && found.iter().all(|line| line.contains("--windows none leaves only")), "{found:?}");
}

fn platform(architecture: &str) -> clip_format::storage_info::Platform {
    clip_format::storage_info::Platform { os: "linux".into(), architecture: architecture.into(), variant: None }
}

/// A platform that an index lacks is refused with the list of those it has.
#[test]
fn a_missing_platform_lists_the_others() {
    let dir = tempfile::tempdir().unwrap();
    Layout { dir: dir.path() }.image(&[]);
    name_platforms(dir.path(), &["amd64", "riscv64"]);
    let mut options = options(&format!("oci:{}", dir.path().display()));
    options.platform = Some(platform("s390x"));
    let error = index_image(&options, &NoProgress).err().unwrap().to_string();
    assert!(error.contains("linux/s390x") && error.contains("linux/amd64") && error.contains("linux/riscv64"), "{error}");
}

/// Lists the layout's one manifest once for each of `architectures`.
fn name_platforms(dir: &Path, architectures: &[&str]) {
    let path = dir.join("index.json");
    let mut index: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let manifest = index["manifests"][0].clone();
    let named = architectures.iter().map(|architecture| {
        let mut manifest = manifest.clone();
        manifest["platform"] = serde_json::json!({ "os": "linux", "architecture": architecture });
        manifest
    });
    index["manifests"] = named.collect();
    fs::write(path, index.to_string()).unwrap();
}

/// An image whose config names another platform than the index that lists it is indexed as the index says; one that stands alone, as its
/// config says, even where another was asked for. Each is one warning that names both.
#[test]
fn mislabelled_images_are_indexed_with_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    Layout { dir: dir.path() }.image(&[]);
    let mut options = options(&format!("oci:{}", dir.path().display()));
    let index = |options: &IndexOptions| index_image(options, &NoProgress).unwrap().summary;

    options.platform = Some(platform("s390x"));
    let alone = index(&options);
    assert_eq!((alone.platform.as_str(), alone.warnings.len()), ("linux/amd64", 1), "{:?}", alone.warnings);
    assert!(
        alone.warnings[0].contains("--platform asks for linux/s390x") && alone.warnings[0].contains("linux/amd64"),
        "{:?}",
        alone.warnings
    );

    name_platforms(dir.path(), &["s390x", "riscv64"]);
    let named = index(&options);
    assert_eq!((named.platform.as_str(), named.warnings.len()), ("linux/s390x", 1), "{:?}", named.warnings);
    assert!(named.warnings[0].contains("says linux/amd64") && named.warnings[0].contains("says linux/s390x"), "{:?}", named.warnings);

    name_platforms(dir.path(), &["x86_64", "riscv64"]);
    options.platform = Some(platform("amd64"));
    assert!(index(&options).warnings.is_empty());
}
