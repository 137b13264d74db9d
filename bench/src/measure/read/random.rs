//! Cold reads of 4 KiB, each of a span that nobody has read.

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    time::{Duration, Instant},
};

use anyhow::Result;
use clip_engine::Stats;
use clip_format::units::SpanIndex;

use super::Way;
use crate::{
    corpus::content::Draws,
    floor::SpanLoop,
    measure::{Findings, SameWork, mount},
    report::{Figure, Temperature, Unit, percentile_us},
    setup::Setup,
};

const READ_BYTES: usize = 4096;
const FLOOR: &str = "fetch, inflate and verify of one span by a plain loop over one open connection; no engine, no cache, no FUSE";

/// Where one read stands, in the large file.
struct Probe {
    at: u64,
    /// Compressed bytes that decoding its span needs.
    compressed: u64,
}

/// One run's latencies, by percentile.
#[derive(Default)]
struct Latencies {
    p50: Vec<f64>,
    p99: Vec<f64>,
}

impl Latencies {
    fn add(&mut self, mut latencies: Vec<Duration>) {
        self.p50.push(percentile_us(&mut latencies, 50));
        self.p99.push(percentile_us(&mut latencies, 99));
    }
}

pub(super) fn measure(setup: &Setup, ways: &[Way], findings: &mut Findings) -> Result<()> {
    let probes = probes(setup);
    let mut work = SameWork::default();
    for &way in ways {
        let (mut floors, mut found, mut stats) = (Latencies::default(), Latencies::default(), Stats::default());
        for _ in 0..setup.runs {
            floors.add(by_loop(setup, &probes, &mut work)?);
            let (latencies, cost) = cold(setup, way, &probes, &mut work)?;
            found.add(latencies);
            stats = cost;
        }
        for (percent, values, floors) in [(50, &found.p50, &floors.p50), (99, &found.p99, &floors.p99)] {
            let id = format!("read.random.{}.p{percent}", way.id());
            let what = format!("4 KiB read {}, p{percent} of {} reads a run", way.what(), probes.len());
            let figure = Figure::new(&id, &what, Unit::Microseconds, values).floor(FLOOR, floors);
            findings.figures.push(figure.temperature(Temperature::Cold).work(&work.hash()));
        }
        add_costs(way, &probes, &stats, findings);
    }
    Ok(())
}

/// What the last run's reads cost the registry.
fn add_costs(way: Way, probes: &[Probe], stats: &Stats, findings: &mut Findings) {
    let reads = probes.len() as f64;
    let needed: u64 = probes.iter().map(|probe| probe.compressed).sum();
    let read = reads * READ_BYTES as f64;
    let id = |name: &str| format!("read.random.{}.{name}", way.id());
    let cold = |figure: Figure| figure.temperature(Temperature::Cold);
    let requests = Figure::new(&id("requests"), "requests a read", Unit::Count, &[stats.requests as f64 / reads]);
    findings.figures.push(cold(requests.floor("one", &[1.0])));
    let fetched = Figure::new(&id("fetched"), "bytes fetched a byte read", Unit::Count, &[stats.bytes_fetched as f64 / read]);
    findings.figures.push(cold(fetched.floor("the compressed bytes of the spans needed, once", &[needed as f64 / read])));
}

/// Reads in the large file, in random order, each inside one span that no other touches.
fn probes(setup: &Setup) -> Vec<Probe> {
    let (table, large) = (setup.large_table(), &setup.clip.large);
    let mut draws = Draws::new(0x4b);
    let mut spans: Vec<u32> = (0..table.len()).collect();
    for at in (1..spans.len()).rev() {
        spans.swap(at, draws.below(at as u64 + 1) as usize);
    }
    let in_file = |span: u32| {
        let range = table.stream_range(SpanIndex(span));
        let start = range.start.max(large.stream) - large.stream;
        let end = range.end.min(large.stream + large.len).saturating_sub(large.stream);
        let (first, last) = (start.div_ceil(READ_BYTES as u64), end / READ_BYTES as u64);
        let at = (first < last).then(|| (first + draws.below(last - first)) * READ_BYTES as u64)?;
        let compressed = table.compressed_range(table.entry_of(SpanIndex(span)));
        Some(Probe { at, compressed: compressed.end - compressed.start })
    };
    spans.into_iter().filter_map(in_file).take(setup.random_reads).collect()
}

/// Times `read` at each probe and hashes what it gave.
fn each(probes: &[Probe], work: &mut SameWork, mut read: impl FnMut(u64, &mut [u8]) -> Result<()>) -> Result<Vec<Duration>> {
    let (mut hasher, mut buffer) = (blake3::Hasher::new(), [0; READ_BYTES]);
    let mut latencies = Vec::with_capacity(probes.len());
    for probe in probes {
        let started = Instant::now();
        read(probe.at, &mut buffer)?;
        latencies.push(started.elapsed());
        hasher.update(&buffer);
    }
    work.check("random reads", hasher.finalize())?;
    Ok(latencies)
}

fn by_loop(setup: &Setup, probes: &[Probe], work: &mut SameWork) -> Result<Vec<Duration>> {
    let mut spans = SpanLoop::new(setup.origin.ranges(setup.clip.large.layer)?, setup.large_table(), &setup.clip.windows);
    each(probes, work, |at, buffer| spans.read(setup.clip.large.stream + at, buffer))
}

fn cold(setup: &Setup, way: Way, probes: &[Probe], work: &mut SameWork) -> Result<(Vec<Duration>, Stats)> {
    let (cache, large) = (setup.fresh_dir()?, &setup.clip.large);
    let (engine, image) = setup.open(cache.path())?;
    let latencies = match way {
        Way::Library => each(probes, work, |at, buffer| Ok(image.read_exact_at(large.layer, large.stream + at, buffer)?))?,
        Way::Mount => {
            let mountpoint = setup.fresh_dir()?;
            let mounted = mount::mount(image, mountpoint.path())?;
            let file = File::open(mountpoint.path().join(&large.path))?;
            let latencies = each(probes, work, |at, buffer| Ok(file.read_exact_at(buffer, at)?))?;
            drop(file);
            mount::end(mounted)?;
            latencies
        }
    };
    Ok((latencies, engine.stats()))
}
