//! Debian's `docker-registry` on a free loopback port, with storage of its own, stopped by its pid.

use std::{
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};

use crate::process::{Running, run_ok, wait_until};

/// A running registry. Dropping it ends the process and removes its storage.
pub struct Registry {
    port: u16,
    _process: Running,
    storage: Arc<tempfile::TempDir>,
}

/// What a registry demands of those who ask it.
#[derive(Clone, Debug, Default)]
pub struct Demands {
    /// The `auth:` part of its configuration, or nothing.
    pub auth: String,
    /// A directory with `server.pem` and `server.key`: it speaks TLS.
    pub tls: Option<std::path::PathBuf>,
    /// Whoever asks must have a certificate that this authority signed; only with `tls`.
    pub client_authority: Option<std::path::PathBuf>,
}

impl Registry {
    /// Starts a registry that answers.
    ///
    /// # Errors
    /// When it cannot be started on any of three ports.
    pub fn start() -> Result<Self> {
        let storage = tempfile::Builder::new().prefix("clip-registry-").tempdir()?;
        Self::start_over(&Arc::new(storage), &Demands::default())
    }

    /// Another registry over the same storage.
    ///
    /// # Errors
    /// As [`Registry::start`].
    pub fn start_beside(&self, demands: &Demands) -> Result<Self> {
        Self::start_over(&self.storage, demands)
    }

    /// Ends it and starts another with the same contents, on another port.
    ///
    /// # Errors
    /// As [`Registry::start`].
    pub fn restart(self, demands: &Demands) -> Result<Self> {
        let Self { _process: process, storage, .. } = self;
        drop(process);
        Self::start_over(&storage, demands)
    }

    fn start_over(storage: &Arc<tempfile::TempDir>, demands: &Demands) -> Result<Self> {
        let mut last = None;
        for _ in 0..3 {
            match Self::start_once(storage, demands) {
                Ok(registry) => return Ok(registry),
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("no attempt was made")?)
    }

    fn start_once(storage: &Arc<tempfile::TempDir>, demands: &Demands) -> Result<Self> {
        let port = free_port()?;
        let config = storage.path().join(format!("config-{port}.yml"));
        let mut tls = String::new();
        if let Some(dir) = demands.tls.as_deref().map(Path::display) {
            tls.push_str(&format!("  tls:\n    certificate: {dir}/server.pem\n    key: {dir}/server.key\n"));
        }
        if let Some(authority) = demands.client_authority.as_deref().map(Path::display) {
            tls.push_str(&format!("    clientcas:\n      - {authority}\n"));
        }
        let text = format!(
            "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    rootdirectory: {}\n{}http:\n  addr: 127.0.0.1:{port}\n{tls}\
             validation:\n  manifests:\n    urls:\n      allow: ['.*']\n",
            storage.path().join("data").display(),
            demands.auth
        );
        std::fs::write(&config, text)?;
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut process = Running::start(&mut command)?;
        wait_until("docker-registry answers", Duration::from_secs(15), || {
            !process.is_alive() || TcpStream::connect(("127.0.0.1", port)).is_ok()
        })?;
        anyhow::ensure!(process.is_alive(), "docker-registry ended at once");
        Ok(Self { port, _process: process, storage: Arc::clone(storage) })
    }

    /// Its port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `127.0.0.1:PORT/NAME:TAG`
    #[must_use]
    pub fn reference(&self, name: &str, tag: &str) -> String {
        format!("127.0.0.1:{}/{name}:{tag}", self.port)
    }

    /// Pushes the image `tag` of the OCI layout `layout` as `NAME:TAG` with skopeo, blobs unchanged where they are compressed already
    /// (skopeo compresses plain layers with Go's gzip), and returns its reference.
    ///
    /// # Errors
    /// skopeo's own.
    pub fn push(&self, layout: &Path, tag: &str, name: &str) -> Result<String> {
        let reference = self.reference(name, tag);
        let source = format!("oci:{}:{tag}", layout.display());
        let target = format!("docker://{reference}");
        run_ok(Command::new("skopeo").args(["copy", "--quiet", "--dest-tls-verify=false", "--insecure-policy", &source, &target]))?;
        Ok(reference)
    }
}

/// A loopback port that nothing listens on now.
///
/// # Errors
/// The system's.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
