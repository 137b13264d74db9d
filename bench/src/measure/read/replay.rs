//! A list of reads, replayed cold, warm and in the page cache; against the spans they need, and against ordinary files.

use std::{
    collections::BTreeSet,
    fs::File,
    os::unix::{ffi::OsStrExt as _, fs::FileExt as _},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clip_format::units::{LayerIndex, SpanIndex, StreamOffset};
use tempfile::TempDir;

use super::{
    Bench, Way,
    session::{CostRuns, FileReader, Session},
};
use crate::{
    floor::SpanLoop,
    measure::{Findings, SameWork},
    report::{Figure, Temperature, Unit, milliseconds},
    setup::Setup,
    tree::{self, Piece},
};

const SPANS: &str =
    "fetch, inflate and verify of the spans needed, each once, by a plain loop over one connection; no engine, no cache, no FUSE";
const FILES: &str = "the same reads of ordinary files, in the page cache";

/// One read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Op {
    /// Into the plan's paths.
    pub(super) path: usize,
    /// Where in the file.
    pub(super) at: u64,
    /// How much; inside the file.
    pub(super) len: usize,
}

/// Reads, one after another.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) paths: Vec<Vec<u8>>,
    pub(super) ops: Vec<Op>,
    /// Each read opens its file anew.
    pub(super) opens_each: bool,
}

/// What the figures are called.
pub(super) struct Names<'a> {
    /// `trace`
    pub(super) id: &'a str,
    /// In words.
    pub(super) what: &'a str,
}

/// Milliseconds: of each whole replay, and of each read of all runs.
#[derive(Default)]
struct Times {
    whole: Vec<f64>,
    reads: Vec<f64>,
}

impl Times {
    fn add(&mut self, reads: Vec<Duration>) {
        self.whole.push(milliseconds(reads.iter().sum()));
        self.reads.extend(reads.into_iter().map(milliseconds));
    }
}

/// Replays `plan` each way.
pub(super) fn measure(bench: &Bench<'_>, plan: &Plan, names: &Names<'_>, findings: &mut Findings) -> Result<()> {
    let needed = Needed::of(bench.setup, plan)?;
    let ordinary = Ordinary::write(bench, plan)?;
    let mut work = SameWork::default();
    for &way in &bench.ways {
        let (mut spans, mut files, mut costs) = (Vec::new(), Times::default(), CostRuns::default());
        let mut states = [Temperature::Cold, Temperature::Warm, Temperature::PageCache].map(|state| (state, Times::default()));
        for _ in 0..bench.setup.runs {
            spans.push(milliseconds(needed.by_loop(bench.setup)?));
            files.add(ordinary.replay(plan, &mut work)?);
            let cache = bench.setup.fresh_dir()?;
            let mut session = Session::open(bench, way, cache.path())?;
            states[0].1.add(replay(session.reader(), plan, &mut work)?);
            costs.add(&session.costs());
            session.wait_until_cached(&needed.pieces)?;
            session.remount(bench)?;
            states[1].1.add(replay(session.reader(), plan, &mut work)?);
            if way == Way::Mount {
                states[2].1.add(replay(session.reader(), plan, &mut work)?);
            }
            session.end()?;
        }
        for (state, times) in states.iter().filter(|(_, times)| !times.whole.is_empty()) {
            let (floor, floors) = if *state == Temperature::Cold { (SPANS, &spans) } else { (FILES, &files.whole) };
            let id = format!("read.{}.{}.{}", names.id, way.id(), state.id());
            let figure = Figure::new(&id, &format!("{} {}", names.what, way.what()), Unit::Milliseconds, &times.whole);
            let figure = figure.floor(floor, floors).temperature(*state).work(&work.hash());
            let figure = figure.distribution("one read", &times.reads);
            let figure =
                if *state == Temperature::Cold { costs.beside(figure, bench) } else { figure.distribution("ordinary file", &files.reads) };
            findings.figures.push(figure);
        }
    }
    Ok(())
}

/// Times each read and hashes what it gave.
fn replay(mut reader: FileReader<'_>, plan: &Plan, work: &mut SameWork) -> Result<Vec<Duration>> {
    each(plan, work, |path, at, buffer| {
        if plan.opens_each {
            reader.close_all();
        }
        reader.read(path, at, buffer)
    })
}

