//! Talking to registries: references, credentials, requests, retries. Nothing here knows spans or files.

pub mod auth;
pub mod client;
pub mod reference;
pub mod retry;

pub use client::{BlobReader, Client, ClientConfig, Manifest, PlainHttp};
pub use reference::Reference;
