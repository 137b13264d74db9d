//! OCI image layouts: a directory, or a tar of one.

use std::{
    fs,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use clip_engine::{error::EngineError, files::open_regular, source::BlobSource};
use clip_format::{digest::Digest, storage_info::Source};

use super::{
    CONFIG_BYTES_MAX, Document, Elsewhere, ImageStore, ResolvedImage, Wanted, checked, foreign,
    manifest::{self, Descriptor, Parsed},
};
use crate::error::IndexError;

/// Bytes of a manifest or index. Source: OCI distribution-spec, a registry should accept 4 MiB.
const DOCUMENT_BYTES_MAX: u64 = 4 << 20;

/// A layout's files, wherever they are.
pub(super) trait LayoutFiles {
    /// The bytes of `index.json`.
    fn index(&self) -> Result<Bytes, IndexError>;
    /// Where the blob is, if it is there.
    fn find(&self, digest: &Digest) -> Option<BlobSource>;
    /// The bytes of a small blob.
    fn read(&self, blob: &BlobSource) -> Result<Bytes, IndexError>;
}

/// A layout in a directory.
pub(super) struct Directory {
    path: PathBuf,
}

impl Directory {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Where the blob is, if it is there.
    pub(super) fn find(&self, digest: &Digest) -> Option<BlobSource> {
        let path = self.path.join("blobs").join(digest.algorithm()).join(digest.to_hex());
        let metadata = fs::metadata(&path).ok().filter(fs::Metadata::is_file)?;
        Some(BlobSource::File { path, offset: 0, size: metadata.len() })
    }
}

impl LayoutFiles for Directory {
    fn index(&self) -> Result<Bytes, IndexError> {
        let path = self.path.join("index.json");
        let size = fs::metadata(&path).map_err(|error| EngineError::io("open", &path, error))?.len();
        self.read(&BlobSource::File { path, offset: 0, size })
    }

    fn find(&self, digest: &Digest) -> Option<BlobSource> {
        Directory::find(self, digest)
    }

    fn read(&self, blob: &BlobSource) -> Result<Bytes, IndexError> {
        read_small(blob)
    }
}

/// The bytes of a small local file.
///
/// # Errors
/// `Io`; `Image` past the limit.
pub(super) fn read_small(blob: &BlobSource) -> Result<Bytes, IndexError> {
    use std::os::unix::fs::FileExt;
    let BlobSource::File { path, offset, size } = blob else {
        return Err(IndexError::Image { what: "blob".to_owned(), expected: "a local file".to_owned(), found: "a registry".to_owned() });
    };
    if *size > CONFIG_BYTES_MAX {
        let what = path.display().to_string();
        return Err(IndexError::Image {
            what,
            expected: format!("a document of at most {CONFIG_BYTES_MAX} bytes"),
            found: size.to_string(),
        });
    }
    let mut bytes = vec![0; *size as usize];
    let file = open_regular(path).map_err(|error| EngineError::io("open", path, error))?;
    file.read_exact_at(&mut bytes, *offset).map_err(|error| EngineError::io("read", path, error))?;
    Ok(bytes.into())
}

struct LayoutStore<'a, F> {
    files: &'a F,
    path: &'a Path,
}

impl<F: LayoutFiles> LayoutStore<'_, F> {
    fn blob(&self, descriptor: &Descriptor) -> Result<BlobSource, IndexError> {
        let missing = |found: String| IndexError::Image {
            what: self.path.display().to_string(),
            expected: format!("blob {} of {} bytes", descriptor.digest, descriptor.size),
            found,
        };
        let blob = self.files.find(&descriptor.digest).ok_or_else(|| missing("none such".to_owned()))?;
        if blob.size() == descriptor.size { Ok(blob) } else { Err(missing(format!("one of {} bytes", blob.size()))) }
    }

    fn checked_blob(&self, what: &str, descriptor: &Descriptor) -> Result<Bytes, IndexError> {
        let bytes = self.files.read(&self.blob(descriptor)?)?;
        checked(&format!("{what} in {}", self.path.display()), bytes, &descriptor.digest)
    }
}

