//! What every subcommand takes, as typed.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use serde::Serialize;

use crate::corpus::Packing;

/// What every subcommand takes.
#[derive(Clone, Debug, Args)]
pub struct Common {
    /// Every path once or twice in a few seconds: the hashes of the work are checked, the times mean nothing
    #[arg(long, global = true)]
    pub tiny: bool,
    /// Runs of each measurement [default: 5; 2 with --tiny]
    #[arg(long, global = true, value_name = "N", value_parser = parse_runs)]
    pub runs: Option<usize>,
    /// What the image is made from, and where random reads go
    #[arg(long, global = true, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Print JSON
    #[arg(long, global = true, help_heading = "Output")]
    pub json: bool,
    /// Print the table of docs/performance.md
    #[arg(long, global = true, conflicts_with = "json", help_heading = "Output")]
    pub markdown: bool,
    /// Write the JSON to FILE too, for `clip-bench report`
    #[arg(long, global = true, value_name = "FILE", help_heading = "Output")]
    pub save: Option<PathBuf>,
    /// The clip program to measure [default: the one beside this program]
    #[arg(long, global = true, value_name = "FILE", help_heading = "What is measured")]
    pub clip_program: Option<PathBuf>,
    /// Measure this .clip, from the registry that it names, and not an image made for the run
    #[arg(long, global = true, value_name = "FILE", help_heading = "What is measured")]
    pub clip: Option<PathBuf>,
    /// MiB of stream in the large layer of the image that is made; half of it is one file [default: 1024 for index, decode, read and
    /// all, 384 for the others; 6 with --tiny]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u32).range(4..=65536), help_heading = "What is measured")]
    pub corpus_mib: Option<u32>,
    /// How the layers of the image that is made are compressed; all runs parts of itself with the others too
    #[arg(long, global = true, value_enum, default_value_t, conflicts_with = "clip", help_heading = "What is measured")]
    pub codec: Packing,
    /// What stands between clip and the registry.
    #[command(flatten)]
    pub shape: Shape,
}

impl Common {
    /// As with nothing typed but `--tiny`.
    #[must_use]
    pub fn tiny() -> Self {
        Self {
            tiny: true,
            runs: None,
            seed: 1,
            json: false,
            markdown: false,
            save: None,
            clip_program: None,
            clip: None,
            corpus_mib: None,
            codec: Packing::Gzip,
            shape: Shape::default(),
        }
    }
}

/// What the shaper does to the traffic between clip and the registry. All unset: there is no shaper.
#[derive(Clone, Debug, Default, PartialEq, Args)]
pub struct Shape {
    /// Hold back the first byte of each answer for TIME (20ms)
    #[arg(long, global = true, value_name = "TIME", value_parser = parse_time, help_heading = "Shaper between clip and the registry")]
    pub latency: Option<Duration>,
    /// At most RATE down each connection (50MB, 8MiB; a second)
    #[arg(long, global = true, value_name = "RATE", value_parser = parse_rate, help_heading = "Shaper between clip and the registry")]
    pub bandwidth_per_connection: Option<u64>,
    /// At most RATE down all connections together (100MB; a second)
    #[arg(long, global = true, value_name = "RATE", value_parser = parse_rate, help_heading = "Shaper between clip and the registry")]
    pub bandwidth: Option<u64>,
    /// Starve the first N connections of each run: at most RATE down each of them [default RATE: 1MiB]
    #[arg(long, global = true, value_name = "N[:RATE]", value_parser = parse_starve, help_heading = "Shaper between clip and the registry")]
    pub starve: Option<Starve>,
}

impl Shape {
    /// Whether nothing is asked for.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// Some connections that get next to nothing, as one flow through a load balancer sometimes does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Starve {
    /// The first so many that are opened.
    pub connections: u64,
    /// Bytes a second down each.
    pub bytes_per_second: u64,
}

/// Bytes a second of a starved connection. Source: a production failure, in which one flow of several had 1-3 MiB/s.
const STARVED_BYTES_PER_SECOND: u64 = 1 << 20;

/// A number of runs: 1 to 1000.
fn parse_runs(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|runs| (1..=1000).contains(runs)).ok_or_else(|| format!("expected a number from 1 to 1000, found {text:?}"))
}

/// `500us`, `20ms`, `2s`; at most a minute.
///
/// # Errors
/// What was expected.
fn parse_time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("expected a time up to 60s such as 20ms, found {text:?}");
    let (number, unit) = text.split_at(text.find(|character: char| !character.is_ascii_digit() && character != '.').ok_or_else(wrong)?);
    let seconds = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        _ => return Err(wrong()),
    };
    let seconds = number.parse::<f64>().map_err(|_| wrong())? * seconds;
    if (0.0..=60.0).contains(&seconds) { Ok(Duration::from_secs_f64(seconds)) } else { Err(wrong()) }
}

/// `100MB`, `8MiB`, `1GB/s`, `500KB`, `4096`: bytes a second, over 0.
///
/// # Errors
/// What was expected.
pub fn parse_rate(text: &str) -> Result<u64, String> {
    let wrong = || format!("expected bytes a second such as 100MB or 8MiB, found {text:?}");
    let amount = text.strip_suffix("/s").unwrap_or(text);
    let (number, unit) = amount.split_at(amount.find(|character: char| !character.is_ascii_digit()).unwrap_or(amount.len()));
    let each: u64 = match unit {
        "" | "B" => 1,
        "KB" | "kB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(wrong()),
    };
    number.parse::<u64>().ok().and_then(|number| number.checked_mul(each)).filter(|rate| (1..1 << 50).contains(rate)).ok_or_else(wrong)
}

/// `2`, `2:500KB`.
fn parse_starve(text: &str) -> Result<Starve, String> {
    let (connections, rate) = text.split_once(':').map_or((text, None), |(connections, rate)| (connections, Some(rate)));
    let connections = connections.parse().map_err(|_| format!("expected a number of connections as in 2 or 2:500KB, found {text:?}"))?;
    Ok(Starve { connections, bytes_per_second: rate.map_or(Ok(STARVED_BYTES_PER_SECOND), parse_rate)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Claim: times and rates are read with their units, and nothing else is taken for one.
    #[test]
    fn times_and_rates_have_units() {
        assert_eq!(parse_time("20ms"), Ok(Duration::from_millis(20)));
        assert_eq!(parse_time("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_rate("100MB/s"), Ok(100_000_000));
        assert_eq!(parse_rate("3MiB"), Ok(3 << 20));
        assert_eq!(parse_starve("2"), Ok(Starve { connections: 2, bytes_per_second: 1 << 20 }));
        assert_eq!(parse_starve("1:500KB"), Ok(Starve { connections: 1, bytes_per_second: 500_000 }));
        for wrong in ["", "20", "ms", "-1s", "1h", "61s", "1.2.3s"] {
            assert!(parse_time(wrong).is_err(), "{wrong}");
        }
        for wrong in ["", "0", "MB", "1.5MB", "1MB/m", "99999999999GB"] {
            assert!(parse_rate(wrong).is_err(), "{wrong}");
        }
        assert!(parse_starve("x").is_err() && parse_starve("1:").is_err());
    }
}
