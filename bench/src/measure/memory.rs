//! What indexing and mounting hold in memory, each in a process of its own.

mod idle;

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::{Findings, SameWork};
use crate::{
    child::Memory,
    corpus::{TAG_ALL, TAG_LARGE},
    machine,
    report::{Figure, Temperature, Unit},
    setup::{Setup, sections_hash},
};

const FLOOR: &str = "the same program, doing nothing";

/// `clip-bench memory`
#[derive(Clone, Debug, Default, clap::Args)]
pub struct MemoryArgs {}

/// Peaks of resident memory (VmHWM) of indexing and of a mount, and a mount's anonymous memory.
///
/// # Errors
/// When a child fails.
pub fn measure(setup: &Setup, _args: &MemoryArgs) -> Result<Findings> {
    let mut findings = Findings::default();
    let Some(made) = &setup.made else {
        findings.skip("memory", "needs the image that clip-bench makes; leave out --clip");
        return Ok(findings);
    };
    let mut idle = Vec::new();
    for _ in 0..setup.runs {
        idle.extend(child(&["idle"])?);
    }
    let peaks = |runs: &[Memory]| runs.iter().map(|memory| mebibytes(memory.peak_kib)).collect::<Vec<_>>();
    let anonymous = |runs: &[Memory]| runs.iter().map(|memory| mebibytes(memory.anonymous_kib)).collect::<Vec<_>>();
    for (tag, image) in [(TAG_LARGE, "one large layer"), (TAG_ALL, "three layers at once")] {
        let (mut runs, mut work) = (Vec::new(), SameWork::default());
        for _ in 0..setup.runs {
            let memory = child(&["index", &made.registry.reference(tag)])?;
            check_work(&mut work, &memory)?;
            runs.extend(memory);
        }
        if tag == TAG_ALL {
            work.check("index in a child", sections_hash(&setup.clip.bytes)?)?;
        }
        let what = format!("peak of a process that indexes {image} from the registry (VmHWM)");
        let figure = Figure::new(&format!("memory.index.{tag}"), &what, Unit::Mebibytes, &peaks(&runs));
        findings.figures.push(figure.floor(FLOOR, &peaks(&idle)).work(&work.hash()));
    }
    if let Some(reason) = machine::no_mounts() {
        findings.skipped.push(format!("memory of a mount: {reason}"));
        return Ok(findings);
    }
    let (mut mounted, mut read, mut work) = (Vec::new(), Vec::new(), SameWork::expect(made.corpus.large_hash));
    for _ in 0..setup.runs {
        let (cache, mountpoint) = (setup.fresh_dir()?, setup.fresh_dir()?);
        let paths = [setup.clip.path.as_path(), mountpoint.path(), cache.path()];
        let paths = paths.map(|path| path.to_str().context("a temporary path that is not UTF-8"));
        let [clip, mountpoint, cache] = paths;
        let memory = child(&["mount", clip?, mountpoint?, cache?])?;
        let [first, second] = &memory[..] else { anyhow::bail!("expected two reports of a mount, found {}", memory.len()) };
        check_work(&mut work, std::slice::from_ref(second))?;
        mounted.push(first.clone());
        read.push(second.clone());
    }
    let megabytes = setup.clip.large.len / 1_000_000;
    let figures = [
        (
            "memory.mount.idle",
            "anonymous memory of a process with one mount, after the first stat".to_owned(),
            anonymous(&mounted),
            anonymous(&idle),
            Temperature::Cold,
        ),
        (
            "memory.mount.peak",
            "peak of a process with one mount, after the first stat (VmHWM)".to_owned(),
            peaks(&mounted),
            peaks(&idle),
            Temperature::Cold,
        ),
        (
            "memory.mount.read",
            format!("the same after {megabytes} MB were read cold through it, the map of the cache included"),
            peaks(&read),
            peaks(&idle),
            Temperature::Warm,
        ),
        (
            "memory.mount.read.anonymous",
            format!("anonymous memory after {megabytes} MB were read cold through it"),
            anonymous(&read),
            anonymous(&idle),
            Temperature::Warm,
        ),
    ];
    for (id, what, values, floors, temperature) in figures {
        let figure = Figure::new(id, &what, Unit::Mebibytes, &values).floor(FLOOR, &floors);
        findings.figures.push(figure.temperature(temperature).work(&work.hash()));
    }
    match &setup.clip_program {
        Some(program) => idle::measure(setup, program, &mut findings)?,
        None => findings.skip("memory of idle mounts", "no clip beside clip-bench; build it or pass --clip-program"),
    }
    Ok(findings)
}

fn mebibytes(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

fn check_work(work: &mut SameWork, memory: &[Memory]) -> Result<()> {
    memory.iter().try_for_each(|memory| work.check("a child's work", memory.work.parse()?))
}

/// Runs this program again as `child ARGUMENTS`; one report a line of its output.
fn child(arguments: &[&str]) -> Result<Vec<Memory>> {
    let program = std::env::current_exe().context("find this program")?;
    let mut command = Command::new(program);
    command.arg("child").args(arguments).stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", output.status);
    output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(|line| Ok(serde_json::from_slice(line)?)).collect()
}
