//! `clip umount`

use std::path::PathBuf;

use clap::Args;

/// `clip umount`
#[derive(Debug, Args)]
pub struct UmountArgs {
    /// Where it is mounted
    #[arg(value_name = "DIR", required = true)]
    pub dirs: Vec<PathBuf>,
    /// Detach now, serve files that are open until they are closed
    #[arg(short, long)]
    pub lazy: bool,
}