impl<F: LayoutFiles> ImageStore for LayoutStore<'_, F> {
    fn document(&self, descriptor: &Descriptor) -> Result<Document, IndexError> {
        let bytes = self.checked_blob("manifest", descriptor)?;
        if bytes.len() as u64 > DOCUMENT_BYTES_MAX {
            let (expected, found) = (format!("at most {DOCUMENT_BYTES_MAX} bytes"), bytes.len().to_string());
            return Err(IndexError::Image { what: format!("manifest {}", descriptor.digest), expected, found });
        }
        Ok(Document { digest: descriptor.digest, media_type: descriptor.media_type.clone(), bytes })
    }

    fn config(&self, descriptor: &Descriptor) -> Result<Bytes, IndexError> {
        self.checked_blob("config", descriptor)
    }

    fn layer(&self, descriptor: &Descriptor, elsewhere: &Elsewhere) -> Result<BlobSource, IndexError> {
        match elsewhere {
            // skopeo leaves such layers out of a layout.
            Elsewhere::At(urls) if self.files.find(&descriptor.digest).is_none() => Ok(foreign(None, descriptor, urls)),
            _ => self.blob(descriptor),
        }
    }
}

/// The image called `reference` in a layout, or its only one.
///
/// # Errors
/// `Image`, listing the names that there are; and whatever reading brings.
pub(super) fn resolve<F: LayoutFiles>(
    files: &F,
    path: &Path,
    reference: Option<&str>,
    wanted: &Wanted,
    source: Source,
) -> Result<ResolvedImage, IndexError> {
    let store = LayoutStore { files, path };
    let bytes = files.index()?;
    let index = Document { digest: super::sha256(&bytes), media_type: String::new(), bytes };
    let Parsed::Index(manifests) = manifest::parse(&index)? else {
        let what = format!("{}, index.json", path.display());
        return Err(IndexError::Image { what, expected: "an image index".to_owned(), found: "a manifest".to_owned() });
    };
    let named = named(&manifests, reference, path)?;
    match named.as_slice() {
        [one] => super::resolve_document(&store, store.document(one)?, wanted, source),
        // Several of one name, or several without a name: platforms of one image, or images whose name went to another.
        several => {
            let what = format!("{}, index.json", path.display());
            super::from_manifest(&store, &manifest::choose_alone(&store, several, &what, wanted)?, wanted, source)
        }
    }
}

fn named<'a>(manifests: &'a [Descriptor], reference: Option<&str>, path: &Path) -> Result<Vec<&'a Descriptor>, IndexError> {
    let names: Vec<&str> = manifests.iter().filter_map(|descriptor| descriptor.ref_name.as_deref()).collect();
    let known = if names.is_empty() { "no names".to_owned() } else { names.join(", ") };
    let what = path.display().to_string();
    let Some(wanted) = reference else {
        let distinct: std::collections::BTreeSet<&str> = names.iter().copied().collect();
        if distinct.len() > 1 {
            let expected = "a TAG after the path, since there are several images".to_owned();
            return Err(IndexError::Image { what, expected, found: known });
        }
        return match manifests {
            [] => Err(IndexError::Image { what, expected: "an image".to_owned(), found: "an empty index.json".to_owned() }),
            _ => Ok(manifests.iter().collect()),
        };
    };
    let by_name: Vec<&Descriptor> = manifests.iter().filter(|descriptor| descriptor.ref_name.as_deref() == Some(wanted)).collect();
    let by_digest = || manifests.iter().filter(|descriptor| descriptor.digest.to_string() == wanted).collect::<Vec<_>>();
    let found = if by_name.is_empty() { by_digest() } else { by_name };
    match found.is_empty() {
        true => Err(IndexError::Image { what, expected: format!("an image called {wanted:?}"), found: known }),
        false => Ok(found),
    }
}
