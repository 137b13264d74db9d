//! Layers that are written while they are made: many gigabytes of stream in bounded memory.

use std::{
    fs::File,
    io::{BufWriter, Result as IoResult, Write},
};

use anyhow::Result;
use flate2::{Compression as Level, write::GzEncoder};
use sha2::{Digest, Sha256};

use super::{
    Headers, Layout, Member, TarWriter,
    layout::{Blob, LayerBlob},
};

/// A tar stream on its way into a gzip blob of a layout.
pub struct HugeLayer<'a> {
    layout: &'a Layout,
    encoder: GzEncoder<Hashed<BufWriter<File>>>,
    stream: Sha256,
    stream_bytes: u64,
}

/// Hashes and counts what passes.
struct Hashed<W> {
    inner: W,
    hasher: Sha256,
    bytes: u64,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, buffer: &[u8]) -> IoResult<usize> {
        let len = self.inner.write(buffer)?;
        self.hasher.update(&buffer[..len]);
        self.bytes += len as u64;
        Ok(len)
    }

    fn flush(&mut self) -> IoResult<()> {
        self.inner.flush()
    }
}

impl<'a> HugeLayer<'a> {
    /// An empty stream.
    ///
    /// # Errors
    /// The system's.
    pub fn new(layout: &'a Layout) -> Result<Self> {
        let file = BufWriter::with_capacity(1 << 20, File::create(layout.dir().join("huge.new"))?);
        let blob = Hashed { inner: file, hasher: Sha256::new(), bytes: 0 };
        Ok(Self { layout, encoder: GzEncoder::new(blob, Level::new(6)), stream: Sha256::new(), stream_bytes: 0 })
    }

    /// Stream bytes so far.
    #[must_use]
    pub fn stream_bytes(&self) -> u64 {
        self.stream_bytes
    }

    /// Appends stream bytes as they are.
    ///
    /// # Errors
    /// The system's.
    pub fn raw(&mut self, bytes: &[u8]) -> Result<()> {
        self.encoder.write_all(bytes)?;
        self.stream.update(bytes);
        self.stream_bytes += bytes.len() as u64;
        Ok(())
    }

    /// Appends a member.
    ///
    /// # Errors
    /// The system's.
    pub fn member(&mut self, member: &Member) -> Result<()> {
        let stream = TarWriter::stream([member], Headers::Pax);
        self.raw(&stream[..stream.len() - 1024])
    }

    /// Appends a regular file of `size` zeros, which may be past what an octal field holds.
    ///
    /// # Errors
    /// The system's.
    pub fn zeros(&mut self, name: &str, size: u64) -> Result<()> {
        let mut head = TarWriter::stream([&Member::file(name, "")], Headers::Gnu);
        head.truncate(512);
        head[124..136].copy_from_slice(&[&[0x80, 0, 0, 0][..], &size.to_be_bytes()].concat());
        head[148..156].fill(b' ');
        let sum: u32 = head.iter().map(|byte| u32::from(*byte)).sum();
        head[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.raw(&head)?;
        let chunk = vec![0; 1 << 20];
        let mut left = size.next_multiple_of(512);
        while left > 0 {
            let len = left.min(chunk.len() as u64);
            self.raw(&chunk[..usize::try_from(len)?])?;
            left -= len;
        }
        Ok(())
    }

    /// The layer, with the end marker, in the layout.
    ///
    /// # Errors
    /// The system's.
    pub fn finish(mut self) -> Result<LayerBlob> {
        self.raw(&[0; 1024])?;
        let mut blob = self.encoder.finish()?;
        blob.flush()?;
        let digest = format!("sha256:{}", hex::encode(blob.hasher.finalize()));
        std::fs::rename(self.layout.dir().join("huge.new"), self.layout.blob_path(&digest)?)?;
        Ok(LayerBlob {
            blob: Blob { digest, size: blob.bytes },
            diff_id: format!("sha256:{}", hex::encode(self.stream.finalize())),
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip",
            urls: Vec::new(),
        })
    }
}
