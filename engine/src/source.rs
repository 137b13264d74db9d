//! Where a layer's blob is: a registry, or bytes of a local file. One way to read both.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt as _, path::PathBuf, sync::Arc};

use bytes::Bytes;
use clip_format::digest::Digest;

use crate::{
    error::EngineError,
    files::open_regular,
    registry::{BlobReader, CHUNK_BYTES_MAX, Client, ForeignBlob, FoundBlob, Reference, ServedBy},
};

/// What one pread asks for. Source: the kernel's read-ahead for a sequential reader is 128 KiB; two of them per call; so are a
/// registry's chunks.
const PREAD_BYTES_MAX: u64 = CHUNK_BYTES_MAX;

/// Where one layer's blob can be read.
#[derive(Clone, Debug)]
pub enum BlobSource {
    /// From a registry.
    Registry {
        /// Names the repository; tag and digest do not matter.
        repository: Arc<Reference>,
        /// The blob.
        digest: Digest,
        /// Its length.
        size: u64,
    },
    /// From a registry or, where it has no such blob, from one of the URLs that the manifest gives.
    Foreign(Arc<ForeignBlob>),
    /// From a file of this machine.
    File {
        /// The blob's own file, or the archive that holds it.
        path: PathBuf,
        /// Where in it the blob starts.
        offset: u64,
        /// The blob's length.
        size: u64,
    },
}

impl BlobSource {
    /// Length of the blob.
    #[must_use]
    pub fn size(&self) -> u64 {
        match self {
            BlobSource::Registry { size, .. } | BlobSource::File { size, .. } => *size,
            BlobSource::Foreign(blob) => blob.size(),
        }
    }

    /// Whether both read the same bytes of the same place.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        use BlobSource::{File, Foreign, Registry};
        match (self, other) {
            (File { path, offset, size }, File { path: path2, offset: offset2, size: size2 }) => {
                (path, offset, size) == (path2, offset2, size2)
            }
            (Registry { repository, digest, .. }, Registry { repository: repository2, digest: digest2, .. }) => {
                repository == repository2 && digest == digest2
            }
            (Foreign(blob), Foreign(other)) => blob == other,
            _ => false,
        }
    }

    /// Whether somebody else can be asked after wrong bytes: a registry's other host, or another place of a foreign layer.
    #[must_use]
    pub fn has_untried_host(&self, client: &Client) -> bool {
        match self {
            BlobSource::Registry { repository, digest, .. } => client.has_untried_host(repository, digest),
            BlobSource::Foreign(blob) => blob.has_untried_place(),
            BlobSource::File { .. } => false,
        }
    }

    /// The widest gap within one request that costs less than another request; 0 for a file, for a blob that may be at URLs, or before the registry has been measured.
    pub(crate) fn bridge_bytes_max(&self, client: &Client) -> u64 {
        match self {
            BlobSource::Registry { repository, .. } => client.bridge_bytes_max(repository),
            BlobSource::Foreign(_) | BlobSource::File { .. } => 0,
        }
    }

    /// Opens `range` of the blob, half-open. `client` is not touched for files. Must run on a tokio runtime.
    ///
    /// # Errors
    /// Every kind.
    pub async fn open(&self, client: &Client, range: Range<u64>) -> Result<SourceReader, EngineError> {
        match self {
            BlobSource::Registry { repository, digest, size } => {
                client.blob(repository, digest, *size, range).await.map(|reader| SourceReader::Registry(Box::new(reader)))
            }
            BlobSource::Foreign(blob) => client.foreign_blob(blob, range).await.map(|found| SourceReader::Foreign(Box::new(found))),
            BlobSource::File { path, offset, size } => {
                let outside = || EngineError::Invalid {
                    what: format!("range of the blob at {offset} of {}", path.display()),
                    expected: format!("a range within its {size} bytes"),
                    found: format!("{}..{}", range.start, range.end),
                };
                if range.start > range.end || range.end > *size {
                    return Err(outside());
                }
                let (Some(start), Some(end)) = (offset.checked_add(range.start), offset.checked_add(range.end)) else {
                    return Err(outside());
                };
                let file = open_regular(path).map_err(|error| EngineError::io("open", path, error))?;
                Ok(SourceReader::File { file, path: path.clone(), rest: start..end })
            }
        }
    }
}

