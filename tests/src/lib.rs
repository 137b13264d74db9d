//! What the integration tests stand on: real tools, a real registry, a scripted one, images that hurt, and oracles.
//!
//! A test indexes an image with the real `clip` binary ([`clip`]), from a real registry ([`registry`]) or a scripted one that counts,
//! lies and dies on command ([`faults`]; ports where nothing answers [`holes`]; what all servers share [`http`]; behind TLS and a password [`tls`], through a proxy if need be [`proxy`]; a real one behind tokens
//! [`guarded`], which a server of ours signs [`token_server`]), and compares what the mount shows with what another tool made of the same layers
//! ([`oracle`]). The images ([`images`]) are a small Debian one that foreign tools wrote, and synthetic ones written member by member.
//! A test that the machine cannot run says so and passes ([`machine`]).

pub mod clip;
pub mod containerd;
pub mod faults;
pub mod guarded;
pub mod holes;
pub mod http;
pub mod images;
pub mod machine;
pub mod oracle;
pub mod process;
pub mod proxy;
pub mod registry;
pub mod served;
pub mod spans;
pub mod tls;
pub mod token_server;
pub mod web;
