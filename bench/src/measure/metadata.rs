//! Storms of stat, of names that do not exist, of open+read+close and of readdir, against the trivial file system.

mod storm;

use anyhow::Result;

use super::{Findings, SameWork};
use crate::{
    machine,
    report::{Figure, Temperature, Unit},
    serve::{Served, Server},
    setup::Setup,
};
use storm::{Storm, Targets};

/// `clip-bench metadata`
#[derive(Clone, Debug, Default, clap::Args)]
pub struct MetadataArgs {}

const FLOOR: &str = "the trivial FUSE file system with the same tree, bytes and settings";
/// Of the floor's rate. Source: the project's own bar.
const BAR: f64 = 0.9;
/// Clients at a time.
const THREADS: [usize; 2] = [1, 4];

/// What one side came to in one storm, one value a run.
#[derive(Default)]
struct Side {
    /// Operations a second, through a fresh mount.
    fresh: Vec<f64>,
    /// Again, in the kernel's caches.
    cached: Vec<f64>,
    /// Microseconds of the server's on a core, an operation through a fresh mount: what other work on the machine hardly changes.
    server: Vec<f64>,
}

/// Operations a second of each storm, through a fresh mount and again in the kernel's caches.
///
/// # Errors
/// Every kind; other names, attributes or bytes than the floor's are an error.
pub fn measure(setup: &Setup, _args: &MetadataArgs) -> Result<Findings> {
    let mut findings = Findings::default();
    if let Some(reason) = machine::no_mounts() {
        findings.skipped.push(format!("metadata: {reason}"));
        return Ok(findings);
    }
    let (cache, ours, theirs) = (setup.fresh_dir()?, setup.fresh_dir()?, setup.fresh_dir()?);
    let mut clip = Served::start(Server::Clip, &setup.clip.path, cache.path(), ours.path())?;
    clip.fill()?;
    let mut floor = Served::start(Server::Trivial, &setup.clip.path, cache.path(), theirs.path())?;
    let targets = Targets::of(&setup.clip.index)?;
    for storm in Storm::ALL {
        for threads in THREADS {
            let (mut ours, mut theirs, mut work) = (Side::default(), Side::default(), SameWork::default());
            for run in 0..setup.runs {
                // In turn, so that neither always comes after the other.
                let mut sides = [(&mut floor, &mut theirs), (&mut clip, &mut ours)];
                if run % 2 == 1 {
                    sides.reverse();
                }
                for (served, side) in sides {
                    side.measure(storm, served, &targets, threads, &mut work)?;
                }
            }
            add(
                &format!("{}, {} of them, {threads} at a time", storm.what(), storm.operations(&targets)),
                &format!("{}.{threads}", storm.id()),
                [&ours, &theirs],
                &work.hash(),
                &mut findings,
            );
        }
    }
    floor.end()?;
    clip.end()?;
    Ok(findings)
}

impl Side {
    fn measure(&mut self, storm: Storm, served: &mut Served, targets: &Targets, threads: usize, work: &mut SameWork) -> Result<()> {
        served.remount()?;
        let before = served.cpu()?;
        let (fresh, hash) = storm.rate(served.mountpoint(), targets, threads)?;
        let server = served.cpu()?.saturating_sub(before);
        work.check(storm.what(), hash)?;
        let (cached, hash) = storm.rate(served.mountpoint(), targets, threads)?;
        work.check(storm.what(), hash)?;
        self.fresh.push(fresh);
        self.cached.push(cached);
        self.server.push(server.as_secs_f64() * 1e6 / storm.operations(targets).max(1) as f64);
        Ok(())
    }
}

/// The figures of one storm: `ours` against `theirs`.
fn add(what: &str, id: &str, [ours, theirs]: [&Side; 2], work: &blake3::Hash, findings: &mut Findings) {
    let fresh = Figure::new(&format!("metadata.{id}.fresh"), &format!("{what}, in a fresh mount"), Unit::PerSecond, &ours.fresh);
    let fresh = fresh
        .floor(FLOOR, &theirs.fresh)
        .bar_of_ratio(BAR)
        .counter("processor time of the server, an operation", Unit::Microseconds, &ours.server)
        .counter("processor time of the floor's server, an operation", Unit::Microseconds, &theirs.server);
    findings.figures.push(fresh.temperature(Temperature::Warm).work(work));
    let cached = Figure::new(&format!("metadata.{id}.cached"), &format!("{what}, once the kernel has them"), Unit::PerSecond, &ours.cached);
    findings.figures.push(cached.floor(FLOOR, &theirs.cached).bar_of_ratio(BAR).temperature(Temperature::PageCache).work(work));
}
