//! The sample image: three layers, the same bytes every time, with the things that make images hard: whiteouts, an opaque directory,
//! replaced files, hard and symbolic links, a set-user-id program, an extended attribute, a sparse-looking model file.

use std::{collections::BTreeMap, collections::HashMap, io::Write as _};

use anyhow::Result;
use bytes::Bytes;
use clip_format::storage_info::Platform;
use flate2::{Compression, write::GzEncoder};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

use super::registry::Object;

const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// The image's repository in the demo's registry.
pub const REPOSITORY: &str = "clip/demo";
/// 2024-01-01T00:00:00Z
const MTIME: u64 = 1_704_067_200;
/// The attribute's name and value.
pub const XATTR: (&str, &str) = ("user.clip.demo", "kept");

/// What stands at a path of the finished tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// A regular file.
    File {
        /// Permission bits.
        mode: u32,
        /// Length.
        size: u64,
        /// Of the contents.
        blake3: [u8; 32],
    },
    /// A symbolic link with this target.
    Symlink(String),
    /// The same inode as this path.
    HardLink(String),
    /// Nothing: a whiteout removed it.
    Absent,
}

/// The image and what reading it must give.
pub struct SampleImage {
    /// What the registry serves, by path.
    pub objects: HashMap<String, Object>,
    /// By path, without a slash in front.
    pub expected: BTreeMap<String, Expected>,
    /// Files that "starting the program" reads.
    pub start_files: Vec<String>,
    /// Layers.
    pub layers: usize,
    /// Bytes of all layer streams.
    pub stream_bytes: u64,
    /// Bytes of all blobs.
    pub compressed_bytes: u64,
}

/// SplitMix64: small, seeded, the same everywhere. Source: Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// Source-like text of about `len` bytes: deflate makes a third of it.
    fn text(&mut self, len: usize) -> Vec<u8> {
        const WORDS: [&str; 16] = [
            "def ", "self.", "return ", "import ", "value", "index", "layer", "(", ")", ":\n    ", " = ", "None", "for ", " in ", "\n",
            "range",
        ];
        let mut text = Vec::with_capacity(len + 16);
        while text.len() < len {
            match self.below(20) {
                0 => text.extend_from_slice(format!("{:x}", self.next() >> 40).as_bytes()),
                _ => text.extend_from_slice(WORDS[self.below(16) as usize].as_bytes()),
            }
        }
        text.truncate(len);
        text
    }

    /// Bytes like machine code or weights: deflate saves little.
    fn binary(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&(self.next() & 0x0fff_ffff_00ff_ffff).to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}

/// Who owns every file of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// One layer being written, and what the finished tree will be.
struct Layer<'a> {
    owner: Owner,
    tar: Builder<Vec<u8>>,
    expected: &'a mut BTreeMap<String, Expected>,
}

impl<'a> Layer<'a> {
    fn new(owner: Owner, expected: &'a mut BTreeMap<String, Expected>) -> Self {
        Self { owner, tar: Builder::new(Vec::new()), expected }
    }

