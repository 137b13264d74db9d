//! Registries with mirrors: settings, and the servers behind them.

use std::{
    ops::Range,
    path::{Path, PathBuf},
    time::Duration,
};

use clip_engine::{
    EngineError,
    registry::{Client, ClientConfig, Reference},
};

use super::{Reply, Seen, Server, config, reply, serve_blob, sha256};

pub const MANIFEST: &str = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","layers":[]}"#;

/// A registry that has the blob and the manifest, under every name.
pub async fn registry(blob: &[u8]) -> Server {
    let own = blob.to_owned();
    Server::start(move |seen| answer(seen, &own)).await
}

pub fn answer(seen: &Seen, blob: &[u8]) -> Reply {
    if seen.path.contains("/blobs/") {
        serve_blob(seen, blob)
    } else {
        reply(200, MANIFEST).header("content-type", "application/vnd.oci.image.manifest.v1+json")
    }
}

/// Tries are as many as by default; what nobody answers takes so long.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// A hosts directory in which `registry` has `hosts.toml`.
pub struct Settings {
    dir: tempfile::TempDir,
}

impl Settings {
    pub fn new(registry: &str, text: &str) -> Self {
        Self { dir: tempfile::tempdir().unwrap() }.and(registry, text)
    }

    /// The same with `text` for `registry` as well.
    pub fn and(self, registry: &str, text: &str) -> Self {
        std::fs::create_dir(self.dir.path().join(registry)).unwrap();
        std::fs::write(self.dir.path().join(registry).join("hosts.toml"), text).unwrap();
        self
    }

    /// The directory of `registry`.
    pub fn of(&self, registry: &str) -> PathBuf {
        self.dir.path().join(registry)
    }

    pub fn config(&self) -> ClientConfig {
        ClientConfig { hosts_dir: Some(self.dir.path().to_owned()), patience: PATIENCE, ..config(Path::new("/nonexistent")) }
    }

    pub fn client(&self) -> Client {
        Client::new(self.config()).unwrap()
    }
}

pub fn mirror(server: &Server) -> String {
    format!("[host.\"{}\"]\n", server.url(""))
}

pub fn origin(server: &Server) -> String {
    format!("server = \"{}\"\n", server.url(""))
}

pub fn image(text: &str) -> Reference {
    text.parse().unwrap()
}

/// The bytes of a range of `blob` in `reference`'s repository.
pub async fn read_of(client: &Client, reference: &Reference, blob: &[u8], range: Range<u64>) -> Result<Vec<u8>, EngineError> {
    let mut reader = client.blob(reference, &sha256(blob), blob.len() as u64, range).await?;
    let mut all = Vec::new();
    while let Some(bytes) = reader.chunk().await? {
        all.extend_from_slice(&bytes);
    }
    Ok(all)
}

/// A port that refuses connections.
pub fn dead_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
