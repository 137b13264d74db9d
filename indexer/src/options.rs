//! What to index and how.

use std::{fmt, path::PathBuf, str::FromStr};

use clip_engine::{
    error::EngineError,
    registry::{ClientConfig, Reference},
};
use clip_format::{
    limits,
    storage_info::{Platform, Transport},
};

/// Which checkpoint windows the `.clip` keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Windows {
    /// The bytes that later data refers to, the rest zero.
    #[default]
    Sparse,
    /// None: a layer can only be entered where decoding needs no history.
    None,
}

/// An image as it is named on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageRef {
    /// `alpine`, `docker://localhost:5000/x:tag`, `x@sha256:...`.
    Registry(Reference),
    /// `oci:DIR[:TAG]`, `oci-archive:FILE[:TAG]`, `docker-archive:FILE[:TAG]`.
    Local {
        /// How the files are laid out.
        transport: Transport,
        /// Directory or file.
        path: PathBuf,
        /// The `org.opencontainers.image.ref.name`, or the repo tag of a docker archive.
        reference: Option<String>,
    },
}

impl FromStr for ImageRef {
    type Err = EngineError;

    fn from_str(text: &str) -> Result<Self, EngineError> {
        let _ = text;
        todo!()
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let _ = f;
        todo!()
    }
}

/// Everything that decides the bytes of a `.clip`, and how it is made.
#[derive(Clone, Debug)]
pub struct IndexOptions {
    /// What to index.
    pub image: ImageRef,
    /// Default: this machine's.
    pub platform: Option<Platform>,
    /// Wanted length of a span; a span is never over twice that.
    pub span_bytes: u64,
    /// Which windows are kept.
    pub windows: Windows,
    /// Where reads will fetch the layers, when not from `image`.
    pub store_ref: Option<Reference>,
    /// Layers side by side. Default: the number of cores.
    pub jobs: usize,
    /// How registries are spoken to.
    pub client: ClientConfig,
}

impl IndexOptions {
    /// The defaults for `image`.
    #[must_use]
    pub fn new(image: ImageRef) -> Self {
        Self {
            image,
            platform: None,
            span_bytes: limits::SPAN_BYTES_DEFAULT,
            windows: Windows::Sparse,
            store_ref: None,
            jobs: std::thread::available_parallelism().map_or(1, usize::from),
            client: ClientConfig::default(),
        }
    }
}
