//! The image that is measured: files as images have them, the same bytes for the same seed.

use anyhow::Result;
use clip_tests::images::{
    Compression, Headers, Layout, Member, TarWriter,
    nasty::{noise, prose},
};
use serde_json::json;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// Tag of the image.
pub const TAG: &str = "corpus";
/// The large file that is read sequentially and at random.
pub const LARGE: &str = "opt/large.so";

/// How much is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Seconds of work: proves that the bench works, not how fast anything is.
    Tiny,
    /// 200 MB in one file, 20,000 small ones.
    Full,
}

impl Scale {
    fn large_bytes(self) -> usize {
        match self {
            Scale::Tiny => 8 << 20,
            Scale::Full => 200 << 20,
        }
    }

    fn small_files(self) -> usize {
        match self {
            Scale::Tiny => 200,
            Scale::Full => 20_000,
        }
    }
}

/// An image in a layout, and what it holds.
pub struct Corpus {
    /// With one image, [`TAG`], of two layers.
    pub layout: Layout,
    /// Blobs of the layers, the base first.
    pub blobs: Vec<Vec<u8>>,
    /// Bytes of the layer streams together.
    pub stream_bytes: u64,
    /// Regular files.
    pub files: u64,
    /// Contents of [`LARGE`].
    pub large: Vec<u8>,
    /// SHA-256 over the streams: two runs that print the same did the same work.
    pub work: String,
    _dir: TempDir,
}

impl Corpus {
    /// Makes the image.
    ///
    /// # Errors
    /// The system's.
    pub fn new(scale: Scale) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("clip-bench-").tempdir()?;
        let layout = Layout::create(dir.path())?;
        let large = library_like(7, scale.large_bytes());
        let small = scale.small_files();
        let mut lower = vec![Member::dir("./"), Member::dir("usr"), Member::dir("opt"), Member::file(LARGE, large.clone())];
        let mut upper = vec![Member::file("usr/incompressible", noise(3, scale.large_bytes() / 16))];
        for number in 0..small {
            if number % 100 == 0 {
                lower.push(Member::dir(format!("usr/{:03}", number / 100)));
            }
            let len = 200 + (number * 7919) % 6000;
            lower.push(Member::file(format!("usr/{:03}/module_{number}.py", number / 100), prose(number as u64, len)));
        }
        upper.extend(
            (0..small / 20).map(|number| Member::file(format!("usr/{:03}/changed_{number}.py", number % 2), prose(number as u64, 3000))),
        );
        let files = (small + small / 20 + 2) as u64;
        let mut hasher = Sha256::new();
        let (mut layers, mut blobs, mut stream_bytes) = (Vec::new(), Vec::new(), 0);
        for members in [&lower, &upper] {
            let stream = TarWriter::stream(members, Headers::Pax);
            hasher.update(&stream);
            stream_bytes += stream.len() as u64;
            let layer = layout.layer(&stream, &Compression::ZlibRs(6))?;
            blobs.push(std::fs::read(layout.blob_path(&layer.blob.digest)?)?);
            layers.push(layer);
        }
        layout.image(TAG, &layers, json!({}))?;
        let work = hex::encode(hasher.finalize())[..16].to_owned();
        Ok(Self { layout, blobs, stream_bytes, files, large, work, _dir: dir })
    }
}

/// Bytes as shared libraries have them: short repeated sequences, tables of small numbers, runs of zeros, some noise. About 3 to 1.
#[must_use]
pub fn library_like(seed: u64, len: usize) -> Vec<u8> {
    let codes = noise(seed, 4096);
    let choices = noise(seed + 1, len / 16 + 16);
    let mut bytes = Vec::with_capacity(len + 64);
    for (place, choice) in choices.into_iter().enumerate() {
        match choice {
            0..=150 => {
                let at = usize::from(choice) * 16 + (place * 31) % 48;
                bytes.extend_from_slice(&codes[at..at + 16]);
            }
            151..=200 => bytes.extend((0..4u32).flat_map(|step| (u32::from(choice) * step + place as u32 / 64).to_le_bytes())),
            201..=230 => bytes.resize(bytes.len() + 16, 0),
            _ => {
                let mut mixed = (place as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                mixed ^= mixed >> 29;
                bytes.extend_from_slice(&mixed.to_le_bytes());
                bytes.extend_from_slice(&mixed.wrapping_mul(0xbf58_476d_1ce4_e5b9).to_le_bytes());
            }
        }
        if bytes.len() >= len {
            break;
        }
    }
    bytes.resize(len, 0);
    bytes
}
