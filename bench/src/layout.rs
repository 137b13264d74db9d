//! One image of an OCI layout directory, in memory, so that it can be served and unpacked.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use clip_format::{digest::Digest, storage_info::Platform};
use serde_json::Value;

/// An image: its manifest, its config, its layers.
pub struct LayoutImage {
    /// JSON.
    pub manifest: Bytes,
    /// Of the manifest.
    pub media_type: String,
    /// Of the manifest.
    pub digest: Digest,
    /// Its config, and its digest.
    pub config: (Digest, Bytes),
    /// The base first, as a registry serves them.
    pub layers: Vec<(Digest, Bytes)>,
}

/// Indexes within indexes that are followed. Source: chosen; docker writes one, buildkit two.
const NESTED_MAX: usize = 4;

impl LayoutImage {
    /// The image called `tag` in the layout at `dir`; without a tag its only one.
    ///
    /// # Errors
    /// When there is no such image, several where none was named, or a blob is missing.
    pub fn read(dir: &Path, tag: Option<&str>) -> Result<Self> {
        let index = json(&read(&dir.join("index.json"))?, "index.json")?;
        let manifests = manifests(&index);
        let named: Vec<&Value> = manifests.iter().filter(|entry| tag.is_none_or(|tag| name(entry) == Some(tag))).collect();
        let names = || manifests.iter().filter_map(name).collect::<Vec<_>>().join(", ");
        let [entry] = named[..] else {
            bail!(
                "{}: expected one image, found {} of {} ({}); name one as --oci DIR:TAG",
                dir.display(),
                named.len(),
                manifests.len(),
                names()
            )
        };
        Self::descend(dir, entry)
    }

    /// Follows indexes to the manifest for this machine.
    fn descend(dir: &Path, entry: &Value) -> Result<Self> {
        let mut entry = entry.clone();
        for _ in 0..NESTED_MAX {
            let digest = digest(&entry)?;
            let bytes = blob(dir, &digest)?;
            let manifest = json(&bytes, "a manifest")?;
            if manifest.get("layers").is_some() {
                let media_type = text(&manifest, "mediaType").or_else(|| text(&entry, "mediaType"));
                let media_type = media_type.unwrap_or("application/vnd.oci.image.manifest.v1+json").to_owned();
                let config = digest_of(&manifest, "config")?;
                let config = (config, blob(dir, &config)?);
                let layers = manifest["layers"].as_array().context("a manifest whose layers are no list")?;
                let layers = layers.iter().map(|layer| digest_and_blob(dir, layer)).collect::<Result<_>>()?;
                return Ok(Self { manifest: bytes, media_type, digest, config, layers });
            }
            let ours = Platform::of_this_machine().architecture;
            let fits = |entry: &&Value| entry["platform"]["architecture"].as_str().is_none_or(|architecture| architecture == ours);
            entry = manifests(&manifest).iter().find(fits).with_context(|| format!("no image for {ours} in {digest}"))?.clone();
        }
        bail!("{}: more than {NESTED_MAX} indexes within one another", dir.display())
    }

    /// The environment that the config asks for, as `NAME=VALUE`.
    #[must_use]
    pub fn environment(&self) -> Vec<String> {
        let config: Value = serde_json::from_slice(&self.config.1).unwrap_or_default();
        let list = config["config"]["Env"].as_array().cloned().unwrap_or_default();
        list.iter().filter_map(|entry| entry.as_str().map(str::to_owned)).collect()
    }
}

/// `DIR:TAG` or `DIR`, with `oci:` before it or not.
#[must_use]
pub fn split_tag(oci: &str) -> (&str, Option<&str>) {
    let path = oci.strip_prefix("oci:").unwrap_or(oci);
    match path.rsplit_once(':') {
        Some((dir, tag)) if !tag.contains('/') => (dir, Some(tag)),
        _ => (path, None),
    }
}

fn manifests(index: &Value) -> &[Value] {
    index["manifests"].as_array().map_or(&[], Vec::as_slice)
}

fn name(entry: &Value) -> Option<&str> {
    entry["annotations"]["org.opencontainers.image.ref.name"].as_str()
}

fn text<'a>(value: &'a Value, field: &str) -> Option<&'a str> {
    value[field].as_str().filter(|text| !text.is_empty())
}

fn digest(entry: &Value) -> Result<Digest> {
    Ok(entry["digest"].as_str().context("a descriptor without a digest")?.parse()?)
}

fn digest_of(manifest: &Value, field: &str) -> Result<Digest> {
    digest(&manifest[field]).with_context(|| format!("the manifest's {field}"))
}

fn digest_and_blob(dir: &Path, entry: &Value) -> Result<(Digest, Bytes)> {
    let digest = digest(entry)?;
    Ok((digest, blob(dir, &digest)?))
}

fn blob(dir: &Path, digest: &Digest) -> Result<Bytes> {
    let bytes = read(&dir.join("blobs").join(digest.algorithm()).join(digest.to_hex()))?;
    ensure!(!bytes.is_empty(), "{}: blob {digest} is empty", dir.display());
    Ok(bytes)
}

fn read(path: &Path) -> Result<Bytes> {
    Ok(fs::read(path).with_context(|| format!("read {}", path.display()))?.into())
}

fn json(bytes: &[u8], what: &str) -> Result<Value> {
    serde_json::from_slice(bytes).with_context(|| format!("{what} is no JSON"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Claim: an image is found by its tag, through an index; another tag and a missing blob are errors that say so.
    #[test]
    fn an_image_is_found_by_its_tag() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = dir.path().join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        let put = |number: u8, bytes: &str| {
            let digest = Digest::Sha256([number; 32]);
            fs::write(blobs.join(digest.to_hex()), bytes).unwrap();
            digest
        };
        let (config, layer) = (put(1, r#"{"config":{"Env":["A=b"]}}"#), put(2, "layer"));
        let manifest = put(3, &format!(r#"{{"config":{{"digest":"{config}"}},"layers":[{{"digest":"{layer}"}}]}}"#));
        let nested = put(4, &format!(r#"{{"manifests":[{{"digest":"{manifest}"}}]}}"#));
        let tagged = |tag: &str| format!(r#"{{"digest":"{nested}","annotations":{{"org.opencontainers.image.ref.name":"{tag}"}}}}"#);
        fs::write(dir.path().join("index.json"), format!(r#"{{"manifests":[{},{}]}}"#, tagged("a"), tagged("b"))).unwrap();
        let image = LayoutImage::read(dir.path(), Some("b")).unwrap();
        assert_eq!((image.digest, image.environment(), &image.layers[0].1[..]), (manifest, vec!["A=b".to_owned()], &b"layer"[..]));
        for tag in [None, Some("c")] {
            assert!(LayoutImage::read(dir.path(), tag).err().unwrap().to_string().contains("a, b"));
        }
        fs::remove_file(blobs.join(layer.to_hex())).unwrap();
        assert!(LayoutImage::read(dir.path(), Some("a")).is_err());
    }

    /// Claim: a tag is what stands behind the last colon, unless that is part of a path.
    #[test]
    fn a_tag_is_no_part_of_a_path() {
        assert_eq!(split_tag("oci:/a/b:c"), ("/a/b", Some("c")));
        assert_eq!(split_tag("/a/b"), ("/a/b", None));
        assert_eq!(split_tag("/a:b/c"), ("/a:b/c", None));
    }
}
