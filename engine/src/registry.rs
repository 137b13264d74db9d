//! Talking to registries: references, credentials, requests, retries. Nothing here knows spans or files.
//!
//! From the outside in: [`client`] has the requests that clip makes and [`blob`] resumes a body; `fetch` is one try of one of them with
//! credentials (`auth`) and redirects (`redirect`); `pace` measures bodies and finds stragglers; `retry` says what is tried again and `headway` which body still moves; `exchange` is one request and answer over a connection of `pool`; `connect` opens those.

mod auth;
pub mod blob;
pub mod client;
mod connect;
mod exchange;
mod fetch;
mod headway;
mod location;
mod pace;
mod pool;
mod redirect;
pub mod reference;
mod retry;

pub use blob::BlobReader;
pub use client::{Client, ClientConfig, Manifest, PlainHttp, Traffic};
pub(crate) use exchange::CHUNK_BYTES_MAX;
pub use reference::Reference;
