//! As what a container's process runs.

use clap::Args;

/// What of the image's process is another.
#[derive(Clone, Debug, Default, Args)]
pub struct RunAs {
    /// Add or replace an environment variable
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Run as this user, and group, instead of the image's.
    #[arg(short, long, help = "Run as this user instead of the image's: USER[:GROUP], names or numbers")]
    pub user: Option<String>,
    /// Working directory instead of the image's
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
}
