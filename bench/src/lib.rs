//! What clip costs, each figure beside a floor that was taken in the same run.
//!
//! [`corpus`] makes an image from a seed and [`registry`] serves it on loopback. [`measure`] has one module a subcommand of
//! `clip-bench`; each yields [`report::Figure`]s. [`floor`] has the plain loops that they are held against, and [`child`] what runs in
//! processes of its own, whose memory is then nobody else's. [`trivial`] is the floor of a mount, and [`serve`] runs it and clip in
//! processes of their own; [`node`] is clip through its program alone, and [`rootfs`] what a container sees. Every measurement hashes the
//! bytes it produced and compares them with what the corpus says, so a figure that was got by doing less is an error, not a record.
#![deny(unsafe_code)]

pub mod args;
pub mod background;
pub mod child;
pub mod corpus;
pub mod floor;
pub mod layout;
pub mod machine;
pub mod measure;
pub mod node;
pub mod origin;
pub mod page;
pub mod registry;
pub mod relay;
pub mod report;
pub mod rootfs;
pub mod serve;
pub mod setup;
pub mod shaper;
pub mod tree;
pub mod trivial;
pub mod unpack;
