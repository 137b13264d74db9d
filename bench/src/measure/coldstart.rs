//! A command in a chroot of a fresh mount, against the same in the unpacked tree.

mod pull;
mod subject;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use clip_format::storage_info::Codec;
use tempfile::TempDir;

use super::{Findings, SameWork, timed};
use crate::{
    floor, machine,
    node::{Counters, NodeMount},
    report::{Figure, Temperature, Unit},
    rootfs::Rootfs,
    setup::{self, Setup},
};
use subject::Subject;

/// `clip-bench coldstart`
#[derive(Clone, Debug, Default, clap::Args)]
#[command(after_help = "\
Each run: an empty cache directory, nothing in the page cache, clip mount by the program, an overlay over it (upper directory on a \
tmpfs), CMD in a chroot of the overlay. A span counts as needed when the kernel asked for a byte \
of it, its own read-ahead included. The clock runs from before the mount to the end of CMD. Then CMD again, in the same mount with a \
fresh overlay and nothing in the page cache; and in the unpacked tree under the same overlay. With a shaper, also: fetch all layers through \
it, unpack, run.

Before each of these runs the page cache of the whole machine is dropped, whatever else runs on it: not for a node at work.

Without an image one is made, and CMD is a cat of a fifth of its files.

Examples:
  clip-bench coldstart --oci ./layout:tag -- python3 -c 'import numpy'
  clip-bench coldstart --oci ./layout:tag --record-profile -- python3 -c 'import numpy'
  clip-bench coldstart --image registry:5000/app:1 --profile app.profile -- /app --version
  clip-bench coldstart --clip app.clip --latency 20ms --bandwidth 100MB -- ldconfig -r /")]
pub struct ColdstartArgs {
    /// Index this image, and read it from its registry
    #[arg(long, value_name = "REF", conflicts_with_all = ["oci", "clip"])]
    pub image: Option<String>,
    /// Serve this OCI layout from memory, on loopback; `oci:` may stand before it
    #[arg(long, value_name = "DIR[:TAG]", conflicts_with = "clip")]
    pub oci: Option<String>,
    /// The image's unpacked tree [default: unpacked for the run]
    #[arg(long, value_name = "DIR")]
    pub unpacked: Option<PathBuf>,
    /// Measure clip mount --profile FILE too
    #[arg(long, value_name = "FILE")]
    pub profile: Option<PathBuf>,
    /// Record a profile in one more run, and measure clip mount --profile with it too
    #[arg(long, conflicts_with = "profile")]
    pub record_profile: bool,
    /// Measure fetching and unpacking everything, although nothing is shaped
    #[arg(long)]
    pub pull: bool,
    /// Show no bars: they are for an import of Python libraries in an image of at least 1 GB
    #[arg(long)]
    pub no_bars: bool,
    /// CMD's output need not be the same in every run
    #[arg(long)]
    pub any_output: bool,
    /// What to run, with its arguments
    #[arg(last = true, value_name = "CMD")]
    pub command: Vec<String>,
}

impl ColdstartArgs {
    /// The image that was named here; else one that is made, with a large layer of `corpus_mib`, or the `.clip` of `--clip`.
    #[must_use]
    pub fn subject(&self, corpus_mib: u32) -> setup::Subject<'_> {
        match (&self.oci, &self.image) {
            (Some(layout), _) => setup::Subject::Layout(layout),
            (None, Some(reference)) => setup::Subject::Reference(reference),
            (None, None) => setup::Subject::MadeOrClip { corpus_mib, equal_layers: 0 },
        }
    }

    /// Looks at what can be wrong before an image is made or fetched.
    ///
    /// # Errors
    /// When what was named is not there.
    pub fn check(&self) -> Result<()> {
        if let Some(tree) = &self.unpacked {
            ensure!(tree.is_dir(), "--unpacked {}: expected the directory of the image's unpacked tree", tree.display());
        }
        if let Some(profile) = &self.profile {
            ensure!(profile.is_file(), "--profile {}: expected the file of an access profile", profile.display());
        }
        ensure!(
            !self.command.is_empty() || self.image.is_none() && self.oci.is_none(),
            "no command: say what to run, as in clip-bench coldstart ... -- python3 -c 'import numpy'"
        );
        Ok(())
    }
}

