//! Where an image's documents and blobs are, whichever way it is named: a registry, a layout directory, an archive.

mod archive;
mod config;
mod docker_archive;
mod manifest;
mod media_type;
mod oci_layout;
mod platform;
mod registry;

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use clip_engine::{
    error::EngineError,
    registry::{Client, ForeignBlob, Reference},
    source::BlobSource,
};
use clip_format::{
    blob_url::BlobUrl,
    digest::Digest,
    limits,
    storage_info::{ImageConfig, LayerUrls, Platform, Source, StorageInfo},
    units::LayerIndex,
};
use tokio::runtime::Runtime;

use crate::{
    error::IndexError,
    layer::LayerInput,
    options::{ImageRef, IndexOptions},
};
use manifest::{Chosen, Descriptor};
use media_type::{LayerType, layer_type};

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
    /// Of the layers that have any; `layer` rises.
    pub(crate) urls: Vec<LayerUrls>,
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
    fn layer(&self, descriptor: &Descriptor, elsewhere: &Elsewhere) -> Result<BlobSource, IndexError>;
}

/// Where a layer may be besides the store that has its image.
enum Elsewhere {
    /// The store must have it.
    Nowhere,
    /// At these URLs; there may be none, where the media type says that stores may not have it.
    At(Vec<BlobUrl>),
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
    for (place, layer) in info.layers.iter().enumerate() {
        let elsewhere = || match info.urls_of(place) {
            [] => None,
            urls => Some(BlobSource::Foreign(Arc::new(ForeignBlob::new(None, layer.digest, layer.compressed_size, urls.to_vec())))),
        };
        let found = match find(&layer.digest).or_else(elsewhere) {
            Some(blob) if blob.size() == layer.compressed_size => {
                blobs.push(blob);
                continue;
            }
            Some(blob) => format!("one of {} bytes", blob.size()),
            None => "none such".to_owned(),
        };
        let expected = format!("layer {} of {} bytes", layer.digest, layer.compressed_size);
        return Err(IndexError::Image { what: path.display().to_string(), expected, found });
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
        Self { platform: platform::normalised(platform.unwrap_or_else(Platform::of_this_machine)), explicit }
    }
}

/// Goes down from `document` to the manifest of the wanted platform, then reads config and layers.
fn resolve_document(store: &dyn ImageStore, document: Document, wanted: &Wanted, source: Source) -> Result<ResolvedImage, IndexError> {
    from_manifest(store, &manifest::choose(store, document, wanted)?, wanted, source)
}

fn from_manifest(store: &dyn ImageStore, chosen: &Chosen, wanted: &Wanted, source: Source) -> Result<ResolvedImage, IndexError> {
    let Chosen { manifest, digest: manifest_digest, platform: named } = chosen;
    if manifest.layers.len() > limits::LAYERS_MAX {
        let what = format!("layers of manifest {manifest_digest}");
        let found = manifest.layers.len() as u64;
        return Err(clip_format::error::FormatError::Limit { what, max: limits::LAYERS_MAX as u64, found }.into());
    }
    // First of all: an artifact in an image's clothes (a signature, a chart) is told as what it is.
    let types = manifest.layers.iter().map(layer_type).collect::<Result<Vec<_>, _>>()?;
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
    let (mut layers, mut urls) = (Vec::with_capacity(manifest.layers.len()), Vec::new());
    for (place, ((layer, diff_id), LayerType { codec, is_foreign })) in manifest.layers.iter().zip(&config.diff_ids).zip(types).enumerate()
    {
        let elsewhere = elsewhere(layer, is_foreign, &mut warnings);
        layers.push(LayerInput {
            index: LayerIndex(place as u16),
            digest: layer.digest,
            diff_id: *diff_id,
            codec,
            media_type: layer.media_type.clone(),
            blob: store.layer(layer, &elsewhere)?,
        });
        match elsewhere {
            Elsewhere::At(found) if !found.is_empty() => urls.push(LayerUrls { layer: place as u16, urls: found }),
            _ => {}
        }
    }
    Ok(ResolvedImage { source, manifest_digest: *manifest_digest, platform, config: config.image, layers, urls, warnings })
}

/// A layer that may be at URLs, found nowhere yet.
fn foreign(repository: Option<Arc<Reference>>, layer: &Descriptor, urls: &[BlobUrl]) -> BlobSource {
    BlobSource::Foreign(Arc::new(ForeignBlob::new(repository, layer.digest, layer.size, urls.to_vec())))
}

/// Where `layer` may be besides its store. URLs that are none, or too many, are left out with a warning: the registry may have the layer.
fn elsewhere(layer: &Descriptor, is_foreign: bool, warnings: &mut Vec<String>) -> Elsewhere {
    let given = layer.urls.iter().take(limits::URLS_PER_LAYER_MAX).map(|text| BlobUrl::parse(text));
    let (urls, wrong): (Vec<_>, Vec<_>) = given.partition(Result::is_ok);
    let urls: Vec<BlobUrl> = urls.into_iter().flatten().collect();
    if let Some(Err(first)) = wrong.first() {
        warnings.push(format!("layer {}: {first}; {} of its URLs are not used", layer.digest, wrong.len()));
    }
    if layer.urls.len() > limits::URLS_PER_LAYER_MAX {
        let (found, max) = (layer.urls.len(), limits::URLS_PER_LAYER_MAX);
        warnings.push(format!("layer {}: its manifest gives {found} URLs; only the first {max} are used", layer.digest));
    }
    if urls.is_empty() && !is_foreign { Elsewhere::Nowhere } else { Elsewhere::At(urls) }
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
