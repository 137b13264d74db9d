//! Manifests and image indexes of OCI and Docker schema 2.

use std::collections::HashSet;

use clip_format::{digest::Digest, storage_info::Platform};
use serde::Deserialize;

use super::{Document, ImageStore, Wanted, media_type::artifact, platform};
use crate::error::IndexError;

/// Indexes inside indexes. Source: none deeper than 2 is known; a loop is impossible, since digests name contents.
const INDEX_DEPTH_MAX: usize = 4;
/// Entries of one index that are opened for want of a platform in their descriptors.
pub(super) const UNNAMED_PLATFORMS_MAX: usize = 16;
/// Images or platforms that a message lists. Source: what is read at a glance; digests with names fill some 16 lines.
pub(super) const LISTED_MAX: usize = 16;

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

impl Descriptor {
    /// Whether it can lead to an image: a layout may list anything (the OCI specification's own example has XML). What is no media type of
    /// anything in particular can.
    fn may_be_image(&self) -> bool {
        let media_type = self.media_type.to_lowercase();
        matches!(media_type.as_str(), "" | "application/json" | "application/octet-stream")
            || ["image.manifest", "image.index", "distribution.manifest"].iter().any(|kind| media_type.contains(kind))
    }
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

/// What was looked for in an index and what is under it, or that there is none.
enum Search<T> {
    Found(T),
    /// `index` has nothing for the wanted platform, but has `others`.
    Nothing {
        index: Digest,
        others: Vec<Platform>,
    },
}

/// The manifest of the wanted platform in or under `document`. A document that is a manifest is taken whatever its platform.
///
/// # Errors
/// `Image`, listing the platforms that there are.
pub(super) fn choose(store: &dyn ImageStore, document: Document, wanted: &Wanted) -> Result<Chosen, IndexError> {
    choose_under(store, document, None, wanted)
}

fn choose_under(store: &dyn ImageStore, document: Document, platform: Option<Platform>, wanted: &Wanted) -> Result<Chosen, IndexError> {
    match descend(store, document, platform, wanted)? {
        Search::Found(chosen) => Ok(chosen),
        Search::Nothing { index, others } => Err(no_platform(format!("index {index}"), &others, wanted)),
    }
}

/// The one of `candidates`, several images under one name or without any, that is for the wanted platform. Those whose descriptors name no
/// platform count only where no descriptor names one that will do.
///
/// # Errors
/// `Image`, listing the platforms that there are, or the images of which each would do; or naming a blob that had to be read and is damaged
/// or missing.
///
/// # Cost
/// Reads documents and config of the image chosen, and looks into at most `UNNAMED_PLATFORMS_MAX` entries more, each of which may be an
/// index.
pub(super) fn choose_alone(store: &dyn ImageStore, candidates: &[&Descriptor], what: &str, wanted: &Wanted) -> Result<Chosen, IndexError> {
    let mut known = HashSet::new();
    let key = |platform: &Platform| (platform.os.clone(), platform.architecture.clone(), platform.variant.clone());
    let distinct = candidates.iter().copied().filter(|one| known.insert((one.digest, one.platform.as_ref().map(key))));
    let mut suited: Vec<(usize, &Descriptor)> = Vec::new();
    let (mut others, mut unnamed) = (Vec::new(), Vec::new());
    for descriptor in distinct {
        match &descriptor.platform {
            Some(platform) => match platform::rank(&wanted.platform, platform) {
                Some(rank) => suited.push((rank, descriptor)),
                None => others.push(platform.clone()),
            },
            None => unnamed.push(descriptor),
        }
    }
    if suited.is_empty() {
        suited = suited_unnamed(store, &unnamed, what, wanted, &mut others)?;
    }
    match best_of(suited)[..] {
        [one] => choose_under(store, store.document(one)?, one.platform.clone(), wanted),
        [] => Err(no_platform(what.to_owned(), &others, wanted)),
        ref several => {
            let name = |one: &&Descriptor| format!("{} ({})", one.digest, one.ref_name.as_deref().unwrap_or("no name"));
            let wanted = platform::to_text(&wanted.platform);
            Err(IndexError::Image {
                what: what.to_owned(),
                expected: format!("one image for {wanted} (give its digest, sha256:..., for the TAG, or choose another with --platform)"),
                found: format!("{}: {}", several.len(), listed(&several.iter().map(name).collect::<Vec<_>>())),
            })
        }
    }
}

/// Those of `suited` that none is better than, each digest once: one may be listed under two spellings of its platform.
fn best_of(suited: Vec<(usize, &Descriptor)>) -> Vec<&Descriptor> {
    let best = suited.iter().map(|(rank, _)| *rank).min();
    let mut known = HashSet::new();
    let best = suited.into_iter().filter(|(rank, _)| Some(*rank) == best).map(|(_, descriptor)| descriptor);
    best.filter(|descriptor| known.insert(descriptor.digest)).collect()
}

/// Those of `unnamed` whose images will do, by what their indexes and configs say; the platforms of the rest are put to `others`.
///
/// # Errors
/// `Image` for more than `UNNAMED_PLATFORMS_MAX`, and for a blob that is damaged or missing: it could be the image that is meant.
fn suited_unnamed<'a>(
    store: &dyn ImageStore,
    unnamed: &[&'a Descriptor],
    what: &str,
    wanted: &Wanted,
    others: &mut Vec<Platform>,
) -> Result<Vec<(usize, &'a Descriptor)>, IndexError> {
    let unnamed: Vec<&Descriptor> = unnamed.iter().copied().filter(|descriptor| descriptor.may_be_image()).collect();
    if unnamed.len() > UNNAMED_PLATFORMS_MAX {
        return Err(too_many_unnamed(what.to_owned(), unnamed.len(), "give the digest, sha256:..., of one for the TAG"));
    }
    let mut suited = Vec::new();
    for descriptor in unnamed {
        match platform_of(store, descriptor, wanted) {
            Ok(Search::Found(found)) => match platform::rank(&wanted.platform, &found) {
                Some(rank) => suited.push((rank, descriptor)),
                None => others.push(found),
            },
            Ok(Search::Nothing { others: found, .. }) => others.extend(found),
            Err(IndexError::Unsupported { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(suited)
}

/// What the image of `descriptor`, which does not say it, is for; of an index the image that would be chosen.
fn platform_of(store: &dyn ImageStore, descriptor: &Descriptor, wanted: &Wanted) -> Result<Search<Platform>, IndexError> {
    let chosen = match descend(store, store.document(descriptor)?, None, wanted)? {
        Search::Found(chosen) => chosen,
        Search::Nothing { index, others } => return Ok(Search::Nothing { index, others }),
    };
    Ok(Search::Found(match chosen.platform {
        Some(platform) => platform,
        None => platform_in(store, &chosen.manifest.config)?,
    }))
}

/// What `config` says that its image is for.
fn platform_in(store: &dyn ImageStore, config: &Descriptor) -> Result<Platform, IndexError> {
    Ok(super::config::ConfigFile::parse(&store.config(config)?, &config.digest)?.platform)
}

fn descend(
    store: &dyn ImageStore,
    mut document: Document,
    mut platform: Option<Platform>,
    wanted: &Wanted,
) -> Result<Search<Chosen>, IndexError> {
    for _ in 0..INDEX_DEPTH_MAX {
        let digest = document.digest;
        let manifests = match parse(&document)? {
            Parsed::Image(manifest) => return Ok(Search::Found(Chosen { manifest: *manifest, digest, platform })),
            Parsed::Index(manifests) => manifests,
        };
        let (next, named) = match choose_in_index(store, &manifests, digest, wanted)? {
            Search::Found(next) => next,
            Search::Nothing { index, others } => return Ok(Search::Nothing { index, others }),
        };
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
    index: Digest,
    wanted: &Wanted,
) -> Result<Search<(Document, Option<Platform>)>, IndexError> {
    let ranked =
        manifests.iter().filter_map(|descriptor| Some((platform::rank(&wanted.platform, descriptor.platform.as_ref()?)?, descriptor)));
    if let Some((_, best)) = ranked.min_by_key(|(rank, _)| *rank) {
        return Ok(Search::Found((store.document(best)?, best.platform.clone())));
    }
    let mut others: Vec<Platform> = manifests.iter().filter_map(|descriptor| descriptor.platform.clone()).collect();
    // Descriptors without a platform (layouts, old tools): the config says it.
    let unnamed = || manifests.iter().filter(|descriptor| descriptor.platform.is_none());
    for descriptor in unnamed().take(UNNAMED_PLATFORMS_MAX) {
        let document = store.document(descriptor)?;
        let Parsed::Image(manifest) = parse(&document)? else { return Ok(Search::Found((document, None))) };
        let platform = platform_in(store, &manifest.config)?;
        if platform::rank(&wanted.platform, &platform).is_some() || manifests.len() == 1 {
            return Ok(Search::Found((document, None)));
        }
        others.push(platform);
    }
    match unnamed().count() {
        0..=UNNAMED_PLATFORMS_MAX => Ok(Search::Nothing { index, others }),
        found => Err(too_many_unnamed(format!("index {index}"), found, "give the digest of one instead of the tag")),
    }
}

fn too_many_unnamed(what: String, found: usize, hint: &str) -> IndexError {
    let expected = format!("at most {UNNAMED_PLATFORMS_MAX} images that the index gives no platform for ({hint})");
    IndexError::Image { what, expected, found: found.to_string() }
}

fn no_platform(what: String, others: &[Platform], wanted: &Wanted) -> IndexError {
    // Attestations are for unknown/unknown.
    let mut found: Vec<String> = others.iter().filter(|platform| platform.os != "unknown").map(platform::to_text).collect();
    found.sort();
    found.dedup();
    IndexError::Image {
        what,
        expected: format!("a manifest for {} (choose another with --platform)", platform::to_text(&wanted.platform)),
        found: if found.is_empty() { "no platform at all".to_owned() } else { format!("only {}", listed(&found)) },
    }
}

/// The first `LISTED_MAX` of `items`, and how many more there are.
fn listed(items: &[String]) -> String {
    let shown = items.iter().take(LISTED_MAX).map(String::as_str).collect::<Vec<_>>().join(", ");
    match items.len().saturating_sub(LISTED_MAX) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
