//! What mounts hold that nobody reads.

use std::path::Path;

use anyhow::{Context, Result};
use clip_indexer::write_clip;

use crate::{
    corpus::image_of_files,
    machine,
    measure::Findings,
    node::NodeMount,
    registry::Registry,
    report::{Figure, Temperature, Unit},
    setup::{self, Scale, Setup},
};

const FILES: usize = 30_000;
const FILES_TINY: usize = 300;
/// Mounts beside the first.
const FURTHER: usize = 8;
/// MiB. Source: the project's own bars.
const FIRST_BAR: f64 = 20.0;
const FURTHER_BAR: f64 = 2.0;

/// Where 128 cores would show: the allocator's arenas, 8 a core, and the threads, of which clip chooses at most these.
/// Source: glibc malloc/arena.c, `arena_get2`; `EngineConfig::shards` and `MountOptions::session_threads`, which are the cores up to 8
/// and 4.
const ARENAS: (&str, &str) = ("GLIBC_TUNABLES", "glibc.malloc.arena_max=1024");
const THREADS: [&str; 4] = ["--shards", "8", "--session-threads", "4"];

/// Adds the owner's anonymous memory with one idle mount of an image of many files, and of each further one; as this machine is, and as
/// if it had 128 cores.
///
/// # Errors
/// Every kind.
pub(super) fn measure(setup: &Setup, program: &Path, findings: &mut Findings) -> Result<()> {
    let files = if setup.scale == Scale::Tiny { FILES_TINY } else { FILES };
    let dir = setup.fresh_dir()?;
    let clip = dir.path().join("files.clip");
    let registry = Registry::of_image(&image_of_files(files, 64, setup.packing())?)?;
    write_clip(&clip, &setup::index(&registry.image_reference())?.clip)?;
    let pretended = format!(", as on 128 cores ({}={}, {})", ARENAS.0, ARENAS.1, THREADS.join(" "));
    for (id, as_on, arguments, environment) in [("", "", &[][..], &[][..]), (".cores128", pretended.as_str(), &THREADS[..], &[ARENAS][..])]
    {
        let (mut first, mut further) = (Vec::new(), Vec::new());
        for _ in 0..setup.runs {
            let (one, all) = idle(setup, program, &clip, arguments, environment)?;
            first.push(one as f64 / 1024.0);
            further.push(all.saturating_sub(one) as f64 / 1024.0 / FURTHER as f64);
        }
        let what = format!("anonymous memory of the owner of one idle mount of an image of {files} files{as_on}");
        let figure = Figure::new(&format!("memory.idle{id}.first"), &what, Unit::Mebibytes, &first).bar_of_value(FIRST_BAR);
        findings.figures.push(figure.temperature(Temperature::Cold));
        let what = format!("the same, each of {FURTHER} further mounts{as_on}");
        let figure = Figure::new(&format!("memory.idle{id}.further"), &what, Unit::Mebibytes, &further).bar_of_value(FURTHER_BAR);
        findings.figures.push(figure.temperature(Temperature::Cold));
    }
    Ok(())
}

/// KiB with one mount, and with all.
fn idle(setup: &Setup, program: &Path, clip: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Result<(u64, u64)> {
    let (cache, dir) = (setup.fresh_dir()?, setup.fresh_dir()?);
    let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
    let (mut mounts, mut memory) = (Vec::new(), Vec::new());
    for number in 0..=FURTHER {
        let mountpoint = dir.path().join(number.to_string());
        std::fs::create_dir(&mountpoint)?;
        let mount = NodeMount::with_environment(program, clip, &mountpoint, cache.path(), &arguments, environment)?;
        // Somebody looked, and went.
        std::fs::read_dir(mountpoint.join("d00000"))?.try_for_each(|entry| entry?.metadata().map(drop))?;
        memory.push(machine::anonymous_kib(mount.owner()?)?);
        mounts.push(mount);
    }
    let last = mounts.pop().context("no mount")?;
    drop(mounts);
    last.end()?;
    Ok((memory[0], memory[FURTHER]))
}
