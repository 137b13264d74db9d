//! The image that is measured: three layers, made from a seed, as an OCI layout on disk and in memory.
//!
//! The layers are the three shapes that cost differently: very many small files, libraries of some MiB, and one large file.

pub mod content;
mod layer;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use bytes::Bytes;
use clip_format::{digest::Digest, storage_info::Platform};
use serde_json::json;

use crate::layout::LayoutImage;
use content::{Draws, Kind, Writer};
pub(crate) use layer::LayerWriter;
use layer::sha256;
pub use layer::{Layer, Packing};

/// Path of the large file in the image.
pub const LARGE_PATH: &str = "data/large.bin";
/// The tag of the whole image.
pub const TAG_ALL: &str = "all";
/// The tag of the image that is only the layer of the large file.
pub const TAG_LARGE: &str = "large";
/// The tag of the image of equal layers, where it was made.
pub const TAG_EQUAL: &str = "equal";
/// Repository name in the registry.
pub const REPOSITORY: &str = "clip-bench/corpus";
/// The layer of the large file in the whole image.
pub const LARGE_LAYER: usize = 2;

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";

/// How much of each shape there is, and how it is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Small files, of 4 KiB on average.
    pub small_files: usize,
    /// Libraries.
    pub libraries: usize,
    /// Mean length of a library.
    pub library_bytes: usize,
    /// Length of the large file.
    pub large_bytes: usize,
    /// Bytes of libraries beside the large file, in the same layer.
    pub beside_large_bytes: usize,
    /// Equal layers of an image of their own.
    pub equal_layers: usize,
    /// How all layers are compressed.
    pub packing: Packing,
}

impl Sizes {
    /// What figures are taken with; the large layer's size is the subcommand's affair.
    pub const FULL: Self = Self {
        small_files: 20_000,
        libraries: 12,
        library_bytes: 8 << 20,
        large_bytes: 192 << 20,
        beside_large_bytes: 192 << 20,
        equal_layers: 0,
        packing: Packing::Gzip,
    };
    /// What tests run: everything once, in a few seconds without optimisation.
    pub const TINY: Self = Self {
        small_files: 200,
        libraries: 2,
        library_bytes: 300 << 10,
        large_bytes: 5_000_000,
        beside_large_bytes: 1 << 20,
        equal_layers: 0,
        packing: Packing::Gzip,
    };

    /// With a large layer of `mib` MiB, half of it one file.
    #[must_use]
    pub fn with_large_layer(self, mib: u32) -> Self {
        let bytes = (mib as usize) << 20;
        // Every library stays shorter than the large file.
        let library_bytes = self.library_bytes.min(bytes / 8);
        Self { library_bytes, large_bytes: bytes / 2, beside_large_bytes: bytes - bytes / 2, ..self }
    }
}

/// An image of the registry and of the layout.
pub struct Manifest {
    /// What it is asked for by.
    pub tag: &'static str,
    /// Digest of `bytes`.
    pub digest: Digest,
    /// JSON.
    pub bytes: Bytes,
}

/// The image, its blobs, and what must come out when it is read.
pub struct Corpus {
    /// The OCI layout.
    dir: PathBuf,
    /// Of the whole image, the base first.
    pub layers: Vec<Layer>,
    /// Of the image of equal layers.
    pub equal: Vec<Layer>,
    /// One an image.
    pub manifests: Vec<Manifest>,
    /// Their configs, by digest.
    pub configs: Vec<(Digest, Bytes)>,
    /// Length of the large file.
    pub large_bytes: u64,
    /// BLAKE3 of the large file.
    pub large_hash: blake3::Hash,
    seed: u64,
    packing: Packing,
}

impl Corpus {
    /// Makes the image and writes it to `dir`. Cost: about 5 s a core for the full sizes, most of it gzip.
    ///
    /// # Errors
    /// When `dir` cannot be written.
    pub fn make(dir: &Path, seed: u64, sizes: Sizes) -> Result<Self> {
        let writer = Writer::new(seed);
        let (others, large) = std::thread::scope(|scope| {
            let large = scope.spawn(|| large_layer(dir, &writer, seed, sizes));
            let others = other_layers(&writer, seed, sizes);
            (others, large.join().map_err(|_| anyhow::anyhow!("the large layer's thread panicked")))
        });
        let ((small, library, equal), (large, large_hash)) = (others?, large??);
        let layers = vec![small, library, large];
        let mut corpus = Self {
            dir: dir.to_owned(),
            layers,
            equal,
            manifests: Vec::new(),
            configs: Vec::new(),
            large_bytes: sizes.large_bytes as u64,
            large_hash,
            seed,
            packing: sizes.packing,
        };
        for tag in [TAG_ALL, TAG_LARGE, TAG_EQUAL] {
            corpus.add_manifest(tag);
        }
        corpus.write_layout()?;
        Ok(corpus)
    }

