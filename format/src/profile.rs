//! Access profiles: which parts of which layers a run of the image needed, in the order of first need.
//!
//! A profile names layers by digest and places by stream offset, so that it also serves another image that shares a layer, and an index
//! of the same layer with other spans. It is a hint: nothing is served because of it, and nothing depends on it being right. It stands in
//! a file of its own or, the same bytes, as a section of a `.clip`. docs/format.md has the tables.

pub(crate) mod record;
mod varint;

use std::{collections::HashSet, ops::Range};

use zerocopy::{
    IntoBytes,
    little_endian::{U16, U32, U64},
};

use crate::{
    bounded::{expect_eq, field, record_at, slice_at},
    clip_file::{LEVEL_SMALL, expand},
    digest::Digest,
    error::FormatError,
    limits,
    units::LayerIndex,
};
use record::{HEAD_LEN, RawDigest, RawProfile, RawProfileLayer};
use varint::{Varints, push_signed, push_varint};

/// The first bytes of a profile.
pub const MAGIC: [u8; 8] = *b"\x89CLPR\r\n\x1a";
/// The version that is written.
pub const VERSION_WRITTEN: u16 = 1;
/// The versions that are read.
pub const VERSIONS_ACCEPTED: &[u16] = &[1];
/// Bytes of one run at least, in the body: four numbers.
const RUN_BYTES_MIN: u64 = 4;

/// A layer of the image that was recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ProfileLayer {
    /// Of the blob.
    pub digest: Digest,
    /// Length of the layer stream.
    pub stream_size: u64,
    /// [`crate::checkpoints::SpanTable::spans_digest`] of the index that was recorded: where it is equal, every run is whole spans.
    #[serde(serialize_with = "as_hex")]
    pub spans_digest: [u8; 32],
}

fn as_hex<S: serde::Serializer>(bytes: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&hex::encode(bytes))
}

/// Neighbouring spans that were first needed one right after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Which of [`Profile::layers`].
    pub layer: u16,
    /// Bytes of its stream. Never empty, and inside the stream.
    pub stream: Range<u64>,
    /// When the first of them was needed: milliseconds since the first need of all.
    pub ms: u32,
}

impl Run {
    /// Bytes of the stream.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.stream.end - self.stream.start
    }
}

/// A checked profile.
///
/// Invariants: `ms` never falls from one run to the next; the runs of one layer do not overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    manifest_digest: Digest,
    layers: Vec<ProfileLayer>,
    runs: Vec<Run>,
}

/// How many layers and runs a body holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Layers of the image.
    pub layers: u16,
    /// Runs of all layers.
    pub runs: u32,
}

/// Which layers of an image a profile speaks of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fit {
    /// One a layer of the profile: the image's layer with the same digest, which no other layer of the profile has.
    pub places: Vec<Option<LayerIndex>>,
    /// Layers of the profile that have runs, equal ones once.
    pub needed: usize,
    /// Those of them that the image has.
    pub found: usize,
}

impl Fit {
    /// Whether the profile is of any use for the image. One without a run is, if it names one of its layers.
    fn is_useful(&self) -> bool {
        self.found > 0 || (self.needed == 0 && self.places.iter().any(Option::is_some))
    }
}

impl Profile {
    /// The profile of a run.
    ///
    /// # Errors
    /// `Exhausted` past a limit; `Corrupt` when an invariant is broken.
    pub fn new(manifest_digest: Digest, layers: Vec<ProfileLayer>, runs: Vec<Run>) -> Result<Self, FormatError> {
        limit("profile layers", limits::LAYERS_MAX as u64, layers.len() as u64)?;
        limit("profile runs", limits::PROFILE_RUNS_MAX, runs.len() as u64)?;
        if let Some(layer) = layers.iter().find(|layer| layer.stream_size > limits::STREAM_BYTES_MAX) {
            return Err(limit_error("profile stream size", limits::STREAM_BYTES_MAX, layer.stream_size));
        }
        let mut ms_min = 0;
        for (number, run) in runs.iter().enumerate() {
            check_run(run, number, &layers, ms_min)?;
            ms_min = run.ms;
        }
        check_overlaps(&runs)?;
        Ok(Self { manifest_digest, layers, runs })
    }

    /// Of the image that was recorded.
    #[must_use]
    pub fn manifest_digest(&self) -> Digest {
        self.manifest_digest
    }

    /// All layers of that image, in manifest order, needed or not.
    #[must_use]
    pub fn layers(&self) -> &[ProfileLayer] {
        &self.layers
    }

    /// In the order of first need.
    #[must_use]
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// The part of the profile that comes first, up to the run that reaches `bytes_max` bytes of layer streams.
    #[must_use]
    pub fn trimmed(mut self, bytes_max: u64) -> Self {
        let mut bytes = 0_u64;
        self.runs.retain(|run| {
            let kept = bytes < bytes_max;
            bytes = bytes.saturating_add(run.bytes());
            kept
        });
        self
    }

