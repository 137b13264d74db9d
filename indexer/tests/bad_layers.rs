//! Layers that are bad in themselves, and layers that were made bad on the way: which of the two an error says, and how often one is fetched.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
};

use clip_engine::{ErrorKind, registry::Login};
use clip_indexer::{ImageRef, IndexError, IndexOptions, index_image, progress::NoProgress};
use sha2::{Digest as _, Sha256};

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

fn sha(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// Text of `len` bytes that compresses, so that a blob of it comes in many chunks.
fn text(len: usize) -> Vec<u8> {
    let mut state = 7_u32;
    let mut next = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        format!("{}\n", state >> 8).into_bytes()
    };
    std::iter::repeat_with(&mut next).flatten().take(len).collect()
}

fn tar_of(len: usize) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(len as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, "file", &text(len)[..]).unwrap();
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(1));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A registry of one image `a:t` on loopback, for as long as the test runs.
struct Registry {
    port: u16,
    /// How often the layer was asked for.
    asked: Arc<AtomicUsize>,
}

impl Registry {
    /// One layer, which the manifest describes as `layer` and which is sent as `sent`.
    fn start(layer: &[u8], sent: &[u8], media_type: &str) -> Self {
        let config = format!(r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#, sha(b""));
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": sha(config.as_bytes()), "size": config.len() },
            "layers": [{ "mediaType": media_type, "digest": sha(layer), "size": layer.len() }],
        });
        let at_blob = |digest: String| format!("/v2/a/blobs/{digest}");
        let layer_path = at_blob(sha(layer));
        let documents = HashMap::from([
            ("/v2/a/manifests/t".to_owned(), manifest.to_string().into_bytes()),
            (at_blob(sha(config.as_bytes())), config.into_bytes()),
            (layer_path.clone(), sent.to_owned()),
        ]);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let registry = Self { port: listener.local_addr().unwrap().port(), asked: Arc::default() };
        let (asked, shared) = (Arc::clone(&registry.asked), Arc::new((documents, layer_path)));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (asked, shared) = (Arc::clone(&asked), Arc::clone(&shared));
                thread::spawn(move || converse(&stream, &shared.0, &shared.1, &asked));
            }
        });
        registry
    }

    fn index(&self) -> IndexError {
        let mut options = IndexOptions::new(format!("127.0.0.1:{}/a:t", self.port).parse::<ImageRef>().unwrap());
        options.platform = Some(clip_format::storage_info::Platform { os: "linux".into(), architecture: "amd64".into(), variant: None });
        options.client.login = Login::anonymous();
        index_image(&options, &NoProgress).err().unwrap()
    }
}

fn converse(stream: &TcpStream, documents: &HashMap<String, Vec<u8>>, layer_path: &str, asked: &AtomicUsize) -> Option<()> {
    let (mut reader, mut writer) = (BufReader::new(stream), stream);
    loop {
        let mut request = String::new();
        while !request.ends_with("\r\n\r\n") {
            if reader.read_line(&mut request).ok()? == 0 {
                return None;
            }
        }
        let path = request.split(' ').nth(1)?;
        asked.fetch_add(usize::from(path == layer_path), SeqCst);
        let body = documents.get(path)?;
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
        writer.write_all(&[head.as_bytes(), body].concat()).ok()?;
    }
}

/// Claim: a layer that is what its manifest names, and no layer, is fetched once; the error is of the layer and says nothing of a digest.
#[test]
fn a_layer_that_is_bad_in_itself_is_fetched_once() {
    let whole = gzip(&tar_of(8 << 20));
    let mut torn = whole.clone();
    torn[20_000..20_100].fill(0);
    let noise: Vec<u8> = text(4 << 20);
    for (name, blob, media_type) in [
        ("cut off at its source", &whole[..whole.len() / 2], GZIP),
        ("torn at its source, near the start", &torn, GZIP),
        ("no tar", &noise, TAR),
        ("another stream than the config says", &whole, GZIP),
    ] {
        let registry = Registry::start(blob, blob, media_type);
        let error = registry.index();
        assert_eq!((registry.asked.load(SeqCst), error.kind()), (1, ErrorKind::Corrupt), "{name}: {error}");
        assert!(!error.to_string().contains("other bytes came"), "{name}: {error}");
    }
}

/// Claim: a layer that was changed on the way is fetched once more, and the error begins with the digest that differs.
#[test]
fn a_layer_that_was_changed_on_the_way_is_told_by_its_digest() {
    let (plain, packed) = (tar_of(4 << 20), gzip(&tar_of(8 << 20)));
    let torn = |blob: &[u8]| {
        let mut torn = blob.to_owned();
        torn[100..400].fill(b'x');
        torn
    };
    for (blob, media_type) in [(&plain, TAR), (&packed, GZIP)] {
        let sent = torn(blob);
        let registry = Registry::start(blob, &sent, media_type);
        let error = registry.index();
        let said = error.to_string();
        let expected = format!("layer {0}, the blob as a whole: expected {0}, found {1}", sha(blob), sha(&sent));
        assert!(said.starts_with(&expected) && said.contains("other bytes came"), "{said}");
        assert_eq!((registry.asked.load(SeqCst), error.kind()), (2, ErrorKind::Corrupt), "{said}");
    }
}

/// Claim: xz and bzip2 are named, whatever the media type says, and fetched once; a tar whose first name begins as bzip2 does is a tar.
#[test]
fn other_compressions_are_named() {
    let xz = [&b"\xfd7zXZ\0\0\x04"[..], &[7; 4000]].concat();
    let bzip2 = [&b"BZh91AY&SY"[..], &[7; 4000]].concat();
    let empty = [&b"BZh9\x17\x72\x45\x38\x50\x90"[..], &[0; 4]].concat();
    for (name, blob) in [("xz", &xz), ("bzip2", &bzip2), ("bzip2", &empty)] {
        for media_type in [GZIP, TAR] {
            let registry = Registry::start(blob, blob, media_type);
            let error = registry.index();
            let said = error.to_string();
            assert!(said.contains(&format!("compression with {name}")) && said.contains("is not supported"), "{said}");
            assert_eq!((registry.asked.load(SeqCst), error.kind()), (1, ErrorKind::Unsupported), "{said}");
        }
    }
    let named = [&b"BZh91AY-SY"[..], &[0; 502]].concat();
    let said = Registry::start(&named, &named, TAR).index().to_string();
    assert!(!said.contains("bzip2"), "{said}");
}
