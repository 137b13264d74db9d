//! What a container's process sees: a writable overlay over a tree, with `/proc` and a minimal `/dev`, and a command run in it.

use std::{
    fs,
    os::unix::{fs::symlink, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use rustix::{
    fs::{CWD, FileType, Mode, makedev},
    mount::{MountFlags, UnmountFlags},
};

/// Device files of a container. Source: the OCI runtime specification, config-linux.md, "Default Devices".
const DEVICES: [(&str, u32, u32); 6] = [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
const LINKS: [(&str, &str); 4] =
    [("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"), ("stdout", "/proc/self/fd/1"), ("stderr", "/proc/self/fd/2")];
/// Where a command is looked for when the image does not say. Source: docker's default.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A mount that is taken away when it is dropped.
pub struct MountPoint(PathBuf);

impl MountPoint {
    /// Mounts `source` of type `fs_type` at `at`.
    ///
    /// # Errors
    /// The system's.
    pub fn new(source: &str, fs_type: &str, at: &Path, data: &str) -> Result<Self> {
        let options = std::ffi::CString::new(data)?;
        let mounted = rustix::mount::mount(source, at, fs_type, MountFlags::NOSUID, options.as_c_str());
        mounted.with_context(|| format!("mount {fs_type} ({data}) at {}", at.display()))?;
        Ok(Self(at.to_owned()))
    }
}

impl Drop for MountPoint {
    fn drop(&mut self) {
        // Nothing more can be done about a mount that does not go.
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
    }
}

/// An overlay over a tree.
pub struct Rootfs {
    root: PathBuf,
    /// The last is the innermost.
    mounts: Vec<MountPoint>,
}

/// What a command gave.
pub struct Ran {
    /// Its standard output.
    pub output: Vec<u8>,
}

impl Rootfs {
    /// An overlay over `lower`, its upper directory on a tmpfs, all inside `scratch`.
    ///
    /// # Errors
    /// The system's.
    pub fn new(lower: &Path, scratch: &Path) -> Result<Self> {
        let (writable, root) = (scratch.join("writable"), scratch.join("root"));
        for dir in [&writable, &root] {
            fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        }
        let mut rootfs = Self { root: root.clone(), mounts: vec![MountPoint::new("tmpfs", "tmpfs", &writable, "mode=0755")?] };
        let (upper, work) = (writable.join("upper"), writable.join("work"));
        fs::create_dir(&upper)?;
        fs::create_dir(&work)?;
        let data = format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
        rootfs.mounts.push(MountPoint::new("overlay", "overlay", &root, &data)?);
        for dir in ["proc", "dev", "tmp"] {
            fs::create_dir_all(root.join(dir)).with_context(|| format!("create /{dir} in the overlay"))?;
        }
        rootfs.mounts.push(MountPoint::new("proc", "proc", &root.join("proc"), "")?);
        rootfs.mounts.push(MountPoint::new("tmpfs", "tmpfs", &root.join("dev"), "mode=0755")?);
        fill_dev(&root.join("dev"))?;
        Ok(rootfs)
    }

    /// Runs `command` in a chroot of the overlay, with `environment` and no input, to its end.
    ///
    /// # Errors
    /// When it cannot be started, or fails: with the end of its standard error.
    pub fn run(&self, command: &[String], environment: &[String]) -> Result<Ran> {
        let program = std::env::current_exe().context("find this program")?;
        let mut chroot = Command::new(program);
        chroot.args(["child", "chroot"]).arg(&self.root).arg("--").args(command).env_clear();
        for entry in std::iter::once(PATH).chain(environment.iter().map(String::as_str)) {
            let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
            chroot.env(name, value);
        }
        let output = chroot.stdin(Stdio::null()).output().with_context(|| format!("run {chroot:?}"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        let end: Vec<_> = said.lines().rev().take(20).collect();
        let end = end.into_iter().rev().collect::<Vec<_>>().join("\n");
        ensure!(output.status.success(), "{command:?} ended with {}; its standard error ends with:\n{end}", output.status);
        Ok(Ran { output: output.stdout })
    }
}

impl Drop for Rootfs {
    fn drop(&mut self) {
        while self.mounts.pop().is_some() {}
    }
}

fn fill_dev(dev: &Path) -> Result<()> {
    for (name, major, minor) in DEVICES {
        let made = rustix::fs::mknodat(CWD, dev.join(name), FileType::CharacterDevice, Mode::from_raw_mode(0o666), makedev(major, minor));
        made.with_context(|| format!("make /dev/{name}"))?;
    }
    for (name, target) in LINKS {
        symlink(target, dev.join(name)).with_context(|| format!("make /dev/{name}"))?;
    }
    Ok(())
}

/// `clip-bench child chroot`: becomes `command` in `root`.
///
/// # Errors
/// When the system refuses, or there is no such program in `root`.
pub fn enter(root: &Path, command: &[String]) -> Result<()> {
    let (program, arguments) = command.split_first().context("no command")?;
    std::os::unix::fs::chroot(root).with_context(|| format!("chroot {}", root.display()))?;
    std::env::set_current_dir("/")?;
    Err(Command::new(program).args(arguments).exec()).with_context(|| format!("run {program} in {}", root.display()))
}
