//! One layer of the corpus, written as it is made.

use std::io::{self, Write};

use anyhow::Result;
use bytes::Bytes;
use clip_format::{digest::Digest, storage_info::Codec};
use flate2::{Compression, write::GzEncoder};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

/// What docker and buildkit write by default.
const LEVEL: u32 = 6;

/// What several writers of zstd layers use by default.
const ZSTD_LEVEL: i32 = 3;
/// Stream bytes of each of many frames. Source: the default span.
const FRAME_BYTES: usize = 1 << 20;

/// How layers are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Packing {
    /// gzip -6, one member
    #[default]
    Gzip,
    /// zstd -3, one frame: it can only be read in order
    Zstd,
    /// zstd -3, a frame a MiB
    ZstdFrames,
}

impl Packing {
    /// As it is typed.
    #[must_use]
    pub fn id(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::ZstdFrames => "zstd-frames",
        }
    }

    /// What decodes it.
    #[must_use]
    pub fn codec(self) -> Codec {
        if self == Self::Gzip { Codec::Gzip } else { Codec::Zstd }
    }

    fn media_type(self) -> &'static str {
        match self {
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd | Self::ZstdFrames => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// One layer. Cheap to clone.
#[derive(Clone)]
pub struct Layer {
    /// As a registry serves it.
    pub blob: Bytes,
    /// Of the blob.
    pub media_type: &'static str,
    /// Of the blob.
    pub digest: Digest,
    /// Of the stream.
    pub diff_id: Digest,
    /// Length of the stream.
    pub stream_bytes: u64,
}

/// Writes a tar into a compressor, hashing both sides.
pub(crate) struct LayerWriter {
    tar: Builder<Stream>,
}

/// Where the tar's bytes go.
struct Stream {
    packing: Packing,
    encoder: Encoder,
    hash: Sha256,
    len: u64,
}

enum Encoder {
    Gzip(GzEncoder<Vec<u8>>),
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
    Frames {
        /// Stream bytes of the next frame. `len() < FRAME_BYTES` between writes.
        frame: Vec<u8>,
        blob: Vec<u8>,
    },
}

impl Encoder {
    fn new(packing: Packing) -> io::Result<Self> {
        Ok(match packing {
            Packing::Gzip => Self::Gzip(GzEncoder::new(Vec::new(), Compression::new(LEVEL))),
            Packing::Zstd => Self::Zstd(zstd::stream::write::Encoder::new(Vec::new(), ZSTD_LEVEL)?),
            Packing::ZstdFrames => Self::Frames { frame: Vec::new(), blob: Vec::new() },
        })
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Gzip(gzip) => gzip.write_all(bytes),
            Self::Zstd(zstd) => zstd.write_all(bytes),
            Self::Frames { frame, blob } => {
                frame.extend_from_slice(bytes);
                let whole = frame.len() - frame.len() % FRAME_BYTES;
                for part in frame[..whole].chunks(FRAME_BYTES) {
                    blob.extend(zstd::bulk::compress(part, ZSTD_LEVEL)?);
                }
                frame.drain(..whole);
                Ok(())
            }
        }
    }

    fn finish(self) -> io::Result<Vec<u8>> {
        match self {
            Self::Gzip(gzip) => gzip.finish(),
            Self::Zstd(zstd) => zstd.finish(),
            Self::Frames { frame, mut blob } => {
                if !frame.is_empty() {
                    blob.extend(zstd::bulk::compress(&frame, ZSTD_LEVEL)?);
                }
                Ok(blob)
            }
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.encoder.write_all(bytes)?;
        self.hash.update(bytes);
        self.len += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl LayerWriter {
    pub(crate) fn new(packing: Packing) -> Result<Self> {
        Ok(Self { tar: Builder::new(Stream { packing, encoder: Encoder::new(packing)?, hash: Sha256::new(), len: 0 }) })
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
        let blob = Bytes::from(stream.encoder.finish()?);
        let diff_id = Digest::Sha256(stream.hash.finalize().into());
        Ok(Layer { media_type: stream.packing.media_type(), digest: sha256(&blob), blob, diff_id, stream_bytes: stream.len })
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
