//! What `docker save` writes: manifest.json names a config and layer files, mostly plain tars.
//!
//! Such an archive has no OCI manifest. The digest recorded for it is the SHA-256 of one made up of what it has: schema version 2, the
//! config's digest and size, and each layer's digest (of the bytes in the archive), size and media type, in canonical JSON.

use std::{collections::HashMap, os::unix::fs::FileExt, path::Path};

use bytes::Bytes;
use clip_engine::{error::EngineError, files::open_regular, registry::Reference, source::BlobSource};
use clip_format::{digest::Digest, storage_info::Source};
use serde::Deserialize;

use super::{
    Document, Elsewhere, ImageStore, ResolvedImage, Wanted,
    archive::Archive,
    config::ConfigFile,
    manifest::{Chosen, Descriptor, ImageManifest},
    sha256,
};
use crate::error::IndexError;

/// Bytes hashed at a time.
const READ_BYTES: usize = 1 << 20;

#[derive(Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SavedImage {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

struct SavedStore {
    config: Bytes,
    layers: HashMap<Digest, BlobSource>,
}

impl ImageStore for SavedStore {
    fn document(&self, descriptor: &Descriptor) -> Result<Document, IndexError> {
        let (expected, found) = ("no index".to_owned(), descriptor.digest.to_string());
        Err(IndexError::Image { what: "docker archive".to_owned(), expected, found })
    }

    fn config(&self, _: &Descriptor) -> Result<Bytes, IndexError> {
        Ok(self.config.clone())
    }

    fn layer(&self, descriptor: &Descriptor, _: &Elsewhere) -> Result<BlobSource, IndexError> {
        self.layers.get(&descriptor.digest).cloned().ok_or_else(|| IndexError::Image {
            what: "docker archive".to_owned(),
            expected: format!("layer {}", descriptor.digest),
            found: "none such".to_owned(),
        })
    }
}

/// The image called `reference`, or the archive's only one.
///
/// # Errors
/// `Image`, listing the tags that there are; and whatever reading brings.
pub(super) fn resolve(
    archive: &Archive,
    path: &Path,
    reference: Option<&str>,
    wanted: &Wanted,
    source: Source,
) -> Result<ResolvedImage, IndexError> {
    let images = saved_images(archive)?;
    let image = choose(&images, reference, path)?;
    let config = archive.read(&image.config)?;
    let layers = layers(archive, image, &config)?;
    let config_descriptor = descriptor(sha256(&config), config.len() as u64, "application/vnd.docker.container.image.v1+json");
    let manifest = ImageManifest { config: config_descriptor, layers: layers.iter().map(|(layer, _)| layer.clone()).collect() };
    let store = SavedStore { config, layers: layers.into_iter().map(|(layer, blob)| (layer.digest, blob)).collect() };
    let digest = made_up_digest(&manifest);
    super::from_manifest(&store, &Chosen { manifest, digest, platform: None }, wanted, source)
}

/// Every layer of every image of the archive; none where it is no docker archive.
///
/// # Errors
/// `Io`, or a layer file that is missing.
pub(super) fn layers_by_digest(archive: &Archive) -> Result<HashMap<Digest, BlobSource>, IndexError> {
    if archive.member("manifest.json").is_none() {
        return Ok(HashMap::new());
    }
    let mut found = HashMap::new();
    for image in saved_images(archive)? {
        let config = archive.read(&image.config)?;
        found.extend(layers(archive, &image, &config)?.into_iter().map(|(layer, blob)| (layer.digest, blob)));
    }
    Ok(found)
}

fn saved_images(archive: &Archive) -> Result<Vec<SavedImage>, IndexError> {
    let bytes = archive.read("manifest.json")?;
    serde_json::from_slice(&bytes).map_err(|error| IndexError::Image {
        what: format!("{}, manifest.json", archive.path().display()),
        expected: "a list of saved images".to_owned(),
        found: error.to_string(),
    })
}

