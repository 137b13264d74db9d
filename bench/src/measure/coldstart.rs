//! A command in a fresh mount, against the same in the unpacked tree.

use anyhow::Result;

use super::Findings;
use crate::setup::Setup;

/// `clip-bench coldstart`
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ColdstartArgs {}

/// Nothing yet.
///
/// # Errors
/// None.
pub fn measure(_setup: &Setup, _args: &ColdstartArgs) -> Result<Findings> {
    Ok(Findings::default())
}
