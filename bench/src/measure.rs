//! One module a subcommand. Within a run, figure and floor are taken one after the other, so that a loaded machine slows both.

pub mod coldstart;
pub mod decode;
pub mod index;
pub mod memory;
pub mod metadata;
pub mod mount;
pub mod read;
pub mod size;

use std::time::{Duration, Instant};

use anyhow::Result;

use serde::{Deserialize, Serialize};

use crate::{corpus::Packing, machine, report::Figure};

/// What one subcommand found.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Findings {
    /// In the order they were taken.
    pub figures: Vec<Figure>,
    /// What could not be measured, and why.
    pub skipped: Vec<String>,
}

impl Findings {
    /// Notes what could not be measured, and why.
    pub fn skip(&mut self, what: &str, why: impl std::fmt::Display) {
        self.skipped.push(format!("{what}: {why}"));
    }

    /// The same, of an image in `codec`: what is not gzip has it in the figures' names, behind the first word, and in what was skipped.
    #[must_use]
    pub fn of(mut self, codec: Packing) -> Self {
        if codec != Packing::Gzip {
            for figure in &mut self.figures {
                figure.id = figure.id.replacen('.', &format!(".{}.", codec.id()), 1);
            }
            self.skipped.iter_mut().for_each(|skipped| *skipped = format!("{}: {skipped}", codec.id()));
        }
        self
    }

    /// Adds what another subcommand found.
    pub fn append(&mut self, mut other: Self) {
        self.figures.append(&mut other.figures);
        self.skipped.append(&mut other.skipped);
    }
}

/// How long `work` took, and what it gave.
pub(crate) fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<(Duration, T)> {
    let started = Instant::now();
    let made = work()?;
    Ok((started.elapsed(), made))
}

/// What some work cost: by the clock, and of the cores. The second hardly depends on what else the machine does.
#[derive(Clone, Copy)]
pub(crate) struct Cost {
    pub(crate) wall: Duration,
    /// Of all threads of this process, the registry's too.
    pub(crate) cpu: Duration,
}

/// What `work` cost, and what it gave.
pub(crate) fn costed<T>(work: impl FnOnce() -> Result<T>) -> Result<(Cost, T)> {
    let before = machine::cpu_time()?.own;
    let (wall, made) = timed(work)?;
    Ok((Cost { wall, cpu: machine::cpu_time()?.own.saturating_sub(before) }, made))
}

/// As [`costed`], for work that programs do which have ended when `work` returns; of this process only the registry's time is in it.
pub(crate) fn costed_with_children<T>(work: impl FnOnce() -> Result<T>) -> Result<(Cost, T)> {
    let before = machine::cpu_time()?;
    let (wall, made) = timed(work)?;
    let after = machine::cpu_time()?;
    let cpu = after.own.saturating_sub(before.own) + after.children.saturating_sub(before.children);
    Ok((Cost { wall, cpu }, made))
}

/// Remembers the first run's hash and refuses a later run that did other work.
#[derive(Default)]
pub(crate) struct SameWork(Option<blake3::Hash>);

impl SameWork {
    pub(crate) fn expect(hash: blake3::Hash) -> Self {
        Self(Some(hash))
    }

    pub(crate) fn check(&mut self, what: &str, found: blake3::Hash) -> Result<()> {
        let expected = *self.0.get_or_insert(found);
        anyhow::ensure!(found == expected, "{what}: expected work with hash {expected}, found {found}");
        Ok(())
    }

    pub(crate) fn hash(&self) -> blake3::Hash {
        self.0.unwrap_or_else(|| blake3::hash(b""))
    }
}
