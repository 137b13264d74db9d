//! Figures, as a table for people or JSON for machines.

use std::io::Write;

use anyhow::Result;
use serde::Serialize;

/// One measured number.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// The median where there were several runs.
    pub value: f64,
    /// `MB/s`, `ms`, `B/file` ...
    pub unit: &'static str,
    /// Smallest and largest run.
    pub spread: Option<(f64, f64)>,
    /// What it was measured against.
    pub floor: Option<Floor>,
    /// Cold or warm, and what else decides the number.
    pub note: String,
}

/// What the same bytes cost without clip, in the same unit and run.
#[derive(Clone, Debug, Serialize)]
pub struct Floor {
    /// How it was had.
    pub name: &'static str,
    /// In the figure's unit.
    pub value: f64,
}

impl Figure {
    /// Of one run.
    #[must_use]
    pub fn new(name: impl Into<String>, value: f64, unit: &'static str, note: impl Into<String>) -> Self {
        Self { name: name.into(), value, unit, spread: None, floor: None, note: note.into() }
    }

    /// The median of several runs, with their spread.
    #[must_use]
    pub fn of_runs(name: impl Into<String>, runs: &mut [f64], unit: &'static str, note: impl Into<String>) -> Self {
        runs.sort_by(f64::total_cmp);
        let spread = runs.first().copied().zip(runs.last().copied());
        let note = format!("{}; {} runs", note.into(), runs.len());
        Self { spread, ..Self::new(name, runs.get(runs.len() / 2).copied().unwrap_or(f64::NAN), unit, note) }
    }

    /// The same beside its floor.
    #[must_use]
    pub fn beside(self, name: &'static str, value: f64) -> Self {
        Self { floor: Some(Floor { name, value }), ..self }
    }
}

/// What was measured, where, and on which bytes.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Cores of this machine.
    pub cores: usize,
    /// An unoptimised build says nothing about speed.
    pub optimised: bool,
    /// Of the corpus.
    pub work: String,
    /// In the order they were asked for.
    pub figures: Vec<Figure>,
}

impl Report {
    /// Writes it to `out`.
    ///
    /// # Errors
    /// The writer's.
    pub fn write(&self, json: bool, out: &mut impl Write) -> Result<()> {
        if json {
            serde_json::to_writer_pretty(&mut *out, self)?;
            return Ok(writeln!(out)?);
        }
        writeln!(out, "{} cores, {}, corpus {}", self.cores, if self.optimised { "release" } else { "UNOPTIMISED" }, self.work)?;
        for figure in &self.figures {
            let spread = figure.spread.map_or(String::new(), |(low, high)| format!(" ({low:.1}..{high:.1})"));
            write!(out, "{:44} {:>10.1} {}{spread}", figure.name, figure.value, figure.unit)?;
            if let Some(floor) = &figure.floor {
                write!(out, "  | {}: {:.1} ({:.2}x)", floor.name, floor.value, figure.value / floor.value)?;
            }
            writeln!(out, "  [{}]", figure.note)?;
        }
        Ok(())
    }
}
