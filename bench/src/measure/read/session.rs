//! An image opened one way, and what reading it cost.

use std::{
    collections::HashMap,
    fs::File,
    os::unix::{ffi::OsStrExt as _, fs::FileExt as _},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clip_engine::{Engine, Image, ReadStream, Stats};
use clip_format::erofs::Inode;
use clip_fuse::Mounted;
use tempfile::TempDir;

use super::{Bench, Way};
use crate::{
    floor::PIECE_BYTES,
    measure::mount,
    origin,
    registry::Served,
    report::{Figure, Unit},
    setup::Setup,
    tree,
};

/// What writing to the cache may take after the last read. Source: chosen; reaching it is an error.
const CACHED_WITHIN: Duration = Duration::from_secs(120);

/// An engine, an image, and a mount where that is the way.
pub(super) struct Session<'a> {
    pub(super) setup: &'a Setup,
    pub(super) image: Arc<Image>,
    mounted: Option<(Mounted, TempDir)>,
    engine: Engine,
    before: Served,
}

impl<'a> Session<'a> {
    /// Over `cache`; empty, all reads are cold.
    pub(super) fn open(bench: &Bench<'a>, way: Way, cache: &Path) -> Result<Self> {
        let (engine, image) = bench.setup.open(cache)?;
        Self::over(bench, way, engine, image)
    }

    pub(super) fn over(bench: &Bench<'a>, way: Way, engine: Engine, image: Arc<Image>) -> Result<Self> {
        let mounted = match way {
            Way::Library => None,
            Way::Mount => Some(mounted(bench.setup, &image)?),
        };
        bench.forget()?;
        let before = origin::served(bench.setup.made.as_ref().map(|made| &made.registry));
        Ok(Self { setup: bench.setup, image, mounted, engine, before })
    }

    /// The same engine behind a new mount: the kernel has none of its pages.
    pub(super) fn remount(&mut self, bench: &Bench<'a>) -> Result<()> {
        if let Some((old, _dir)) = self.mounted.take() {
            mount::end(old)?;
            self.mounted = Some(mounted(self.setup, &self.image)?);
        }
        bench.forget()
    }

    /// Where the mount is.
    pub(super) fn mountpoint(&self) -> Option<&Path> {
        self.mounted.as_ref().map(|(_, dir)| dir.path())
    }

