//! `clip-bench`: the project's figures, each beside its floor.
#![forbid(unsafe_code)]

use anyhow::Result;
use clap::{Parser, ValueEnum};
use clip_bench::{
    corpus::{Corpus, Scale},
    figures::Bench,
    report::{Figure, Report},
};
use clip_tests::machine::{Need, lacks};

/// Measure clip. What needs a mount needs root and /dev/fuse, and is skipped with a word otherwise.
#[derive(Parser)]
#[command(name = "clip-bench", version)]
struct Args {
    /// What to measure
    #[arg(value_enum, default_value_t = What::All)]
    what: What,
    /// A corpus of 9 MB: proves that the bench works, measures nothing
    #[arg(long)]
    tiny: bool,
    /// JSON on standard output
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// Everything below
    All,
    /// MB/s of layer stream indexed
    Index,
    /// Bytes of .clip per file and per MiB
    Size,
    /// Time from `clip mount` to the first stat
    Mount,
    /// Cold 4 KiB reads
    Random,
    /// Sequential reads, cold and warm
    Sequential,
    /// Peak memory of index and mount
    Memory,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let bench = Bench::new(Corpus::new(if args.tiny { Scale::Tiny } else { Scale::Full })?)?;
    let can_mount = !lacks(&[Need::Root, Need::Fuse]);
    let mut figures = Vec::new();
    let mut measure = |what: What, needs_mount: bool, work: &dyn Fn() -> Result<Vec<Figure>>| -> Result<()> {
        if (args.what == What::All || args.what == what) && (can_mount || !needs_mount) {
            figures.extend(work()?);
        }
        Ok(())
    };
    measure(What::Index, false, &|| bench.index_rate())?;
    measure(What::Size, false, &|| bench.clip_size())?;
    measure(What::Mount, true, &|| bench.mount_time())?;
    measure(What::Random, true, &|| bench.random_reads())?;
    measure(What::Sequential, true, &|| bench.sequential_reads())?;
    measure(What::Memory, true, &|| bench.peak_memory())?;
    let report = Report {
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        optimised: !cfg!(debug_assertions),
        work: bench.work().to_owned(),
        figures,
    };
    report.write(args.json, &mut std::io::stdout().lock())
}
