//! Figures, and how they are shown.

mod markdown;

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    /// Millions of stream or file bytes a second.
    #[serde(rename = "MB/s")]
    MegabytesPerSecond,
    /// Milliseconds.
    #[serde(rename = "ms")]
    Milliseconds,
    /// Microseconds.
    #[serde(rename = "us")]
    Microseconds,
    /// Bytes.
    #[serde(rename = "B")]
    Bytes,
    /// Multiples of 1024 * 1024 bytes.
    #[serde(rename = "MiB")]
    Mebibytes,
    /// Seconds.
    #[serde(rename = "s")]
    Seconds,
    /// Things in a second.
    #[serde(rename = "/s")]
    PerSecond,
    /// Things, or a share of things.
    #[serde(rename = "")]
    Count,
}

impl Unit {
    /// Which way is better. Of a count this is a figure's own affair; less, where nothing else is said.
    #[must_use]
    pub fn better(self) -> Better {
        match self {
            Unit::MegabytesPerSecond | Unit::PerSecond => Better::More,
            Unit::Milliseconds | Unit::Microseconds | Unit::Seconds | Unit::Bytes | Unit::Mebibytes | Unit::Count => Better::Less,
        }
    }

    /// With a space before it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Unit::Seconds => " s",
            Unit::PerSecond => " /s",
            Unit::MegabytesPerSecond => " MB/s",
            Unit::Milliseconds => " ms",
            Unit::Microseconds => " us",
            Unit::Bytes => " B",
            Unit::Mebibytes => " MiB",
            Unit::Count => "",
        }
    }
}

/// Which way a figure is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Better {
    /// A rate.
    More,
    /// A time or a size.
    Less,
}

/// What a figure has to reach.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bar {
    /// What is held against it.
    pub of: BarOf,
    /// At least, where more is better; at most, where less is.
    pub limit: f64,
    /// Whether the median is there.
    pub met: bool,
}

/// What of a figure is held against its bar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BarOf {
    /// The ratio to the floor.
    Ratio,
    /// The median itself.
    Value,
}

/// Something counted beside a figure.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Counter {
    /// In words.
    pub name: String,
    /// Over the runs.
    pub spread: Spread,
    /// Of the spread.
    pub unit: Unit,
}

/// How single operations were spread: for a plot.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Distribution {
    /// Whose: the figure's own, or its floor's.
    pub name: String,
    /// In the figure's unit, rising: (percent of the operations, the value they do not pass).
    pub points: Vec<(f64, f64)>,
}

/// What had been read before the clock started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Temperature {
    /// Nothing: an empty cache directory, a new engine.
    Cold,
    /// The bytes are in the cache directory, but this engine has not verified them yet.
    Unverified,
    /// The bytes are in the cache and verified; the kernel has none of the mount's pages.
    Warm,
    /// The kernel's page cache of the mount has the bytes.
    PageCache,
    /// Temperature has no meaning here.
    None,
}

impl Temperature {
    /// In a figure's name.
    #[must_use]
    pub fn id(self) -> &'static str {
        match self {
            Temperature::Cold => "cold",
            Temperature::Unverified => "unverified",
            Temperature::Warm => "warm",
            Temperature::PageCache => "page_cache",
            Temperature::None => "any",
        }
    }

    /// In words, with a comma before them.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Temperature::Cold => ", cold",
            Temperature::Unverified => ", not yet verified",
            Temperature::Warm => ", warm",
            Temperature::PageCache => ", in the page cache",
            Temperature::None => "",
        }
    }
}

/// The least, the middle and the largest of several runs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// `min <= median`
    pub min: f64,
    /// The mean of the middle two for an even number of runs.
    pub median: f64,
    /// `median <= max`
    pub max: f64,
    /// How many.
    pub runs: usize,
}

impl Spread {
    /// The spread of `values`.
    ///
    /// # Panics
    /// Without values: a measurement that never ran.
    #[must_use]
    pub fn of(values: &[f64]) -> Self {
        assert!(!values.is_empty(), "a spread of no runs");
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (last, middle) = (sorted.len() - 1, sorted.len() / 2);
        let median = if sorted.len().is_multiple_of(2) { f64::midpoint(sorted[middle - 1], sorted[middle]) } else { sorted[middle] };
        Self { min: sorted[0], median, max: sorted[last], runs: sorted.len() }
    }

    /// A value that every run has, such as a size.
    #[must_use]
    pub fn exact(value: f64) -> Self {
        Self { min: value, median: value, max: value, runs: 1 }
    }
}

/// What a figure is held against.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Floor {
    /// In words.
    pub what: String,
    /// In the figure's unit.
    pub spread: Spread,
}

