//! `mount.clip`

use std::path::PathBuf;

use clap::Parser;

/// What mount(8) hands to `mount.clip`.
#[derive(Debug, Parser)]
#[command(
    name = "mount.clip",
    version,
    after_help = "Called by mount(8): mount -t clip FILE.clip DIR -o OPTIONS. See `clip mount --help` for the options."
)]
pub struct MountHelperArgs {
    /// The .clip
    pub source: PathBuf,
    /// The mountpoint
    pub dir: PathBuf,
    /// Tolerate unknown options
    #[arg(short = 's')]
    pub sloppy: bool,
    /// Do everything but mount
    #[arg(short = 'f')]
    pub fake: bool,
    /// No /etc/mtab; nothing to do
    #[arg(short = 'n')]
    pub no_mtab: bool,
    /// Say what is done
    #[arg(short = 'v', action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Mount in another mount namespace; not supported
    #[arg(short = 'N', value_name = "NS")]
    pub namespace: Option<PathBuf>,
    /// Options of mount(8) and of clip mount
    #[arg(short = 'o', value_name = "LIST", action = clap::ArgAction::Append)]
    pub options: Vec<String>,
    /// The file system type
    #[arg(short = 't', value_name = "TYPE")]
    pub fs_type: Option<String>,
}
