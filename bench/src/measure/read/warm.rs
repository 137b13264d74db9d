//! The large file through a mount whose cache has it: against the trivial file system over a copy of the cache file.

use std::path::Path;

use anyhow::Result;

use crate::{
    floor,
    measure::{Findings, SameWork, timed},
    report::{Figure, Temperature, Unit, megabytes_per_second},
    serve::{Served, Server},
    setup::Setup,
};

const FLOOR: &str = "the trivial FUSE file system over a copy of the cache file";
/// Of the floor's rate. Source: the project's own bar.
const BAR: f64 = 0.9;

/// MB/s, one a run.
#[derive(Default)]
struct Rates {
    verifying: Vec<f64>,
    clip: Vec<f64>,
    floor: Vec<f64>,
    clip_pages: Vec<f64>,
    floor_pages: Vec<f64>,
}

/// Rates of a sequential read through FUSE of what the cache has: by a new process, which verifies it first; by that process through a
/// fresh mount, of which the kernel has no pages; and again.
///
/// # Errors
/// Every kind; wrong bytes are an error.
pub(super) fn measure(setup: &Setup, hash: blake3::Hash, findings: &mut Findings) -> Result<()> {
    let path = &setup.clip.large.path;
    let (cache, ours, theirs) = (setup.fresh_dir()?, setup.fresh_dir()?, setup.fresh_dir()?);
    let mut filler = Served::start(Server::Clip, &setup.clip.path, cache.path(), ours.path())?;
    filler.fill()?;
    filler.end()?;
    let mut floor = Served::start(Server::Trivial, &setup.clip.path, cache.path(), theirs.path())?;
    let mut rates = Rates::default();
    let mut reader = Reader { buffer: vec![1; usize::try_from(setup.clip.large.len)?], work: SameWork::expect(hash) };
    // The floor's map has its pages before the clock starts, as clip's has after the verifying read.
    reader.rate(&theirs.path().join(path))?;
    for run in 0..setup.runs {
        let mut clip = Served::start(Server::Clip, &setup.clip.path, cache.path(), ours.path())?;
        rates.verifying.push(reader.rate(&ours.path().join(path))?);
        let mut ours = (&mut clip, &mut rates.clip, &mut rates.clip_pages);
        let mut theirs = (&mut floor, &mut rates.floor, &mut rates.floor_pages);
        let turns = if run % 2 == 0 { [&mut theirs, &mut ours] } else { [&mut ours, &mut theirs] };
        for (served, fresh, pages) in turns {
            served.remount()?;
            let file = served.mountpoint().join(path);
            fresh.push(reader.rate(&file)?);
            pages.push(reader.rate(&file)?);
        }
        clip.end()?;
    }
    floor.end()?;
    let what = format!("{} MB file, read from start to end through FUSE", setup.clip.large.len / 1_000_000);
    let mut add = |name: &str, what: &str, temperature, values: &[f64], floors: &[f64], bar: Option<f64>| {
        let figure = Figure::new(&format!("read.warm.{name}"), what, Unit::MegabytesPerSecond, values);
        let figure = figure.floor(FLOOR, floors).temperature(temperature).work(&reader.work.hash());
        findings.figures.push(match bar {
            Some(bar) => figure.bar_of_ratio(bar),
            None => figure,
        });
    };
    add("fresh", &what, Temperature::Warm, &rates.clip, &rates.floor, Some(BAR));
    add("pages", &what, Temperature::PageCache, &rates.clip_pages, &rates.floor_pages, Some(BAR));
    let what = format!("{what} by a process that verifies it first");
    add("verifying", &what, Temperature::Unverified, &rates.verifying, &rates.floor, None);
    Ok(())
}

struct Reader {
    buffer: Vec<u8>,
    work: SameWork,
}

impl Reader {
    /// MB/s at which `file` is read whole.
    fn rate(&mut self, file: &Path) -> Result<f64> {
        // A read that does nothing must not find the last run's bytes.
        self.buffer.iter_mut().step_by(floor::PIECE_BYTES).for_each(|byte| *byte = !*byte);
        let (took, ()) = timed(|| floor::read_file(file, &mut self.buffer))?;
        self.work.check("a warm read", blake3::hash(&self.buffer))?;
        Ok(megabytes_per_second(self.buffer.len() as u64, took))
    }
}