/// One measured thing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Figure {
    /// Stable name: `read.sequential.fuse.cold`.
    pub id: String,
    /// In words.
    pub what: String,
    /// Of the spread and the floor.
    pub unit: Unit,
    /// What had been read before.
    pub temperature: Temperature,
    /// Over the runs.
    pub spread: Spread,
    /// Which way is better.
    pub better: Better,
    /// Taken in the same run.
    pub floor: Option<Floor>,
    /// Median over the floor's median: of a rate, 1 is the floor and less is worse; of all else, 1 is the floor and more is worse.
    pub ratio: Option<f64>,
    /// What it has to reach, where something was set.
    pub bar: Option<Bar>,
    /// What was counted beside it.
    #[serde(default)]
    pub counters: Vec<Counter>,
    /// Of single operations, where they were timed.
    #[serde(default)]
    pub distributions: Vec<Distribution>,
    /// First 16 hex digits of the BLAKE3 of what was produced.
    pub work: String,
}

impl Figure {
    /// A figure without a floor.
    #[must_use]
    pub fn new(id: &str, what: &str, unit: Unit, values: &[f64]) -> Self {
        Self {
            id: id.to_owned(),
            what: what.to_owned(),
            unit,
            temperature: Temperature::None,
            spread: Spread::of(values),
            better: unit.better(),
            floor: None,
            ratio: None,
            bar: None,
            counters: Vec::new(),
            distributions: Vec::new(),
            work: String::new(),
        }
    }

    /// With what it is held against.
    #[must_use]
    pub fn floor(mut self, what: &str, values: &[f64]) -> Self {
        let spread = Spread::of(values);
        self.ratio = (spread.median > 0.0).then(|| self.spread.median / spread.median);
        self.floor = Some(Floor { what: what.to_owned(), spread });
        self
    }

    /// With a bar for the ratio; after the floor, without which there is no ratio and no bar.
    #[must_use]
    pub fn bar_of_ratio(mut self, limit: f64) -> Self {
        self.bar = self.ratio.map(|ratio| Bar { of: BarOf::Ratio, limit, met: self.better.reaches(ratio, limit) });
        self
    }

    /// With a bar for the median.
    #[must_use]
    pub fn bar_of_value(mut self, limit: f64) -> Self {
        self.bar = Some(Bar { of: BarOf::Value, limit, met: self.better.reaches(self.spread.median, limit) });
        self
    }

    /// With something counted beside it; nothing counted is left out.
    #[must_use]
    pub fn counter(mut self, name: &str, unit: Unit, values: &[f64]) -> Self {
        if !values.is_empty() {
            self.counters.push(Counter { name: name.to_owned(), spread: Spread::of(values), unit });
        }
        self
    }

    /// With the spread of single operations, in the figure's unit.
    #[must_use]
    pub fn distribution(mut self, name: &str, values: &[f64]) -> Self {
        self.distributions.extend(Distribution::of(name, values));
        self
    }

    /// With what had been read before.
    #[must_use]
    pub fn temperature(mut self, temperature: Temperature) -> Self {
        self.temperature = temperature;
        self
    }

    /// With the hash of what was produced.
    #[must_use]
    pub fn work(mut self, hash: &blake3::Hash) -> Self {
        self.work = hash.to_hex().as_str()[..16].to_owned();
        self
    }
}

impl Better {
    /// Whether `value` is on the right side of `limit`.
    #[must_use]
    pub fn reaches(self, value: f64, limit: f64) -> bool {
        match self {
            Better::More => value >= limit,
            Better::Less => value <= limit,
        }
    }
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = if self.of == BarOf::Ratio { " of the ratio" } else { "" };
        write!(f, "{} (bar{of}: {})", if self.met { "ok" } else { "NOT MET" }, short(self.limit))
    }
}

