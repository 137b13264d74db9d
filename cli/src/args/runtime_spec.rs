//! `clip runtime-spec`

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{ReadArgs, run_as::RunAs};

/// `clip runtime-spec`
#[derive(Debug, Args)]
#[command(after_help = "\
config.json goes to standard output, the overlay mount line to stderr; with --print-mount the line goes to standard output and \
no config.json is written.

Example, as root:
  clip mount debian.clip /mnt/debian && mkdir -p c/upper c/work c/rootfs
  clip runtime-spec debian.clip -- /bin/echo hello > c/config.json
  sh -c \"$(clip runtime-spec debian.clip --print-mount --bundle c --mountpoint /mnt/debian)\"
  runc run --bundle c hello; umount c/rootfs; clip umount /mnt/debian")]
pub struct RuntimeSpecArgs {
    /// The .clip
    #[arg(value_name = "FILE.clip")]
    pub clip: PathBuf,
    /// Run this instead of the image's entrypoint and command
    #[arg(last = true, value_name = "CMD")]
    pub command: Vec<String>,
    /// root.path of the config.json, relative to the bundle
    #[arg(long, default_value = "rootfs", value_name = "DIR")]
    pub rootfs: PathBuf,
    /// The bundle directory, for the mount line: upper, work and rootfs are in it
    #[arg(long, default_value = ".", value_name = "DIR")]
    pub bundle: PathBuf,
    /// Where the .clip is mounted, for the mount line [default: where it is mounted now]
    #[arg(long, value_name = "DIR")]
    pub mountpoint: Option<PathBuf>,
    /// Print the overlay mount line instead of config.json
    #[arg(long)]
    pub print_mount: bool,
    /// private: an empty network namespace; host: the host's
    #[arg(long, value_enum, default_value_t)]
    pub net: Net,
    /// As what it runs.
    #[command(flatten)]
    pub run_as: RunAs,
    /// The process has a terminal
    #[arg(short, long)]
    pub terminal: bool,
    /// The root is read-only
    #[arg(long)]
    pub read_only: bool,
    /// Everything about reading.
    #[command(flatten)]
    pub read: ReadArgs,
}

/// `--net`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Net {
    /// A new, empty network namespace.
    #[default]
    Private,
    /// The host's network.
    Host,
}
