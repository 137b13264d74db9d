//! Cold reads of 4 KiB, each of a span that nobody has read.

use std::{
    os::unix::ffi::OsStrExt as _,
    time::{Duration, Instant},
};

use anyhow::Result;
use clip_format::units::SpanIndex;

use super::{
    Bench, Way,
    session::{CostRuns, Session},
};
use crate::{
    corpus::content::Draws,
    floor::SpanLoop,
    measure::{Findings, SameWork},
    report::{Figure, Temperature, Unit, percentile_us},
    setup::Setup,
};

/// Bytes of one read. Source: a page; what a fault of a mapped file asks for at least.
pub(super) const READ_BYTES: usize = 4096;
const FLOOR: &str = "fetch, inflate and verify of one span by a plain loop over one open connection; no engine, no cache, no FUSE";
/// The project's own bars, of the ratios through FUSE.
const P50_BAR: f64 = 1.25;
const P99_BAR: f64 = 2.0;

/// Latencies by percentile, in microseconds, one a run; and all of them.
#[derive(Default)]
pub(super) struct Latencies {
    pub(super) p50: Vec<f64>,
    pub(super) p99: Vec<f64>,
    pub(super) all: Vec<f64>,
}

impl Latencies {
    pub(super) fn add(&mut self, mut latencies: Vec<Duration>) {
        self.p50.push(percentile_us(&mut latencies, 50));
        self.p99.push(percentile_us(&mut latencies, 99));
        self.all.extend(latencies.iter().map(|latency| latency.as_secs_f64() * 1e6));
    }
}

pub(super) fn measure(bench: &Bench<'_>, findings: &mut Findings) -> Result<()> {
    let setup = bench.setup;
    let probes = probes(setup, setup.random_reads);
    let mut work = SameWork::default();
    for &way in &bench.ways {
        let (mut floors, mut found, mut costs) = (Latencies::default(), Latencies::default(), CostRuns::default());
        for _ in 0..setup.runs {
            let cache = setup.fresh_dir()?;
            let session = Session::open(bench, way, cache.path())?;
            let (by_loop, by_clip) = in_turns(&session, &probes, &mut work)?;
            floors.add(by_loop);
            found.add(by_clip);
            costs.add(&session.costs());
            session.end()?;
        }
        let percentiles = [(50, &found.p50, &floors.p50, P50_BAR), (99, &found.p99, &floors.p99, P99_BAR)];
        for (percent, values, floors_of, bar) in percentiles {
            let id = format!("read.random.{}.p{percent}", way.id());
            let what = format!("4 KiB read {}, p{percent} of {} reads a run", way.what(), probes.len());
            let mut figure = Figure::new(&id, &what, Unit::Microseconds, values).floor(FLOOR, floors_of);
            if way == Way::Mount {
                figure = figure.bar_of_ratio(bar);
            }
            if percent == 50 {
                figure = costs.beside(figure, bench).distribution("clip", &found.all).distribution("floor", &floors.all);
            }
            findings.figures.push(figure.temperature(Temperature::Cold).work(&work.hash()));
        }
    }
    Ok(())
}

/// Reads in the large file, in random order, each inside one span that no other touches: places in the file.
pub(super) fn probes(setup: &Setup, count: usize) -> Vec<u64> {
    let (table, large) = (setup.large_table(), &setup.clip.large);
    let mut draws = Draws::new(setup.seed ^ 0x4b);
    let mut spans: Vec<u32> = (0..table.len()).collect();
    for at in (1..spans.len()).rev() {
        spans.swap(at, draws.below(at as u64 + 1) as usize);
    }
    let in_file = |span: u32| {
        let range = table.stream_range(SpanIndex(span));
        let start = range.start.max(large.stream) - large.stream;
        let end = range.end.min(large.stream + large.len).saturating_sub(large.stream);
        let (first, last) = (start.div_ceil(READ_BYTES as u64), end / READ_BYTES as u64);
        (first < last).then(|| (first + draws.below(last - first)) * READ_BYTES as u64)
    };
    spans.into_iter().filter_map(in_file).take(count).collect()
}

/// Each probe by the plain loop, then by clip, so that a loaded machine slows both: the latencies of each.
fn in_turns(session: &Session<'_>, probes: &[u64], work: &mut SameWork) -> Result<(Vec<Duration>, Vec<Duration>)> {
    let setup = session.setup;
    let large = &setup.clip.large;
    let mut spans = SpanLoop::new(setup.origin.ranges(large.layer)?, setup.large_table(), &setup.clip.windows);
    let mut reader = session.reader();
    let (mut by_loop, mut by_clip) = (Timed::default(), Timed::default());
    for &at in probes {
        by_loop.time(|buffer| spans.read(large.stream + at, buffer))?;
        by_clip.time(|buffer| reader.read(large.path.as_os_str().as_bytes(), at, buffer))?;
    }
    work.check("random reads by the plain loop", by_loop.hasher.finalize())?;
    work.check("random reads", by_clip.hasher.finalize())?;
    Ok((by_loop.took, by_clip.took))
}

/// Reads that were timed, and the hash of what they gave.
#[derive(Default)]
pub(super) struct Timed {
    pub(super) took: Vec<Duration>,
    pub(super) hasher: blake3::Hasher,
}

impl Timed {
    pub(super) fn time(&mut self, read: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<()> {
        let mut buffer = [0; READ_BYTES];
        let started = Instant::now();
        read(&mut buffer)?;
        self.took.push(started.elapsed());
        self.hasher.update(&buffer);
        Ok(())
    }
}
