//! How fast an image is indexed: by the whole command, and by the library alone.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use clip_format::storage_info::Codec;
use serde_json::Value;

use super::{Cost, Findings, SameWork, costed, costed_with_children};
use crate::{
    corpus::{Corpus, TAG_ALL, TAG_EQUAL, TAG_LARGE},
    floor,
    registry::Registry,
    report::{Figure, Unit, megabytes_per_second, milliseconds},
    setup::{Made, Setup, index, sections_hash},
};

/// Nothing is hashed but a gzip trailer's CRC-32.
const FLOOR: &str = "the same blobs in memory, one core";
/// What leaves the second hash out.
const SKIP: &str = "--skip-diff-id-check";

/// `clip-bench index`
#[derive(Clone, Debug, Default, clap::Args)]
#[command(after_help = "\
The image is made for the run: one big layer (--corpus-mib), eight equal layers of together half of that, and an image of three unlike
layers. Each is indexed from the registry in this process and from an oci: directory, by `clip index` as a whole, by the same with
--skip-diff-id-check, and by the library into memory; before each of them the same blobs are inflated in memory, on one core.

Examples:
  clip-bench index --image large --source registry --runs 9
  clip-bench index --latency 20ms --bandwidth 200MB      behind a slower network")]
pub struct IndexArgs {
    /// Images to index [default: all of them]
    #[arg(long, value_enum, value_name = "IMAGE", value_delimiter = ',')]
    pub image: Vec<ImageArg>,
    /// Where they are read from [default: both]
    #[arg(long, value_enum, value_name = "SOURCE", value_delimiter = ',')]
    pub source: Vec<SourceArg>,
}

/// `--image`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ImageArg {
    /// One big layer
    Large,
    /// Eight equal layers
    Equal,
    /// Three layers: small files, libraries, large files
    Mixed,
}

/// `--source`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SourceArg {
    /// The registry of this process
    Registry,
    /// An oci: directory
    Layout,
}

/// What indexes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Program,
    ProgramSkipping,
    Library,
}

impl ImageArg {
    fn tag(self) -> &'static str {
        match self {
            Self::Large => TAG_LARGE,
            Self::Equal => TAG_EQUAL,
            Self::Mixed => TAG_ALL,
        }
    }

    fn id(self) -> &'static str {
        if self == Self::Mixed { "mixed" } else { self.tag() }
    }

    fn what(self) -> &'static str {
        match self {
            Self::Large => "one big layer",
            Self::Equal => "eight equal layers",
            Self::Mixed => "three layers of small, middle and large files",
        }
    }
}

impl SourceArg {
    fn what(self) -> &'static str {
        match self {
            Self::Registry => "from the registry in this process",
            Self::Layout => "from an oci: directory",
        }
    }
}

impl By {
    fn what(self) -> &'static str {
        match self {
            Self::Program => "clip index, the whole command",
            Self::ProgramSkipping => "clip index --skip-diff-id-check, the whole command",
            Self::Library => "the library, the .clip in memory",
        }
    }

    fn id(self) -> &'static str {
        match self {
            Self::Program => "program",
            Self::ProgramSkipping => "program.skip",
            Self::Library => "library",
        }
    }
}

/// The project's own bars, ratios to the floor.
fn bar(image: ImageArg, source: SourceArg, by: By) -> Option<f64> {
    match (image, source, by) {
        (ImageArg::Large, SourceArg::Registry, By::Program) => Some(0.60),
        (ImageArg::Large, SourceArg::Registry, By::ProgramSkipping) => Some(0.75),
        (ImageArg::Large, SourceArg::Layout, By::Program) => Some(0.70),
        (ImageArg::Large, SourceArg::Layout, By::ProgramSkipping) => Some(0.85),
        (ImageArg::Equal, SourceArg::Registry, By::Program) => Some(0.65),
        _ => None,
    }
}

/// The project's own bar for the sparse windows' share of the processor time.
const WINDOWS_SHARE_MAX: f64 = 0.05;

