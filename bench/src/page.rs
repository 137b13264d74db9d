//! `clip-bench report`: saved runs as one HTML page.

use std::path::PathBuf;

use anyhow::Result;

/// `clip-bench report`
#[derive(Clone, Debug, clap::Args)]
pub struct ReportArgs {
    /// Holds the JSON files of one or more runs (--save, or --json into a file)
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// The page to write
    #[arg(short, long, value_name = "FILE", default_value = "clip-bench.html")]
    pub output: PathBuf,
}

/// Writes the page.
///
/// # Errors
/// When the directory holds no run, or the page cannot be written.
pub fn write(_args: &ReportArgs) -> Result<()> {
    anyhow::bail!("report is not there yet")
}
