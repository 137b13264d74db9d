//! The large file from its start to its end.

use std::{
    fs::File,
    os::unix::{ffi::OsStrExt as _, fs::FileExt as _},
    path::Path,
};

use anyhow::{Context, Result};
use clip_format::storage_info::Codec;

use super::{
    Bench, Way,
    session::{CostRuns, Session},
};
use crate::{
    floor::{self, PIECE_BYTES},
    machine,
    measure::{Cost, Findings, SameWork, costed},
    report::{Figure, Temperature, Unit, megabytes_per_second, milliseconds},
    setup::Setup,
    tree::Piece,
};

const CACHED: &str = "pread of the same bytes of the cache file";
const PLAIN: &str = "read of an ordinary file with the same bytes in the page cache";
/// The project's own bar, of the ratio to inflate.
const COLD_BAR: f64 = 0.9;

/// Runs of one way to read the file in one state.
#[derive(Default)]
struct Runs {
    /// MB/s.
    rates: Vec<f64>,
    /// Milliseconds of all threads but the registry's and the shaper's, kernel included.
    cpu: Vec<f64>,
    /// Cores.
    registry: Vec<f64>,
    costs: CostRuns,
}

impl Runs {
    fn add(&mut self, setup: &Setup, cost: Cost) {
        self.rates.push(megabytes_per_second(setup.clip.large.len, cost.wall));
        self.cpu.push(milliseconds(cost.cpu));
    }

    fn add_cold(&mut self, session: &Session<'_>, cost: Cost) {
        let costs = session.costs();
        self.rates.push(megabytes_per_second(session.setup.clip.large.len, cost.wall));
        self.cpu.push(milliseconds(cost.cpu.saturating_sub(costs.registry)));
        self.registry.push(costs.registry.as_secs_f64() / cost.wall.as_secs_f64());
        self.costs.add(&costs);
    }
}

/// The place that the large file is read into, and what must stand there afterwards.
struct Reader<'a> {
    setup: &'a Setup,
    buffer: Vec<u8>,
    work: SameWork,
}

/// Inflate of the file's layer, beside which all cold reads stand.
#[derive(Default)]
struct Inflates {
    rates: Vec<f64>,
    cpu: Vec<f64>,
}

impl Inflates {
    fn add(&mut self, setup: &Setup) -> Result<()> {
        let blob = setup.origin.blob(setup.clip.large.layer)?;
        let (cost, made) = costed(|| floor::inflate(setup.large_codec(), &blob))?;
        self.rates.push(megabytes_per_second(made, cost.wall));
        // The layer holds more than the file.
        self.cpu.push(milliseconds(cost.cpu) * setup.clip.large.len as f64 / made.max(1) as f64);
        Ok(())
    }
}

pub(super) fn measure(bench: &Bench<'_>, findings: &mut Findings) -> Result<()> {
    let setup = bench.setup;
    let mut reader = Reader::new(setup)?;
    for &way in &bench.ways {
        let (mut inflates, mut beside, mut states) = (Inflates::default(), Vec::new(), States::default());
        for _ in 0..setup.runs {
            inflates.add(setup)?;
            let cache = setup.fresh_dir()?;
            states.cold(bench, way, &mut reader, cache.path())?;
            match way {
                Way::Library => {
                    states.library_warm(bench, &mut reader, cache.path())?;
                    beside.push(reader.rate("the cache file", |buffer| read_cache_file(setup, cache.path(), buffer))?);
                }
                Way::Mount => {
                    beside.push(reader.rate("ordinary file", |buffer| floor::read_file(&setup.plain()?.path, buffer))?);
                    states.mount_warm(bench, &mut reader, cache.path())?;
                }
            }
        }
        states.figures(bench, way, &inflates, &beside, &reader.work.hash(), findings);
    }
    Ok(())
}

