//! What `clip demo` needs besides clip itself: an image and a registry, both made here, so that it needs no network.

pub mod image;
pub mod registry;