fn choose<'a>(images: &'a [SavedImage], reference: Option<&str>, path: &Path) -> Result<&'a SavedImage, IndexError> {
    let tags: Vec<&str> = images.iter().flat_map(|image| image.repo_tags.iter().flatten()).map(String::as_str).collect();
    let wrong = |expected: String| {
        let found = if tags.is_empty() { format!("{} without a tag", images.len()) } else { tags.join(", ") };
        IndexError::Image { what: path.display().to_string(), expected, found }
    };
    let Some(reference) = reference else {
        return match images {
            [one] => Ok(one),
            _ => Err(wrong("one image, or a REPOSITORY:TAG after the path".to_owned())),
        };
    };
    // Tags are saved in docker's short form: compare what both mean.
    let normal = |text: &str| text.parse::<Reference>().ok();
    let same = |tag: &String| tag == reference || normal(tag).is_some_and(|tag| Some(tag) == normal(reference));
    let chosen = images.iter().find(|image| image.repo_tags.iter().flatten().any(same));
    chosen.ok_or_else(|| wrong(format!("an image tagged {reference:?}")))
}

fn layers(archive: &Archive, image: &SavedImage, config: &Bytes) -> Result<Vec<(Descriptor, BlobSource)>, IndexError> {
    let config = ConfigFile::parse(config, &sha256(config))?;
    let names = image.layers.clone().unwrap_or_default();
    let mut found = Vec::with_capacity(names.len());
    for (place, name) in names.iter().enumerate() {
        let blob = archive.member(name).ok_or_else(|| IndexError::Image {
            what: archive.path().display().to_string(),
            expected: format!("a member {name}, as manifest.json says"),
            found: "none such".to_owned(),
        })?;
        found.push((layer_descriptor(name, &blob, config.diff_ids.get(place))?, blob));
    }
    Ok(found)
}

/// A plain layer's digest is its diff_id, and newer archives name layers by digest; only a gzip layer of an old one must be read for it.
/// All are checked when the layer is indexed.
fn layer_descriptor(name: &str, blob: &BlobSource, diff_id: Option<&Digest>) -> Result<Descriptor, IndexError> {
    let gzip = starts_as_gzip(blob)?;
    let media_type = match gzip {
        true => "application/vnd.docker.image.rootfs.diff.tar.gzip",
        false => "application/vnd.docker.image.rootfs.diff.tar",
    };
    let by_name = name.strip_prefix("blobs/sha256/").and_then(|hex| format!("sha256:{hex}").parse().ok());
    let digest = match (by_name, gzip, diff_id) {
        (Some(digest), ..) => digest,
        (None, false, Some(diff_id)) => *diff_id,
        _ => file_digest(blob)?,
    };
    Ok(descriptor(digest, blob.size(), media_type))
}

fn starts_as_gzip(blob: &BlobSource) -> Result<bool, IndexError> {
    let mut magic = [0; 2];
    let mut filled = 0;
    each_chunk(blob, 2.min(blob.size()), &mut |chunk| {
        magic[filled..filled + chunk.len()].copy_from_slice(chunk);
        filled += chunk.len();
    })?;
    Ok(magic == [0x1f, 0x8b])
}

fn file_digest(blob: &BlobSource) -> Result<Digest, IndexError> {
    use sha2::{Digest as _, Sha256};
    let mut hasher = Sha256::new();
    each_chunk(blob, blob.size(), &mut |chunk| hasher.update(chunk))?;
    Ok(Digest::Sha256(hasher.finalize().into()))
}

fn each_chunk(blob: &BlobSource, len: u64, take: &mut dyn FnMut(&[u8])) -> Result<(), IndexError> {
    let BlobSource::File { path, offset, .. } = blob else { return Ok(()) };
    let file = open_regular(path).map_err(|error| EngineError::io("open", path, error))?;
    let mut buffer = vec![0; READ_BYTES.min(len as usize)];
    let mut done = 0;
    while done < len {
        let wanted = (buffer.len() as u64).min(len - done) as usize;
        file.read_exact_at(&mut buffer[..wanted], offset + done).map_err(|error| EngineError::io("read", path, error))?;
        take(&buffer[..wanted]);
        done += wanted as u64;
    }
    Ok(())
}

fn descriptor(digest: Digest, size: u64, media_type: &str) -> Descriptor {
    Descriptor { digest, size, media_type: media_type.to_owned(), platform: None, ref_name: None, urls: Vec::new() }
}

fn made_up_digest(manifest: &ImageManifest) -> Digest {
    let json = |descriptor: &Descriptor| serde_json::json!({ "mediaType": descriptor.media_type, "digest": descriptor.digest.to_string(), "size": descriptor.size });
    let layers: Vec<_> = manifest.layers.iter().map(json).collect();
    let document = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": json(&manifest.config),
        "layers": layers,
    });
    sha256(document.to_string().as_bytes())
}
