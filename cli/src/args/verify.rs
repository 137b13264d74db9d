//! `clip verify`

use std::path::PathBuf;

use clap::Args;

use super::ReadArgs;

/// `clip verify`
#[derive(Debug, Args)]
#[command(after_help = "\
Without --remote: header, checksums of all sections, the whole structure of the index, every checkpoint and window. With \
--remote also every span of every layer: fetched, decoded and compared with its BLAKE3, into a temporary cache directory \
(needs the image's size on disk) or the one given.")]
pub struct VerifyArgs {
    /// The .clip
    #[arg(value_name = "FILE.clip")]
    pub clip: PathBuf,
    /// Fetch and check every span of every layer
    #[arg(long)]
    pub remote: bool,
    /// The result as JSON on standard output
    #[arg(long)]
    pub json: bool,
    /// Everything about reading.
    #[command(flatten)]
    pub read: ReadArgs,
}
