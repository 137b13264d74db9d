//! What a layer's media type says: how it is compressed, and whether it may be elsewhere; or why it cannot be indexed.
//!
//! As containerd reads them (images/mediatypes.go, `DiffCompression`): a base that is known, and what it is wrapped in. The blob's own first
//! bytes have the last word on its compression, later.

use clip_format::storage_info::Codec;

use super::manifest::Descriptor;
use crate::error::IndexError;

/// Bases of layers that registries keep.
const LAYERS: [&str; 2] = ["application/vnd.oci.image.layer.v1.tar", "application/vnd.docker.image.rootfs.diff.tar"];
/// Bases of layers that may not be passed on: the base of a Windows image.
const FOREIGN_LAYERS: [&str; 2] =
    ["application/vnd.oci.image.layer.nondistributable.v1.tar", "application/vnd.docker.image.rootfs.foreign.diff.tar"];
/// Artifacts that registries keep beside images, by what their media types begin with.
const ARTIFACTS: [(&str, &str); 8] = [
    ("application/vnd.cncf.helm.", "a Helm chart"),
    ("application/vnd.dev.cosign.", "a cosign signature"),
    ("application/vnd.dev.sigstore.", "a sigstore bundle"),
    ("application/vnd.cncf.notary.", "a notation signature"),
    ("application/vnd.in-toto", "an attestation"),
    ("application/vnd.buildkit.cacheconfig.", "a BuildKit cache"),
    ("application/vnd.docker.plugin.", "a docker plugin"),
    ("application/vnd.wasm.", "a WebAssembly artifact"),
];

/// What a layer's media type says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LayerType {
    pub(super) codec: Codec,
    /// Registries may not have it: its URLs say who has.
    pub(super) is_foreign: bool,
}

/// What `layer`'s media type says.
///
/// # Errors
/// `Unsupported` for what cannot be indexed, with the layer, its media type and what to do.
pub(super) fn layer_type(layer: &Descriptor) -> Result<LayerType, IndexError> {
    let media_type = layer.media_type.as_str();
    let unsupported =
        |found: String, hint: &str| Err(IndexError::Unsupported { what: format!("layer {}", layer.digest), found, hint: hint.to_owned() });
    if media_type.ends_with("+encrypted") {
        let hint = "decrypt the image first: skopeo copy --decryption-key KEY docker://IMAGE oci:DIR:TAG, and index that";
        return unsupported(format!("media type {media_type:?} (encrypted)"), hint);
    }
    let named = |bases: &[&str]| bases.iter().find_map(|base| media_type.strip_prefix(base));
    let (suffix, is_foreign) = match (named(&LAYERS), named(&FOREIGN_LAYERS)) {
        (Some(suffix), _) => (suffix, false),
        (None, Some(suffix)) => (suffix, true),
        (None, None) => {
            let is = artifact(media_type).map(|artifact| format!(" ({artifact})")).unwrap_or_default();
            return unsupported(format!("media type {media_type:?}{is}"), "only the layers of container images can be indexed");
        }
    };
    let codec = match suffix {
        "" => Codec::Plain,
        "+gzip" | ".gzip" => Codec::Gzip,
        "+zstd" | ".zstd" => Codec::Zstd,
        _ => {
            let hint = "clip indexes plain, gzip and zstd tar layers: compress it again (skopeo copy --dest-compress-format gzip --dest-force-compress-format)";
            return unsupported(format!("media type {media_type:?}"), hint);
        }
    };
    Ok(LayerType { codec, is_foreign })
}

/// What kind of artifact a media type is of, where that is known.
pub(super) fn artifact(media_type: &str) -> Option<&'static str> {
    ARTIFACTS.iter().find(|(prefix, _)| media_type.starts_with(prefix)).map(|(_, name)| *name)
}