/// The cold read through FUSE, or the library where there are no mounts, over TLS.
pub(super) fn measure_https(bench: &Bench<'_>, findings: &mut Findings) -> Result<()> {
    let setup = bench.setup;
    let (Some(made), Some(&way)) = (&setup.made, bench.ways.last()) else {
        findings.skip("read https", "needs the image that clip-bench makes; leave out --clip");
        return Ok(());
    };
    if setup.origin.is_shaped() {
        findings.skip("read https", "the shaper stands before plain HTTP only");
        return Ok(());
    }
    let (mut reader, mut inflates, mut runs) = (Reader::new(setup)?, Inflates::default(), Runs::default());
    for _ in 0..setup.runs {
        inflates.add(setup)?;
        let cache = setup.fresh_dir()?;
        let (engine, image) = setup.open_tls(&made.registry, cache.path())?;
        let session = Session::over(bench, way, engine, image)?;
        let cost = reader.cost("over TLS, cold", |buffer| read_large(&session, buffer))?;
        runs.add_cold(&session, cost);
        session.end()?;
    }
    let what = format!("{} MB file, read from start to end {}, over TLS", setup.clip.large.len / 1_000_000, way.what());
    let id = format!("read.https.{}.cold", way.id());
    cold_figures(bench, &id, &what, &runs, &inflates, &reader.work.hash(), findings);
    Ok(())
}

/// One way, all states.
#[derive(Default)]
struct States {
    cold: Runs,
    unverified: Runs,
    warm: Runs,
    pages: Runs,
}

impl States {
    fn cold(&mut self, bench: &Bench<'_>, way: Way, reader: &mut Reader<'_>, cache: &Path) -> Result<()> {
        let session = Session::open(bench, way, cache)?;
        let cost = reader.cost("cold", |buffer| read_large(&session, buffer))?;
        self.cold.add_cold(&session, cost);
        session.wait_until_cached(&[large_piece(bench.setup)])?;
        session.end()
    }

    /// A new engine over the same cache, twice.
    fn library_warm(&mut self, bench: &Bench<'_>, reader: &mut Reader<'_>, cache: &Path) -> Result<()> {
        let session = Session::open(bench, Way::Library, cache)?;
        self.unverified.add(bench.setup, reader.cost("unverified", |buffer| read_large(&session, buffer))?);
        bench.forget()?;
        self.warm.add(bench.setup, reader.cost("warm", |buffer| read_large(&session, buffer))?);
        session.end()
    }

    /// A new engine that must verify the cache; then a new mount of it, whose pages the kernel does not have; then again.
    fn mount_warm(&mut self, bench: &Bench<'_>, reader: &mut Reader<'_>, cache: &Path) -> Result<()> {
        let mut session = Session::open(bench, Way::Mount, cache)?;
        self.unverified.add(bench.setup, reader.cost("unverified", |buffer| read_large(&session, buffer))?);
        session.remount(bench)?;
        self.warm.add(bench.setup, reader.cost("warm", |buffer| read_large(&session, buffer))?);
        self.pages.add(bench.setup, reader.cost("page cache", |buffer| read_large(&session, buffer))?);
        session.end()
    }

    fn figures(&self, bench: &Bench<'_>, way: Way, inflates: &Inflates, beside: &[f64], work: &blake3::Hash, findings: &mut Findings) {
        let what = format!("{} MB file, read from start to end {}", bench.setup.clip.large.len / 1_000_000, way.what());
        let id = |state: Temperature| format!("read.sequential.{}.{}", way.id(), state.id());
        cold_figures(bench, &id(Temperature::Cold), &what, &self.cold, inflates, work, findings);
        let floor = if way == Way::Library { CACHED } else { PLAIN };
        let states = [(Temperature::Unverified, &self.unverified), (Temperature::Warm, &self.warm), (Temperature::PageCache, &self.pages)];
        for (state, runs) in states.into_iter().filter(|(_, runs)| !runs.rates.is_empty()) {
            let figure = Figure::new(&id(state), &what, Unit::MegabytesPerSecond, &runs.rates).floor(floor, beside);
            let figure = figure.counter("processor time, kernel included", Unit::Milliseconds, &runs.cpu);
            findings.figures.push(figure.temperature(state).work(work));
        }
    }
}

