//! Many small files, each opened, read whole and closed, in the order of their paths.

use anyhow::Result;

use super::{
    Bench,
    replay::{self, Names, Op, Plan},
};
use crate::{measure::Findings, setup::Scale};

/// A small file is at most so long. Source: the corpus' own; an import of Python modules reads such.
const SMALL_BYTES_MAX: u64 = 64 << 10;

pub(super) fn measure(bench: &Bench<'_>, findings: &mut Findings) -> Result<()> {
    // Enough that one run takes a second or so without a cache.
    let files_max = if bench.setup.scale == Scale::Tiny { 30 } else { 10_000 };
    let small = bench.setup.clip.files.iter().filter(|file| (1..=SMALL_BYTES_MAX).contains(&file.len)).take(files_max);
    let (paths, lens): (Vec<_>, Vec<_>) = small.map(|file| (file.path.clone(), file.len as usize)).unzip();
    if paths.is_empty() {
        findings.skip("read many", "the image has no small files");
        return Ok(());
    }
    let ops = lens.into_iter().enumerate().map(|(path, len)| Op { path, at: 0, len }).collect();
    let plan = Plan { paths, ops, opens_each: true };
    let what = format!("{} small files opened, read and closed, one after another,", plan.ops.len());
    replay::measure(bench, &plan, &Names { id: "many", what: &what }, findings)
}
