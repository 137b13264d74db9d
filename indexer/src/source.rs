//! Where an image's documents and blobs are, whichever way it is named: a registry, a layout directory, an archive.

mod archive;
mod config;
mod docker_archive;
mod manifest;
mod oci_layout;
mod platform;
mod registry;

use std::path::Path;

use bytes::Bytes;
use clip_engine::{error::EngineError, registry::Client, source::BlobSource};
use clip_format::{
    digest::Digest,
    limits,
    storage_info::{Codec, ImageConfig, Platform, Source, StorageInfo},
    units::LayerIndex,
};
use tokio::runtime::Runtime;

use crate::{
    error::IndexError,
    layer::LayerInput,
    options::{ImageRef, IndexOptions},
};
use manifest::{Chosen, Descriptor};

/// Bytes of an image config. Source: containerd reads at most 8 MiB of a config; room for long histories.
const CONFIG_BYTES_MAX: u64 = 8 << 20;

/// An image, found and checked: everything but the layers' own bytes.
pub(crate) struct ResolvedImage {
    pub(crate) source: Source,
    pub(crate) manifest_digest: Digest,
    pub(crate) platform: Platform,
    pub(crate) config: ImageConfig,
    /// In manifest order.
    pub(crate) layers: Vec<LayerInput>,
    pub(crate) warnings: Vec<String>,
}

/// A manifest or index as it was read, digest checked.
struct Document {
    digest: Digest,
    media_type: String,
    bytes: Bytes,
}

/// A place that has documents and blobs by digest.
trait ImageStore {
    /// The manifest or index of `descriptor`.
    fn document(&self, descriptor: &Descriptor) -> Result<Document, IndexError>;
    /// The config that `descriptor` names, digest checked.
    fn config(&self, descriptor: &Descriptor) -> Result<Bytes, IndexError>;
    /// Where the layer that `descriptor` names can be read.
    fn layer(&self, descriptor: &Descriptor) -> Result<BlobSource, IndexError>;
}

/// Finds the image that `options` names.
///
/// # Errors
/// Every kind, naming the document.
pub(crate) fn resolve(options: &IndexOptions, client: &Client, runtime: &Runtime) -> Result<ResolvedImage, IndexError> {
    let wanted = Wanted::new(options.platform.clone());
    let mut image = match &options.image {
        ImageRef::Registry(reference) => registry::resolve(reference, &wanted, client, runtime)?,
        ImageRef::Local { transport, path, reference } => {
            let path = std::path::absolute(path).map_err(|error| EngineError::io("resolve", path, error))?;
            local(*transport, &path, reference.as_deref(), &wanted)?
        }
    };
    if let Some(store) = &options.store_ref {
        image.source = registry::check_store(store, &image, &wanted, client, runtime)?;
    }
    Ok(image)
}

fn local(
    transport: clip_format::storage_info::Transport,
    path: &Path,
    reference: Option<&str>,
    wanted: &Wanted,
) -> Result<ResolvedImage, IndexError> {
    use clip_format::storage_info::Transport;
    use std::os::unix::ffi::OsStrExt;
    let source = Source::Local { transport, path: path.as_os_str().as_bytes().to_vec(), reference: reference.map(str::to_owned) };
    match transport {
        Transport::Oci => oci_layout::resolve(&oci_layout::Directory::new(path), path, reference, wanted, source),
        Transport::OciArchive => oci_layout::resolve(&archive::Archive::open(path)?, path, reference, wanted, source),
        Transport::DockerArchive => docker_archive::resolve(&archive::Archive::open(path)?, path, reference, wanted, source),
    }
}

/// Where a blob is, by its digest.
type FindBlob = Box<dyn Fn(&Digest) -> Option<BlobSource>>;

/// Where the blobs of an image in a local layout are: one a layer of `info`, found by digest.
///
/// # Errors
/// `Io`, or naming the layer that the layout lacks.
pub(crate) fn local_blobs(info: &StorageInfo, path: &Path) -> Result<Vec<BlobSource>, IndexError> {
    let find: FindBlob = if path.is_dir() {
        let directory = oci_layout::Directory::new(path);
        Box::new(move |digest| directory.find(digest))
    } else {
        let archive = archive::Archive::open(path)?;
        let docker_layers = docker_archive::layers_by_digest(&archive)?;
        Box::new(move |digest| docker_layers.get(digest).cloned().or_else(|| archive.blob(digest)))
    };
    let mut blobs = Vec::with_capacity(info.layers.len());
    for layer in &info.layers {
        let blob = find(&layer.digest).filter(|blob| blob.size() == layer.compressed_size);
        blobs.push(blob.ok_or_else(|| IndexError::Image {
            what: path.display().to_string(),
            expected: format!("layer {} of {} bytes", layer.digest, layer.compressed_size),
            found: "none such".to_owned(),
        })?);
    }
    Ok(blobs)
}

