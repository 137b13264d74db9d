//! OCI image layouts on disk, written blob by blob.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

use anyhow::{Context, Result};
use clip_format::storage_info::Platform;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::tar_writer::{Headers, Member, TarWriter};

/// Which compressor makes a layer's blob of its stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compression {
    /// None: a plain tar layer.
    Plain,
    /// zlib-rs, at this level.
    ZlibRs(u32),
    /// A program that reads its standard input, such as `gzip -9n` or `pigz`.
    Program(&'static [&'static str]),
    /// zlib-rs with a new gzip member every so many bytes.
    Members(usize),
    /// zlib-rs with a sync flush every so many bytes.
    SyncFlushed(usize),
    /// zstd frames of so many bytes each, of levels 1 to 5 by turns, some without their sizes and some with checksums, and skippable frames
    /// between.
    Frames(usize),
    /// The seekable format: frames of so many bytes each, and their table in a skippable frame.
    Seekable(usize),
    /// A program as `Program`, whose output is zstd.
    ZstdProgram(&'static [&'static str]),
    /// A blob made elsewhere.
    Ready(Vec<u8>),
}

/// One blob of a layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// `sha256:...`
    pub digest: String,
    /// In bytes.
    pub size: u64,
}

/// A layer of a layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerBlob {
    /// The blob as it is served.
    pub blob: Blob,
    /// The digest of the stream.
    pub diff_id: String,
    /// `application/vnd.oci.image.layer.v1.tar+gzip` or its plain or zstd kin.
    pub media_type: &'static str,
    /// Where else the blob may be had.
    pub urls: Vec<String>,
}

/// An OCI image layout directory.
#[derive(Clone, Debug)]
pub struct Layout {
    dir: PathBuf,
    /// The temporary directory around it, where it has one.
    scratch: Option<Arc<TempDir>>,
}

impl Layout {
    /// A new layout without images in a temporary directory, which goes with its last clone.
    ///
    /// # Errors
    /// The system's.
    pub fn scratch() -> Result<Self> {
        let scratch = tempfile::Builder::new().prefix("clip-layout-").tempdir()?;
        let layout = Self::create(&scratch.path().join("layout"))?;
        Ok(Self { scratch: Some(Arc::new(scratch)), ..layout })
    }

    /// A path in the temporary directory, beside the layout.
    ///
    /// # Panics
    /// Of a layout that was not made by [`Layout::scratch`].
    #[must_use]
    pub fn beside(&self, name: &str) -> PathBuf {
        self.scratch.as_ref().expect("a layout in a temporary directory").path().join(name)
    }