    fn header(&self, kind: EntryType, mode: u32, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size);
        header.set_mtime(MTIME);
        header.set_uid(u64::from(self.owner.uid));
        header.set_gid(u64::from(self.owner.gid));
        header
    }

    fn dir(&mut self, path: &str) -> Result<()> {
        self.tar.append_data(&mut self.header(EntryType::Directory, 0o755, 0), path, std::io::empty())?;
        Ok(())
    }

    fn file(&mut self, path: &str, mode: u32, bytes: &[u8]) -> Result<()> {
        let size = bytes.len() as u64;
        self.tar.append_data(&mut self.header(EntryType::Regular, mode, size), path, bytes)?;
        let expected = Expected::File { mode, size, blake3: *blake3::hash(bytes).as_bytes() };
        self.expected.insert(path.to_owned(), expected);
        Ok(())
    }

    fn symlink(&mut self, path: &str, target: &str) -> Result<()> {
        self.tar.append_link(&mut self.header(EntryType::Symlink, 0o777, 0), path, target)?;
        self.expected.insert(path.to_owned(), Expected::Symlink(target.to_owned()));
        Ok(())
    }

    fn hard_link(&mut self, path: &str, target: &str) -> Result<()> {
        self.tar.append_link(&mut self.header(EntryType::Link, 0o644, 0), path, target)?;
        self.expected.insert(path.to_owned(), Expected::HardLink(target.to_owned()));
        Ok(())
    }

    /// An empty marker file; what it hides is gone from the tree.
    fn whiteout(&mut self, dir: &str, name: &str) -> Result<()> {
        let marker = format!("{dir}/.wh.{name}");
        self.tar.append_data(&mut self.header(EntryType::Regular, 0o644, 0), marker, std::io::empty())?;
        self.expected.insert(format!("{dir}/{name}"), Expected::Absent);
        Ok(())
    }

    fn opaque(&mut self, dir: &str) -> Result<()> {
        let marker = format!("{dir}/.wh..wh..opq");
        self.tar.append_data(&mut self.header(EntryType::Regular, 0o644, 0), marker, std::io::empty())?;
        let below = format!("{dir}/");
        for (_, expected) in self.expected.iter_mut().filter(|(path, _)| path.starts_with(&below)) {
            *expected = Expected::Absent;
        }
        Ok(())
    }

    fn finish(self) -> Result<Vec<u8>> {
        Ok(self.tar.into_inner()?)
    }
}

fn base_layer(owner: Owner, random: &mut Random, expected: &mut BTreeMap<String, Expected>) -> Result<Vec<u8>> {
    let mut layer = Layer::new(owner, expected);
    for dir in ["etc", "usr", "usr/bin", "usr/lib", "usr/lib/python3", "usr/share", "usr/share/doc"] {
        layer.dir(dir)?;
    }
    layer.symlink("bin", "usr/bin")?;
    layer.file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\ndemo:x:1000:1000:Demo:/home/demo:/bin/sh\n")?;
    layer.file("etc/shadow", 0o600, b"root:*:19000:0:99999:7:::\n")?;
    layer.file("etc/secret.key", 0o600, &random.text(1000))?;
    layer.file("usr/bin/su", 0o4755, &random.binary(70_000))?;
    layer.file("usr/bin/python3", 0o755, &random.binary(4 << 20))?;
    layer.hard_link("usr/bin/python3.12", "usr/bin/python3")?;
    layer.symlink("usr/bin/python", "python3")?;
    for number in 0..240 {
        let len = 2000 + random.below(40_000) as usize;
        layer.file(&format!("usr/lib/python3/module{number:03}.py"), 0o644, &random.text(len))?;
    }
    for number in 0..12 {
        layer.file(&format!("usr/share/doc/chapter{number}.txt"), 0o644, &random.text(30_000))?;
    }
    layer.file("usr/share/empty", 0o644, b"")?;
    layer.finish()
}

fn libraries_layer(owner: Owner, random: &mut Random, expected: &mut BTreeMap<String, Expected>) -> Result<Vec<u8>> {
    let mut layer = Layer::new(owner, expected);
    layer.whiteout("etc", "secret.key")?;
    layer.whiteout("usr/lib/python3", "module007.py")?;
    layer.opaque("usr/share/doc")?;
    layer.file("usr/share/doc/README", 0o644, &random.text(5000))?;
    layer.file("usr/lib/python3/module042.py", 0o644, &random.text(9000))?;
    layer.dir("usr/lib/torch")?;
    for number in 0..3 {
        layer.file(&format!("usr/lib/torch/libtorch_{number}.so"), 0o755, &random.binary(3 << 20))?;
    }
    layer.symlink("usr/lib/torch/libtorch.so", "libtorch_0.so")?;
    layer.finish()
}

fn application_layer(owner: Owner, random: &mut Random, expected: &mut BTreeMap<String, Expected>) -> Result<Vec<u8>> {
    let mut layer = Layer::new(owner, expected);
    layer.dir("app")?;
    layer.file("app/main.py", 0o755, &random.text(4000))?;
    layer.file("app/model.bin", 0o644, &random.binary(12 << 20))?;
    layer.tar.append_pax_extensions([(format!("SCHILY.xattr.{}", XATTR.0).as_str(), XATTR.1.as_bytes())])?;
    layer.file("app/tagged", 0o640, b"this file has an extended attribute\n")?;
    layer.file("app/grüße 🎉.txt", 0o644, b"names may be anything\n")?;
    layer.finish()
}

