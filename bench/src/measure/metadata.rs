//! Storms of stat, of names that do not exist, of open+read+close, of readdir.

use anyhow::Result;

use super::Findings;
use crate::setup::Setup;

/// `clip-bench metadata`
#[derive(Clone, Debug, Default, clap::Args)]
pub struct MetadataArgs {}

/// Nothing yet.
///
/// # Errors
/// None.
pub fn measure(_setup: &Setup, _args: &MetadataArgs) -> Result<Findings> {
    Ok(Findings::default())
}
