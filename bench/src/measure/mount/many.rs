//! Up to a thousand mounts by one owner: how long each takes, and what it holds in memory.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::Result;
use clip_indexer::write_clip;

use super::stat_hash;
use crate::{
    machine,
    measure::{Findings, SameWork, timed},
    node::{self, NodeMount},
    report::{Figure, Temperature, Unit, milliseconds},
    setup::{self, Scale, Setup},
};

/// After each power of ten, and after the last mount, the owner's memory is looked at.
const MOUNTS: u32 = 1000;
const MOUNTS_TINY: u32 = 3;
/// Different images over the same layers, when there are several: each with other spans.
const IMAGES: u64 = 4;
/// MiB of anonymous memory a further mount. Source: the project's own bar.
const MEMORY_BAR: f64 = 2.0;

/// Adds times and memory of many mounts of one image, and of several.
///
/// # Errors
/// Every kind.
pub(super) fn measure(setup: &Setup, most: Option<u32>, program: &Path, findings: &mut Findings) -> Result<()> {
    let most = most.unwrap_or(if setup.scale == Scale::Tiny { MOUNTS_TINY } else { MOUNTS }) as usize;
    let mut counts: Vec<usize> = (0..4).map(|power| 10_usize.pow(power)).filter(|count| *count < most).collect();
    counts.push(most);
    let one = vec![setup.clip.path.clone()];
    mounts(setup, program, &one, &counts, "one", "of one image", findings)?;
    let Some(made) = &setup.made else { return Ok(()) };
    let dir = setup.fresh_dir()?;
    let mut several = one;
    for number in 1..IMAGES {
        let path = dir.path().join(format!("{number}.clip"));
        let mut options = clip_indexer::IndexOptions::new(made.registry.reference(crate::corpus::TAG_ALL).parse()?);
        options.span_bytes *= number + 1;
        write_clip(&path, &setup::index_with(&options)?.clip)?;
        several.push(path);
    }
    mounts(setup, program, &several, &counts, "several", &format!("of {IMAGES} images in turn"), findings)
}

fn mounts(setup: &Setup, program: &Path, clips: &[PathBuf], counts: &[usize], id: &str, what: &str, findings: &mut Findings) -> Result<()> {
    let (cache, dir) = (setup.fresh_dir()?, setup.fresh_dir()?);
    let (mut all, mut times, mut memory, mut work) = (Vec::new(), Vec::new(), Vec::new(), SameWork::default());
    let most = counts.last().copied().unwrap_or(1);
    for number in 0..most {
        let (mountpoint, clip) = (dir.path().join(format!("{number:04}")), &clips[number % clips.len()]);
        fs::create_dir(&mountpoint)?;
        let (took, mounted) = timed(|| {
            let mounted = NodeMount::new(program, clip, &mountpoint, cache.path(), &[])?;
            work.check("the first stat", stat_hash(&fs::metadata(mountpoint.join(&setup.clip.large.path))?))?;
            Ok(mounted)
        })?;
        times.push(took);
        if counts.contains(&(number + 1)) {
            memory.push((number + 1, machine::anonymous_kib(mounted.owner()?)?));
        }
        all.push(mounted);
    }
    let mut command = Command::new(program);
    node::run(command.arg("umount").args(all.iter().map(NodeMount::mountpoint)))?;
    drop(all);
    node::wait_for_owner(cache.path())?;
    add(id, what, &times, &memory, &work.hash(), findings);
    Ok(())
}

fn add(id: &str, what: &str, times: &[Duration], memory: &[(usize, u64)], work: &blake3::Hash, findings: &mut Findings) {
    let most = times.len();
    let later: Vec<f64> = times.iter().skip(1).map(|took| milliseconds(*took)).collect();
    let each = format!("each of {most} mounts {what} by one owner but the first: clip mount to the first stat");
    let each = Figure::new(&format!("mount.many.{id}.each"), &each, Unit::Milliseconds, &later).distribution("mounts", &later);
    let in_all = [times.iter().sum::<Duration>().as_secs_f64()];
    findings.figures.push(each.counter("all together", Unit::Seconds, &in_all).temperature(Temperature::Warm).work(work));
    let (Some((_, first)), Some((_, last))) = (memory.first(), memory.last()) else { return };
    let further = last.saturating_sub(*first) as f64 / 1024.0 / (most - 1).max(1) as f64;
    let what = format!("anonymous memory of the owner, a further mount {what}, over {most} mounts");
    let mut figure = Figure::new(&format!("mount.many.{id}.memory"), &what, Unit::Mebibytes, &[further]).bar_of_value(MEMORY_BAR);
    for (count, kib) in memory {
        figure = figure.counter(&format!("of the owner with {count}"), Unit::Mebibytes, &[*kib as f64 / 1024.0]);
    }
    findings.figures.push(figure.work(work));
}