impl SampleImage {
    /// The image, all of it `owner`'s, so that whoever runs the demo may read it through a mount. Cost: about a second of deflate.
    pub fn new(owner: Owner) -> Result<Self> {
        let mut random = Random(0x0063_6c69_7020_6465);
        let mut expected = BTreeMap::new();
        let streams = [
            base_layer(owner, &mut random, &mut expected)?,
            libraries_layer(owner, &mut random, &mut expected)?,
            application_layer(owner, &mut random, &mut expected)?,
        ];
        let mut objects = HashMap::new();
        let (mut descriptors, mut diff_ids) = (Vec::new(), Vec::new());
        let mut compressed_bytes = 0;
        for stream in &streams {
            let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
            gzip.write_all(stream)?;
            let blob = Bytes::from(gzip.finish()?);
            compressed_bytes += blob.len() as u64;
            diff_ids.push(sha256(stream));
            descriptors.push(json!({ "mediaType": LAYER_TYPE, "digest": sha256(&blob), "size": blob.len() }));
            add(&mut objects, "blobs", None, LAYER_TYPE, blob);
        }
        let config = config(&diff_ids);
        let descriptor = json!({ "mediaType": CONFIG_TYPE, "digest": sha256(&config), "size": config.len() });
        let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": descriptor, "layers": descriptors });
        let manifest = Bytes::from(serde_json::to_vec(&manifest)?);
        add(&mut objects, "blobs", None, CONFIG_TYPE, config);
        add(&mut objects, "manifests", Some("latest"), MANIFEST_TYPE, manifest.clone());
        add(&mut objects, "manifests", None, MANIFEST_TYPE, manifest);
        let start_files = ["usr/bin/python3", "usr/lib/python3/module003.py", "usr/lib/python3/module042.py", "app/main.py"];
        Ok(Self {
            objects,
            expected,
            start_files: start_files.map(str::to_owned).to_vec(),
            layers: streams.len(),
            stream_bytes: streams.iter().map(|stream| stream.len() as u64).sum(),
            compressed_bytes,
        })
    }
}

fn config(diff_ids: &[String]) -> Bytes {
    let config = json!({
        "created": "2024-01-01T00:00:00Z",
        // This machine's, so that indexing needs no --platform.
        "architecture": Platform::of_this_machine().architecture,
        "os": "linux",
        "config": { "Env": ["PATH=/usr/bin"], "Cmd": ["python3", "/app/main.py"], "WorkingDir": "/app", "User": "demo" },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
        "history": [],
    });
    Bytes::from(config.to_string())
}

fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn add(objects: &mut HashMap<String, Object>, kind: &str, name: Option<&str>, media_type: &'static str, bytes: Bytes) {
    let digest = sha256(&bytes);
    let path = format!("/v2/{REPOSITORY}/{kind}/{}", name.unwrap_or(&digest));
    objects.insert(path, Object { media_type, digest, bytes });
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// The image is the same every time, of a size worth fetching in parts, and shows every kind of entry.
    #[test]
    fn sample_is_deterministic() {
        let owner = Owner { uid: 1000, gid: 1000 };
        let (one, two) = (SampleImage::new(owner).unwrap(), SampleImage::new(owner).unwrap());
        let digests = |image: &SampleImage| image.objects.keys().cloned().collect::<std::collections::BTreeSet<_>>();
        assert_eq!(digests(&one), digests(&two));
        assert!((20 << 20..40 << 20).contains(&one.stream_bytes), "{}", one.stream_bytes);
        assert_eq!(one.expected["etc/secret.key"], Expected::Absent);
        assert_eq!(one.expected["usr/share/doc/chapter3.txt"], Expected::Absent);
        assert!(matches!(one.expected["usr/share/doc/README"], Expected::File { .. }));
        assert!(one.start_files.iter().all(|path| matches!(one.expected[path], Expected::File { .. })));
    }
}
