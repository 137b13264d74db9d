//! `clip demo`

use clap::Args;

/// `clip demo`
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Do not mount; read through the library
    #[arg(long)]
    pub no_mount: bool,
    /// Leave the temporary directory and say where it is
    #[arg(long)]
    pub keep: bool,
}
