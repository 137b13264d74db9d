//! `clip extract`

use std::path::PathBuf;

use clap::Args;

use super::ReadArgs;

/// `clip extract`
#[derive(Debug, Args)]
#[command(after_help = "\
DIR becomes the image's root directory (or PATH, when that is a directory; a file is put into DIR under its own name). Modes, \
times, symbolic and hard links and holes are kept; owners, devices and extended attributes when run as root. A set-user-id or \
set-group-id bit is kept only where the owner or group is the image's. Nothing is ever written outside DIR, whatever the .clip says \
and whatever others do in DIR meanwhile; what another process has replaced there is an error that names it.

Examples:
  clip extract debian.clip rootfs
  clip extract debian.clip etc /etc")]
pub struct ExtractArgs {
    /// The .clip
    #[arg(value_name = "FILE.clip")]
    pub clip: PathBuf,
    /// Where to; made if missing, must be empty without --force
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// What to unpack; a symbolic link is followed within the image, and unpacked is what it leads to [default: /]
    #[arg(value_name = "PATH")]
    pub path: Option<std::ffi::OsString>,
    /// Unpack over what DIR holds: files are replaced, directories merged
    #[arg(long)]
    pub force: bool,
    /// Everything about reading.
    #[command(flatten)]
    pub read: ReadArgs,
}
