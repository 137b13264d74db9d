//! Tests of the crate from outside: the model, the kernel, damage, golden bytes, size budgets.
#![allow(clippy::unwrap_used)]

mod budget;
mod damage;
mod golden;
mod kernel;
mod model;
mod trees;
