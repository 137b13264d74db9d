//! A recorded trace, or one made from the seed: what a program that starts does to its files.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};

use clip_format::profile::{self, Profile};

use super::{
    Bench, recorded,
    replay::{self, Names, Op, Plan},
};
use crate::{
    corpus::content::Draws,
    measure::Findings,
    setup::{Scale, Setup},
};

/// Longest read of a trace. Source: chosen; the kernel's own are at most 1 MiB, a line may stand for several.
const READ_BYTES_MAX: u64 = 1 << 30;
/// What the kernel reads around a page fault of a mapped library. Source: linux, VM_READAHEAD_PAGES, 128 KiB.
const FAULT_BYTES: u64 = 128 << 10;

pub(super) fn measure(bench: &Bench<'_>, findings: &mut Findings) -> Result<()> {
    let (plan, what) = match &bench.args.trace {
        Some(path) => {
            let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
            let plan = match bytes.starts_with(&profile::MAGIC) {
                true => Profile::from_bytes(&bytes).map_err(Into::into).and_then(|profile| recorded::plan(&profile, &bench.setup.clip)),
                false => parse(&String::from_utf8_lossy(&bytes), |path| file_len(bench.setup, path)),
            };
            let plan = plan.with_context(|| path.display().to_string())?;
            (plan, format!("the trace {}", path.file_name().unwrap_or(path.as_os_str()).display()))
        }
        None => (made_up(bench.setup), "a made-up program start".to_owned()),
    };
    if plan.ops.is_empty() {
        findings.skip("read trace", "the trace has no reads");
        return Ok(());
    }
    let what = format!("{what}, {} reads of {} files,", plan.ops.len(), plan.paths.len());
    replay::measure(bench, &plan, &Names { id: "trace", what: &what }, findings)
}

fn file_len(setup: &Setup, path: &[u8]) -> Result<Option<u64>> {
    Ok(setup.clip.index.resolve(path)?.map(|inode| inode.size))
}

/// `PATH OFFSET LENGTH` a line; a length that reaches past the file's end is cut, as a read would be.
fn parse(text: &str, file_len: impl Fn(&[u8]) -> Result<Option<u64>>) -> Result<Plan> {
    let (mut plan, mut known) = (Plan { paths: Vec::new(), ops: Vec::new(), opens_each: false }, HashMap::new());
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = || format!("line {}: expected PATH OFFSET LENGTH, found {line:?}", number + 1);
        let mut fields = line.rsplitn(3, ' ');
        let (len, at, path) = (fields.next(), fields.next(), fields.next());
        let (Some(len), Some(at), Some(path)) = (len, at, path) else { anyhow::bail!(wrong()) };
        let (len, at): (u64, u64) = (len.parse().with_context(wrong)?, at.parse().with_context(wrong)?);
        ensure!(len <= READ_BYTES_MAX, "line {}: expected a length up to {READ_BYTES_MAX}, found {len}", number + 1);
        let path = path.trim_start_matches('/').as_bytes();
        let (slot, size) = match known.get(path) {
            Some(found) => *found,
            None => {
                let size = file_len(path)?
                    .with_context(|| format!("line {}: the image has no file {}", number + 1, String::from_utf8_lossy(path)))?;
                plan.paths.push(path.to_vec());
                known.insert(path.to_vec(), (plan.paths.len() - 1, size));
                (plan.paths.len() - 1, size)
            }
        };
        let len = usize::try_from(len.min(size.saturating_sub(at)))?;
        if len > 0 {
            plan.ops.push(Op { path: slot, at, len });
        }
    }
    Ok(plan)
}

/// Small files read whole, page faults in libraries, and a stretch of the largest file: a program start in small.
fn made_up(setup: &Setup) -> Plan {
    let rounds = if setup.scale == Scale::Tiny { 10 } else { 400 };
    let mut draws = Draws::new(setup.seed ^ 0x7ace);
    let (small, large): (Vec<_>, Vec<_>) = setup.clip.files.iter().filter(|file| file.len > 0).partition(|file| file.len <= 64 << 10);
    let (mut plan, mut known) = (Plan { paths: Vec::new(), ops: Vec::new(), opens_each: false }, HashMap::new());
    let mut add = |path: &[u8], at: u64, len: u64| {
        let slot = *known.entry(path.to_vec()).or_insert_with(|| {
            plan.paths.push(path.to_vec());
            plan.paths.len() - 1
        });
        plan.ops.push(Op { path: slot, at, len: len as usize });
    };
    for round in 0..rounds {
        // Modules of one package lie side by side.
        if let Some(last) = small.len().checked_sub(1) {
            let first = draws.below(small.len() as u64) as usize;
            small[first..=(first + 4).min(last)].iter().for_each(|file| add(&file.path, 0, file.len));
        }
        if !large.is_empty() && round % 4 == 0 {
            let file = large[draws.below(large.len() as u64) as usize];
            // Every library is mapped: its head, then faults close to each other.
            add(&file.path, 0, file.len.min(4096));
            let around = draws.below(file.len);
            for _ in 0..4 {
                let at = (around + draws.below(1 << 20)).min(file.len.saturating_sub(FAULT_BYTES));
                add(&file.path, at, file.len.min(FAULT_BYTES));
            }
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn sizes(path: &[u8]) -> Result<Option<u64>> {
        Ok((path != b"missing").then_some(100))
    }

    /// Claim: lines are reads in order, paths may hold spaces, and what reaches past the end is cut.
    #[test]
    fn a_trace_is_read_line_by_line() {
        let plan = parse("# recorded\n/usr/a b 0 10\n\nusr/c 90 4096\n/usr/a b 50 10\nusr/c 100 5\n", sizes).unwrap();
        assert_eq!(plan.paths, [b"usr/a b".to_vec(), b"usr/c".to_vec()]);
        let ops: Vec<_> = plan.ops.iter().map(|op| (op.path, op.at, op.len)).collect();
        assert_eq!(ops, [(0, 0, 10), (1, 90, 10), (0, 50, 10)]);
    }

    /// Claim: a line that is none, a number that is none and a file that is not there are errors that name the line.
    #[test]
    fn wrong_lines_are_named() {
        for wrong in ["usr/a\n", "\nusr/a 1 x\n", "usr/a -1 1\n", "missing 0 1\n", "usr/a 0 99999999999999\n"] {
            let error = format!("{:#}", parse(wrong, sizes).unwrap_err());
            assert!(error.contains("line"), "{wrong:?}: {error}");
        }
    }
}