/// Index rates in MB/s of stream, against inflate of the same blobs.
///
/// # Errors
/// The indexer's; when two runs index differently.
pub fn measure(setup: &Setup, args: &IndexArgs) -> Result<Findings> {
    let mut findings = Findings::default();
    let Some(made) = &setup.made else {
        findings.skip("index", "needs the image that clip-bench makes; leave out --clip");
        return Ok(findings);
    };
    let ways = ways(setup, &mut findings)?;
    let all = |image| args.image.is_empty() || args.image.contains(&image);
    for image in [ImageArg::Large, ImageArg::Equal, ImageArg::Mixed].into_iter().filter(|image| all(*image)) {
        let bench = Bench { setup, made, image };
        let mut work = SameWork::default();
        for source in [SourceArg::Registry, SourceArg::Layout] {
            if args.source.is_empty() || args.source.contains(&source) {
                bench.measure(source, &ways, &mut work, &mut findings)?;
            }
        }
    }
    Ok(findings)
}

/// What can be measured here.
fn ways(setup: &Setup, findings: &mut Findings) -> Result<Vec<By>> {
    let Some(program) = &setup.clip_program else {
        findings.skip("index by program", "no clip beside clip-bench; build it or pass --clip-program");
        return Ok(vec![By::Library]);
    };
    let help = Command::new(program).args(["index", "--help"]).stdin(Stdio::null()).output();
    let help = help.with_context(|| format!("run {}", program.display()))?;
    if String::from_utf8_lossy(&help.stdout).contains(SKIP) {
        return Ok(vec![By::Program, By::ProgramSkipping, By::Library]);
    }
    findings.skip(&format!("index {SKIP}"), format!("{} does not know it", program.display()));
    Ok(vec![By::Program, By::Library])
}

struct Bench<'a> {
    setup: &'a Setup,
    made: &'a Made,
    image: ImageArg,
}

/// One value a run.
#[derive(Default)]
struct Runs {
    /// MB/s.
    rates: Vec<f64>,
    floor_rates: Vec<f64>,
    /// Milliseconds.
    cpu: Vec<f64>,
    floor_cpu: Vec<f64>,
    /// Cores.
    registry: Vec<f64>,
    /// Of the processor time, where the indexer tells.
    windows_shares: Vec<f64>,
}

impl Bench<'_> {
    fn measure(&self, source: SourceArg, ways: &[By], work: &mut SameWork, findings: &mut Findings) -> Result<()> {
        let tag = self.image.tag();
        let reference = match source {
            SourceArg::Registry => match self.setup.origin.address() {
                Some(address) => Registry::reference_at(address, tag),
                None => self.made.registry.reference(tag),
            },
            SourceArg::Layout => self.made.corpus.local_reference(tag),
        };
        let mut runs: Vec<Runs> = ways.iter().map(|_| Runs::default()).collect();
        for _ in 0..self.setup.runs {
            for (by, runs) in ways.iter().zip(&mut runs) {
                self.run(*by, &reference, runs, work)?;
            }
        }
        for (by, runs) in ways.iter().zip(&runs) {
            findings.figures.extend(self.figures(source, *by, runs, &work.hash()));
        }
        Ok(())
    }

    fn run(&self, by: By, reference: &str, runs: &mut Runs, work: &mut SameWork) -> Result<()> {
        let bytes = self.made.corpus.stream_bytes(self.image.tag());
        let (floor, ()) = costed(|| inflate_layers(&self.made.corpus, self.image.tag()))?;
        self.setup.origin.begin_round();
        let (registry, shaper) = (self.made.registry.served(), self.setup.origin.cpu());
        let (cost, (hash, windows_share)) = match by {
            By::Library => by_library(reference, bytes)?,
            By::Program => self.by_program(reference, &[])?,
            By::ProgramSkipping => self.by_program(reference, &[SKIP])?,
        };
        let registry = self.made.registry.served().since(registry).cpu;
        let others = registry + self.setup.origin.cpu().saturating_sub(shaper);
        work.check(&format!("{reference} by {}", by.what()), hash)?;
        runs.rates.push(megabytes_per_second(bytes, cost.wall));
        runs.floor_rates.push(megabytes_per_second(bytes, floor.wall));
        runs.cpu.push(milliseconds(cost.cpu.saturating_sub(others)));
        runs.floor_cpu.push(milliseconds(floor.cpu));
        runs.registry.push(registry.as_secs_f64() / cost.wall.as_secs_f64());
        runs.windows_shares.extend(windows_share);
        Ok(())
    }

    /// What the program cost, the hash of what it wrote, and the windows' share of its time where it tells.
    fn by_program(&self, reference: &str, more: &[&str]) -> Result<(Cost, (blake3::Hash, Option<f64>))> {
        let program = self.setup.clip_program.as_deref().context("no clip program")?;
        let dir = self.setup.fresh_dir()?;
        let clip = dir.path().join("image.clip");
        let (cost, summary) = costed_with_children(|| run_program(program, reference, &clip, more))?;
        let bytes = std::fs::read(&clip).with_context(|| format!("read {}", clip.display()))?;
        Ok((cost, (sections_hash(&bytes)?, windows_share(&summary))))
    }

    fn figures(&self, source: SourceArg, by: By, runs: &Runs, work: &blake3::Hash) -> Vec<Figure> {
        let (image, source_id) = (self.image, if source == SourceArg::Registry { "registry" } else { "layout" });
        let id = format!("index.{}.{source_id}.{}", image.id(), by.id());
        let codec = self.made.corpus.packing().codec();
        let floor = format!("{} {FLOOR}", floor::decoder(codec));
        let megabytes = self.made.corpus.stream_bytes(image.tag()) / 1_000_000;
        let what = format!("index rate of {}, {megabytes} MB of stream, {}: {}", image.what(), source.what(), by.what());
        let mut rate = Figure::new(&id, &what, Unit::MegabytesPerSecond, &runs.rates).floor(&floor, &runs.floor_rates).work(work);
        if let (Some(limit), Codec::Gzip) = (bar(image, source, by), codec) {
            rate = rate.bar_of_ratio(limit);
        }
        if source == SourceArg::Registry {
            rate = rate.counter("cores taken by the registry meanwhile", Unit::Count, &runs.registry);
        }
        let what = "processor time of the same, without the registry";
        let cpu = Figure::new(&format!("{id}.cpu"), what, Unit::Milliseconds, &runs.cpu).floor(&floor, &runs.floor_cpu).work(work);
        let mut figures = vec![rate, cpu];
        if !runs.windows_shares.is_empty() && codec == Codec::Gzip {
            let what = "share of the sparse windows in the processor time of the same";
            let share = Figure::new(&format!("{id}.windows"), what, Unit::Count, &runs.windows_shares);
            figures.push(share.bar_of_value(WINDOWS_SHARE_MAX).work(work));
        }
        figures
    }
}

