//! Resume at checkpoints, in memory.

use anyhow::Result;

use super::Findings;
use crate::setup::Setup;

/// `clip-bench decode`
#[derive(Clone, Debug, Default, clap::Args)]
pub struct DecodeArgs {}

/// Nothing yet.
///
/// # Errors
/// None.
pub fn measure(_setup: &Setup, _args: &DecodeArgs) -> Result<Findings> {
    Ok(Findings::default())
}
