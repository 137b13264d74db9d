//! `clip inspect`

use std::path::PathBuf;

use clap::Args;

/// `clip inspect`
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// The .clip, or an access profile
    #[arg(value_name = "FILE")]
    pub clip: PathBuf,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}
