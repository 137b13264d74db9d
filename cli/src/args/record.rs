//! `clip record`

use std::path::PathBuf;

use clap::Args;

use super::{ReadArgs, run_as::RunAs};
use crate::values::parse_size;

/// `clip record`
#[derive(Debug, Args)]
#[command(after_help = "\
CMD runs as root of the machine would run it, with the image as its root: a mount namespace of its own, an overlay whose writes are in \
memory and thrown away, the machine's /proc, /sys, /dev and network. That is no isolation: record images that you trust, or run \
yours under any runtime on a mount made by clip mount --record. The environment, working directory and user are the image's.

Whatever is read until CMD and all that it has started have ended is in the profile, also what the cache had already: a warm node \
gives the same profile as a cold one. Signals go to CMD. Exit code: CMD's, or 128 + the signal that ended it; 125 when the container \
could not be made, 126 and 127 when CMD could not be run or found; FILE is untouched then.

Examples, as root:
  clip record python.clip -- python3 -c 'import numpy'
  clip record --output serve.profile --limit 2GiB torch.clip -- python3 /srv/warm-up.py
  clip index python:3.12 --profile python.profile -o python.clip")]
pub struct RecordArgs {
    /// The .clip
    #[arg(value_name = "FILE.clip")]
    pub clip: PathBuf,
    /// Run this instead of the image's entrypoint and command
    #[arg(last = true, value_name = "CMD")]
    pub command: Vec<String>,
    /// The profile to write, as `clip index` writes a .clip, but not to standard output [default: FILE.profile beside FILE.clip]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Keep only what is needed first, up to about so many bytes of tar [default: all]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub limit: Option<u64>,
    /// As what it runs.
    #[command(flatten)]
    pub run_as: RunAs,
    /// Everything about reading.
    #[command(flatten)]
    pub read: ReadArgs,
    /// `--log-level`, which every command has, for the process that serves the mount.
    #[arg(skip)]
    pub log_level: Option<String>,
}
