//! One layer of the corpus, written as it is made.

use std::io::{self, Write};

use anyhow::Result;
use bytes::Bytes;
use clip_format::digest::Digest;
use flate2::{Compression, write::GzEncoder};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

/// What docker and buildkit write by default.
const LEVEL: u32 = 6;

/// One gzip layer. Cheap to clone.
#[derive(Clone)]
pub struct Layer {
    /// As a registry serves it.
    pub blob: Bytes,
    /// Of the blob.
    pub digest: Digest,
    /// Of the stream.
    pub diff_id: Digest,
    /// Length of the stream.
    pub stream_bytes: u64,
}

/// Writes a tar into gzip, hashing both sides.
pub(crate) struct LayerWriter {
    tar: Builder<Stream>,
}

/// Where the tar's bytes go.
struct Stream {
    gzip: GzEncoder<Vec<u8>>,
    hash: Sha256,
    len: u64,
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.gzip.write_all(bytes)?;
        self.hash.update(bytes);
        self.len += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl LayerWriter {
    pub(crate) fn new() -> Self {
        let gzip = GzEncoder::new(Vec::new(), Compression::new(LEVEL));
        Self { tar: Builder::new(Stream { gzip, hash: Sha256::new(), len: 0 }) }
    }

    pub(crate) fn directory(&mut self, path: &str) -> Result<()> {
        let mut header = header(EntryType::Directory, 0o755, 0);
        Ok(self.tar.append_data(&mut header, format!("{path}/"), io::empty())?)
    }

    pub(crate) fn file(&mut self, path: &str, content: &[u8]) -> Result<()> {
        self.regular(path, content, 0o644)
    }

    /// A file that can be run.
    pub(crate) fn program(&mut self, path: &str, content: &[u8]) -> Result<()> {
        self.regular(path, content, 0o755)
    }

    fn regular(&mut self, path: &str, content: &[u8], mode: u32) -> Result<()> {
        let mut header = header(EntryType::Regular, mode, content.len() as u64);
        Ok(self.tar.append_data(&mut header, path, content)?)
    }

    pub(crate) fn finish(self) -> Result<Layer> {
        let stream = self.tar.into_inner()?;
        let blob = Bytes::from(stream.gzip.finish()?);
        let diff_id = Digest::Sha256(stream.hash.finalize().into());
        Ok(Layer { digest: sha256(&blob), blob, diff_id, stream_bytes: stream.len })
    }
}

fn header(entry_type: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(entry_type);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_700_000_000);
    header
}

pub(super) fn sha256(bytes: &[u8]) -> Digest {
    Digest::Sha256(Sha256::digest(bytes).into())
}
