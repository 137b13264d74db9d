//! Measures clip on this machine: makes an image from a seed, serves it on loopback, and reports each figure beside its floor.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};
use clip_bench::{
    child,
    machine::Machine,
    measure::{ALL, Findings},
    report::Report,
    setup::{Options, Scale, Setup},
};

const AFTER: &str = "\
A ratio is the median over the floor's median, taken in the same run: 1 is the floor. Of a rate less than 1 is worse, of a time or a
size more than 1. Nothing outside temporary directories is written; mounts need root and /dev/fuse and are skipped without.";

/// Measures clip: each figure beside the floor that was taken in the same run
#[derive(Debug, Parser)]
#[command(name = "clip-bench", version, after_help = AFTER, max_term_width = 110)]
struct Cli {
    /// Every path once or twice in a few seconds: the hashes of the work are checked, the times mean nothing
    #[arg(long, global = true)]
    tiny: bool,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    /// Print the table of docs/performance.md
    #[arg(long, global = true, conflicts_with = "json")]
    markdown: bool,
    /// What the image is made from
    #[arg(long, global = true, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Runs of each measurement [default: 5; 2 with --tiny]
    #[arg(long, global = true, value_name = "N")]
    runs: Option<usize>,
    /// The clip program that `mount` measures too [default: the one beside this program]
    #[arg(long, global = true, value_name = "FILE")]
    clip_program: Option<PathBuf>,
    /// What to measure.
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Index rate from a registry and from a directory, against inflate in memory
    Index,
    /// Bytes of the .clip a file and a MiB
    Size,
    /// Time to the first stat: first mount ever, and with an expanded index
    Mount,
    /// Cold random and cold and warm sequential reads, through the library and through FUSE
    Read,
    /// Peak memory of index and mount
    Memory,
    /// All of these
    All,
    /// What runs in a process of its own
    #[command(hide = true)]
    Child {
        #[command(subcommand)]
        role: child::Role,
    },
}

impl Command {
    fn name(&self) -> Option<&'static str> {
        match self {
            Command::Index => Some("index"),
            Command::Size => Some("size"),
            Command::Mount => Some("mount"),
            Command::Read => Some("read"),
            Command::Memory => Some("memory"),
            Command::All | Command::Child { .. } => None,
        }
    }
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    if let Command::Child { role } = &cli.command {
        return child::run(role);
    }
    let machine = Machine::now();
    let scale = if cli.tiny { Scale::Tiny } else { Scale::Full };
    eprintln!("making the image");
    let setup = Setup::new(&Options { scale, seed: cli.seed, runs: cli.runs, clip_program: cli.clip_program })?;
    let mut findings = Findings::default();
    for (name, measure) in ALL {
        if cli.command.name().is_none_or(|wanted| wanted == name) {
            eprintln!("measuring {name}, {} runs", setup.runs);
            findings.append(measure(&setup)?);
        }
    }
    let report = Report { machine, corpus: setup.corpus.summary(), figures: findings.figures, skipped: findings.skipped };
    match (cli.json, cli.markdown) {
        (true, _) => println!("{}", serde_json::to_string_pretty(&report)?),
        (_, true) => print!("{}", report.markdown()),
        _ => print!("{report}"),
    }
    Ok(())
}