/// Which platform to choose.
pub(crate) struct Wanted {
    platform: Platform,
    /// Asked for, not just this machine's.
    explicit: bool,
}

impl Wanted {
    fn new(platform: Option<Platform>) -> Self {
        let explicit = platform.is_some();
        Self { platform: platform::normalised(platform.unwrap_or_else(platform::of_this_machine)), explicit }
    }
}

/// Goes down from `document` to the manifest of the wanted platform, then reads config and layers.
fn resolve_document(store: &dyn ImageStore, document: Document, wanted: &Wanted, source: Source) -> Result<ResolvedImage, IndexError> {
    from_manifest(store, &manifest::choose(store, document, wanted)?, wanted, source)
}

fn from_manifest(store: &dyn ImageStore, chosen: &Chosen, wanted: &Wanted, source: Source) -> Result<ResolvedImage, IndexError> {
    let Chosen { manifest, digest: manifest_digest, platform: named } = chosen;
    let config = config::ConfigFile::parse(&store.config(&manifest.config)?, &manifest.config.digest)?;
    let mut warnings = Vec::new();
    let platform = config.platform_as(named.as_ref(), wanted, &mut warnings);
    if config.diff_ids.len() != manifest.layers.len() {
        return Err(IndexError::Image {
            what: format!("config {}, rootfs.diff_ids", manifest.config.digest),
            expected: format!("{} entries, one a layer of manifest {manifest_digest}", manifest.layers.len()),
            found: config.diff_ids.len().to_string(),
        });
    }
    if manifest.layers.len() > limits::LAYERS_MAX {
        let what = format!("layers of manifest {manifest_digest}");
        let found = manifest.layers.len() as u64;
        return Err(clip_format::error::FormatError::Limit { what, max: limits::LAYERS_MAX as u64, found }.into());
    }
    let mut layers = Vec::with_capacity(manifest.layers.len());
    for (place, (layer, diff_id)) in manifest.layers.iter().zip(&config.diff_ids).enumerate() {
        layers.push(LayerInput {
            index: LayerIndex(place as u16),
            digest: layer.digest,
            diff_id: *diff_id,
            codec: codec_of(layer)?,
            media_type: layer.media_type.clone(),
            blob: store.layer(layer)?,
        });
    }
    Ok(ResolvedImage { source, manifest_digest: *manifest_digest, platform, config: config.image, layers, warnings })
}

/// The codec that a layer's media type names.
fn codec_of(layer: &Descriptor) -> Result<Codec, IndexError> {
    match layer.media_type.as_str() {
        "application/vnd.oci.image.layer.v1.tar" | "application/vnd.docker.image.rootfs.diff.tar" => Ok(Codec::Plain),
        "application/vnd.oci.image.layer.v1.tar+gzip" | "application/vnd.docker.image.rootfs.diff.tar.gzip" => Ok(Codec::Gzip),
        "application/vnd.oci.image.layer.v1.tar+zstd" | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Ok(Codec::Zstd),
        other => Err(IndexError::Unsupported {
            what: format!("layer {}", layer.digest),
            found: format!("media type {other:?}"),
            hint: "clip indexes plain, gzip and zstd tar layers".to_owned(),
        }),
    }
}

fn sha256(bytes: &[u8]) -> Digest {
    crate::layer::digest_of(&Digest::Sha256([0; 32]), bytes)
}

/// `bytes`, when they hash to `digest`.
fn checked(what: &str, bytes: Bytes, digest: &Digest) -> Result<Bytes, IndexError> {
    let found = crate::layer::digest_of(digest, &bytes);
    if found == *digest {
        return Ok(bytes);
    }
    Err(IndexError::Image { what: what.to_owned(), expected: digest.to_string(), found: format!("bytes that hash to {found}") })
}

#[cfg(test)]
mod tests;
