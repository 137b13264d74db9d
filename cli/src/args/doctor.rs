//! `clip doctor`

use clap::Args;

use super::ReadArgs;

/// `clip doctor`
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Also check the registry of this .clip or image reference
    #[arg(value_name = "FILE.clip|REF")]
    pub target: Option<String>,
    /// As JSON
    #[arg(long)]
    pub json: bool,
    /// Everything about reading.
    #[command(flatten)]
    pub read: ReadArgs,
}
