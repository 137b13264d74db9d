//! What an access profile says: one in a file of its own, or one that a `.clip` has embedded.

use std::io::Write;

use anyhow::Result;
use clip_format::{
    checkpoints::Checkpoints,
    digest::Digest,
    profile::{Profile, ProfileLayer},
    units::StreamOffset,
};
use serde::Serialize;

use super::print_table;
use crate::values::size;

/// A profile, as `--json` has it.
#[derive(Debug, Serialize)]
pub struct ProfileReport {
    /// Of the image that was recorded.
    pub manifest_digest: Digest,
    /// Runs of all layers.
    pub runs: u64,
    /// Bytes of layer streams that were needed.
    pub bytes: u64,
    /// From the first need to the last first need.
    pub seconds: f64,
    /// In manifest order.
    pub layers: Vec<LayerNeed>,
}

/// What was needed of one layer.
#[derive(Debug, Serialize)]
pub struct LayerNeed {
    #[serde(flatten)]
    layer: ProfileLayer,
    runs: u64,
    bytes: u64,
    /// Where the profile is embedded: spans of the image's own layer with this digest; absent when it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    spans: Option<u64>,
}

impl LayerNeed {
    /// Whether anything of it was needed.
    pub fn is_needed(&self) -> bool {
        self.runs > 0
    }
}

impl ProfileReport {
    /// The report of `profile`.
    pub fn new(profile: &Profile) -> Self {
        let need = |layer: &ProfileLayer| LayerNeed { layer: *layer, runs: 0, bytes: 0, spans: None };
        let mut layers: Vec<LayerNeed> = profile.layers().iter().map(need).collect();
        for run in profile.runs() {
            let layer = &mut layers[usize::from(run.layer)];
            layer.runs += 1;
            layer.bytes += run.bytes();
        }
        Self {
            manifest_digest: profile.manifest_digest(),
            runs: profile.runs().len() as u64,
            bytes: layers.iter().map(|layer| layer.bytes).sum(),
            seconds: profile.runs().last().map_or(0.0, |run| f64::from(run.ms) / 1e3),
            layers,
        }
    }

    /// As `new`, with the spans that the image of `digests` and `checkpoints` has for it.
    pub fn embedded(profile: &Profile, digests: &[Digest], checkpoints: &Checkpoints) -> Self {
        let mut report = Self::new(profile);
        for (need, place) in report.layers.iter_mut().zip(profile.fit(digests).places) {
            need.spans = place.map(|_| 0);
        }
        let places = profile.fit(digests).places;
        for run in profile.runs() {
            let number = usize::from(run.layer);
            let (Some(layer), Some(spans)) = (places[number], &mut report.layers[number].spans) else { continue };
            let table = checkpoints.layer(layer);
            let first = table.span_at(StreamOffset(run.stream.start));
            let last = table.span_at(StreamOffset(run.stream.end - 1));
            *spans += first.zip(last).map_or(0, |(first, last)| u64::from(last.get() - first.get()) + 1);
        }
        report
    }

    /// As lines for people.
    pub fn print(&self, out: &mut impl Write) -> Result<()> {
        let needed = self.layers.iter().filter(|layer| layer.is_needed()).count();
        let (runs, bytes, count) = (self.runs, size(self.bytes), self.layers.len());
        writeln!(out, "Profile    {runs} runs, {bytes} of tar in {needed} of {count} layers, first needed within {:.1} s", self.seconds)?;
        writeln!(out, "  of       {}", self.manifest_digest)?;
        let mut rows = vec![["layer", "runs", "spans", "bytes", "of tar", "digest"].map(str::to_owned).to_vec()];
        for (number, need) in self.layers.iter().enumerate() {
            rows.push(vec![
                number.to_string(),
                need.runs.to_string(),
                need.spans.map_or("-".to_owned(), |spans| spans.to_string()),
                need.bytes.to_string(),
                need.layer.stream_size.to_string(),
                need.layer.digest.to_string(),
            ]);
        }
        print_table(&rows, &[true, true, true, true, true, false], out)
    }
}
