//! How fast bytes come: random and sequential, cold and warm, through the library and through a mount.

mod random;
mod sequential;
mod warm;

use anyhow::Result;

use super::Findings;
use crate::{machine, setup::Setup};

/// How a measurement reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// `Image::read_exact_at`.
    Library,
    /// pread of a file of a mount.
    Mount,
}

impl Way {
    fn id(self) -> &'static str {
        match self {
            Way::Library => "library",
            Way::Mount => "fuse",
        }
    }

    fn what(self) -> &'static str {
        match self {
            Way::Library => "through the library",
            Way::Mount => "through FUSE",
        }
    }
}

/// `clip-bench read`
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ReadArgs {}

/// Latencies of random reads and rates of sequential ones, and what they cost the registry.
///
/// # Errors
/// Every kind; wrong bytes are an error.
pub fn measure(setup: &Setup, _args: &ReadArgs) -> Result<Findings> {
    let mut findings = Findings::default();
    let Some(made) = &setup.made else {
        findings.skip("read", "needs the image that clip-bench makes; leave out --clip");
        return Ok(findings);
    };
    let mut ways = vec![Way::Library];
    match machine::no_mounts() {
        None => ways.push(Way::Mount),
        Some(reason) => findings.skipped.push(format!("read through FUSE: {reason}")),
    }
    random::measure(setup, &ways, &mut findings)?;
    sequential::measure(setup, made, &ways, &mut findings)?;
    if ways.contains(&Way::Mount) {
        warm::measure(setup, made.corpus.large_hash, &mut findings)?;
    }
    Ok(findings)
}
