//! Manifests and image indexes of OCI and Docker schema 2.

use clip_format::{digest::Digest, storage_info::Platform};
use serde::Deserialize;

use super::{Document, ImageStore, Wanted, media_type::artifact, platform};
use crate::error::IndexError;

/// Indexes inside indexes. Source: none deeper than 2 is known; a loop is impossible, since digests name contents.
const INDEX_DEPTH_MAX: usize = 4;
/// Manifests of one index that are tried for want of a platform in their descriptors.
const UNNAMED_PLATFORMS_MAX: usize = 16;

/// A pointer to a document or blob.
#[derive(Clone, Debug)]
pub(super) struct Descriptor {
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) media_type: String,
    pub(super) platform: Option<Platform>,
    /// `org.opencontainers.image.ref.name`
    pub(super) ref_name: Option<String>,
    /// As the manifest has them, unchecked.
    pub(super) urls: Vec<String>,
}

/// The manifest of one platform.
#[derive(Clone, Debug)]
pub(super) struct ImageManifest {
    pub(super) config: Descriptor,
    pub(super) layers: Vec<Descriptor>,
}

/// What a document turned out to be.
pub(super) enum Parsed {
    Image(Box<ImageManifest>),
    Index(Vec<Descriptor>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: Option<u64>,
    media_type: Option<String>,
    config: Option<RawDescriptor>,
    artifact_type: Option<String>,
    layers: Option<Vec<RawDescriptor>>,
    manifests: Option<Vec<RawDescriptor>>,
    fs_layers: Option<serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    media_type: Option<String>,
    digest: String,
    size: u64,
    platform: Option<RawPlatform>,
    annotations: Option<std::collections::BTreeMap<String, String>>,
    urls: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct RawPlatform {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
}

impl RawDescriptor {
    fn read(self, what: &str) -> Result<Descriptor, IndexError> {
        let digest = self.digest.parse().map_err(|_| IndexError::Image {
            what: format!("{what}, a descriptor's digest"),
            expected: "sha256:<64 hex digits> or sha512:<128>".to_owned(),
            found: format!("{:?}", self.digest.chars().take(160).collect::<String>()),
        })?;
        let platform = self.platform.map(|raw| Platform {
            os: raw.os.unwrap_or_default(),
            architecture: raw.architecture.unwrap_or_default(),
            variant: raw.variant.filter(|variant| !variant.is_empty()),
        });
        let ref_name = self.annotations.and_then(|mut annotations| annotations.remove("org.opencontainers.image.ref.name"));
        let (media_type, urls) = (self.media_type.unwrap_or_default(), self.urls.unwrap_or_default());
        Ok(Descriptor { digest, size: self.size, media_type, platform, ref_name, urls })
    }
}

/// The meaning of a manifest or index.
///
/// # Errors
/// `Image` for what is neither, `Unsupported` for Docker schema 1 and for artifacts that are no images.
pub(super) fn parse(document: &Document) -> Result<Parsed, IndexError> {
    let what = format!("manifest {}", document.digest);
    let wrong =
        |found: String| IndexError::Image { what: what.clone(), expected: "an OCI or Docker schema 2 manifest or index".to_owned(), found };
    let raw: RawDocument = serde_json::from_slice(&document.bytes).map_err(|error| wrong(format!("JSON that is none: {error}")))?;
    let media_type = raw.media_type.clone().unwrap_or_else(|| document.media_type.clone());
    if raw.schema_version == Some(1) || raw.fs_layers.is_some() || media_type.contains("distribution.manifest.v1") {
        return Err(IndexError::Unsupported {
            what,
            found: "Docker image manifest version 2, schema 1".to_owned(),
            hint: "push the image again with a current docker, or copy it with `skopeo copy --format oci`".to_owned(),
        });
    }
    let read_all = |list: Vec<RawDescriptor>| list.into_iter().map(|raw| raw.read(&what)).collect::<Result<Vec<_>, _>>();
    match (raw.manifests, raw.config, raw.layers) {
        // A document that is both could mean one image to us and another to whoever checked it (CVE-2021-41190).
        (Some(_), Some(_), _) | (Some(_), _, Some(_)) => Err(wrong("a document with both manifests and layers".to_owned())),
        (Some(manifests), None, None) => Ok(Parsed::Index(read_all(manifests)?)),
        (None, Some(config), layers) => {
            let config = config.read(&what)?;
            check_config_type(&what, &config, raw.artifact_type.as_deref())?;
            Ok(Parsed::Image(Box::new(ImageManifest { config, layers: read_all(layers.unwrap_or_default())? })))
        }
        (None, None, _) => Err(wrong(format!("a document of media type {media_type:?} without manifests or config"))),
    }
}

/// `application/octet-stream` is what docker 1.10 said of its configs; docker still takes it for one.
fn check_config_type(what: &str, config: &Descriptor, artifact_type: Option<&str>) -> Result<(), IndexError> {
    let media_type = config.media_type.as_str();
    let found = match media_type {
        "" | "application/octet-stream" => return Ok(()),
        "application/vnd.oci.image.config.v1+json" | "application/vnd.docker.container.image.v1+json" => return Ok(()),
        "application/vnd.oci.empty.v1+json" => format!("an artifact of type {:?}", artifact_type.unwrap_or_default()),
        other => format!("config media type {other:?}"),
    };
    let is = [media_type, artifact_type.unwrap_or_default()].into_iter().find_map(artifact);
    let found = is.map_or_else(|| found.clone(), |is| format!("{found} ({is})"));
    Err(IndexError::Unsupported { what: what.to_owned(), found, hint: "only container images can be indexed".to_owned() })
}

/// The manifest of one platform, as it was found.
pub(super) struct Chosen {
    pub(super) manifest: ImageManifest,
    pub(super) digest: Digest,
    /// What the index that led to it says it is for.
    pub(super) platform: Option<Platform>,
}

/// The manifest of the wanted platform in or under `document`. A document that is a manifest is taken whatever its platform.
///
/// # Errors
/// `Image`, listing the platforms that there are.
pub(super) fn choose(store: &dyn ImageStore, document: Document, wanted: &Wanted) -> Result<Chosen, IndexError> {
    descend(store, document, None, wanted)
}

/// The one of `candidates`, several images under one name or without any, that is for the wanted platform.
///
/// # Errors
/// `Image`, listing the platforms that there are, or the images of which each would do.
pub(super) fn choose_alone(store: &dyn ImageStore, candidates: &[&Descriptor], what: &str, wanted: &Wanted) -> Result<Chosen, IndexError> {
    let mut suited: Vec<(usize, &Descriptor)> = Vec::new();
    let mut others = Vec::new();
    for (place, descriptor) in candidates.iter().enumerate() {
        let is_same = |before: &&Descriptor| before.digest == descriptor.digest && before.platform == descriptor.platform;
        if candidates[..place].iter().any(is_same) {
            continue;
        }
        let found = platform_of(store, descriptor, wanted)?;
        match found.as_ref().map(|found| platform::rank(&wanted.platform, found)) {
            Some(Some(rank)) => suited.push((rank, descriptor)),
            _ => others.extend(found.as_ref().map(platform::to_text)),
        }
    }
    let best = suited.iter().map(|(rank, _)| *rank).min();
    // One may be listed twice, with its platform and without.
    let mut known = std::collections::HashSet::new();
    let best = suited.into_iter().filter(|(rank, _)| Some(*rank) == best).map(|(_, descriptor)| descriptor);
    let best: Vec<&Descriptor> = best.filter(|descriptor| known.insert(descriptor.digest)).collect();
    match best[..] {
        [one] => descend(store, store.document(one)?, one.platform.clone(), wanted),
        [] => Err(no_platform(what.to_owned(), others, wanted)),
        _ => {
            let name = |one: &&Descriptor| format!("{} ({})", one.digest, one.ref_name.as_deref().unwrap_or("no name"));
            let wanted = platform::to_text(&wanted.platform);
            Err(IndexError::Image {
                what: what.to_owned(),
                expected: format!("one image for {wanted} (give its digest, sha256:..., for the TAG, or choose another with --platform)"),
                found: format!("{}: {}", best.len(), best.iter().map(name).collect::<Vec<_>>().join(", ")),
            })
        }
    }
}

/// What the image of `descriptor` is for, as far as that is said: of an index the image that would be chosen. `None`: of no image at all.
fn platform_of(store: &dyn ImageStore, descriptor: &Descriptor, wanted: &Wanted) -> Result<Option<Platform>, IndexError> {
    if descriptor.platform.is_some() {
        return Ok(descriptor.platform.clone());
    }
    let chosen = match descend(store, store.document(descriptor)?, None, wanted) {
        Err(IndexError::Image { .. } | IndexError::Unsupported { .. }) => return Ok(None),
        chosen => chosen?,
    };
    match chosen.platform {
        Some(platform) => Ok(Some(platform)),
        None => {
            let config = &chosen.manifest.config;
            Ok(Some(super::config::ConfigFile::parse(&store.config(config)?, &config.digest)?.platform))
        }
    }
}

fn descend(store: &dyn ImageStore, mut document: Document, mut platform: Option<Platform>, wanted: &Wanted) -> Result<Chosen, IndexError> {
    for _ in 0..INDEX_DEPTH_MAX {
        let digest = document.digest;
        let manifests = match parse(&document)? {
            Parsed::Image(manifest) => return Ok(Chosen { manifest: *manifest, digest, platform }),
            Parsed::Index(manifests) => manifests,
        };
        let (next, named) = choose_in_index(store, &manifests, &digest, wanted)?;
        document = next;
        platform = named.or(platform);
    }
    Err(IndexError::Image {
        what: format!("index {}", document.digest),
        expected: format!("indexes nested at most {INDEX_DEPTH_MAX} deep"),
        found: "more".to_owned(),
    })
}

/// The next document on the way down, and the platform that its descriptor names.
fn choose_in_index(
    store: &dyn ImageStore,
    manifests: &[Descriptor],
    index: &Digest,
    wanted: &Wanted,
) -> Result<(Document, Option<Platform>), IndexError> {
    let ranked =
        manifests.iter().filter_map(|descriptor| Some((platform::rank(&wanted.platform, descriptor.platform.as_ref()?)?, descriptor)));
    if let Some((_, best)) = ranked.min_by_key(|(rank, _)| *rank) {
        return Ok((store.document(best)?, best.platform.clone()));
    }
    let mut found: Vec<String> = manifests.iter().filter_map(|descriptor| descriptor.platform.as_ref().map(platform::to_text)).collect();
    // Descriptors without a platform (layouts, old tools): the config says it.
    for descriptor in manifests.iter().filter(|descriptor| descriptor.platform.is_none()).take(UNNAMED_PLATFORMS_MAX) {
        let document = store.document(descriptor)?;
        let Parsed::Image(manifest) = parse(&document)? else { return Ok((document, None)) };
        let config = super::config::ConfigFile::parse(&store.config(&manifest.config)?, &manifest.config.digest)?;
        if platform::rank(&wanted.platform, &config.platform).is_some() || manifests.len() == 1 {
            return Ok((document, None));
        }
        found.push(platform::to_text(&config.platform));
    }
    Err(no_platform(format!("index {index}"), found, wanted))
}

fn no_platform(what: String, mut found: Vec<String>, wanted: &Wanted) -> IndexError {
    found.retain(|platform| !platform.starts_with("unknown/"));
    found.sort();
    found.dedup();
    IndexError::Image {
        what,
        expected: format!("a manifest for {} (choose another with --platform)", platform::to_text(&wanted.platform)),
        found: if found.is_empty() { "no platform at all".to_owned() } else { format!("only {}", found.join(", ")) },
    }
}
