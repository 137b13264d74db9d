//! How fast bytes come: cold and warm, through the library and through a mount.

mod fill;
mod many;
mod random;
mod readers;
mod recorded;
mod replay;
mod sequential;
mod session;
mod trace;
mod warm;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::ValueEnum;

use super::Findings;
use crate::{machine, setup::Setup};

/// How a measurement reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Way {
    /// clip's library, in this process
    Library,
    /// A mount
    #[value(name = "fuse")]
    Mount,
}

impl Way {
    fn id(self) -> &'static str {
        match self {
            Way::Library => "library",
            Way::Mount => "fuse",
        }
    }

    fn what(self) -> &'static str {
        match self {
            Way::Library => "through the library",
            Way::Mount => "through FUSE",
        }
    }
}

/// What is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// 4 KiB at a time, each of a span that nobody has read
    Random,
    /// The largest file from start to end
    Sequential,
    /// The same over TLS
    Https,
    /// The same, cached, against a trivial FUSE file system over the same cache file
    Warm,
    /// Eight readers of one cold file at once
    Readers,
    /// Many small files: open, read, close
    Many,
    /// A recorded trace, or one that is made up
    Trace,
    /// Random reads while the whole image is filled in the background
    Fill,
}

/// `clip-bench read`
#[derive(Clone, Debug, Default, clap::Args)]
#[command(after_help = "\
cold        an empty cache directory and a new engine
unverified  the cache directory has the bytes, this engine has not checked them yet
warm        they are checked; the mount is new, the kernel has none of its pages
page cache  the same mount again

Examples:
  clip-bench read --what sequential,https --runs 9
  clip-bench read --what trace --trace torch.profile --clip torch.clip
  clip-bench read --what readers --starve 1:1MiB          one connection in trouble")]
pub struct ReadArgs {
    /// What to read [default: everything]
    #[arg(long, value_enum, value_name = "PART", value_delimiter = ',')]
    pub what: Vec<Part>,
    /// How [default: both; without root or /dev/fuse the library only]
    #[arg(long, value_enum, value_name = "WAY", value_delimiter = ',')]
    pub via: Vec<Way>,
    /// Replay FILE: an access profile (`clip record -o FILE ...`), or a read a line, `PATH OFFSET LENGTH`, in bytes; `#` begins a comment
    /// [default: a trace made from the seed]
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Drop the kernel's caches of the whole machine before each cold or warm read; needs root, and slows others on this node
    #[arg(long)]
    pub drop_caches: bool,
}

/// Latencies, rates, and what they cost the registry.
///
/// # Errors
/// Every kind; wrong bytes are an error.
pub fn measure(setup: &Setup, args: &ReadArgs) -> Result<Findings> {
    let mut findings = Findings::default();
    let bench = Bench { setup, args, ways: ways(args, &mut findings), drops_caches: drops_caches(args, &mut findings) };
    for part in Part::value_variants() {
        if args.what.is_empty() || args.what.contains(part) {
            bench.part(*part, &mut findings).with_context(|| format!("read {part:?}"))?;
        }
    }
    Ok(findings)
}

/// What all parts share.
struct Bench<'a> {
    setup: &'a Setup,
    args: &'a ReadArgs,
    ways: Vec<Way>,
    drops_caches: bool,
}

impl Bench<'_> {
    fn part(&self, part: Part, findings: &mut Findings) -> Result<()> {
        let in_order = matches!(part, Part::Sequential | Part::Https | Part::Warm | Part::Readers);
        if !in_order && self.setup.large_layer_is_in_one_piece() {
            findings.skip(&format!("read {part:?}"), "the largest file's layer can only be decoded from its start");
            return Ok(());
        }
        match part {
            Part::Random => random::measure(self, findings),
            Part::Sequential => sequential::measure(self, findings),
            Part::Https => sequential::measure_https(self, findings),
            Part::Warm if !self.ways.contains(&Way::Mount) => Ok(()),
            Part::Warm => warm::measure(self.setup, self.setup.plain()?.hash, findings),
            Part::Readers => readers::measure(self, findings),
            Part::Many => many::measure(self, findings),
            Part::Trace => trace::measure(self, findings),
            Part::Fill => fill::measure(self, findings),
        }
    }

    /// Called before each cold or warm read.
    fn forget(&self) -> Result<()> {
        if self.drops_caches {
            rustix::fs::sync();
            std::fs::write(DROP_CACHES, "3").with_context(|| format!("write {DROP_CACHES}"))?;
        }
        Ok(())
    }
}

const DROP_CACHES: &str = "/proc/sys/vm/drop_caches";

fn ways(args: &ReadArgs, findings: &mut Findings) -> Vec<Way> {
    let wanted = |way| args.via.is_empty() || args.via.contains(&way);
    let mut ways: Vec<Way> = [Way::Library].into_iter().filter(|way| wanted(*way)).collect();
    if wanted(Way::Mount) {
        match machine::no_mounts() {
            None => ways.push(Way::Mount),
            Some(reason) => findings.skip("read through FUSE", reason),
        }
    }
    ways
}

fn drops_caches(args: &ReadArgs, findings: &mut Findings) -> bool {
    let may = rustix::process::geteuid().is_root();
    if args.drop_caches && !may {
        findings.skip("--drop-caches", "needs root; the cache file's pages may be in memory");
    }
    args.drop_caches && may
}
