//! The large file from its start to its end.

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clip_engine::{Image, ReadStream, Stats};
use clip_format::storage_info::Codec;

use super::Way;
use crate::{
    corpus::LARGE_LAYER,
    floor::{self, PIECE_BYTES},
    machine,
    measure::{Cost, Findings, SameWork, costed, mount},
    report::{Figure, Temperature, Unit, megabytes_per_second, milliseconds},
    setup::{Made, Setup},
};

const INFLATE: &str = "zlib-rs inflates the file's layer in memory, one core";
const CACHED: &str = "pread of the same bytes of the cache file";
const PLAIN: &str = "read of an ordinary file with the same bytes in the page cache";

/// What writing the large file to the cache may take. Source: chosen; reaching it is an error.
const CACHED_WITHIN: Duration = Duration::from_secs(60);

/// Rates in MB/s, one a run.
#[derive(Default)]
struct Rates {
    inflate: Vec<f64>,
    cached: Vec<f64>,
    plain: Vec<f64>,
    library_cold: Vec<f64>,
    library_warm: Vec<f64>,
    fuse_cold: Vec<f64>,
    fuse_unverified: Vec<f64>,
    fuse_warm: Vec<f64>,
    fuse_pages: Vec<f64>,
    /// Milliseconds of all threads but the registry's, while the mount was read cold.
    fuse_cold_cpu: Vec<f64>,
    /// Milliseconds.
    inflate_cpu: Vec<f64>,
    /// Cores, while the mount was read cold.
    registry_cpu: Vec<f64>,
}

/// The place that the large file is read into, and what must stand there afterwards.
struct Reader<'a> {
    setup: &'a Setup,
    made: &'a Made,
    buffer: Vec<u8>,
    work: SameWork,
}

pub(super) fn measure(setup: &Setup, made: &Made, ways: &[Way], findings: &mut Findings) -> Result<()> {
    let len = usize::try_from(setup.clip.large.len)?;
    // Written once, so that no run pays for the pages.
    let mut reader = Reader { setup, made, buffer: vec![1; len], work: SameWork::expect(made.corpus.large_hash) };
    let (mut rates, mut costs) = (Rates::default(), Vec::new());
    for _ in 0..setup.runs {
        let layer = &made.corpus.layers[LARGE_LAYER];
        let (inflate, _) = costed(|| floor::inflate(Codec::Gzip, &layer.blob))?;
        rates.inflate.push(megabytes_per_second(layer.stream_bytes, inflate.wall));
        rates.inflate_cpu.push(milliseconds(inflate.cpu));
        rates.plain.push(reader.rate("ordinary file", |buffer| floor::read_file(&made.corpus.plain_file(), buffer))?);
        let cache = setup.fresh_dir()?;
        costs = vec![(Way::Library, library(&mut reader, cache.path(), &mut rates)?)];
        if ways.contains(&Way::Mount) {
            fuse_cached(&mut reader, cache.path(), &mut rates)?;
            costs.push((Way::Mount, fuse_cold(&mut reader, &mut rates)?));
        }
    }
    add_rates(setup, ways, &rates, &reader.work.hash(), findings);
    for (way, stats) in costs {
        add_costs(setup, way, &stats, findings);
    }
    Ok(())
}

fn add_rates(setup: &Setup, ways: &[Way], rates: &Rates, work: &blake3::Hash, findings: &mut Findings) {
    let mut add = |name: &str, way: Way, temperature, values: &[f64], floor: &str, floors: &[f64]| {
        let id = format!("read.sequential.{}.{name}", way.id());
        let what = format!("{} MB file, read from start to end {}", setup.clip.large.len / 1_000_000, way.what());
        let figure = Figure::new(&id, &what, Unit::MegabytesPerSecond, values).floor(floor, floors);
        findings.figures.push(figure.temperature(temperature).work(work));
    };
    add("cold", Way::Library, Temperature::Cold, &rates.library_cold, INFLATE, &rates.inflate);
    add("warm", Way::Library, Temperature::Warm, &rates.library_warm, CACHED, &rates.cached);
    if ways.contains(&Way::Mount) {
        add("cold", Way::Mount, Temperature::Cold, &rates.fuse_cold, INFLATE, &rates.inflate);
        add("unverified", Way::Mount, Temperature::Unverified, &rates.fuse_unverified, PLAIN, &rates.plain);
        add("warm", Way::Mount, Temperature::Warm, &rates.fuse_warm, PLAIN, &rates.plain);
        add("page_cache", Way::Mount, Temperature::PageCache, &rates.fuse_pages, PLAIN, &rates.plain);
        let what = "processor time of the cold read through FUSE, all threads but the registry's, kernel included";
        let cpu = Figure::new("read.sequential.fuse.cold.cpu", what, Unit::Milliseconds, &rates.fuse_cold_cpu);
        findings.figures.push(cpu.floor(INFLATE, &rates.inflate_cpu).temperature(Temperature::Cold).work(work));
        let what = "cores taken by the registry itself during the cold read through FUSE";
        findings.figures.push(Figure::new("read.sequential.fuse.registry_cpu", what, Unit::Count, &rates.registry_cpu));
    }
}