    /// `oci:DIR:TAG`
    #[must_use]
    pub fn local_reference(&self, tag: &str) -> String {
        format!("oci:{}:{tag}", self.dir.display())
    }

    /// The large file's bytes as an ordinary file.
    #[must_use]
    pub fn plain_file(&self) -> PathBuf {
        plain_file(&self.dir)
    }

    /// The layers of the image `tag`.
    #[must_use]
    pub fn layers_of(&self, tag: &str) -> &[Layer] {
        match tag {
            TAG_LARGE => &self.layers[LARGE_LAYER..],
            TAG_EQUAL => &self.equal,
            _ => &self.layers,
        }
    }

    /// Bytes of the streams of the image `tag`.
    #[must_use]
    pub fn stream_bytes(&self, tag: &str) -> u64 {
        self.layers_of(tag).iter().map(|layer| layer.stream_bytes).sum()
    }

    /// What it was made from.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// How its layers are compressed.
    #[must_use]
    pub fn packing(&self) -> Packing {
        self.packing
    }

    /// Images without layers are not made.
    fn add_manifest(&mut self, tag: &'static str) {
        let layers = self.layers_of(tag);
        if !layers.is_empty() {
            let image = image_of(layers);
            self.configs.push(image.config);
            self.manifests.push(Manifest { tag, digest: image.digest, bytes: image.manifest });
        }
    }

    fn write_layout(&self) -> Result<()> {
        let blobs = self.dir.join("blobs/sha256");
        fs::create_dir_all(&blobs).with_context(|| format!("create {}", blobs.display()))?;
        let write = |path: PathBuf, bytes: &[u8]| fs::write(&path, bytes).with_context(|| format!("write {}", path.display()));
        for (digest, bytes) in self.blobs() {
            write(blobs.join(digest.to_hex()), bytes)?;
        }
        let manifests: Vec<_> = self.manifests.iter().map(Manifest::descriptor).collect();
        let index = json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests });
        write(self.dir.join("index.json"), index.to_string().as_bytes())?;
        write(self.dir.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)
    }

    /// Every blob: layers, configs, manifests.
    pub fn blobs(&self) -> impl Iterator<Item = (Digest, &Bytes)> {
        let layers = self.layers.iter().chain(&self.equal).map(|layer| (layer.digest, &layer.blob));
        let configs = self.configs.iter().map(|(digest, bytes)| (*digest, bytes));
        layers.chain(configs).chain(self.manifests.iter().map(|manifest| (manifest.digest, &manifest.bytes)))
    }
}

impl Manifest {
    /// Its media type.
    #[must_use]
    pub fn media_type(&self) -> &'static str {
        MANIFEST_TYPE
    }

    fn descriptor(&self) -> serde_json::Value {
        let name = json!({ "org.opencontainers.image.ref.name": self.tag });
        json!({ "mediaType": MANIFEST_TYPE, "digest": self.digest.to_string(), "size": self.bytes.len(), "annotations": name })
    }
}

