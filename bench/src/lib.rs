//! Measures clip, each figure beside the floor that it was measured against in the same run.
//!
//! [`corpus`] makes the image from a seed, [`figures`] measures, [`report`] prints. The registry, the binary and its mounts are those of
//! the tests (`clip-tests`), so a figure can't be had of something that the tests don't cover.
#![forbid(unsafe_code)]

pub mod corpus;
pub mod figures;
pub mod report;