fn each(plan: &Plan, work: &mut SameWork, mut read: impl FnMut(&[u8], u64, &mut [u8]) -> Result<()>) -> Result<Vec<Duration>> {
    let longest = plan.ops.iter().map(|op| op.len).max().unwrap_or_default();
    let (mut hasher, mut buffer) = (blake3::Hasher::new(), vec![0; longest]);
    let mut took = Vec::with_capacity(plan.ops.len());
    for op in &plan.ops {
        let part = &mut buffer[..op.len];
        let started = Instant::now();
        read(&plan.paths[op.path], op.at, part)?;
        took.push(started.elapsed());
        hasher.update(part);
    }
    work.check("the reads replayed", hasher.finalize())?;
    Ok(took)
}

/// What a plan needs of the layers.
struct Needed {
    /// The bytes read.
    pieces: Vec<Piece>,
    /// The spans that hold them, a layer at a time.
    spans: BTreeSet<(u16, u32)>,
}

impl Needed {
    fn of(setup: &Setup, plan: &Plan) -> Result<Self> {
        let index = &setup.clip.index;
        let mut needed = Self { pieces: Vec::new(), spans: BTreeSet::new() };
        let inodes =
            plan.paths.iter().map(|path| index.resolve(path)?.with_context(|| format!("no file {}", String::from_utf8_lossy(path))));
        let files: Vec<Vec<Piece>> = inodes.map(|inode| tree::pieces(index, &inode?)).collect::<Result<_>>()?;
        for op in plan.ops.iter().filter(|op| op.len > 0) {
            let end = op.at + op.len as u64;
            for piece in &files[op.path] {
                let (from, to) = (op.at.max(piece.file), end.min(piece.file + piece.len));
                if from < to {
                    let stream = piece.stream + (from - piece.file);
                    needed.add(setup, Piece { file: from, layer: piece.layer, stream, len: to - from })?;
                }
            }
        }
        Ok(needed)
    }

    fn add(&mut self, setup: &Setup, piece: Piece) -> Result<()> {
        let table = setup.clip.checkpoints.layer(piece.layer);
        let span = |at| table.span_at(StreamOffset(at)).context("a file past its layer's stream");
        let (first, last) = (span(piece.stream)?, span(piece.stream + piece.len - 1)?);
        self.spans.extend((first.get()..=last.get()).map(|span| (piece.layer.get(), span)));
        self.pieces.push(piece);
        Ok(())
    }

    fn by_loop(&self, setup: &Setup) -> Result<Duration> {
        let mut loops: Vec<Option<SpanLoop<'_>>> = (0..setup.clip.info.layers.len()).map(|_| None).collect();
        let mut took = Duration::ZERO;
        for &(layer, span) in &self.spans {
            let index = LayerIndex(layer);
            let slot = &mut loops[usize::from(layer)];
            let spans = match slot {
                Some(spans) => spans,
                // Opened before the clock, as clip's own connections are not: it opens several.
                None => slot.insert(SpanLoop::new(setup.origin.ranges(index)?, setup.clip.checkpoints.layer(index), &setup.clip.windows)),
            };
            let started = Instant::now();
            spans.decode(SpanIndex(span))?;
            took += started.elapsed();
        }
        Ok(took)
    }
}

/// The plan's files as ordinary ones.
struct Ordinary(TempDir);

impl Ordinary {
    fn write(bench: &Bench<'_>, plan: &Plan) -> Result<Self> {
        let (dir, cache) = (bench.setup.fresh_dir()?, bench.setup.fresh_dir()?);
        let session = Session::open(bench, Way::Library, cache.path())?;
        let mut reader = session.reader();
        for path in &plan.paths {
            let inode = session.image.index().resolve(path)?.context("a path of the plan")?;
            let to = Self::path(dir.path(), path);
            if let Some(parent) = to.parent() {
                std::fs::create_dir_all(parent)?;
            }
            let file = File::create(&to).with_context(|| format!("create {}", to.display()))?;
            let mut buffer = vec![0; usize::try_from(inode.size.min(8 << 20))?];
            let mut at = 0;
            while at < inode.size {
                let len = usize::try_from((inode.size - at).min(buffer.len() as u64))?;
                reader.read(path, at, &mut buffer[..len])?;
                file.write_all_at(&buffer[..len], at)?;
                at += len as u64;
            }
        }
        drop(reader);
        session.end()?;
        Ok(Self(dir))
    }

    fn path(dir: &Path, path: &[u8]) -> std::path::PathBuf {
        dir.join(std::ffi::OsStr::from_bytes(path))
    }

    fn replay(&self, plan: &Plan, work: &mut SameWork) -> Result<Vec<Duration>> {
        replay(FileReader::Mount { root: self.0.path(), open: std::collections::HashMap::new() }, plan, work)
    }
}