fn cold_figures(bench: &Bench<'_>, id: &str, what: &str, runs: &Runs, inflates: &Inflates, work: &blake3::Hash, findings: &mut Findings) {
    let codec = bench.setup.large_codec();
    let floor = format!("{} the file's layer in memory, one core", floor::decoder(codec));
    let rate = Figure::new(id, what, Unit::MegabytesPerSecond, &runs.rates).floor(&floor, &inflates.rates);
    let mut rate = runs.costs.beside(rate, bench);
    if bench.setup.made.is_some() {
        rate = rate.counter("cores taken by the registry meanwhile", Unit::Count, &runs.registry);
    }
    // The bar is for plain HTTP through FUSE, of gzip, from a registry that nothing slows.
    if id == "read.sequential.fuse.cold" && codec == Codec::Gzip && !bench.setup.origin.is_shaped() {
        rate = rate.bar_of_ratio(COLD_BAR);
    }
    findings.figures.push(rate.temperature(Temperature::Cold).work(work));
    let cpu = Figure::new(
        &format!("{id}.cpu"),
        "processor time of the same without the registry, kernel included",
        Unit::Milliseconds,
        &runs.cpu,
    );
    findings.figures.push(cpu.floor("the same decoder over the file's bytes", &inflates.cpu).temperature(Temperature::Cold).work(work));
}

fn large_piece(setup: &Setup) -> Piece {
    let large = &setup.clip.large;
    Piece { file: 0, layer: large.layer, stream: large.stream, len: large.len }
}

/// The whole large file, a piece at a time.
fn read_large(session: &Session<'_>, buffer: &mut [u8]) -> Result<()> {
    let path = &session.setup.clip.large.path;
    match session.mountpoint() {
        Some(root) => floor::read_file(&root.join(path), buffer),
        None => {
            let mut reader = session.reader();
            let pieces = buffer.chunks_mut(PIECE_BYTES).enumerate();
            pieces
                .into_iter()
                .try_for_each(|(number, piece)| reader.read(path.as_os_str().as_bytes(), (number * PIECE_BYTES) as u64, piece))
        }
    }
}

/// The same bytes straight from the layer's cache file below `cache`.
fn read_cache_file(setup: &Setup, cache: &Path, buffer: &mut [u8]) -> Result<()> {
    let digest = setup.clip.info.layers[usize::from(setup.clip.large.layer.get())].digest;
    let layer = cache.join("layers").join(digest.algorithm()).join(digest.to_hex());
    let stream = File::open(machine::find_file(&layer, "stream")?)?;
    let start = setup.clip.large.stream;
    let pieces = buffer.chunks_mut(PIECE_BYTES).enumerate();
    Ok(pieces.into_iter().try_for_each(|(piece, out)| stream.read_exact_at(out, start + (piece * PIECE_BYTES) as u64))?)
}

impl<'a> Reader<'a> {
    fn new(setup: &'a Setup) -> Result<Self> {
        let len = usize::try_from(setup.clip.large.len)?;
        // Written once, so that no run pays for the pages.
        Ok(Self { setup, buffer: vec![1; len], work: SameWork::expect(setup.plain()?.hash) })
    }

    /// MB/s at which `read` fills the buffer with the large file.
    fn rate(&mut self, what: &str, read: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<f64> {
        Ok(megabytes_per_second(self.setup.clip.large.len, self.cost(what, read)?.wall))
    }

    /// What it costs when `read` fills the buffer with the large file; the hash is taken after the clock.
    fn cost(&mut self, what: &str, read: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<Cost> {
        // A read that does nothing must not find the last run's bytes.
        self.buffer.iter_mut().step_by(PIECE_BYTES).for_each(|byte| *byte = !*byte);
        let (cost, ()) = costed(|| read(&mut self.buffer))?;
        self.work.check(what, blake3::hash(&self.buffer)).with_context(|| self.first_difference())?;
        Ok(cost)
    }

    /// Where the buffer first differs from the file as it should be.
    fn first_difference(&self) -> String {
        let expected = self.setup.plain().and_then(|plain| Ok(std::fs::read(&plain.path)?));
        let Ok(expected) = expected else { return "the ordinary file cannot be read".to_owned() };
        let differs = |at: &usize| expected.get(*at) != self.buffer.get(*at);
        let len = expected.len().max(self.buffer.len());
        let (first, count) = ((0..len).find(differs), (0..len).filter(differs).count());
        let stream = first.map(|at| self.setup.clip.large.stream + at as u64);
        format!("{count} wrong bytes of {len}, the first at {first:?}, {stream:?} of the layer's stream")
    }
}
