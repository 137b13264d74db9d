//! Counters of an owner, as `--stats` files and SIGUSR1 give them.

use std::path::Path;

use anyhow::{Context, Result};
use clip_engine::Stats;
use clip_indexer::{Durability, OutputPlace};
use serde::Serialize;

/// One report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The owner.
    pub pid: u32,
    /// Where it keeps layers.
    pub cache_dir: String,
    /// Since its start.
    pub seconds: f64,
    /// Mounts served now.
    pub mounts: Vec<MountReport>,
    /// The engine's counters, all mounts together.
    pub engine: serde_json::Value,
}

/// One mount of a [`Report`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MountReport {
    /// Where.
    pub mountpoint: String,
    /// What.
    pub clip: String,
    /// What is done beside serving it.
    #[serde(flatten)]
    pub work: Work,
}

/// What is done beside serving a mount; empty where nothing was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Work {
    /// The replay of a profile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replay: Option<Progress>,
    /// `--fill`, once it has begun.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fill: Option<Progress>,
    /// `--record`: spans that were needed so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recorded_spans: Option<u64>,
}

/// How far a replay or a fill is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// To be there.
    pub spans: u64,
    /// There; at the end less than `spans` where the rest was given up.
    pub spans_done: u64,
    /// Nothing more will come.
    pub is_finished: bool,
}

impl Report {
    /// A report of `stats`.
    pub fn new(cache_dir: &Path, seconds: f64, mounts: Vec<MountReport>, stats: &Stats) -> Self {
        let engine = serde_json::to_value(stats).unwrap_or_default();
        Self { pid: std::process::id(), cache_dir: cache_dir.display().to_string(), seconds, mounts, engine }
    }
}

/// `path`, where no link is followed, holds `report` as JSON, whole.
pub fn write(path: &Path, report: &Report) -> Result<()> {
    let context = || format!("stats file {}", path.display());
    let mut text = serde_json::to_vec_pretty(report).with_context(context)?;
    text.push(b'\n');
    OutputPlace::at(path).write(&text, Durability::Later).with_context(context)
}

/// One line for the log.
pub fn log(stats: &Stats) {
    tracing::info!(
        requests = stats.requests,
        bytes_fetched = stats.bytes_fetched,
        requests_joined = stats.requests_joined,
        gap_bytes = stats.gap_bytes,
        connections = stats.connections,
        source_bytes = stats.source_bytes,
        bytes_decoded = stats.bytes_decoded,
        bytes_needed = stats.bytes_needed,
        spans_fetched = stats.spans_fetched,
        spans_prefetched = stats.spans_prefetched,
        spans_prefetched_used = stats.spans_prefetched_used,
        stragglers_cancelled = stats.stragglers_cancelled,
        reads_present = stats.reads_present,
        reads_waited = stats.reads_waited,
        reads_failed = stats.reads_failed,
        bytes_read = stats.bytes_read,
        spans_repaired = stats.spans_repaired,
        spans_not_cached = stats.spans_not_cached,
        shard_idle_with_work_us = stats.shard_idle_with_work_us,
        slowest_read_us = stats.slowest_read_us,
        slowest_read = stats.slowest_read,
        "stats"
    );
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// A stats file is whole JSON, readable by others, and leaves no temporary name behind.
    #[test]
    fn stats_file_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stats.json");
        let stats = Stats { requests: 3, ..Stats::default() };
        let report = Report::new(Path::new("/c"), 1.5, vec![], &stats);
        write(&path, &report).unwrap();
        write(&path, &report).unwrap();
        let read: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(read["engine"]["requests"], 3);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
    }
}
