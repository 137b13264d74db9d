//! `clip ls`

use std::path::PathBuf;

use clap::Args;

/// `clip ls`
#[derive(Debug, Args)]
#[command(after_help = "\
Names with control characters or bytes that are no UTF-8 are escaped (\\n, \\x1b) when standard output is a \
terminal or with -l; -0 gives them raw, each ended by NUL.

Examples:
  clip ls debian.clip /etc
  clip ls -lR debian.clip
  clip ls -R0 debian.clip / | xargs -0 -n1 echo")]
pub struct LsArgs {
    /// The .clip
    #[arg(value_name = "FILE.clip")]
    pub clip: PathBuf,
    /// Paths in the image [default: /]
    #[arg(value_name = "PATH")]
    pub paths: Vec<std::ffi::OsString>,
    /// Mode, links, owner, size or device, time, name and target
    #[arg(short = 'l', long)]
    pub long: bool,
    /// Directories and everything below, one full path a line
    #[arg(short = 'R', long)]
    pub recursive: bool,
    /// Directories themselves, not their entries
    #[arg(short, long)]
    pub directory: bool,
    /// Raw names, each ended by NUL
    #[arg(short = '0', long, conflicts_with = "long")]
    pub null: bool,
}