const UNPACKED: &str = "the same command in the unpacked tree, same overlay and chroot, nothing in the page cache";
const PULLED: &str = "fetch of all layers at the same shape, 3 at a time, inflate and untar in this process, then the command";
/// Of the unpacked tree's time, without and with a profile; of the bytes of the spans needed. Source: the project's own bars.
const FIRST_BAR: [f64; 2] = [2.0, 1.5];
const DECODED_BAR: [f64; 2] = [1.4, 1.15];
/// The bars are for images of at least so many bytes of stream.
const BARS_FROM_BYTES: u64 = 1_000_000_000;
/// What decoding may cost over plain inflate, and the cores that it may use. Source: the project's own bar: warm-tree time + 1.25 x
/// decoded bytes / (2 x inflate rate).
const DECODE_FACTOR: f64 = 1.25;
const DECODE_CORES: f64 = 2.0;

/// What one way of mounting came to, one value a run.
#[derive(Default)]
struct Mounted {
    first: Vec<f64>,
    second: Vec<f64>,
    mount: Vec<f64>,
    registry_cpu: Vec<f64>,
    /// Of the owner, and of the program and the command.
    owner_cpu: Vec<f64>,
    command_cpu: Vec<f64>,
    counters: Vec<Counters>,
}

/// A profile that was recorded here, as long as this lives.
struct Recorded {
    profile: PathBuf,
    _scratch: TempDir,
}

/// What the unpacked tree came to, in seconds.
#[derive(Default)]
struct Unpacked {
    cold: Vec<f64>,
    cold_cpu: Vec<f64>,
    warm: Vec<f64>,
    pulled: Vec<f64>,
}

/// Seconds from before the mount to the end of a command, first and second run, and what they fetched and decoded.
///
/// # Errors
/// Every kind; a command that fails, or that says something else in another run, is an error.
pub fn measure(setup: &Setup, args: &ColdstartArgs) -> Result<Findings> {
    let mut findings = Findings::default();
    if let Some(reason) = machine::no_mounts().or_else(no_cold_pages) {
        findings.skip("coldstart", reason);
        return Ok(findings);
    }
    let Some(program) = &setup.clip_program else {
        findings.skip("coldstart", "no clip beside clip-bench; build it or pass --clip-program");
        return Ok(findings);
    };
    if args.command.is_empty() && setup.made.is_none() {
        findings.skip("coldstart", "no command to run in this image; clip-bench coldstart --clip FILE -- CMD");
        return Ok(findings);
    }
    if let (Some(_), Err(error)) = (&setup.made, subject::tools()) {
        findings.skip("coldstart", format!("{error:#}; name an image with --oci, --image or --clip"));
        return Ok(findings);
    }
    let subject = Subject::new(setup, args)?;
    let shaped = !setup.shape.is_none();
    let bars = !args.no_bars && !shaped && subject.info().layers.iter().map(|layer| layer.stream_size).sum::<u64>() >= BARS_FROM_BYTES;
    let bench = Bench { setup, args, program, subject: &subject, shaped, bars };
    let (mut plain, mut profiled) = (Mounted::default(), Mounted::default());
    let (mut unpacked, mut work) = (Unpacked::default(), SameWork::default());
    let recorded = args.record_profile.then(|| bench.recorded(&mut work)).transpose()?;
    let profile = args.profile.as_deref().or(recorded.as_ref().map(|recorded| recorded.profile.as_path()));
    for run in 0..setup.runs {
        // In turn, so that neither always comes after the other.
        if run % 2 == 1 {
            bench.unpacked(&mut unpacked, &mut work)?;
        }
        bench.mounted(None, &mut plain, &mut work)?;
        if profile.is_some() {
            bench.mounted(profile, &mut profiled, &mut work)?;
        }
        if run % 2 == 0 {
            bench.unpacked(&mut unpacked, &mut work)?;
        }
    }
    let inflate = subject.longest_gzip()?.map(|blob| inflate_rate(&blob)).transpose()?;
    for (at, mounted) in [plain, profiled].iter().enumerate().filter(|(_, mounted)| !mounted.first.is_empty()) {
        bench.add(at, mounted, &unpacked, inflate, &work.hash(), &mut findings);
    }
    Ok(findings)
}

fn no_cold_pages() -> Option<String> {
    drop_page_cache().err().map(|error| format!("the page cache cannot be dropped: {error:#}"))
}

/// The kernel has no clean page, name or inode of any file system any more, as far as nobody uses it.
fn drop_page_cache() -> Result<()> {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").context("write /proc/sys/vm/drop_caches")
}

/// Bytes a second.
fn inflate_rate(blob: &[u8]) -> Result<f64> {
    let (took, len) = timed(|| floor::inflate(Codec::Gzip, blob))?;
    Ok(len as f64 / took.as_secs_f64().max(1e-9))
}

struct Bench<'a> {
    setup: &'a Setup,
    args: &'a ColdstartArgs,
    program: &'a Path,
    subject: &'a Subject<'a>,
    /// There is a shaper.
    shaped: bool,
    /// The bars count: an image of their size, on loopback.
    bars: bool,
}

