//! `clip doctor`

use clap::Args;

use super::ReadArgs;

/// `clip doctor`
#[derive(Debug, Args)]
#[command(
    after_help = "Somebody waits for the answer: a registry that is away is given up after 10s, unless --read-timeout says otherwise."
)]
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
