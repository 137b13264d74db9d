//! containerd's own unpack of an image: a daemon with a directory and a socket of its own, and its plain (`native`) snapshotter.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::{
    images::Layout,
    machine::{Need, lacks},
    process::{Running, run_ok, shell, wait_until},
};

/// A running containerd. Dropping it ends the daemon and removes what it unpacked.
pub struct Containerd {
    dir: TempDir,
    _process: Running,
}

impl Containerd {
    /// Starts a daemon that answers; `None`, after saying why, where this machine has none.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn start() -> Result<Option<Self>> {
        if lacks(&[Need::Root, Need::Tool("containerd"), Need::Tool("ctr")]) {
            return Ok(None);
        }
        // Short: a socket's path is at most 107 bytes.
        let dir = tempfile::Builder::new().prefix("clip-ctd-").tempdir()?;
        let path = |name: &str| dir.path().join(name).display().to_string();
        let config = format!(
            "version = 2\nroot = \"{}\"\nstate = \"{}\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\n  address = \"{}\"\n",
            path("root"),
            path("state"),
            path("sock")
        );
        std::fs::write(dir.path().join("config.toml"), config)?;
        let mut command = Command::new("containerd");
        command.args(["--config", &path("config.toml"), "--log-level", "error"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(std::fs::File::create(dir.path().join("log"))?);
        let containerd = Self { _process: Running::start(&mut command)?, dir };
        let answers = wait_until("containerd answers", Duration::from_secs(20), || containerd.ctr(&["version"]).is_ok());
        answers.with_context(|| std::fs::read_to_string(containerd.dir.path().join("log")).unwrap_or_default())?;
        Ok(Some(containerd))
    }

    fn ctr(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.dir.path().join("sock")).args(["--namespace", "clip-test"]).args(arguments);
        Ok(run_ok(&mut command)?.text())
    }

    /// The root file system that containerd makes of `tag`.
    ///
    /// # Errors
    /// containerd's own.
    pub fn unpack(&self, layout: &Layout, tag: &str) -> Result<PathBuf> {
        let (archive, name) = (self.dir.path().join("image.tar"), format!("localhost/clip/{tag}:{tag}"));
        shell("tar -C \"$1\" -cf \"$2\" .", &[layout.dir().as_os_str(), archive.as_os_str()])?;
        let archive = archive.display().to_string();
        self.ctr(&["images", "import", "--no-unpack", "--base-name", &format!("localhost/clip/{tag}"), &archive])?;
        let rootfs = self.dir.path().join("rootfs");
        std::fs::create_dir(&rootfs)?;
        self.ctr(&["images", "mount", "--snapshotter", "native", &name, &rootfs.display().to_string()])?;
        Ok(rootfs)
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // A bind mount below the directory that is about to be removed.
        let _ = rustix::mount::unmount(self.dir.path().join("rootfs"), rustix::mount::UnmountFlags::DETACH);
    }
}