    /// A new layout without images in `dir`, which is made.
    ///
    /// # Errors
    /// The system's.
    pub fn create(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir.join("blobs/sha256"))?;
        std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        let layout = Self { dir: dir.to_owned(), scratch: None };
        layout.write_index(&[])?;
        Ok(layout)
    }

    /// A layout that another tool made.
    #[must_use]
    pub fn open(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), scratch: None }
    }

    /// Where it is.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// `oci:DIR:TAG`
    #[must_use]
    pub fn reference(&self, tag: &str) -> String {
        format!("oci:{}:{tag}", self.dir.display())
    }

    /// The file of a blob.
    ///
    /// # Errors
    /// When `digest` has no colon.
    pub fn blob_path(&self, digest: &str) -> Result<PathBuf> {
        let (algorithm, hex) = digest.split_once(':').context("a digest has a colon")?;
        Ok(self.dir.join("blobs").join(algorithm).join(hex))
    }

    /// Stores a blob.
    ///
    /// # Errors
    /// The system's.
    pub fn blob(&self, bytes: &[u8]) -> Result<Blob> {
        let digest = format!("sha256:{}", hex::encode(Sha256::digest(bytes)));
        std::fs::write(self.blob_path(&digest)?, bytes)?;
        Ok(Blob { digest, size: bytes.len() as u64 })
    }

    /// Stores a layer of `stream`, compressed as told.
    ///
    /// # Errors
    /// The system's, or the compressor's.
    pub fn layer(&self, stream: &[u8], compression: &Compression) -> Result<LayerBlob> {
        let blob = self.blob(&compress(stream, compression)?)?;
        let media_type = match compression {
            Compression::Plain => "application/vnd.oci.image.layer.v1.tar",
            Compression::Frames(_) | Compression::Seekable(_) | Compression::ZstdProgram(_) => {
                "application/vnd.oci.image.layer.v1.tar+zstd"
            }
            _ => "application/vnd.oci.image.layer.v1.tar+gzip",
        };
        Ok(LayerBlob { blob, diff_id: format!("sha256:{}", hex::encode(Sha256::digest(stream))), media_type, urls: Vec::new() })
    }

    /// Stores a layer of `members` as most tools write one: tar with pax headers, in gzip at level 6.
    ///
    /// # Errors
    /// The system's.
    pub fn gzip(&self, members: &[Member]) -> Result<LayerBlob> {
        self.layer(&TarWriter::stream(members, Headers::Pax), &Compression::ZlibRs(6))
    }

    /// Makes an image of `layers` (the base first) and tags it. Returns its manifest.
    ///
    /// # Errors
    /// The system's.
    pub fn image(&self, tag: &str, layers: &[LayerBlob], runtime: Value) -> Result<Blob> {
        self.image_for(&architecture(), tag, layers, runtime)
    }

    /// As [`Layout::image`], for another GOARCH.
    ///
    /// # Errors
    /// The system's.
    pub fn image_for(&self, architecture: &str, tag: &str, layers: &[LayerBlob], runtime: Value) -> Result<Blob> {
        let diff_ids: Vec<&str> = layers.iter().map(|layer| layer.diff_id.as_str()).collect();
        let config = json!({
            "created": "2024-01-02T03:04:05Z", "architecture": architecture, "os": "linux",
            "config": runtime, "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = self.blob(&serde_json::to_vec(&config)?)?;
        let descriptors: Vec<Value> = layers
            .iter()
            .map(|layer| {
                let mut descriptor = json!({"mediaType": layer.media_type, "digest": layer.blob.digest, "size": layer.blob.size});
                if !layer.urls.is_empty() {
                    descriptor["urls"] = json!(layer.urls);
                }
                descriptor
            })
            .collect();
        let manifest = self.blob(&serde_json::to_vec(&json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config.digest, "size": config.size},
            "layers": descriptors,
        }))?)?;
        let mut manifests = self.index()?["manifests"].as_array().cloned().unwrap_or_default();
        manifests.push(json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifest.digest, "size": manifest.size,
            "annotations": {"org.opencontainers.image.ref.name": tag},
        }));
        self.write_index(&manifests)?;
        Ok(manifest)
    }

    /// `index.json`.
    ///
    /// # Errors
    /// The system's, or JSON's.
    pub fn index(&self) -> Result<Value> {
        Ok(serde_json::from_slice(&std::fs::read(self.dir.join("index.json"))?)?)
    }

    /// The manifest of `tag`: its digest, and what it says.
    ///
    /// # Errors
    /// When there is none.
    pub fn manifest(&self, tag: &str) -> Result<(String, Value)> {
        let index = self.index()?;
        let all = index["manifests"].as_array().context("index.json has manifests")?;
        let named = |entry: &&Value| entry["annotations"]["org.opencontainers.image.ref.name"] == tag;
        let digest = all.iter().find(named).and_then(|entry| entry["digest"].as_str()).with_context(|| format!("no image {tag}"))?;
        Ok((digest.to_owned(), serde_json::from_slice(&std::fs::read(self.blob_path(digest)?)?)?))
    }

    /// Digests of the layers of `tag`, the base first.
    ///
    /// # Errors
    /// When there is no such image.
    pub fn layer_digests(&self, tag: &str) -> Result<Vec<String>> {
        let (_, manifest) = self.manifest(tag)?;
        let layers = manifest["layers"].as_array().context("a manifest has layers")?;
        layers.iter().map(|layer| Ok(layer["digest"].as_str().context("a layer has a digest")?.to_owned())).collect()
    }

    fn write_index(&self, manifests: &[Value]) -> Result<()> {
        let index = json!({"schemaVersion": 2, "manifests": manifests});
        Ok(std::fs::write(self.dir.join("index.json"), serde_json::to_vec(&index)?)?)
    }
}