    /// Which of `digests`, an image's layers in manifest order, this profile speaks of. Images repeat layers, empty ones mostly: of several
    /// layers of the profile with one digest, the first that has runs stands for all, so that no byte of the image is named twice.
    #[must_use]
    pub fn fit(&self, digests: &[Digest]) -> Fit {
        let mut has_runs = vec![false; self.layers.len()];
        for run in &self.runs {
            has_runs[usize::from(run.layer)] = true;
        }
        let mut fit = Fit { places: vec![None; self.layers.len()], needed: 0, found: 0 };
        let mut seen = HashSet::new();
        let (with_runs, without): (Vec<usize>, Vec<usize>) = (0..self.layers.len()).partition(|&layer| has_runs[layer]);
        for layer in with_runs.into_iter().chain(without) {
            let digest = &self.layers[layer].digest;
            if seen.insert(digest) {
                let found = digests.iter().position(|other| other == digest);
                fit.places[layer] = found.and_then(|found| u16::try_from(found).ok()).map(LayerIndex);
                fit.needed += usize::from(has_runs[layer]);
                fit.found += usize::from(has_runs[layer] && fit.places[layer].is_some());
            }
        }
        fit
    }

    /// As [`Self::fit`], for the image with this manifest.
    ///
    /// # Errors
    /// `OtherImage`, naming both, when no layer that is needed is the image's.
    pub fn useful_fit(&self, manifest: &Digest, digests: &[Digest]) -> Result<Fit, FormatError> {
        let fit = self.fit(digests);
        if fit.is_useful() {
            return Ok(fit);
        }
        let named = |manifest: &Digest, layers: usize, first: Option<&Digest>| {
            let first = first.map_or("none".to_owned(), ToString::to_string);
            format!("manifest {manifest} ({layers} layers, the first is {first})")
        };
        let recorded = named(&self.manifest_digest, self.layers.len(), self.layers.first().map(|layer| &layer.digest));
        Err(FormatError::OtherImage { recorded, image: named(manifest, digests.len(), digests.first()) })
    }

    /// The file's bytes: a pure function of the profile.
    ///
    /// # Errors
    /// `Exhausted` past `PROFILE_BODY_BYTES_MAX`.
    pub fn to_bytes(&self) -> Result<Vec<u8>, FormatError> {
        let body = self.body();
        limit("profile body, bytes", limits::PROFILE_BODY_BYTES_MAX, body.len() as u64)?;
        let stored = zstd::bulk::compress(&body, LEVEL_SMALL)
            .map_err(|error| FormatError::Zstd { what: "profile body", reason: error.to_string() })?;
        let mut head = RawProfile {
            magic: MAGIC,
            version: U16::new(VERSION_WRITTEN),
            layers: U16::new(self.layers.len() as u16),
            runs: U32::new(self.runs.len() as u32),
            flags: U64::new(0),
            stored_len: U64::new(stored.len() as u64),
            raw_len: U64::new(body.len() as u64),
            body_blake3: *blake3::hash(&body).as_bytes(),
            blake3: [0; 32],
        };
        head.blake3 = head.checksum();
        Ok([head.as_bytes(), &stored].concat())
    }

    fn body(&self) -> Vec<u8> {
        let mut body = RawDigest::from_digest(&self.manifest_digest).as_bytes().to_vec();
        for layer in &self.layers {
            body.extend_from_slice(RawProfileLayer::from_layer(layer).as_bytes());
        }
        let mut ends = vec![0; self.layers.len()];
        let mut ms = 0;
        for run in &self.runs {
            let end = &mut ends[usize::from(run.layer)];
            push_varint(&mut body, u64::from(run.layer));
            push_signed(&mut body, run.stream.start as i64 - *end as i64);
            push_varint(&mut body, run.bytes());
            push_varint(&mut body, u64::from(run.ms - ms));
            (*end, ms) = (run.stream.end, run.ms);
        }
        body
    }

