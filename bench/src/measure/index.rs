//! How fast an image is indexed.

use anyhow::Result;

use super::{Findings, SameWork, costed};
use crate::{
    corpus::{TAG_ALL, TAG_LARGE},
    floor,
    report::{Figure, Unit, megabytes_per_second, milliseconds},
    setup::{Made, Setup, index, sections_hash},
};

const FLOOR: &str = "zlib-rs inflates the same blobs in memory, one core, nothing hashed but the gzip trailer's CRC-32";

/// `clip-bench index`
#[derive(Clone, Debug, Default, clap::Args)]
pub struct IndexArgs {}

/// Index rates in MB/s of stream, from the registry and from the layout, of one large layer and of all layers.
///
/// # Errors
/// The indexer's; when two runs index differently.
pub fn measure(setup: &Setup, _args: &IndexArgs) -> Result<Findings> {
    let mut findings = Findings::default();
    let Some(made) = &setup.made else {
        findings.skip("index", "needs the image that clip-bench makes; leave out --clip");
        return Ok(findings);
    };
    for (tag, image) in [(TAG_LARGE, "one large layer"), (TAG_ALL, "three layers of small, middle and large files")] {
        let mut work = SameWork::default();
        let sources = [
            ("registry", "from the in-process registry", made.registry.reference(tag)),
            ("layout", "from an oci: directory", made.corpus.local_reference(tag)),
        ];
        for (source, place, reference) in sources {
            let mut runs = Runs::default();
            for _ in 0..setup.runs {
                runs.add(made, tag, &reference, &mut work)?;
            }
            let id = format!("index.{tag}.{source}");
            let what = format!("index rate of {image}, {place}, the .clip in memory");
            let rate = Figure::new(&id, &what, Unit::MegabytesPerSecond, &runs.rates).floor(FLOOR, &runs.floor_rates);
            let what = "processor time of the same, all threads but the registry's";
            let cpu = Figure::new(&format!("{id}.cpu"), what, Unit::Milliseconds, &runs.cpu).floor(FLOOR, &runs.floor_cpu);
            findings.figures.extend([rate.work(&work.hash()), cpu.work(&work.hash())]);
            if source == "registry" {
                let what = "cores taken by the registry itself meanwhile";
                findings.figures.push(Figure::new(&format!("{id}.registry_cpu"), what, Unit::Count, &runs.registry));
            }
        }
    }
    Ok(findings)
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
}

impl Runs {
    fn add(&mut self, made: &Made, tag: &str, reference: &str, work: &mut SameWork) -> Result<()> {
        let bytes = made.corpus.stream_bytes(tag);
        let (floor, ()) = costed(|| inflate_layers(made, tag))?;
        let served = made.registry.served();
        let (cost, indexed) = costed(|| index(reference))?;
        let registry = made.registry.served().since(served).cpu;
        anyhow::ensure!(indexed.summary.stream_bytes == bytes, "expected {bytes} bytes, indexed {}", indexed.summary.stream_bytes);
        work.check(reference, sections_hash(&indexed.clip)?)?;
        self.rates.push(megabytes_per_second(bytes, cost.wall));
        self.floor_rates.push(megabytes_per_second(bytes, floor.wall));
        self.cpu.push(milliseconds(cost.cpu.saturating_sub(registry)));
        self.floor_cpu.push(milliseconds(floor.cpu));
        self.registry.push(registry.as_secs_f64() / cost.wall.as_secs_f64());
        Ok(())
    }
}

fn inflate_layers(made: &Made, tag: &str) -> Result<()> {
    for layer in made.corpus.layers_of(tag) {
        let made = floor::inflate(&layer.blob)?;
        anyhow::ensure!(made == layer.stream_bytes, "expected {} bytes out of layer {}, found {made}", layer.stream_bytes, layer.digest);
    }
    Ok(())
}
