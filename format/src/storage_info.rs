//! Where the layers are, and what a runtime needs of the image's config.
//!
//! bincode 2 (standard configuration: little endian, variable-length integers), zstd-compressed as a section.

use std::path::PathBuf;

use bincode::{Decode, Encode};

use crate::{blob_url::BlobUrl, digest::Digest, error::FormatError, limits};

/// What follows the layers, where anything does: the layers' URLs.
const ADDITION_URLS: u8 = 1;

/// Everything of the image that is not the file tree and not decompressor state.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct StorageInfo {
    /// Where reads fetch the layers.
    pub source: Source,
    /// The digest of the platform's own manifest (never of an image index).
    pub manifest_digest: Digest,
    /// What the manifest was chosen for.
    pub platform: Platform,
    /// What a runtime needs to start the image.
    pub config: ImageConfig,
    /// In manifest order, the base first. `0 < len <= LAYERS_MAX`, except that an image may have none.
    pub layers: Vec<LayerInfo>,
    /// Of the layers that have any. `layer` rises.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<LayerUrls>,
}

/// Where a layer's blob may be had when its registry has it not: a non-distributable layer's `urls`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct LayerUrls {
    /// Place in the manifest. `< layers.len()`
    pub layer: u16,
    /// In the manifest's order. `0 < len <= URLS_PER_LAYER_MAX`
    pub urls: Vec<BlobUrl>,
}

/// Where reads fetch the layers.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, serde::Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Source {
    /// A registry that speaks the OCI distribution protocol.
    Registry {
        /// Host and, where not the default, port: `docker.io`, `localhost:5000`.
        registry: String,
        /// `library/alpine`.
        repository: String,
        /// The tag or digest that was asked for; information only, reads go by layer digest.
        reference: String,
    },
    /// Files of this machine.
    Local {
        /// How the files are laid out.
        transport: Transport,
        /// Absolute path of the directory or archive when it was indexed; non-UTF-8 bytes are kept.
        path: Vec<u8>,
        /// The tag that was asked for, if any; information only.
        reference: Option<String>,
    },
}

/// A layout of image files on disk, named as skopeo names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// `oci:DIR`: an OCI image layout.
    Oci,
    /// `oci-archive:FILE`: a tar of an OCI image layout.
    OciArchive,
    /// `docker-archive:FILE`: what `docker save` writes.
    DockerArchive,
}

impl Transport {
    /// `oci`, `oci-archive` or `docker-archive`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Transport::Oci => "oci",
            Transport::OciArchive => "oci-archive",
            Transport::DockerArchive => "docker-archive",
        }
    }
}

impl Source {
    /// The path of a local source.
    #[must_use]
    pub fn local_path(&self) -> Option<PathBuf> {
        use std::os::unix::ffi::OsStrExt;
        match self {
            Source::Local { path, .. } => Some(PathBuf::from(std::ffi::OsStr::from_bytes(path))),
            Source::Registry { .. } => None,
        }
    }
}

/// An OCI platform: `linux/arm64/v8`.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, serde::Serialize)]
pub struct Platform {
    /// GOOS.
    pub os: String,
    /// GOARCH.
    pub architecture: String,
    /// `v7`, `v8`.
    pub variant: Option<String>,
}

impl Platform {
    /// `linux` on this machine's processor, in Go's words.
    #[must_use]
    pub fn of_this_machine() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "x86" => ("386", None),
            "aarch64" => ("arm64", None),
            "arm" => ("arm", Some("v7")),
            "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", None),
            "powerpc64" => ("ppc64", None),
            "loongarch64" => ("loong64", None),
            other => (other, None),
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: variant.map(str::to_owned) }
    }
}

/// The image's config as a runtime needs it, in the config's own order and words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode, serde::Serialize)]
pub struct ImageConfig {
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Default arguments.
    pub cmd: Vec<String>,
    /// What runs.
    pub entrypoint: Vec<String>,
    /// `user`, `uid`, `user:group`, `uid:gid`; empty for root.
    pub user: String,
    /// Empty for `/`.
    pub working_dir: String,
    /// Sorted by key.
    pub labels: Vec<(String, String)>,
    /// `SIGTERM`; empty for the default.
    pub stop_signal: String,
    /// `80/tcp`, sorted.
    pub exposed_ports: Vec<String>,
    /// Sorted.
    pub volumes: Vec<String>,
    /// RFC 3339, as the config has it; empty where it has none.
    pub created: String,
    /// Empty where the config has none.
    pub author: String,
    /// Oldest first.
    pub history: Vec<HistoryEntry>,
}

/// One line of `docker history`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode, serde::Serialize)]
pub struct HistoryEntry {
    /// RFC 3339; empty where absent (so for the other texts).
    pub created: String,
    /// The command.
    pub created_by: String,
    /// Who.
    pub author: String,
    /// Free text.
    pub comment: String,
    /// No layer came of it.
    pub empty_layer: bool,
}

/// How a layer's blob is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Codec {
    /// Plain tar: stream and blob are the same bytes.
    Plain,
    /// gzip, one member or many (RFC 1952).
    Gzip,
    /// zstd, frames and skippable frames in any number (RFC 8878).
    Zstd,
}