impl Distribution {
    /// At the percentiles that a plot needs; none without values.
    #[must_use]
    pub fn of(name: &str, values: &[f64]) -> Option<Self> {
        const TAIL: [f64; 7] = [97.0, 98.0, 99.0, 99.5, 99.9, 99.99, 100.0];
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().checked_sub(1)?;
        let at = |percent: f64| (percent, sorted[((percent / 100.0 * sorted.len() as f64).ceil() as usize).saturating_sub(1).min(last)]);
        let percents = [0.0, 1.0, 2.5].into_iter().chain((1..20).map(|twentieth| f64::from(twentieth) * 5.0)).chain(TAIL);
        Some(Self { name: name.to_owned(), points: percents.map(at).collect() })
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}{}", self.id, self.what, self.temperature.as_str())?;
        write!(f, "    {}", Shown(self.spread, self.unit))?;
        if let Some(floor) = &self.floor {
            write!(f, "\n    floor {}: {}", Shown(floor.spread, self.unit), floor.what)?;
        }
        if let Some(ratio) = self.ratio {
            let kind = if self.better == Better::More { "of the floor's" } else { "x the floor" };
            write!(f, "\n    ratio {ratio:.3} {kind}")?;
        }
        if let Some(bar) = &self.bar {
            write!(f, "\n    {bar}")?;
        }
        for counter in &self.counters {
            write!(f, "\n    {}: {}", counter.name, Shown(counter.spread, counter.unit))?;
        }
        if !self.work.is_empty() {
            write!(f, "\n    work {}", self.work)?;
        }
        Ok(())
    }
}

struct Shown(Spread, Unit);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(spread, unit) = self;
        let unit = unit.as_str();
        write!(f, "{}{unit}", short(spread.median))?;
        if spread.runs > 1 {
            write!(f, " (min {}, max {}, {} runs)", short(spread.min), short(spread.max), spread.runs)?;
        }
        Ok(())
    }
}

/// Four digits that matter.
#[must_use]
pub fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 1000.0 => format!("{:.0}", value.round()),
        size if size >= 100.0 => format!("{value:.1}"),
        size if size >= 10.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// Everything one run of `clip-bench` found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// The arguments.
    pub command: String,
    /// Cores, kernel, load, build.
    pub machine: crate::machine::Machine,
    /// What was read and indexed.
    pub image: crate::setup::ImageSummary,
    /// In the order they were taken.
    pub figures: Vec<Figure>,
    /// What could not be measured, and why.
    pub skipped: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n{}\n", self.machine, self.image)?;
        for figure in &self.figures {
            writeln!(f, "{figure}\n")?;
        }
        for skipped in &self.skipped {
            writeln!(f, "skipped: {skipped}")?;
        }
        Ok(())
    }
}

impl Report {
    /// The figures as a table of docs/performance.md, what the floors are, and what was skipped.
    #[must_use]
    pub fn markdown(&self) -> String {
        markdown::page(self)
    }
}

/// Millions of bytes a second.
#[must_use]
pub fn megabytes_per_second(bytes: u64, took: Duration) -> f64 {
    bytes as f64 / 1e6 / took.as_secs_f64().max(1e-9)
}

/// Milliseconds.
#[must_use]
pub fn milliseconds(took: Duration) -> f64 {
    took.as_secs_f64() * 1e3
}

/// The value that `percent` of `latencies` do not pass, in microseconds.
#[must_use]
pub fn percentile_us(latencies: &mut [Duration], percent: usize) -> f64 {
    latencies.sort();
    let rank = (latencies.len() * percent).div_ceil(100).max(1) - 1;
    latencies.get(rank).map_or(0.0, |latency| latency.as_secs_f64() * 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Claim: the median stands in the middle, whatever the order, and of two it is their mean.
    #[test]
    fn a_spread_is_ordered() {
        assert_eq!(Spread::of(&[3.0, 1.0, 2.0]), Spread { min: 1.0, median: 2.0, max: 3.0, runs: 3 });
        assert_eq!(Spread::of(&[4.0, 2.0]).median, 3.0);
    }

    /// Claim: a difference below zero is shown as one.
    #[test]
    fn a_sign_is_shown() {
        assert_eq!([-25.57, -0.5, 1234.5].map(short), ["-25.57", "-0.500", "1235"]);
    }

    /// Claim: percentiles are values that were measured, by the nearest rank.
    #[test]
    fn percentiles_are_nearest_ranks() {
        let mut latencies: Vec<_> = (1..=100).rev().map(Duration::from_micros).collect();
        assert_eq!(percentile_us(&mut latencies, 50).round(), 50.0);
        assert_eq!(percentile_us(&mut latencies, 99).round(), 99.0);
        assert_eq!(percentile_us(&mut latencies[..1], 99).round(), 1.0);
    }

    /// Claim: a figure shows what it is held against, the ratio, and the hash of its work.
    #[test]
    fn a_figure_shows_its_floor() {
        let figure = Figure::new("index.x", "index rate", Unit::MegabytesPerSecond, &[300.0, 340.0, 320.0])
            .floor("inflate in memory", &[640.0])
            .work(&blake3::hash(b"work"));
        let text = figure.to_string();
        for part in ["320.0 MB/s (min 300.0, max 340.0, 3 runs)", "inflate in memory", "ratio 0.500", "work "] {
            assert!(text.contains(part), "{text}");
        }
    }
}