fn by_library(reference: &str, bytes: u64) -> Result<(Cost, (blake3::Hash, Option<f64>))> {
    let (cost, indexed) = costed(|| index(reference))?;
    ensure!(indexed.summary.stream_bytes == bytes, "expected {bytes} bytes, indexed {}", indexed.summary.stream_bytes);
    Ok((cost, (sections_hash(&indexed.clip)?, None)))
}

/// The summary that `clip index --json` prints.
fn run_program(program: &Path, reference: &str, clip: &Path, more: &[&str]) -> Result<Value> {
    let mut command = Command::new(program);
    command.args(["index", reference, "--quiet", "--json", "--output"]).arg(clip).args(more).stdin(Stdio::null());
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).with_context(|| format!("the summary of {command:?}"))
}

/// The sparse windows' part of the processor time, where the summary has it.
fn windows_share(summary: &Value) -> Option<f64> {
    let (windows, all) = (summary.get("windows_cpu_seconds")?.as_f64()?, summary.get("cpu_seconds")?.as_f64()?);
    (all > 0.0).then(|| windows / all)
}

fn inflate_layers(corpus: &Corpus, tag: &str) -> Result<()> {
    for layer in corpus.layers_of(tag) {
        let made = floor::inflate(corpus.packing().codec(), &layer.blob)?;
        ensure!(made == layer.stream_bytes, "expected {} bytes out of layer {}, found {made}", layer.stream_bytes, layer.digest);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Claim: the windows' share is read from a summary that has it, and is left out of one that does not.
    #[test]
    fn a_share_needs_both_times() {
        let both = serde_json::json!({ "cpu_seconds": 4.0, "windows_cpu_seconds": 0.1 });
        assert_eq!(windows_share(&both), Some(0.025));
        assert_eq!(windows_share(&serde_json::json!({ "cpu_seconds": 4.0 })), None);
        assert_eq!(windows_share(&serde_json::json!({ "cpu_seconds": 0.0, "windows_cpu_seconds": 0.0 })), None);
    }
}
