//! Debian's `docker-registry` on a free loopback port, with storage of its own, stopped by its pid.

use std::{
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::process::{Running, run_ok, wait_until};

/// A running registry. Dropping it ends the process and removes its storage.
pub struct Registry {
    port: u16,
    _process: Running,
    _storage: tempfile::TempDir,
}

impl Registry {
    /// Starts a registry that answers.
    ///
    /// # Errors
    /// When it cannot be started on any of three ports.
    pub fn start() -> Result<Self> {
        let mut last = None;
        for _ in 0..3 {
            match Self::start_once() {
                Ok(registry) => return Ok(registry),
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("no attempt was made")?)
    }

    fn start_once() -> Result<Self> {
        let storage = tempfile::Builder::new().prefix("clip-registry-").tempdir()?;
        let port = free_port()?;
        let config = storage.path().join("config.yml");
        let text = format!(
            "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n",
            storage.path().join("data").display()
        );
        std::fs::write(&config, text)?;
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut process = Running::start(&mut command)?;
        wait_until("docker-registry answers", Duration::from_secs(15), || {
            !process.is_alive() || TcpStream::connect(("127.0.0.1", port)).is_ok()
        })?;
        anyhow::ensure!(process.is_alive(), "docker-registry ended at once");
        Ok(Self { port, _process: process, _storage: storage })
    }

    /// `127.0.0.1:PORT/NAME:TAG`
    #[must_use]
    pub fn reference(&self, name: &str, tag: &str) -> String {
        format!("127.0.0.1:{}/{name}:{tag}", self.port)
    }

    /// Its port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
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