    /// A reader of files by path, which remembers what it has open.
    pub(super) fn reader(&self) -> FileReader<'_> {
        match self.mountpoint() {
            Some(root) => FileReader::Mount { root, open: HashMap::new() },
            None => FileReader::Library { image: &self.image, open: HashMap::new() },
        }
    }

    /// What the engine and the registry have done since the session began.
    pub(super) fn costs(&self) -> Costs {
        let served = origin::served(self.setup.made.as_ref().map(|made| &made.registry));
        Costs { stats: self.engine.stats(), registry: served.since(self.before).cpu }
    }

    /// Readers are answered before the cache is written: waits until nothing of `pieces` is missing.
    pub(super) fn wait_until_cached(&self, pieces: &[tree::Piece]) -> Result<()> {
        let deadline = Instant::now() + CACHED_WITHIN;
        for piece in pieces {
            while self.image.present(piece.layer, piece.stream..piece.stream + piece.len).is_none() {
                ensure!(Instant::now() < deadline, "the cache was not written within {CACHED_WITHIN:?}");
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        Ok(())
    }

    /// Unmounts; the engine goes with the session.
    pub(super) fn end(mut self) -> Result<()> {
        self.mounted.take().map_or(Ok(()), |(mounted, _dir)| mount::end(mounted))
    }
}

fn mounted(setup: &Setup, image: &Arc<Image>) -> Result<(Mounted, TempDir)> {
    let dir = setup.fresh_dir()?;
    Ok((mount::mount(image.clone(), dir.path())?, dir))
}

/// What reads cost besides time.
pub(super) struct Costs {
    pub(super) stats: Stats,
    /// The registry's time on a core, where it is in this process.
    pub(super) registry: Duration,
}

/// One value a run.
#[derive(Default)]
pub(super) struct CostRuns {
    fetched: Vec<f64>,
    decoded: Vec<f64>,
    requests: Vec<f64>,
    connections: Vec<f64>,
    idle_ms: Vec<f64>,
    registry_ms: Vec<f64>,
}

impl CostRuns {
    pub(super) fn add(&mut self, costs: &Costs) {
        let Stats { bytes_fetched, bytes_needed_compressed, bytes_decoded, bytes_needed, requests, connections, .. } = costs.stats;
        self.fetched.push(bytes_fetched as f64 / (bytes_needed_compressed as f64).max(1.0));
        self.decoded.push(bytes_decoded as f64 / (bytes_needed as f64).max(1.0));
        self.requests.push(requests as f64);
        self.connections.push(connections as f64);
        self.idle_ms.push(costs.stats.shard_idle_with_work_us as f64 / 1e3);
        self.registry_ms.push(costs.registry.as_secs_f64() * 1e3);
    }

    /// `figure` with these beside it.
    pub(super) fn beside(&self, figure: Figure, bench: &Bench<'_>) -> Figure {
        let figure = figure
            .counter("fetched / needed", Unit::Count, &self.fetched)
            .counter("decoded / needed", Unit::Count, &self.decoded)
            .counter("requests", Unit::Count, &self.requests);
        let figure = self.beside_of_shards(figure);
        if bench.setup.made.is_some() {
            figure.counter("the registry's time on a core", Unit::Milliseconds, &self.registry_ms)
        } else {
            figure
        }
    }

    /// `figure` with how many connections there were, and how long cores that had work left it alone.
    pub(super) fn beside_of_shards(&self, figure: Figure) -> Figure {
        figure.counter("connections opened", Unit::Count, &self.connections).counter(
            "shards asleep while a decode job waited, together",
            Unit::Milliseconds,
            &self.idle_ms,
        )
    }

    /// Bytes fetched over the compressed bytes of the spans needed.
    pub(super) fn fetched(&self) -> &[f64] {
        &self.fetched
    }
}

/// Reads files by path.
pub(super) enum FileReader<'a> {
    Library { image: &'a Arc<Image>, open: HashMap<Vec<u8>, (Inode, ReadStream)> },
    Mount { root: &'a Path, open: HashMap<Vec<u8>, File> },
}

impl FileReader<'_> {
    /// Forgets what is open: the next read of each file opens it anew.
    pub(super) fn close_all(&mut self) {
        match self {
            Self::Library { open, .. } => open.clear(),
            Self::Mount { open, .. } => open.clear(),
        }
    }

    /// Fills `buffer` from `at` of the file at `path`, opening it when it is not.
    pub(super) fn read(&mut self, path: &[u8], at: u64, buffer: &mut [u8]) -> Result<()> {
        let len = buffer.len();
        let context = || format!("read {len} bytes at {at} of {}", String::from_utf8_lossy(path));
        match self {
            Self::Library { image, open } => {
                if !open.contains_key(path) {
                    let inode = image.index().resolve(path)?.with_context(|| format!("no file {}", String::from_utf8_lossy(path)))?;
                    open.insert(path.to_vec(), (inode, ReadStream::default()));
                }
                let (inode, stream) = &open[path];
                read_library(image, inode, stream, at, buffer).with_context(context)
            }
            Self::Mount { root, open } => {
                if !open.contains_key(path) {
                    let file = root.join(std::ffi::OsStr::from_bytes(path));
                    open.insert(path.to_vec(), File::open(&file).with_context(|| format!("open {}", file.display()))?);
                }
                open[path].read_exact_at(buffer, at).with_context(context)
            }
        }
    }
}

/// A reader that tells where it is, as the mount does, so that the engine may read ahead; holes are zeros.
fn read_library(image: &Arc<Image>, inode: &Inode, stream: &ReadStream, at: u64, buffer: &mut [u8]) -> Result<()> {
    let end = at + buffer.len() as u64;
    ensure!(end <= inode.size, "expected a range of a file of {} bytes, found {at}..{end}", inode.size);
    for extent in image.index().extents(inode, at..end) {
        let extent = extent?;
        let part = &mut buffer[usize::try_from(extent.file.start - at)?..usize::try_from(extent.file.end - at)?];
        let Some((layer, start)) = extent.data else {
            part.fill(0);
            continue;
        };
        let mut from = start.get();
        for piece in part.chunks_mut(PIECE_BYTES) {
            let to = from + piece.len() as u64;
            image.note_read(stream, layer, from..to, start.get() + (inode.size - extent.file.start));
            image.read_exact_at(layer, from, piece)?;
            from = to;
        }
    }
    Ok(())
}