/// GOARCH of this machine.
#[must_use]
pub fn architecture() -> String {
    Platform::of_this_machine().architecture
}

/// The blob of `stream`.
///
/// # Errors
/// The compressor's.
pub fn compress(stream: &[u8], compression: &Compression) -> Result<Vec<u8>> {
    use flate2::{Compression as Level, write::GzEncoder};
    match compression {
        Compression::Plain => Ok(stream.to_vec()),
        Compression::Ready(blob) => Ok(blob.clone()),
        Compression::Program(words) | Compression::ZstdProgram(words) => filter(words, stream),
        Compression::Frames(len) => frames(stream, *len),
        Compression::Seekable(len) => seekable(stream, *len),
        Compression::ZlibRs(level) => {
            let mut encoder = GzEncoder::new(Vec::new(), Level::new(*level));
            encoder.write_all(stream)?;
            Ok(encoder.finish()?)
        }
        Compression::Members(len) => {
            let members = stream.chunks(*len).map(|part| compress(part, &Compression::ZlibRs(6)));
            Ok(members.collect::<Result<Vec<_>>>()?.concat())
        }
        Compression::SyncFlushed(len) => {
            let mut encoder = GzEncoder::new(Vec::new(), Level::new(6));
            for part in stream.chunks(*len) {
                encoder.write_all(part)?;
                encoder.flush()?;
            }
            Ok(encoder.finish()?)
        }
    }
}

fn frames(stream: &[u8], len: usize) -> Result<Vec<u8>> {
    let mut blob = Vec::new();
    for (number, part) in stream.chunks(len).enumerate() {
        let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1 + number as i32 % 5)?;
        encoder.include_checksum(number % 2 == 0)?;
        if number % 3 == 0 {
            encoder.set_pledged_src_size(Some(part.len() as u64))?;
        }
        encoder.write_all(part)?;
        blob.extend(encoder.finish()?);
        if number % 4 == 3 {
            blob.extend(skippable(0x57, &part[..part.len().min(5000)]));
            blob.extend(zstd::bulk::compress(&[], 1)?);
        }
    }
    Ok(blob)
}

/// Source: contrib/seekable_format/zstd_seekable_compression_format.md of zstd, version 0.1.0, without checksums.
fn seekable(stream: &[u8], len: usize) -> Result<Vec<u8>> {
    let (mut blob, mut table) = (Vec::new(), Vec::new());
    for part in stream.chunks(len) {
        let frame = zstd::bulk::compress(part, 3)?;
        table.extend_from_slice(&u32::try_from(frame.len())?.to_le_bytes());
        table.extend_from_slice(&u32::try_from(part.len())?.to_le_bytes());
        blob.extend(frame);
    }
    let frames = u32::try_from(table.len() / 8)?;
    table.extend_from_slice(&frames.to_le_bytes());
    table.push(0);
    table.extend_from_slice(&0x8f92_eab1_u32.to_le_bytes());
    blob.extend(skippable(0x5e, &table));
    Ok(blob)
}

fn skippable(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[kind, 0x2a, 0x4d, 0x18], &(body.len() as u32).to_le_bytes()[..], body].concat()
}

/// What a program makes of `input`.
fn filter(words: &[&str], input: &[u8]) -> Result<Vec<u8>> {
    let (program, arguments) = words.split_first().context("a program")?;
    let mut child = Command::new(program).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().context("standard input")?;
    std::thread::scope(|scope| {
        let writer = scope.spawn(move || stdin.write_all(input));
        let output = child.wait_with_output()?;
        writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
        anyhow::ensure!(output.status.success(), "{words:?}: {}", output.status);
        Ok(output.stdout)
    })
}
