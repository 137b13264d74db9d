//! A small image of two layers whose every file is known to the test, for tests of reading rather than of merging.

use anyhow::Result;
use serde_json::json;

use super::{
    Compression, Headers, Layout, Member, TarWriter,
    nasty::{noise, prose},
};

/// Tag of the image.
pub const TAG: &str = "sample";
/// The largest file, incompressible.
pub const NOISE: &str = "lib/noise";
/// The largest compressible file.
pub const PROSE: &str = "lib/prose";
/// A short file of the second layer.
pub const SHORT: &str = "etc/motd";

/// The layout, and what every file holds.
pub struct Sample {
    /// With one image, [`TAG`].
    pub layout: Layout,
    /// Path and contents.
    pub files: Vec<(&'static str, Vec<u8>)>,
}

impl Sample {
    /// Makes it, with zlib-rs at level 6.
    ///
    /// # Errors
    /// The system's.
    pub fn new() -> Result<Self> {
        Self::compressed(&Compression::ZlibRs(6))
    }

    /// Makes it with another compressor.
    ///
    /// # Errors
    /// The system's, or the compressor's.
    pub fn compressed(compression: &Compression) -> Result<Self> {
        let layout = Layout::scratch()?;
        let lower = vec![("bin/tool", prose(11, 70_000)), (NOISE, noise(12, 3 << 20)), (PROSE, prose(13, 6 << 20))];
        let upper = vec![(SHORT, b"welcome to the sample\n".to_vec()), ("etc/table", prose(14, 300_000)), ("etc/empty", Vec::new())];
        let mut layers = Vec::new();
        for files in [&lower, &upper] {
            layers.push(layout.layer(&stream(files), compression)?);
        }
        layout.image(TAG, &layers, json!({"Env": ["PATH=/bin"], "Cmd": ["/bin/tool"], "WorkingDir": "/etc"}))?;
        Ok(Self { layout, files: lower.into_iter().chain(upper).collect() })
    }

    /// What `path` holds.
    ///
    /// # Panics
    /// When the image has no such file.
    #[must_use]
    pub fn contents(&self, path: &str) -> &[u8] {
        let found = self.files.iter().find(|(name, _)| *name == path);
        &found.expect("a file of the sample").1
    }
}

/// The stream of `files` with their directories.
fn stream(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut members = vec![Member::dir("./")];
    let mut parents: Vec<&str> = files.iter().filter_map(|(name, _)| name.split_once('/')).map(|(parent, _)| parent).collect();
    parents.dedup();
    members.extend(parents.into_iter().map(Member::dir));
    members.extend(files.iter().map(|(name, data)| Member::file(name, data.clone())));
    TarWriter::stream(&members, Headers::Pax)
}
