//! Talking to registries: references, credentials, requests, retries. Nothing here knows spans or files.
//!
//! From the outside in: [`client`] has the requests that clip makes, [`blob`] is the bytes of a blob and `resume` goes on where a body breaks off; `hosts` says which hosts are asked for
//! them; `fetch` is one try of one of them at one host with credentials (`auth`) and redirects (`redirect`); `foreign` asks URLs outside
//! for what a registry has not; `part` says which bytes of an answer are the range asked for; `retry` what is tried again, `headway` which body still moves, and `pace` which is a straggler;
//! `exchange` is one request and answer over a connection of `pool`; `connect` opens those along a `route`: addresses (`lookup`), TLS (`tls`) and proxies (`proxy`).

mod auth;
pub mod blob;
pub mod client;
mod connect;
mod exchange;
mod fetch;
pub mod foreign;
mod headway;
mod hosts;
mod location;
mod lookup;
mod pace;
mod part;
mod pool;
mod proxy;
mod redirect;
pub mod reference;
mod resume;
mod retry;
mod route;
mod tls;

pub use auth::{Environment, LoggedIn, Login, Secret, Typed};
pub use blob::BlobReader;
pub use client::{Client, ClientConfig, Manifest, PlainHttp, Traffic};
pub(crate) use exchange::CHUNK_BYTES_MAX;
pub use foreign::{ForeignBlob, FoundBlob};
pub use hosts::ServedBy;
pub use proxy::ProxyVariables;
pub use reference::Reference;
