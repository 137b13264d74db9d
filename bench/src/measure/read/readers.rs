//! Several readers of one cold file at once: each span must be fetched once, and nobody should wait longer for it.

use std::{os::unix::ffi::OsStrExt as _, time::Duration};

use anyhow::{Context, Result, ensure};

use super::{
    Bench,
    session::{CostRuns, Session},
};
use crate::{
    floor::PIECE_BYTES,
    measure::{Findings, timed},
    report::{Figure, Temperature, Unit, milliseconds},
};

const READERS: usize = 8;
const FLOOR: &str = "one reader of the same file, as cold";
/// The project's own bars.
const TIME_BAR: f64 = 1.15;
const FETCHED_BAR: f64 = 1.05;
/// Bytes of each piece that one reader compares with what they should be. Source: chosen: together the readers compare all of a piece's
/// first half, each of them too little to be slowed by it.
const COMPARED_BYTES: usize = PIECE_BYTES / READERS / 2;

pub(super) fn measure(bench: &Bench<'_>, findings: &mut Findings) -> Result<()> {
    let setup = bench.setup;
    let plain = setup.plain()?;
    let expected = std::fs::read(&plain.path).with_context(|| format!("read {}", plain.path.display()))?;
    for &way in &bench.ways {
        let (mut one, mut all, mut costs) = (Vec::new(), Vec::new(), CostRuns::default());
        for _ in 0..setup.runs {
            for readers in [1, READERS] {
                let cache = setup.fresh_dir()?;
                let session = Session::open(bench, way, cache.path())?;
                let took = milliseconds(read_at_once(&session, &expected, readers)?);
                if readers == 1 {
                    one.push(took);
                } else {
                    all.push(took);
                    costs.add(&session.costs());
                }
                session.end()?;
            }
        }
        let what =
            format!("{READERS} readers of one file of {} MB at once, each from start to end {}", expected.len() / 1_000_000, way.what());
        let time = Figure::new(&format!("read.readers.{}.time", way.id()), &what, Unit::Milliseconds, &all);
        let time = costs.beside(time.floor(FLOOR, &one).bar_of_ratio(TIME_BAR), bench);
        findings.figures.push(time.temperature(Temperature::Cold).work(&plain.hash));
        let what = "bytes fetched over the compressed bytes of the spans needed, each once";
        let fetched = Figure::new(&format!("read.readers.{}.fetched", way.id()), what, Unit::Count, costs.fetched());
        findings.figures.push(fetched.bar_of_value(FETCHED_BAR).temperature(Temperature::Cold).work(&plain.hash));
    }
    Ok(())
}

/// How long `readers` threads take to read the large file.
fn read_at_once(session: &Session<'_>, expected: &[u8], readers: usize) -> Result<Duration> {
    let read = |number: usize| read_whole(session, expected, number);
    let (took, ()) = timed(|| {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..readers).map(|number| scope.spawn(move || read(number))).collect();
            threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("a reader panicked"))?)
        })
    })?;
    Ok(took)
}

/// Reader `number` compares a part of each piece that no other does.
fn read_whole(session: &Session<'_>, expected: &[u8], number: usize) -> Result<()> {
    let (mut reader, mut buffer) = (session.reader(), vec![0; PIECE_BYTES]);
    let path = session.setup.clip.large.path.as_os_str().as_bytes();
    for (piece, expected) in expected.chunks(PIECE_BYTES).enumerate() {
        let found = &mut buffer[..expected.len()];
        reader.read(path, (piece * PIECE_BYTES) as u64, found)?;
        let from = (number * COMPARED_BYTES).min(expected.len());
        let part = from..(from + COMPARED_BYTES).min(expected.len());
        ensure!(found[part.clone()] == expected[part], "reader {number} found other bytes in piece {piece}");
    }
    Ok(())
}
