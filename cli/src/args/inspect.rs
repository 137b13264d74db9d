//! `clip inspect`

use std::path::PathBuf;

use clap::Args;

/// `clip inspect`
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// The .clip
    #[arg(value_name = "FILE.clip")]
    pub clip: PathBuf,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}