/// The image of `layers`, the base first.
pub(crate) fn image_of(layers: &[Layer]) -> LayoutImage {
    let diff_ids: Vec<_> = layers.iter().map(|layer| layer.diff_id.to_string()).collect();
    let config = json!({
        "architecture": Platform::of_this_machine().architecture,
        "os": "linux",
        "config": { "Env": ["PATH=/usr/bin"], "Cmd": ["/bin/true"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = Bytes::from(config.to_string());
    let config_digest = sha256(&config);
    let descriptor = |layer: &Layer| json!({ "mediaType": layer.media_type, "digest": layer.digest.to_string(), "size": layer.blob.len() });
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": { "mediaType": CONFIG_TYPE, "digest": config_digest.to_string(), "size": config.len() },
        "layers": layers.iter().map(descriptor).collect::<Vec<_>>(),
    });
    let manifest = Bytes::from(manifest.to_string());
    LayoutImage {
        digest: sha256(&manifest),
        manifest,
        media_type: MANIFEST_TYPE.to_owned(),
        config: (config_digest, config),
        layers: layers.iter().map(|layer| (layer.digest, layer.blob.clone())).collect(),
    }
}

/// An image of `files` small files in directories of 100, for what depends on their number alone.
pub(crate) fn image_of_files(files: usize, bytes: usize, packing: Packing) -> Result<LayoutImage> {
    let mut layer = LayerWriter::new(packing)?;
    let content = vec![b'x'; bytes];
    for number in 0..files {
        if number % 100 == 0 {
            layer.directory(&format!("d{:05}", number / 100))?;
        }
        layer.file(&format!("d{:05}/f{number:07}", number / 100), &content)?;
    }
    Ok(image_of(&[layer.finish()?]))
}

fn plain_file(dir: &Path) -> PathBuf {
    dir.join("large.plain")
}

fn other_layers(writer: &Writer, seed: u64, sizes: Sizes) -> Result<(Layer, Layer, Vec<Layer>)> {
    let (small, library) = (small_layer(writer, seed, sizes)?, library_layer(writer, seed, sizes)?);
    let bytes = sizes.large_bytes.checked_div(sizes.equal_layers).unwrap_or(0);
    let equal = (0..sizes.equal_layers).map(|number| equal_layer(writer, seed, number, bytes, sizes.packing)).collect::<Result<_>>()?;
    Ok((small, library, equal))
}

/// A layer of libraries of up to 4 MiB.
fn equal_layer(writer: &Writer, seed: u64, number: usize, bytes: usize, packing: Packing) -> Result<Layer> {
    let mut layer = LayerWriter::new(packing)?;
    let mut draws = Draws::new(seed ^ 0xe9a1 ^ ((number as u64) << 32));
    let directory = format!("opt/part-{number}");
    layer.directory(&directory)?;
    append_libraries(&mut layer, writer, &directory, Left { bytes, each_max: 4 << 20 }, &mut draws)?;
    layer.finish()
}

/// What is still to be written.
struct Left {
    bytes: usize,
    /// A file is at most so long.
    each_max: usize,
}

/// Fills `layer` with files of mixed content.
fn append_libraries(layer: &mut LayerWriter, writer: &Writer, directory: &str, mut left: Left, draws: &mut Draws) -> Result<()> {
    let mut content = Vec::with_capacity(left.each_max + 64);
    for number in 0.. {
        if left.bytes == 0 {
            break;
        }
        let len = left.bytes.min(left.each_max);
        content.clear();
        writer.append_mixed(&mut content, len, draws);
        layer.file(&format!("{directory}/module-{number:04}.so"), &content)?;
        left.bytes -= len;
    }
    Ok(())
}

fn small_layer(writer: &Writer, seed: u64, sizes: Sizes) -> Result<Layer> {
    let mut layer = LayerWriter::new(sizes.packing)?;
    let mut draws = Draws::new(seed ^ 0x5a11);
    let mut content = Vec::new();
    for number in 0..sizes.small_files {
        if number % 100 == 0 {
            layer.directory(&format!("usr/share/part-{:04}", number / 100))?;
        }
        // Lengths spread evenly over the powers of two up to 64 KiB, as of scripts, headers and the like: 4 KiB on average.
        let most = 1 << draws.below(17);
        let len = draws.below(most) as usize;
        let kind = if draws.below(8) == 0 { Kind::Library } else { Kind::Text };
        content.clear();
        writer.append(&mut content, kind, len, &mut draws);
        layer.file(&format!("usr/share/part-{:04}/module_{number:05}.py", number / 100), &content)?;
    }
    layer.finish()
}

fn library_layer(writer: &Writer, seed: u64, sizes: Sizes) -> Result<Layer> {
    let mut layer = LayerWriter::new(sizes.packing)?;
    let mut draws = Draws::new(seed ^ 0x11b);
    layer.directory("usr/lib")?;
    for number in 0..sizes.libraries {
        let len = sizes.library_bytes / 2 + draws.below(sizes.library_bytes as u64) as usize;
        let mut content = Vec::with_capacity(len + 64);
        writer.append(&mut content, Kind::Library, len, &mut draws);
        layer.file(&format!("usr/lib/libmodule-{number:03}.so"), &content)?;
    }
    layer.finish()
}

fn large_layer(dir: &Path, writer: &Writer, seed: u64, sizes: Sizes) -> Result<(Layer, blake3::Hash)> {
    let mut layer = LayerWriter::new(sizes.packing)?;
    let mut content = Vec::with_capacity(sizes.large_bytes + 64);
    writer.append_mixed(&mut content, sizes.large_bytes, &mut Draws::new(seed ^ 0x1a26e));
    fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    let plain = plain_file(dir);
    fs::write(&plain, &content).with_context(|| format!("write {}", plain.display()))?;
    layer.directory("data")?;
    layer.file(LARGE_PATH, &content)?;
    let hash = blake3::hash(&content);
    drop(content);
    let left = Left { bytes: sizes.beside_large_bytes, each_max: sizes.library_bytes };
    append_libraries(&mut layer, writer, "data", left, &mut Draws::new(seed ^ 0xbe5))?;
    Ok((layer.finish()?, hash))
}