/// One blob of the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, serde::Serialize)]
pub struct LayerInfo {
    /// Of the blob's own bytes.
    pub digest: Digest,
    /// Of the layer stream.
    pub diff_id: Digest,
    /// As the manifest has it.
    pub media_type: String,
    /// Length of the blob.
    pub compressed_size: u64,
    /// Length of the layer stream.
    pub stream_size: u64,
    /// How the blob is compressed.
    pub codec: Codec,
}

impl StorageInfo {
    /// The encoded bytes.
    ///
    /// # Errors
    /// `Exhausted` past `STORAGE_INFO_BYTES_MAX`.
    pub fn to_bytes(&self) -> Result<Vec<u8>, FormatError> {
        let config = bincode::config::standard();
        let failed = |error: bincode::error::EncodeError| FormatError::Bincode { reason: error.to_string() };
        let Self { source, manifest_digest, platform, config: image, layers, urls } = self;
        let mut bytes = bincode::encode_to_vec((source, manifest_digest, platform, image, layers), config).map_err(failed)?;
        if !urls.is_empty() {
            let texts = |urls: &LayerUrls| (urls.layer, urls.urls.iter().map(|url| url.as_str().to_owned()).collect());
            let urls: Vec<(u16, Vec<String>)> = urls.iter().map(texts).collect();
            bytes.extend(bincode::encode_to_vec((ADDITION_URLS, urls), config).map_err(failed)?);
        }
        let found = bytes.len() as u64;
        if found > limits::STORAGE_INFO_BYTES_MAX {
            let what = "storage info, bytes".to_owned();
            return Err(FormatError::Limit { what, max: limits::STORAGE_INFO_BYTES_MAX, found });
        }
        Ok(bytes)
    }

    /// The meaning of `bytes`; every byte must be used, and allocations are bounded by the section's limit.
    ///
    /// # Errors
    /// `Corrupt` on malformed or left-over bytes, `Exhausted` on too many layers, `Unsupported` on an addition of a later version.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, FormatError> {
        type Base = (Source, Digest, Platform, ImageConfig, Vec<LayerInfo>);
        let ((source, manifest_digest, platform, config, layers), used): (Base, usize) = decoded(bytes)?;
        if layers.len() > limits::LAYERS_MAX {
            let found = layers.len() as u64;
            return Err(FormatError::Limit { what: "layers".to_owned(), max: limits::LAYERS_MAX as u64, found });
        }
        let urls = match &bytes[used..] {
            [] => Vec::new(),
            [ADDITION_URLS, rest @ ..] => layer_urls(rest, layers.len())?,
            [found, ..] => {
                let expected = format!("no addition, or {ADDITION_URLS}");
                return Err(FormatError::Unknown { what: "storage info, addition", expected, found: found.to_string() });
            }
        };
        Ok(Self { source, manifest_digest, platform, config, layers, urls })
    }

    /// The URLs of the layer at place `layer`; mostly none.
    #[must_use]
    pub fn urls_of(&self, layer: usize) -> &[BlobUrl] {
        let found = self.urls.binary_search_by_key(&layer, |urls| usize::from(urls.layer));
        found.map_or(&[], |at| &self.urls[at].urls)
    }
}

fn decoded<T: Decode<()>>(bytes: &[u8]) -> Result<(T, usize), FormatError> {
    let config = bincode::config::standard().with_limit::<{ limits::STORAGE_INFO_BYTES_MAX as usize }>();
    bincode::decode_from_slice(bytes, config).map_err(|error| FormatError::Bincode { reason: error.to_string() })
}

/// The URLs that end the storage info of an image of `layers` layers.
fn layer_urls(bytes: &[u8], layers: usize) -> Result<Vec<LayerUrls>, FormatError> {
    let wrong = |reason: String| FormatError::Bincode { reason };
    let (raw, used): (Vec<(u16, Vec<String>)>, usize) = decoded(bytes)?;
    if used != bytes.len() {
        return Err(wrong(format!("{} bytes left over after the URLs", bytes.len() - used)));
    }
    if raw.is_empty() || !raw.is_sorted_by_key(|(layer, _)| layer) || raw.windows(2).any(|pair| pair[0].0 == pair[1].0) {
        return Err(wrong("URLs: expected one or more layers in rising order".to_owned()));
    }
    let read = |(layer, urls): (u16, Vec<String>)| {
        if usize::from(layer) >= layers || urls.is_empty() || urls.len() > limits::URLS_PER_LAYER_MAX {
            let expected = format!("1 to {} URLs of one of {layers} layers", limits::URLS_PER_LAYER_MAX);
            return Err(wrong(format!("URLs: expected {expected}, found {} of layer {layer}", urls.len())));
        }
        Ok(LayerUrls { layer, urls: urls.iter().map(|url| BlobUrl::parse(url)).collect::<Result<_, _>>()? })
    };
    raw.into_iter().map(read).collect()
}

#[cfg(test)]
mod tests;