/// The bytes of a range of a blob, chunk by chunk.
pub enum SourceReader {
    /// Over HTTP.
    Registry(Box<BlobReader>),
    /// Over HTTP, from a registry or a URL.
    Foreign(Box<FoundBlob>),
    /// By pread.
    File {
        /// The open file.
        file: File,
        /// For messages.
        path: PathBuf,
        /// What is left, in the file's own offsets.
        rest: Range<u64>,
    },
}

impl SourceReader {
    /// Who sent the latest bytes, where others could be asked instead.
    #[must_use]
    pub fn sender(&self) -> Option<&Arc<ServedBy>> {
        match self {
            SourceReader::Registry(reader) => reader.sender(),
            SourceReader::Foreign(found) => found.sender(),
            SourceReader::File { .. } => None,
        }
    }

    /// The next bytes (at most 256 KiB from a file), or `None` at the end of the range.
    ///
    /// # Errors
    /// Every kind.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, EngineError> {
        match self {
            SourceReader::Registry(reader) => reader.chunk().await,
            SourceReader::Foreign(found) => found.chunk().await,
            SourceReader::File { rest, .. } if rest.is_empty() => Ok(None),
            SourceReader::File { file, path, rest } => {
                let len = PREAD_BYTES_MAX.min(rest.end - rest.start);
                let mut buffer = vec![0; len as usize];
                let found = read_some(file, &mut buffer, rest.start).map_err(|error| EngineError::io("read", &*path, error))?;
                if found == 0 {
                    let what = format!("expected bytes up to {}, found the end of the file at or before {}", rest.end, rest.start);
                    return Err(EngineError::io("read", &*path, io::Error::new(io::ErrorKind::UnexpectedEof, what)));
                }
                buffer.truncate(found);
                rest.start += found as u64;
                Ok(Some(buffer.into()))
            }
        }
    }
}

/// One pread, again when a signal came.
fn read_some(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    loop {
        match file.read_at(buffer, offset) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::Write as _;

    use super::*;
    use crate::registry::ClientConfig;

    async fn read(source: &BlobSource, range: Range<u64>) -> Result<Vec<u8>, EngineError> {
        let client = Client::new(ClientConfig::default()).unwrap();
        let mut reader = source.open(&client, range).await?;
        let mut all = Vec::new();
        while let Some(bytes) = reader.chunk().await? {
            assert!(!bytes.is_empty() && bytes.len() as u64 <= PREAD_BYTES_MAX);
            all.extend_from_slice(&bytes);
        }
        Ok(all)
    }

    fn source_of(len: usize, offset: u64, size: u64) -> (tempfile::NamedTempFile, BlobSource) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&(0..len).map(|at| (at % 251) as u8).collect::<Vec<_>>()).unwrap();
        let path = file.path().to_owned();
        (file, BlobSource::File { path, offset, size })
    }

    #[tokio::test]
    async fn a_range_of_a_blob_inside_an_archive_is_those_bytes() {
        let (_file, source) = source_of(1_000_000, 512, 999_000);
        for range in [0..999_000, 0..0, 1..2, 300_000..900_001, 999_000..999_000] {
            let expected: Vec<u8> = (range.start + 512..range.end + 512).map(|at| (at % 251) as u8).collect();
            assert!(read(&source, range.clone()).await.unwrap() == expected, "{range:?}");
        }
    }

    #[tokio::test]
    async fn a_file_shorter_than_its_blob_is_an_error_that_says_where_it_ends() {
        let (file, source) = source_of(1000, 100, 2000);
        let error = read(&source, 0..2000).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains("up to 2100") && text.contains("1000") && text.contains(file.path().to_str().unwrap()), "{text}");
        assert_eq!(error.kind(), crate::error::ErrorKind::Corrupt);
    }

    #[tokio::test]
    async fn ranges_outside_the_blob_and_missing_files_are_errors() {
        let (_file, source) = source_of(1000, 0, 1000);
        assert!(read(&source, 0..1001).await.is_err());
        #[expect(clippy::reversed_empty_ranges, reason = "what a hostile index may ask for")]
        let reversed = 2..1;
        assert!(read(&source, reversed).await.is_err());
        let gone = BlobSource::File { path: "/nonexistent/blob".into(), offset: 0, size: 1 };
        assert!(read(&gone, 0..1).await.unwrap_err().to_string().contains("/nonexistent/blob"));
        let wrapping = BlobSource::File { path: "/dev/null".into(), offset: u64::MAX, size: 1 };
        assert!(read(&wrapping, 0..1).await.is_err());
    }
}
