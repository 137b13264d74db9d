//! Image references as docker, skopeo and crane read them.

use std::{fmt, str::FromStr};

use clip_format::digest::Digest;

use crate::error::EngineError;

/// `[HOST[:PORT]/]REPOSITORY[:TAG][@DIGEST]`, normalised: `alpine` is `docker.io/library/alpine:latest`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    /// `docker.io`, `localhost:5000`. `index.docker.io` and `registry-1.docker.io` become `docker.io`.
    pub registry: String,
    /// `library/alpine`
    pub repository: String,
    /// `latest` when neither tag nor digest is given.
    pub tag: Option<String>,
    /// Wins over the tag.
    pub digest: Option<Digest>,
}

impl FromStr for Reference {
    type Err = EngineError;

    fn from_str(text: &str) -> Result<Self, EngineError> {
        let _ = text;
        todo!()
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let _ = f;
        todo!()
    }
}
