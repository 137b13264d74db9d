//! `clip record-container`, hidden: the process between `clip record` and the command that it runs. It has a mount namespace of its own,
//! so that all of its mounts are gone with it, and ends whatever the command leaves running.

use std::{
    fs::File,
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::{
    fs::CWD,
    io::Errno,
    mount::{MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount, mount_change, move_mount, open_tree},
    process::{Pid, Signal, WaitOptions, kill_process, set_child_subreaper, set_parent_process_death_signal, wait},
    thread::UnshareFlags,
};
use serde::{Deserialize, Serialize};

use super::signals::Forwarding;
use crate::{
    cmd::runtime_spec::overlay_path,
    exit::{Outcome, report},
};

/// The container could not be made. Source: this and the next two are docker's and podman's codes.
const NOT_MADE: u8 = 125;
/// The command is there and cannot be run.
const NOT_RUN: u8 = 126;
/// There is no such command.
const NOT_FOUND: u8 = 127;
/// Between two looks for processes that are left. Source: a killed process is gone within milliseconds.
const REAP_EVERY: Duration = Duration::from_millis(2);

/// What is run, and on what.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Where the image is mounted.
    pub image: PathBuf,
    /// Program and arguments.
    pub command: Vec<String>,
    /// `NAME=value`
    pub environment: Vec<String>,
    /// Absolute.
    pub working_dir: String,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// More groups.
    pub additional_gids: Vec<u32>,
}

/// The command in `scratch/spec.json` has run; the outcome is its exit code.
pub fn run(scratch: &Path) -> Result<Outcome> {
    match run_command(scratch) {
        Ok(code) => Ok(Outcome::Exit(code)),
        Err(error) => {
            report(&error);
            Ok(Outcome::Exit(NOT_MADE))
        }
    }
}

fn run_command(scratch: &Path) -> Result<u8> {
    // With `clip record` gone nobody wants the run any more.
    set_parent_process_death_signal(Some(Signal::KILL)).context("parent death signal")?;
    let spec = std::fs::read(scratch.join("spec.json")).context("clip record-container is started by clip record")?;
    let spec: Spec = serde_json::from_slice(&spec).context("the container's settings")?;
    let scratch_dir = File::open(scratch).context("open the scratch directory")?;
    // Before the chroot: afterwards /proc and the terminal are the image's.
    let forwarding = Forwarding::begin()?;
    enter(&spec, &scratch.join("rw"))?;
    set_child_subreaper(Some(rustix::process::getpid())).context("child subreaper")?;
    let mut child = match command(&spec).spawn() {
        Ok(child) => child,
        Err(error) => {
            report(&anyhow::anyhow!("{}: {error}", spec.command[0]));
            return Ok(if error.kind() == std::io::ErrorKind::NotFound { NOT_FOUND } else { NOT_RUN });
        }
    };
    rustix::fs::mkdirat(&scratch_dir, "started", rustix::fs::Mode::RWXU).context("say that the command runs")?;
    let _running = forwarding.to(child.id())?;
    let status = child.wait().context("wait for the command")?;
    end_all();
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(crate::exit::FAILURE))
}

/// This process sees the image as its root, in a mount namespace of its own. Every path of the image is resolved inside it.
fn enter(spec: &Spec, scratch: &Path) -> Result<()> {
    // SAFETY: no other thread of this process uses its mounts or its root directory: it has just started.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.context("a mount namespace of its own")?;
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC).context("mounts that stay here")?;
    let none = MountFlags::empty();
    mount("clip-record", scratch, "tmpfs", none, c"mode=0755").context("mount a tmpfs")?;
    let [upper, work, root] = ["upper", "work", "root"].map(|name| scratch.join(name));
    for dir in [&upper, &work, &root] {
        std::fs::create_dir(dir).with_context(|| dir.display().to_string())?;
    }
    let [image, upper, work] = [&spec.image, &upper, &work].map(|path| overlay_path(path));
    let options = format!("lowerdir={},upperdir={},workdir={}", image?, upper?, work?);
    mount("clip-record", &root, "overlay", none, &*std::ffi::CString::new(options)?).context("mount an overlay over the image")?;
    let names = std::fs::read("/etc/resolv.conf").ok();
    let trees = ["/dev", "/sys"].map(|path| (path, machines(path)));
    std::env::set_current_dir(&root).context("enter the image")?;
    rustix::process::chroot(".").context("chroot into the image")?;
    for (path, tree) in trees {
        std::fs::create_dir_all(path).with_context(|| format!("{path} in the image"))?;
        let tree = tree.with_context(|| format!("the machine's {path}"))?;
        move_mount(tree, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).with_context(|| format!("bind {path}"))?;
    }
    std::fs::create_dir_all("/proc").context("/proc in the image")?;
    mount("proc", "/proc", "proc", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, None).context("mount /proc")?;
    if let Some(names) = names {
        // An image without /etc has no use for it.
        let _ = std::fs::remove_file("/etc/resolv.conf").and_then(|()| std::fs::write("/etc/resolv.conf", names));
    }
    std::fs::create_dir_all(&spec.working_dir).with_context(|| format!("working directory {}", spec.working_dir))
}

/// A copy of the mounts at and below `path`, not attached anywhere yet.
fn machines(path: &str) -> rustix::io::Result<std::os::fd::OwnedFd> {
    open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::AT_RECURSIVE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
}

fn command(spec: &Spec) -> Command {
    let mut command = Command::new(&spec.command[0]);
    let variables = spec.environment.iter().filter_map(|variable| variable.split_once('='));
    command.args(&spec.command[1..]).env_clear().envs(variables).current_dir(&spec.working_dir);
    let (uid, gid, groups) = (spec.uid, spec.gid, spec.additional_gids.clone());
    let become_user = move || {
        let done = |result: libc::c_int| if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) };
        // SAFETY: plain system calls; the pointer and its length are those of a vector that lives in this closure.
        unsafe {
            done(libc::setgroups(groups.len(), groups.as_ptr()))?;
            done(libc::setgid(gid))?;
            done(libc::setuid(uid))?;
        }
        set_parent_process_death_signal(Some(Signal::KILL))?;
        Ok(())
    };
    // SAFETY: between fork and exec the closure only makes system calls; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(become_user) };
    command
}

/// Nothing that the command started runs any more. What it leaves becomes this process's child, by and by.
fn end_all() {
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) => {
                for child in children() {
                    let _ = kill_process(child, Signal::KILL);
                }
                std::thread::sleep(REAP_EVERY);
            }
            Err(_) => return,
        }
    }
}

/// The children of this process. Source: proc(5), /proc/PID/task/TID/children.
fn children() -> Vec<Pid> {
    let own = rustix::process::getpid().as_raw_nonzero();
    let tasks = std::fs::read_dir(format!("/proc/{own}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect::<Vec<_>>()).collect()
}
