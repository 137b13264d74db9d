//! Where the layers are, and what a runtime needs of the image's config.
//!
//! bincode 2 (standard configuration: little endian, variable-length integers), zstd-compressed as a section.

use std::path::PathBuf;

use bincode::{Decode, Encode};

use crate::{digest::Digest, error::FormatError, limits};

/// Everything of the image that is not the file tree and not decompressor state.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, serde::Serialize)]
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
        let bytes = bincode::encode_to_vec(self, bincode::config::standard())
            .map_err(|error| FormatError::Bincode { reason: error.to_string() })?;
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
    /// `Corrupt` on malformed or left-over bytes, `Exhausted` on too many layers.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, FormatError> {
        let config = bincode::config::standard().with_limit::<{ limits::STORAGE_INFO_BYTES_MAX as usize }>();
        let (info, used): (Self, usize) =
            bincode::decode_from_slice(bytes, config).map_err(|error| FormatError::Bincode { reason: error.to_string() })?;
        if used != bytes.len() {
            let reason = format!("{} bytes left over after {used}", bytes.len() - used);
            return Err(FormatError::Bincode { reason });
        }
        if info.layers.len() > limits::LAYERS_MAX {
            let found = info.layers.len() as u64;
            return Err(FormatError::Limit { what: "layers".to_owned(), max: limits::LAYERS_MAX as u64, found });
        }
        Ok(info)
    }
}

#[cfg(test)]
mod tests;
