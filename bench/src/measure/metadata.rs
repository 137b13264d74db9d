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
/// Of the floor's rate. Source: the bar of the design.
const BAR: f64 = 0.9;
/// Clients at a time.
const THREADS: [usize; 2] = [1, 4];

/// Rates of one storm with so many threads, one a run.
#[derive(Default)]
struct Rates {
    clip_cold: Vec<f64>,
    clip_warm: Vec<f64>,
    floor_cold: Vec<f64>,
    floor_warm: Vec<f64>,
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
            let (mut rates, mut work) = (Rates::default(), SameWork::default());
            for run in 0..setup.runs {
                let mut each = |served: &mut Served, cold: &mut Vec<f64>, warm: &mut Vec<f64>| -> Result<()> {
                    served.remount()?;
                    for rates in [cold, warm] {
                        let (rate, hash) = storm.rate(served.mountpoint(), &targets, threads)?;
                        work.check(storm.what(), hash)?;
                        rates.push(rate);
                    }
                    Ok(())
                };
                // In turn, so that neither always comes after the other.
                if run % 2 == 0 {
                    each(&mut floor, &mut rates.floor_cold, &mut rates.floor_warm)?;
                    each(&mut clip, &mut rates.clip_cold, &mut rates.clip_warm)?;
                } else {
                    each(&mut clip, &mut rates.clip_cold, &mut rates.clip_warm)?;
                    each(&mut floor, &mut rates.floor_cold, &mut rates.floor_warm)?;
                }
            }
            add(storm, threads, &targets, &rates, &work.hash(), &mut findings);
        }
    }
    floor.end()?;
    clip.end()?;
    Ok(findings)
}

fn add(storm: Storm, threads: usize, targets: &Targets, rates: &Rates, work: &blake3::Hash, findings: &mut Findings) {
    let (cold, warm) = (Temperature::Warm, Temperature::PageCache);
    for (name, temperature, values, floors) in
        [("fresh", cold, &rates.clip_cold, &rates.floor_cold), ("cached", warm, &rates.clip_warm, &rates.floor_warm)]
    {
        let state = if name == "fresh" { "in a fresh mount" } else { "once the kernel has them" };
        let what = format!("{} {state}, {} of them, {threads} at a time", storm.what(), storm.operations(targets));
        let figure = Figure::new(&format!("metadata.{}.{name}.{threads}", storm.id()), &what, Unit::PerSecond, values);
        findings.figures.push(figure.floor(FLOOR, floors).bar_of_ratio(BAR).temperature(temperature).work(work));
    }
}