impl Bench<'_> {
    /// One run of a fresh mount, and a second run in it.
    fn mounted(&self, profile: Option<&Path>, found: &mut Mounted, work: &mut SameWork) -> Result<()> {
        let (cache, scratch) = (self.setup.fresh_dir()?, self.setup.fresh_dir()?);
        let mountpoint = scratch.path().join("mount");
        fs::create_dir(&mountpoint)?;
        let more = self.mount_arguments(profile)?;
        let served = || self.subject.registry().map(|registry| registry.served());
        let before = served();
        drop_page_cache()?;
        let cpu = machine::cpu_time()?.children;
        let (first, (mounting, mount)) = timed(|| {
            let mounted = timed(|| NodeMount::new(self.program, self.subject.clip(), &mountpoint, cache.path(), &more))?;
            self.run(&mountpoint, scratch.path(), work)?;
            Ok(mounted)
        })?;
        if let (Some(before), Some(after)) = (before, served()) {
            found.registry_cpu.push(after.since(before).cpu.as_secs_f64());
        }
        found.command_cpu.push(machine::cpu_time()?.children.saturating_sub(cpu).as_secs_f64());
        found.owner_cpu.push(machine::cpu_time_of(mount.owner()?)?.own.as_secs_f64());
        found.counters.push(mount.counters()?);
        found.first.push(first.as_secs_f64());
        found.mount.push(mounting.as_secs_f64() * 1e3);
        drop_page_cache()?;
        let (second, ()) = timed(|| self.run(&mountpoint, scratch.path(), work))?;
        found.second.push(second.as_secs_f64());
        mount.end()
    }

    /// A profile of the command, from a run of a fresh mount that is not measured.
    fn recorded(&self, work: &mut SameWork) -> Result<Recorded> {
        let (cache, scratch) = (self.setup.fresh_dir()?, self.setup.fresh_dir()?);
        let (mountpoint, profile) = (scratch.path().join("mount"), scratch.path().join("run.profile"));
        fs::create_dir(&mountpoint)?;
        let mut more = self.mount_arguments(None)?;
        more.extend(["--record".to_owned(), profile.to_str().context("a temporary directory whose path is not UTF-8")?.to_owned()]);
        drop_page_cache()?;
        let mount = NodeMount::new(self.program, self.subject.clip(), &mountpoint, cache.path(), &more)?;
        self.run(&mountpoint, scratch.path(), work)?;
        // The record is complete when the owner has left.
        mount.end()?;
        ensure!(profile.is_file(), "clip mount --record left no profile at {}", profile.display());
        Ok(Recorded { profile, _scratch: scratch })
    }

    fn mount_arguments(&self, profile: Option<&Path>) -> Result<Vec<String>> {
        let mut more = Vec::new();
        self.subject.origin().begin_round();
        if let Some(reference) = self.subject.origin().store_ref() {
            more.extend(["--store-ref".to_owned(), reference]);
        }
        if let Some(profile) = profile {
            more.extend(["--profile".to_owned(), profile.to_str().context("a profile whose path is not UTF-8")?.to_owned()]);
        }
        Ok(more)
    }

    /// The unpacked tree, cold and warm; and pulled anew, where that was asked for.
    fn unpacked(&self, found: &mut Unpacked, work: &mut SameWork) -> Result<()> {
        let scratch = self.setup.fresh_dir()?;
        drop_page_cache()?;
        let cpu = machine::cpu_time()?.children;
        found.cold.push(timed(|| self.run(&self.subject.tree, scratch.path(), work))?.0.as_secs_f64());
        found.cold_cpu.push(machine::cpu_time()?.children.saturating_sub(cpu).as_secs_f64());
        found.warm.push(timed(|| self.run(&self.subject.tree, scratch.path(), work))?.0.as_secs_f64());
        if let (Some(address), true) = (self.subject.origin().address(), self.args.pull || self.shaped) {
            let tree = self.setup.fresh_dir()?;
            drop_page_cache()?;
            let (pulled, ()) = timed(|| {
                pull::pull(address, self.subject.info(), tree.path())?;
                self.run(tree.path(), scratch.path(), work)
            })?;
            found.pulled.push(pulled.as_secs_f64());
        }
        Ok(())
    }

    /// The command over `lower`; what it says counts.
    fn run(&self, lower: &Path, scratch: &Path, work: &mut SameWork) -> Result<()> {
        let rootfs = Rootfs::new(lower, scratch)?;
        let ran = rootfs.run(&self.subject.command, &self.subject.info().config.env)?;
        if self.args.any_output {
            return Ok(());
        }
        work.check("output of the command (--any-output if it need not be the same)", blake3::hash(&ran.output))
    }

    fn add(&self, at: usize, of: &Mounted, unpacked: &Unpacked, inflate: Option<f64>, work: &blake3::Hash, findings: &mut Findings) {
        let (suffix, with) = [("", ""), (".profile", " with a profile")][at];
        let id = |name: &str| format!("coldstart.{name}{suffix}");
        let what =
            format!("{:?} in {}, clip mount to its end{with}", self.subject.command.first().map_or("", String::as_str), self.subject.name);
        let counted = |value: fn(&Counters) -> f64| of.counters.iter().map(value).collect::<Vec<_>>();
        let first = Figure::new(&id("first"), &what, Unit::Seconds, &of.first).floor(UNPACKED, &unpacked.cold);
        let first = if self.bars { first.bar_of_ratio(FIRST_BAR[at]) } else { first };
        let first = first
            .counter("until the mount answers", Unit::Milliseconds, &of.mount)
            .counter("requests", Unit::Count, &counted(|counters| counters.requests as f64))
            .counter("fetched", Unit::Mebibytes, &counted(|counters| mebibytes(counters.bytes_fetched + counters.source_bytes)))
            .counter("decoded", Unit::Mebibytes, &counted(|counters| mebibytes(counters.bytes_decoded)))
            .counter("of the spans needed", Unit::Mebibytes, &counted(|counters| mebibytes(counters.bytes_needed)))
            .counter("spans brought before they were asked for", Unit::Count, &counted(|counters| counters.spans_prefetched_used as f64))
            .counter("reads that waited", Unit::Count, &counted(|counters| counters.reads_waited as f64))
            .counter("processor time of the owner", Unit::Seconds, &of.owner_cpu)
            .counter("processor time of clip mount and the command", Unit::Seconds, &of.command_cpu)
            .counter("processor time of the registry", Unit::Seconds, &of.registry_cpu)
            .counter("processor time of the command in the unpacked tree", Unit::Seconds, &unpacked.cold_cpu)
            .counter("the unpacked tree once more, its pages in the page cache", Unit::Seconds, &unpacked.warm);
        findings.figures.push(first.temperature(Temperature::Cold).work(work));
        let second =
            Figure::new(&id("second"), &format!("{what}: again in the same mount, nothing in the page cache"), Unit::Seconds, &of.second);
        findings.figures.push(second.floor(UNPACKED, &unpacked.cold).temperature(Temperature::Warm).work(work));
        let decoded = counted(|counters| counters.bytes_decoded as f64 / (counters.bytes_needed as f64).max(1.0));
        let decoded = Figure::new(&id("decoded"), "bytes decoded a byte of the spans needed", Unit::Count, &decoded);
        let decoded = if self.bars { decoded.bar_of_value(DECODED_BAR[at]) } else { decoded };
        findings.figures.push(decoded.temperature(Temperature::Cold));
        let fetched = counted(|counters| {
            (counters.bytes_fetched + counters.source_bytes) as f64 / (counters.bytes_needed_compressed as f64).max(1.0)
        });
        let fetched = Figure::new(&id("fetched"), "bytes fetched a compressed byte of the spans needed", Unit::Count, &fetched);
        findings.figures.push(fetched.temperature(Temperature::Cold));
        if let (Some(rate), false) = (inflate, self.shaped) {
            findings.figures.push(bound(&id("bound"), of, unpacked, rate, at == 1 && self.bars).work(work));
        }
        if !unpacked.pulled.is_empty() {
            let pulled = Figure::new(&id("pulled"), &what, Unit::Seconds, &of.first).floor(PULLED, &unpacked.pulled);
            findings.figures.push(pulled.temperature(Temperature::Cold).work(work));
        }
    }
}

/// The first run against what reading from memory and decoding on all cores would take together.
fn bound(id: &str, of: &Mounted, unpacked: &Unpacked, inflate: f64, barred: bool) -> Figure {
    let warm = crate::report::Spread::of(&unpacked.warm).median;
    let bounds: Vec<_> =
        of.counters.iter().map(|counters| warm + DECODE_FACTOR * counters.bytes_decoded as f64 / (DECODE_CORES * inflate)).collect();
    let what = "the first run against its bound";
    let floor = format!(
        "warm-tree time + {DECODE_FACTOR} x bytes decoded / ({DECODE_CORES} x {:.0} MB/s, zlib-rs over the longest layer on one core)",
        inflate / 1e6
    );
    let figure = Figure::new(id, what, Unit::Seconds, &of.first).floor(&floor, &bounds).temperature(Temperature::Cold);
    // Set for runs with a profile only: without one, what is read next is not known while the cores wait.
    if barred { figure.bar_of_ratio(1.0) } else { figure }
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
