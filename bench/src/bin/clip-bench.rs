//! Measures clip on this machine: makes an image from a seed, serves it on loopback, and reports each figure beside its floor.

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand, ValueEnum as _};
use clip_bench::{
    args::Common,
    child,
    corpus::Packing,
    machine::Machine,
    measure::{
        Findings,
        coldstart::ColdstartArgs,
        decode::DecodeArgs,
        index::{ImageArg, IndexArgs},
        memory::MemoryArgs,
        metadata::MetadataArgs,
        mount::MountArgs,
        read::{Part, ReadArgs},
    },
    measure::{coldstart, decode, index, memory, metadata, mount, read, size},
    page::{self, ReportArgs},
    report::Report,
    setup::{Setup, Subject},
};

const AFTER: &str = "\
A ratio is the median over the floor's median, taken in the same run: 1 is the floor. Of a rate less than 1 is worse, of a time or a
size more than 1. `ok` and `NOT MET` hold a figure against its bar, where it has one. Nothing outside temporary directories is
written but what --save and report name; mounts need root and /dev/fuse and are skipped without. Where nothing
could be measured, the status is not 0.

Examples:
  clip-bench all --save runs/node-7.json        every figure, kept for the report
  clip-bench report runs -o node-7.html         one HTML page of all runs in a directory
  clip-bench read --latency 20ms --bandwidth 100MB
  clip-bench read --clip torch.clip             your image, from its own registry
  clip-bench all --tiny                         does it work here at all? (under a minute)";

/// Measures clip: each figure beside the floor that was taken in the same run
#[derive(Debug, Parser)]
#[command(name = "clip-bench", version, after_help = AFTER, max_term_width = 110)]
struct Cli {
    #[command(flatten)]
    common: Common,
    /// What to measure.
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Index rate from a registry and from a directory, against inflate in memory
    Index(IndexArgs),
    /// Bytes of the .clip a file and a MiB
    Size,
    /// Resume at checkpoints and verify, in memory, against plain inflate and BLAKE3 of the same bytes
    Decode(DecodeArgs),
    /// Sequential, random, many files, a recorded trace; cold, cache-warm and page-cache-warm; through the library and through FUSE
    Read(ReadArgs),
    /// Time to the first stat, and time and memory of many mounts
    Mount(MountArgs),
    /// Storms of stat, ENOENT, open+read+close and readdir, against a trivial FUSE file system
    Metadata(MetadataArgs),
    /// Memory of indexing and of mounts
    Memory(MemoryArgs),
    /// A command in a chroot of a fresh mount, against the unpacked tree
    Coldstart(ColdstartArgs),
    /// All of these
    All,
    /// One HTML page of saved runs
    Report(ReportArgs),
    /// What runs in a process of its own
    #[command(hide = true)]
    Child {
        #[command(subcommand)]
        role: child::Role,
    },
}

/// MiB of the large layer where nothing else was asked for. Source: the bars are for 1 GiB of stream and files of 500 MB; what does not
/// read them makes do with less, since making it takes 14 s a GiB.
const LARGE_MIB: u32 = 1024;
const SMALL_MIB: u32 = 384;
/// Layers of the image of equal layers. Source: chosen: more than cores.
const EQUAL_LAYERS: usize = 8;

fn main() -> Result<()> {
    let cli = Cli::parse();
    match &cli.command {
        Command::Child { role } => return child::run(role),
        Command::Report(args) => return page::write(args),
        _ => {}
    }
    let machine = Machine::now();
    let made = |corpus_mib, equal_layers| Subject::MadeOrClip { corpus_mib, equal_layers };
    let subject = match &cli.command {
        Command::Index(_) | Command::All => made(LARGE_MIB, EQUAL_LAYERS),
        Command::Decode(_) | Command::Read(_) => made(LARGE_MIB, 0),
        Command::Coldstart(args) => {
            args.check()?;
            args.subject(SMALL_MIB)
        }
        _ => made(SMALL_MIB, 0),
    };
    let is_made = cli.common.clip.is_none() && matches!(subject, Subject::MadeOrClip { .. });
    eprintln!("{}", if is_made { "making the image" } else { "opening the image" });
    let setup = Setup::of(&cli.common, subject)?;
    let mut findings = match &cli.command {
        Command::All => every(&setup, &cli.common)?,
        command => command.measure(&setup)?.of(cli.common.codec),
    };
    if cli.common.tiny || !machine.optimised {
        // Times that mean nothing reach no bar and miss none.
        findings.figures.iter_mut().for_each(|figure| figure.bar = None);
    }
    let command = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
    let report = Report { command, machine, image: setup.summary(), figures: findings.figures, skipped: findings.skipped };
    if let Some(path) = &cli.common.save {
        std::fs::write(path, serde_json::to_string_pretty(&report)?).with_context(|| format!("write {}", path.display()))?;
    }
    match (cli.common.json, cli.common.markdown) {
        (true, _) => println!("{}", serde_json::to_string_pretty(&report)?),
        (_, true) => print!("{}", report.markdown()),
        _ => print!("{report}"),
    }
    ensure!(!report.figures.is_empty(), "nothing was measured; {}", report.skipped.join("; "));
    Ok(())
}

impl Command {
    /// What `all` measures, with default arguments.
    fn every() -> [Self; 8] {
        [
            Self::Size,
            Self::Index(IndexArgs::default()),
            Self::Decode(DecodeArgs::default()),
            Self::Read(ReadArgs::default()),
            Self::Mount(MountArgs::default()),
            Self::Metadata(MetadataArgs::default()),
            Self::Memory(MemoryArgs::default()),
            Self::Coldstart(ColdstartArgs::default()),
        ]
    }

    fn measure(&self, setup: &Setup) -> Result<Findings> {
        let (name, found) = match self {
            Self::Index(args) => ("index", index::measure(setup, args)),
            Self::Size => ("size", size::measure(setup)),
            Self::Decode(args) => ("decode", decode::measure(setup, args)),
            Self::Read(args) => ("read", read::measure(setup, args)),
            Self::Mount(args) => ("mount", mount::measure(setup, args)),
            Self::Metadata(args) => ("metadata", metadata::measure(setup, args)),
            Self::Memory(args) => ("memory", memory::measure(setup, args)),
            Self::Coldstart(args) => ("coldstart", coldstart::measure(setup, args)),
            Self::All | Self::Report(_) | Self::Child { .. } => return Ok(Findings::default()),
        };
        found.with_context(|| format!("measure {name}"))
    }
}

/// Everything, and of the image in the other codecs what depends on them most.
fn every(setup: &Setup, common: &Common) -> Result<Findings> {
    let mut all = Findings::default();
    for command in Command::every() {
        all.append(command.measure(setup)?.of(common.codec));
    }
    if setup.made.is_none() {
        return Ok(all);
    }
    for codec in Packing::value_variants().iter().copied().filter(|codec| *codec != common.codec) {
        let setup = Setup::of(&Common { codec, ..common.clone() }, Subject::MadeOrClip { corpus_mib: SMALL_MIB, equal_layers: 0 })?;
        let parts = [
            Command::Index(IndexArgs { image: vec![ImageArg::Large], ..IndexArgs::default() }),
            Command::Decode(DecodeArgs::default()),
            Command::Read(ReadArgs { what: vec![Part::Sequential], ..ReadArgs::default() }),
        ];
        for command in parts {
            all.append(command.measure(&setup)?.of(codec));
        }
    }
    Ok(all)
}
