//! Random cold reads while the rest of the image is brought in the background: a reader must not wait behind it.

use std::os::unix::ffi::OsStrExt as _;

use anyhow::Result;
use clip_engine::FillOptions;

use super::{
    Bench,
    random::{Latencies, Timed, probes},
    session::{CostRuns, Session},
};
use crate::{
    measure::{Findings, SameWork},
    report::{Figure, Temperature, Unit},
    setup::Scale,
};

const FLOOR: &str = "the same reads of an idle engine";
/// The project's own bar, of the ratio of the p99s.
const P99_BAR: f64 = 3.0;
/// Reads of one run. Source: chosen: fewer than a fill of 1 GiB leaves time for.
const READS: usize = 100;

pub(super) fn measure(bench: &Bench<'_>, findings: &mut Findings) -> Result<()> {
    let setup = bench.setup;
    let probes = probes(setup, if setup.scale == Scale::Tiny { 3 } else { READS });
    let mut work = SameWork::default();
    for &way in &bench.ways {
        let (mut idle, mut filling, mut absent, mut costs) = (Latencies::default(), Latencies::default(), Vec::new(), CostRuns::default());
        for _ in 0..setup.runs {
            for fills in [false, true] {
                let cache = setup.fresh_dir()?;
                let session = Session::open(bench, way, cache.path())?;
                let fill = fills.then(|| session.image.fill(FillOptions::default()));
                let (mut timed, mut reader) = (Timed::default(), session.reader());
                for &at in &probes {
                    timed.time(|buffer| reader.read(setup.clip.large.path.as_os_str().as_bytes(), at, buffer))?;
                }
                work.check("random reads beside a fill", timed.hasher.finalize())?;
                match &fill {
                    Some(fill) => {
                        let progress = fill.progress();
                        absent.push(1.0 - progress.spans_done as f64 / (progress.spans as f64).max(1.0));
                        filling.add(timed.took);
                        costs.add(&session.costs());
                    }
                    None => idle.add(timed.took),
                }
                drop((fill, reader));
                session.end()?;
            }
        }
        for (percent, values, floors) in [(50, &filling.p50, &idle.p50), (99, &filling.p99, &idle.p99)] {
            let what = format!("4 KiB cold read {} while the image is filled, p{percent} of {} reads a run", way.what(), probes.len());
            let figure = Figure::new(&format!("read.fill.{}.p{percent}", way.id()), &what, Unit::Microseconds, values);
            let mut figure = figure.floor(FLOOR, floors).temperature(Temperature::Cold).work(&work.hash());
            if percent == 99 {
                figure = figure.bar_of_ratio(P99_BAR).distribution("while filling", &filling.all).distribution("idle", &idle.all);
                figure = figure.counter("part of the image still absent after the last read", Unit::Count, &absent);
                figure = costs.beside_of_shards(figure);
            }
            findings.figures.push(figure);
        }
    }
    Ok(())
}