    /// The meaning of a whole file. Cost: memory for the expanded body and 32 bytes a run, both limited.
    ///
    /// # Errors
    /// `Corrupt` or `Unsupported`, naming the field; `Exhausted` past a limit.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, FormatError> {
        let found = &bytes[..bytes.len().min(MAGIC.len())];
        if found != MAGIC {
            let found = format!("{} (this is not an access profile of clip)", found.escape_ascii());
            return Err(field("profile magic", 0, MAGIC.escape_ascii(), found));
        }
        let head: &RawProfile = record_at(bytes, "profile head", 0)?;
        let counts = head.check()?;
        let stored_len = head.stored_len.get();
        expect_eq("profile length", 24, (HEAD_LEN as u64).saturating_add(stored_len), bytes.len() as u64)?;
        let stored = slice_at(bytes, "profile body", HEAD_LEN as u64, stored_len)?;
        let body = expand("profile body", stored, head.raw_len.get())?;
        let (expected, found) = (head.body_blake3, blake3::hash(&body));
        if found != expected {
            let (expected, found) = (hex::encode(expected), found.to_hex().to_string());
            return Err(FormatError::Hash { what: "profile body", expected, found });
        }
        Self::from_body(&body, counts)
    }

    /// The meaning of an expanded body.
    ///
    /// # Errors
    /// As [`Self::from_bytes`].
    pub fn from_body(body: &[u8], counts: Counts) -> Result<Self, FormatError> {
        limit("profile layers", limits::LAYERS_MAX as u64, u64::from(counts.layers))?;
        let manifest: &RawDigest = record_at(body, "profile manifest digest", 0)?;
        let manifest_digest = manifest.to_digest(0)?;
        let mut layers = Vec::with_capacity(usize::from(counts.layers));
        let mut at = size_of::<RawDigest>() as u64;
        for _ in 0..counts.layers {
            let layer: &RawProfileLayer = record_at(body, "profile layer", at)?;
            layers.push(layer.to_layer(at)?);
            at += size_of::<RawProfileLayer>() as u64;
        }
        let rest = (body.len() as u64).saturating_sub(at);
        if u64::from(counts.runs).saturating_mul(RUN_BYTES_MIN) > rest {
            let expected = u64::from(counts.runs) * RUN_BYTES_MIN;
            return Err(FormatError::Truncated { what: "profile runs", offset: at, expected, found: rest });
        }
        let runs = read_runs(Varints::new(body, at), counts, layers.len())?;
        Self::new(manifest_digest, layers, runs)
    }
}

/// Reads what [`Profile::body`] wrote; whether the runs can be is checked by [`Profile::new`].
fn read_runs(mut numbers: Varints<'_>, counts: Counts, layers: usize) -> Result<Vec<Run>, FormatError> {
    limit("profile runs", limits::PROFILE_RUNS_MAX, u64::from(counts.runs))?;
    let mut runs = Vec::with_capacity(counts.runs as usize);
    let mut ends = vec![0_u64; layers];
    let mut ms = 0_u32;
    for _ in 0..counts.runs {
        let at = numbers.at();
        let bad = |what, expected: &str, found: u64| field(what, at, expected, found);
        let layer = numbers.next("profile run layer")?;
        let number = u16::try_from(layer).ok().filter(|&number| usize::from(number) < layers);
        let number = number.ok_or_else(|| bad("profile run layer", "a layer of the profile", layer))?;
        let end = &mut ends[usize::from(number)];
        let (gap, len) = (numbers.next_signed("profile run start")?, numbers.next("profile run length")?);
        let start = end.checked_add_signed(gap).ok_or_else(|| bad("profile run start", "a place in the stream", gap.unsigned_abs()))?;
        *end = start.checked_add(len).ok_or_else(|| bad("profile run length", "a run inside the stream", len))?;
        let later = numbers.next("profile run time")?;
        let sum = u32::try_from(later).ok().and_then(|later| ms.checked_add(later));
        ms = sum.ok_or_else(|| bad("profile run time", "less than 2^32 ms in all", later))?;
        runs.push(Run { layer: number, stream: start..*end, ms });
    }
    numbers.finish("profile runs")?;
    Ok(runs)
}

fn check_run(run: &Run, number: usize, layers: &[ProfileLayer], ms_min: u32) -> Result<(), FormatError> {
    let wrong = |what, expected: String, found: String| Err(field(what, 0, expected, format!("{found} (run {number})")));
    let Some(layer) = layers.get(usize::from(run.layer)) else {
        return wrong("profile run layer", format!("less than {}", layers.len()), run.layer.to_string());
    };
    if run.stream.start >= run.stream.end || run.stream.end > layer.stream_size {
        let found = format!("{}..{}", run.stream.start, run.stream.end);
        return wrong("profile run", format!("bytes inside a stream of {}", layer.stream_size), found);
    }
    if run.ms < ms_min {
        return wrong("profile run time", format!("at least {ms_min} ms"), run.ms.to_string());
    }
    Ok(())
}

/// What a replay costs is bounded by the streams: no byte is named twice.
fn check_overlaps(runs: &[Run]) -> Result<(), FormatError> {
    let mut places: Vec<(u16, u64, u64)> = runs.iter().map(|run| (run.layer, run.stream.start, run.stream.end)).collect();
    places.sort_unstable();
    match places.windows(2).find(|pair| pair[0].0 == pair[1].0 && pair[1].1 < pair[0].2) {
        None => Ok(()),
        Some(pair) => {
            let (expected, found) = (format!("runs of layer {} apart", pair[0].0), format!("two with byte {}", pair[1].1));
            Err(field("profile runs", 0, expected, found))
        }
    }
}

fn limit(what: &'static str, max: u64, found: u64) -> Result<(), FormatError> {
    if found > max { Err(limit_error(what, max, found)) } else { Ok(()) }
}

fn limit_error(what: &'static str, max: u64, found: u64) -> FormatError {
    FormatError::Limit { what: what.to_owned(), max, found }
}

#[cfg(test)]
mod tests;
