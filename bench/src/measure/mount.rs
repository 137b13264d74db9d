//! How long it takes from the wish to mount to the first answer.

mod many;
mod million;

use std::{fs, os::unix::fs::MetadataExt as _, path::Path, process::Command, sync::Arc};

use anyhow::{Result, ensure};
use clip_engine::Image;
use clip_format::{
    clip_file::ClipFile,
    erofs::{Body, Index, InodeSpec, write_image},
};
use clip_fuse::{MountOptions, Mounted};

use super::{Findings, SameWork, timed};
use crate::{
    machine, node,
    report::{Figure, Temperature, Unit, milliseconds},
    setup::Setup,
    trivial::NoBytes,
};

const FIRST: &str = "zstd and BLAKE3 of index and checkpoints in memory, and a mount and stat of an empty tree";
const LATER: &str = "a mount and stat of an empty tree held in memory";
const IN_PROCESS: &str = "the same in this process, without the program";

/// `clip-bench mount`
#[derive(Clone, Debug, Default, clap::Args)]
pub struct MountArgs {
    /// Mounts by one owner, at most [default: 1000; 3 with --tiny]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=10_000))]
    pub mounts: Option<u32>,
}

/// Times to the first stat: the first mount ever of an image on a node, and one whose index is expanded already; in this process, and
/// by the `clip` program where it was found.
///
/// # Errors
/// Every kind.
pub fn measure(setup: &Setup, args: &MountArgs) -> Result<Findings> {
    let mut findings = Findings::default();
    if let Some(reason) = machine::no_mounts() {
        findings.skipped.push(format!("mount: {reason}"));
        return Ok(findings);
    }
    let mut times = Times::default();
    for _ in 0..setup.runs {
        in_process(setup, &mut times)?;
        if let Some(program) = &setup.clip_program {
            by_program(setup, program, &mut times)?;
        }
    }
    let work = times.work.hash();
    let figure = |id: &str, what: &str, temperature, values: &[f64], floor: &str, floors: &[f64]| {
        Figure::new(id, what, Unit::Milliseconds, values).floor(floor, floors).temperature(temperature).work(&work)
    };
    let (cold, warm) = (Temperature::Cold, Temperature::Warm);
    let (first, expanded) = ("engine start, first open ever, mount, first stat", "engine start, mount with an expanded index, first stat");
    findings.figures.push(figure("mount.first", first, cold, &times.first, FIRST, &times.first_floor));
    findings.figures.push(figure("mount.expanded", expanded, warm, &times.expanded, LATER, &times.empty));
    if let Some(program) = &setup.clip_program {
        let what = "clip mount, first ever, to the first stat";
        findings.figures.push(figure("mount.program.first", what, cold, &times.program_first, IN_PROCESS, &times.first));
        let what = "clip mount with an expanded index, to the first stat";
        findings.figures.push(figure("mount.program.expanded", what, warm, &times.program_expanded, IN_PROCESS, &times.expanded));
        many::measure(setup, args.mounts, program, &mut findings)?;
    } else {
        findings.skipped.push("mount by program: no clip beside clip-bench; build it or pass --clip-program".to_owned());
    }
    million::measure(setup, &mut findings)?;
    Ok(findings)
}

/// Milliseconds, one a run.
#[derive(Default)]
struct Times {
    empty: Vec<f64>,
    first_floor: Vec<f64>,
    first: Vec<f64>,
    expanded: Vec<f64>,
    program_first: Vec<f64>,
    program_expanded: Vec<f64>,
    work: SameWork,
}

fn in_process(setup: &Setup, times: &mut Times) -> Result<()> {
    let (cache, mountpoint) = (setup.fresh_dir()?, setup.fresh_dir()?);
    let (expand, ()) = timed(|| {
        let file = ClipFile::parse(&setup.clip.bytes)?;
        ensure!(!file.index()?.is_empty() && !file.checkpoints()?.is_empty(), "empty sections");
        Ok(())
    })?;
    let (empty, mounted) = timed(|| {
        let mounted = clip_fuse::mount_source(empty()?, mountpoint.path(), &MountOptions::new("empty".to_owned()))?;
        ensure!(fs::metadata(mountpoint.path())?.is_dir(), "no directory");
        Ok(mounted)
    })?;
    end(mounted)?;
    times.empty.push(milliseconds(empty));
    times.first_floor.push(milliseconds(expand + empty));
    for first in [true, false] {
        let (took, mounted) = timed(|| {
            let (engine, image) = setup.open(cache.path())?;
            let mounted = mount(image, mountpoint.path())?;
            let metadata = fs::metadata(mountpoint.path().join(&setup.clip.large.path))?;
            times.work.check("the first stat", stat_hash(&metadata))?;
            Ok((mounted, engine))
        })?;
        end(mounted.0)?;
        if first { &mut times.first } else { &mut times.expanded }.push(milliseconds(took));
    }
    Ok(())
}

fn by_program(setup: &Setup, program: &Path, times: &mut Times) -> Result<()> {
    let (cache, mountpoint) = (setup.fresh_dir()?, setup.fresh_dir()?);
    for first in [true, false] {
        let (took, ()) = timed(|| {
            let mut command = Command::new(program);
            command.arg("mount").arg(&setup.clip.path).arg(mountpoint.path()).arg("--cache-dir").arg(cache.path());
            node::run(&mut command)?;
            let metadata = fs::metadata(mountpoint.path().join(&setup.clip.large.path))?;
            times.work.check("the first stat", stat_hash(&metadata))
        })?;
        if first { &mut times.program_first } else { &mut times.program_expanded }.push(milliseconds(took));
        node::run(Command::new(program).arg("umount").arg(mountpoint.path()))?;
        node::wait_for_owner(cache.path())?;
    }
    Ok(())
}

fn stat_hash(metadata: &fs::Metadata) -> blake3::Hash {
    blake3::hash(format!("{} {} {:o}", metadata.ino(), metadata.size(), metadata.mode()).as_bytes())
}

/// Mounts `image` with default options.
///
/// # Errors
/// The mount's.
pub fn mount(image: Arc<Image>, mountpoint: &Path) -> Result<Mounted> {
    Ok(clip_fuse::mount(image, mountpoint, &MountOptions::new("clip-bench".to_owned()))?)
}

/// Unmounts and waits until the kernel has let go.
///
/// # Errors
/// The umount's.
pub fn end(mounted: Mounted) -> Result<()> {
    mounted.detach()?;
    mounted.wait();
    Ok(())
}

/// A root directory without entries.
fn empty() -> Result<NoBytes> {
    let body = Body::Directory(Vec::new());
    let root = InodeSpec { permissions: 0o755, uid: 0, gid: 0, mtime_s: 0, mtime_ns: 0, xattrs: Vec::new(), body };
    Ok(NoBytes(Index::open(Arc::new(write_image(&[root], 0, &[])?))?))
}
