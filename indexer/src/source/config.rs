//! The image config, as many tools write it: fields may be missing or null.

use std::collections::BTreeMap;

use clip_format::{
    digest::Digest,
    storage_info::{HistoryEntry, ImageConfig, Platform},
};
use serde::Deserialize;

use super::{Wanted, platform};
use crate::error::IndexError;

/// An image config in our own words.
pub(super) struct ConfigFile {
    digest: Digest,
    pub(super) platform: Platform,
    pub(super) diff_ids: Vec<Digest>,
    pub(super) image: ImageConfig,
}

#[derive(Deserialize)]
struct Raw {
    architecture: Option<String>,
    os: Option<String>,
    variant: Option<String>,
    created: Option<String>,
    author: Option<String>,
    config: Option<RawRuntime>,
    rootfs: Option<RawRootFs>,
    history: Option<Vec<RawHistory>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct RawRuntime {
    env: Option<Vec<String>>,
    cmd: Option<Words>,
    entrypoint: Option<Words>,
    user: Option<String>,
    working_dir: Option<String>,
    labels: Option<BTreeMap<String, Option<String>>>,
    stop_signal: Option<String>,
    exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
    volumes: Option<BTreeMap<String, serde_json::Value>>,
}

/// Docker accepts one string where the specification has a list.
#[derive(Deserialize)]
#[serde(untagged)]
enum Words {
    Many(Vec<String>),
    One(String),
}

#[derive(Deserialize)]
struct RawRootFs {
    diff_ids: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct RawHistory {
    created: Option<String>,
    created_by: Option<String>,
    author: Option<String>,
    comment: Option<String>,
    empty_layer: Option<bool>,
}

impl ConfigFile {
    /// The meaning of a config's bytes.
    ///
    /// # Errors
    /// `Image` for JSON that is no config.
    pub(super) fn parse(bytes: &[u8], digest: &Digest) -> Result<Self, IndexError> {
        let wrong = |found: String| IndexError::Image { what: format!("config {digest}"), expected: "an image config".to_owned(), found };
        let raw: Raw = serde_json::from_slice(bytes).map_err(|error| wrong(error.to_string()))?;
        let listed = raw.rootfs.and_then(|rootfs| rootfs.diff_ids).unwrap_or_default();
        let diff_ids = listed.iter().map(|text| text.parse()).collect::<Result<Vec<Digest>, _>>();
        let diff_ids = diff_ids.map_err(|error| wrong(format!("in rootfs.diff_ids: {error}")))?;
        let platform = Platform {
            os: raw.os.filter(|os| !os.is_empty()).unwrap_or_else(|| "linux".to_owned()),
            architecture: raw.architecture.unwrap_or_default(),
            variant: raw.variant.filter(|variant| !variant.is_empty()),
        };
        let mut image = to_image_config(raw.config.unwrap_or_default());
        image.created = raw.created.unwrap_or_default();
        image.author = raw.author.unwrap_or_default();
        image.history = raw.history.unwrap_or_default().into_iter().map(to_history).collect();
        Ok(Self { digest: *digest, platform, diff_ids, image })
    }

    /// What the image is recorded to be for: what the index that led to it says (`named`), else what the config says. That they differ, or
    /// that the image was taken for want of another, is worth a warning and no more: docker, skopeo and containerd run such images too.
    pub(super) fn platform_as(&self, named: Option<&Platform>, wanted: &Wanted, warnings: &mut Vec<String>) -> Platform {
        let in_config = (!self.platform.architecture.is_empty()).then(|| platform::to_text(&self.platform));
        if let Some(named) = named {
            if let Some(in_config) = in_config
                && !platform::same_processor(named, &self.platform)
            {
                let (digest, named) = (self.digest, platform::to_text(named));
                warnings
                    .push(format!("config {digest} says {in_config}, the index that lists the image says {named}; recorded as {named}"));
            }
            if wanted.explicit && platform::rank(&wanted.platform, named).is_some_and(|rank| rank > 0) {
                let (named, expected) = (platform::to_text(named), platform::to_text(&wanted.platform));
                warnings
                    .push(format!("--platform asks for {expected}, which the image is not there for; {named}, which runs there, is taken"));
            }
            return named.clone();
        }
        if let Some(in_config) = in_config
            && platform::rank(&wanted.platform, &self.platform).is_none()
        {
            let expected = platform::to_text(&wanted.platform);
            let who = if wanted.explicit { "--platform asks for" } else { "this machine is" };
            warnings.push(format!("the image is for {in_config}, {who} {expected}; there is no other, recorded as {in_config}"));
        }
        self.platform.clone()
    }
}

fn to_image_config(raw: RawRuntime) -> ImageConfig {
    let words = |words: Option<Words>| match words {
        Some(Words::Many(words)) => words,
        Some(Words::One(word)) => vec![word],
        None => Vec::new(),
    };
    let keys = |map: Option<BTreeMap<String, serde_json::Value>>| map.unwrap_or_default().into_keys().collect();
    ImageConfig {
        env: raw.env.unwrap_or_default(),
        cmd: words(raw.cmd),
        entrypoint: words(raw.entrypoint),
        user: raw.user.unwrap_or_default(),
        working_dir: raw.working_dir.unwrap_or_default(),
        labels: raw.labels.unwrap_or_default().into_iter().map(|(key, value)| (key, value.unwrap_or_default())).collect(),
        stop_signal: raw.stop_signal.unwrap_or_default(),
        exposed_ports: keys(raw.exposed_ports),
        volumes: keys(raw.volumes),
        ..ImageConfig::default()
    }
}

fn to_history(raw: RawHistory) -> HistoryEntry {
    HistoryEntry {
        created: raw.created.unwrap_or_default(),
        created_by: raw.created_by.unwrap_or_default(),
        author: raw.author.unwrap_or_default(),
        comment: raw.comment.unwrap_or_default(),
        empty_layer: raw.empty_layer.unwrap_or_default(),
    }
}
