//! `clip cat`

use std::path::PathBuf;

use clap::Args;

use super::ReadArgs;

/// `clip cat`
#[derive(Debug, Args)]
pub struct CatArgs {
    /// The .clip
    #[arg(value_name = "FILE.clip")]
    pub clip: PathBuf,
    /// Regular files in the image; symbolic links are followed
    #[arg(value_name = "PATH", required = true)]
    pub paths: Vec<std::ffi::OsString>,
    /// Everything about reading.
    #[command(flatten)]
    pub read: ReadArgs,
}
