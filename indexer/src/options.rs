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

/// What is done with the diff_ids that an image's config states.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DiffIds {
    /// Each layer's stream is hashed and must have the diff_id that the config states.
    #[default]
    Checked,
    /// They go into the `.clip` as the config states them, and no stream is hashed as a whole. The digests of the blobs fix every
    /// byte of the streams already and are checked as ever; a config that does not belong to its layers is not noticed.
    Trusted,
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
        if let Some(reference) = text.strip_prefix("docker://") {
            return reference.parse().map(ImageRef::Registry);
        }
        for transport in [Transport::Oci, Transport::OciArchive, Transport::DockerArchive] {
            if let Some(rest) = text.strip_prefix(transport.as_str()).and_then(|rest| rest.strip_prefix(':')) {
                return local(transport, rest, text);
            }
        }
        refuse_other_transports(text)?;
        text.parse().map(ImageRef::Registry)
    }
}

/// As skopeo reads it: the path ends at the first colon, since a docker archive's reference has colons of its own.
fn local(transport: Transport, rest: &str, text: &str) -> Result<ImageRef, EngineError> {
    let (path, reference) = match rest.split_once(':') {
        Some((path, reference)) => (path, Some(reference)),
        None => (rest, None),
    };
    if path.is_empty() || reference == Some("") {
        let expected = format!("{}:PATH or {}:PATH:TAG", transport.as_str(), transport.as_str());
        return Err(EngineError::Invalid { what: "image reference".to_owned(), expected, found: text.to_owned() });
    }
    Ok(ImageRef::Local { transport, path: PathBuf::from(path), reference: reference.map(str::to_owned) })
}

fn refuse_other_transports(text: &str) -> Result<(), EngineError> {
    const OTHERS: [&str; 9] =
        ["docker-daemon:", "containers-storage:", "dir:", "ostree:", "sif:", "tarball:", "atomic:", "http://", "https://"];
    match OTHERS.iter().find(|prefix| text.starts_with(**prefix)) {
        Some(prefix) => Err(EngineError::Unsupported {
            what: format!("image reference {text:?}"),
            found: format!("transport {prefix}"),
            hint: "use HOST/REPOSITORY:TAG, docker://, oci:DIR, oci-archive:FILE or docker-archive:FILE".to_owned(),
        }),
        None => Ok(()),
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ImageRef::Registry(reference) => reference.fmt(f),
            ImageRef::Local { transport, path, reference } => {
                write!(f, "{}:{}", transport.as_str(), path.display())?;
                reference.as_ref().map_or(Ok(()), |reference| write!(f, ":{reference}"))
            }
        }
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
    /// Whether the streams must have the diff_ids of the config. Decides no byte of the `.clip`.
    pub diff_ids: DiffIds,
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
            diff_ids: DiffIds::Checked,
            store_ref: None,
            jobs: std::thread::available_parallelism().map_or(1, usize::from),
            client: ClientConfig::default(),
        }
    }

    /// Checks what a command line may have got wrong.
    ///
    /// # Errors
    /// `Invalid` for a span size outside `SPAN_BYTES_MIN..=SPAN_BYTES_MAX`.
    pub fn check(&self) -> Result<(), EngineError> {
        if (limits::SPAN_BYTES_MIN..=limits::SPAN_BYTES_MAX).contains(&self.span_bytes) {
            return Ok(());
        }
        let expected = format!("{} to {} bytes (64KiB to 64MiB)", limits::SPAN_BYTES_MIN, limits::SPAN_BYTES_MAX);
        Err(EngineError::Invalid { what: "span size".to_owned(), expected, found: self.span_bytes.to_string() })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Local transports split at the first colon, and print as they were typed.
    #[test]
    fn local_references_round_trip() {
        for text in ["oci:dir", "oci:dir:tag", "oci-archive:a.tar", "docker-archive:a.tar:busybox:1.36"] {
            assert_eq!(text.parse::<ImageRef>().unwrap().to_string(), text);
        }
        let ImageRef::Local { path, reference, .. } = "docker-archive:a.tar:busybox:1.36".parse().unwrap() else { panic!("not local") };
        assert_eq!((path, reference.as_deref()), (PathBuf::from("a.tar"), Some("busybox:1.36")));
    }

    /// A transport that is not read is named, never taken for a registry host.
    #[test]
    fn other_transports_are_refused_by_name() {
        for text in ["docker-daemon:x", "https://example.com/x", "dir:x"] {
            let error = text.parse::<ImageRef>().unwrap_err().to_string();
            assert!(error.contains("not supported"), "{error}");
        }
        assert!("oci:".parse::<ImageRef>().is_err());
        assert!("oci:x:".parse::<ImageRef>().is_err());
    }

    /// A span size outside the format's bounds is refused before anything is fetched.
    #[test]
    fn span_size_has_bounds() {
        let image = "oci:x".parse().unwrap();
        let mut options = IndexOptions::new(image);
        assert!(options.check().is_ok());
        options.span_bytes = limits::SPAN_BYTES_MIN - 1;
        assert!(options.check().is_err());
        options.span_bytes = limits::SPAN_BYTES_MAX + 1;
        assert!(options.check().is_err());
    }
}
