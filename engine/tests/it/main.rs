//! The engine from outside: images of sample layers, read through caches that are cold, warm, shared, damaged or full.
#![allow(clippy::unwrap_used, missing_docs)]

mod cache;
mod chained;
mod edges;
mod failures;
mod pace;
mod priorities;
mod profiles;
mod reads;
mod registry;
mod sample;
mod sharing;
mod zstd_layers;