/// What the last cold run cost the registry.
fn add_costs(setup: &Setup, way: Way, stats: &Stats, findings: &mut Findings) {
    let (large, table) = (&setup.clip.large, setup.large_table());
    let mib = large.len as f64 / f64::from(1 << 20);
    let id = |name: &str| format!("read.sequential.{}.{name}", way.id());
    let mut add = |figure: Figure, floor: &str, value: f64| {
        findings.figures.push(figure.floor(floor, &[value]).temperature(Temperature::Cold));
    };
    let requests = Figure::new(&id("requests"), "requests a MiB read", Unit::Count, &[stats.requests as f64 / mib]);
    add(requests, "one request for the whole blob", 1.0 / mib);
    let fetched = Figure::new(&id("fetched"), "bytes fetched a byte read", Unit::Count, &[stats.bytes_fetched as f64 / large.len as f64]);
    add(fetched, "the layer's blob, once", table.compressed_size() as f64 / large.len as f64);
}

/// Cold, then warm, then the same bytes straight from the cache file.
fn library(reader: &mut Reader<'_>, cache: &Path, rates: &mut Rates) -> Result<Stats> {
    let (setup, made) = (reader.setup, reader.made);
    let (engine, image) = setup.open(cache)?;
    rates.library_cold.push(reader.rate("library, cold", |buffer| read_image(setup, &image, buffer))?);
    let stats = engine.stats();
    wait_until_cached(setup, &image)?;
    rates.library_warm.push(reader.rate("library, warm", |buffer| read_image(setup, &image, buffer))?);
    let layer = cache.join("layers/sha256").join(made.corpus.layers[LARGE_LAYER].digest.to_hex());
    let stream = File::open(machine::find_file(&layer, "stream")?)?;
    let start = setup.clip.large.stream;
    rates.cached.push(reader.rate("cache file", |buffer| {
        let pieces = buffer.chunks_mut(PIECE_BYTES).enumerate();
        Ok(pieces.into_iter().try_for_each(|(piece, out)| stream.read_exact_at(out, start + (piece * PIECE_BYTES) as u64))?)
    })?);
    Ok(stats)
}

/// Readers are answered before the cache is written: waits until every byte of the large file is on disk.
fn wait_until_cached(setup: &Setup, image: &Image) -> Result<()> {
    let (large, deadline) = (&setup.clip.large, Instant::now() + CACHED_WITHIN);
    while image.present(large.layer, large.stream..large.stream + large.len).is_none() {
        ensure!(Instant::now() < deadline, "the cache was not written within {CACHED_WITHIN:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// A reader that tells where it is, as the mount does, so that the engine may read ahead.
fn read_image(setup: &Setup, image: &Arc<Image>, buffer: &mut [u8]) -> Result<()> {
    let (large, stream) = (&setup.clip.large, ReadStream::default());
    let mut at = large.stream;
    for piece in buffer.chunks_mut(PIECE_BYTES) {
        let end = at + piece.len() as u64;
        image.note_read(&stream, large.layer, at..end, large.stream + large.len);
        image.read_exact_at(large.layer, at, piece)?;
        at = end;
    }
    Ok(())
}

/// An engine that finds the bytes in the cache and must verify them; then a new mount, whose pages the kernel does not have; then again.
fn fuse_cached(reader: &mut Reader<'_>, cache: &Path, rates: &mut Rates) -> Result<()> {
    let (_engine, image) = reader.setup.open(cache)?;
    let mountpoint = reader.setup.fresh_dir()?;
    let setup = reader.setup;
    let file = mountpoint.path().join(&setup.clip.large.path);
    let mounted = mount::mount(image.clone(), mountpoint.path())?;
    rates.fuse_unverified.push(reader.rate("FUSE, unverified", |buffer| floor::read_file(&file, buffer))?);
    mount::end(mounted)?;
    let mounted = mount::mount(image, mountpoint.path())?;
    rates.fuse_warm.push(reader.rate("FUSE, warm", |buffer| floor::read_file(&file, buffer))?);
    rates.fuse_pages.push(reader.rate("FUSE, page cache", |buffer| floor::read_file(&file, buffer))?);
    mount::end(mounted)
}

fn fuse_cold(reader: &mut Reader<'_>, rates: &mut Rates) -> Result<Stats> {
    let (setup, made) = (reader.setup, reader.made);
    let (cache, mountpoint) = (setup.fresh_dir()?, setup.fresh_dir()?);
    let (engine, image) = setup.open(cache.path())?;
    let mounted = mount::mount(image, mountpoint.path())?;
    let file = mountpoint.path().join(&setup.clip.large.path);
    let before = made.registry.served();
    let cost = reader.cost("FUSE, cold", |buffer| floor::read_file(&file, buffer))?;
    let registry = made.registry.served().since(before).cpu;
    rates.fuse_cold.push(megabytes_per_second(setup.clip.large.len, cost.wall));
    rates.fuse_cold_cpu.push(milliseconds(cost.cpu.saturating_sub(registry)));
    rates.registry_cpu.push(registry.as_secs_f64() / cost.wall.as_secs_f64());
    mount::end(mounted)?;
    Ok(engine.stats())
}

impl Reader<'_> {
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

    /// Where the buffer first differs from the file as the corpus has it.
    fn first_difference(&self) -> String {
        let Ok(expected) = std::fs::read(self.made.corpus.plain_file()) else { return "the ordinary file cannot be read".to_owned() };
        let differs = |at: &usize| expected.get(*at) != self.buffer.get(*at);
        let len = expected.len().max(self.buffer.len());
        let (first, count) = ((0..len).find(differs), (0..len).filter(differs).count());
        let stream = first.map(|at| self.setup.clip.large.stream + at as u64);
        format!("{count} wrong bytes of {len}, the first at {first:?}, {stream:?} of the layer's stream")
    }
}
