//! How fast an image is indexed.

use anyhow::Result;

use super::{Findings, SameWork, timed};
use crate::{
    corpus::{TAG_ALL, TAG_LARGE},
    floor,
    report::{Figure, Unit, megabytes_per_second},
    setup::{Setup, index, sections_hash},
};

const FLOOR: &str = "zlib-rs inflates the same blobs in memory, one core, nothing hashed but the gzip trailer's CRC-32";

/// Index rates in MB/s of stream, from the registry and from the layout, of one large layer and of all layers.
///
/// # Errors
/// The indexer's; when two runs index differently.
pub fn measure(setup: &Setup) -> Result<Findings> {
    let mut findings = Findings::default();
    for (tag, image) in [(TAG_LARGE, "one large layer"), (TAG_ALL, "three layers of small, middle and large files")] {
        let mut work = SameWork::default();
        let sources = [
            ("registry", "from the in-process registry", setup.registry.reference(tag)),
            ("layout", "from an oci: directory", setup.corpus.local_reference(tag)),
        ];
        for (source, place, reference) in sources {
            let (mut rates, mut floors, mut registry) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..setup.runs {
                floors.push(megabytes_per_second(setup.corpus.stream_bytes(tag), timed(|| inflate_layers(setup, tag))?.0));
                let served = setup.registry.served();
                let (took, indexed) = timed(|| index(&reference))?;
                registry.push(setup.registry.served().since(served).cpu.as_secs_f64() / took.as_secs_f64());
                anyhow::ensure!(
                    indexed.summary.stream_bytes == setup.corpus.stream_bytes(tag),
                    "indexed {} bytes",
                    indexed.summary.stream_bytes
                );
                work.check(&reference, sections_hash(&indexed.clip)?)?;
                rates.push(megabytes_per_second(indexed.summary.stream_bytes, took));
            }
            let (id, what) = (format!("index.{tag}.{source}"), format!("index rate of {image}, {place}, written to memory"));
            findings.figures.push(Figure::new(&id, &what, Unit::MegabytesPerSecond, &rates).floor(FLOOR, &floors).work(&work.hash()));
            if source == "registry" {
                let what = "of one core, taken by the registry itself meanwhile";
                findings.figures.push(Figure::new(&format!("{id}.registry_cpu"), what, Unit::Count, &registry));
            }
        }
    }
    Ok(findings)
}

fn inflate_layers(setup: &Setup, tag: &str) -> Result<()> {
    for layer in setup.corpus.layers_of(tag) {
        let made = floor::inflate(&layer.blob)?;
        anyhow::ensure!(made == layer.stream_bytes, "expected {} bytes out of layer {}, found {made}", layer.stream_bytes, layer.digest);
    }
    Ok(())
}
