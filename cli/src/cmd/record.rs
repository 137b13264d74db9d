//! `clip record`: runs a command in an image and writes what it needed, in order, as an access profile.

pub mod container;
mod signals;

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
};

use anyhow::{Context, Result, ensure};
use clip_format::storage_info::ImageConfig;
use clip_fuse::mount::{Detach, umount};
use rustix::fs::{Mode, OFlags, ResolveFlags};

use self::{container::Spec, signals::Forwarding};
use super::{
    inspect::ProfileReport,
    runtime_spec::{ACCOUNTS_BYTES_MAX, command, environment, working_dir},
};
use crate::{
    accounts::{self, Account},
    args::{MountArgs, RecordArgs},
    clip_input,
    exit::{Outcome, UsageError},
    owner::client,
    profile_input,
    resolve::{self, Unknown},
    values::size,
};

/// The profile is written, and the command has ended; the outcome is the command's own exit code.
pub fn run(args: &RecordArgs) -> Result<Outcome> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "clip record makes mounts, which only root can; as a user, run the workload on a mount made by clip mount --record FILE"
    );
    let output = output(args)?;
    let config = clip_input::read_storage_info(&args.clip)?.config;
    let scratch = tempfile::Builder::new().prefix("clip-record-").tempdir().context("temporary directory (TMPDIR)")?;
    let recorded = scratch.path().join("recorded.profile");
    let image = scratch.path().join("image");
    std::fs::create_dir(&image).with_context(|| image.display().to_string())?;
    let mut mount = MountArgs::new(args.clip.clone(), image.clone(), args.read.clone());
    mount.record = Some(recorded.clone());
    mount.log_level.clone_from(&args.log_level);
    let handed_over = client::hand_over(&resolve::mount_plan(&mount, Unknown::Refuse)?, true)?;
    let ran = spec(args, &config, &image).and_then(|spec| run_container(&spec, scratch.path()));
    // The container is gone, and with it whatever had the mount open.
    umount(&image, Detach::Lazily)?;
    handed_over.wait()?;
    let (status, started) = ran?;
    if started {
        write_profile(args, &recorded, &output)?;
    }
    Ok(Outcome::Exit(exit_code(status)))
}

/// Where the profile goes; that it can be written there is asked before the run, not after.
fn output(args: &RecordArgs) -> Result<PathBuf> {
    let output = args.output.clone().unwrap_or_else(|| args.clip.with_extension("profile"));
    if crate::output::is_stdout(&output) {
        return Err(UsageError(format!("--output {}: standard output is that of CMD; give a file name", output.display())).into());
    }
    crate::output::place(&output)?;
    Ok(output)
}

fn spec(args: &RecordArgs, config: &ImageConfig, image: &Path) -> Result<Spec> {
    let account = account(args.run_as.user.as_deref().unwrap_or(&config.user), image)?;
    Ok(Spec {
        image: image.to_owned(),
        command: command(&args.command, config, "clip record FILE.clip -- /bin/sh")?,
        environment: environment(config, &account, &args.run_as.env, std::io::IsTerminal::is_terminal(&std::io::stdin()))?,
        working_dir: working_dir(args.run_as.workdir.as_deref(), config),
        uid: account.uid,
        gid: account.gid,
        additional_gids: account.additional_gids,
    })
}

/// Who `user` is in the image. Its files are read through the mount, as a runtime reads them: that is a part of what a start needs.
fn account(user: &str, image: &Path) -> Result<Account> {
    let root = rustix::fs::open(image, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let read = |path: &str| -> Vec<u8> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = rustix::fs::openat2(&root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT);
        let mut bytes = Vec::new();
        if let Ok(file) = opened.map(File::from)
            && file.metadata().is_ok_and(|metadata| metadata.is_file())
        {
            let _ = file.take(ACCOUNTS_BYTES_MAX).read_to_end(&mut bytes);
        }
        bytes
    };
    accounts::find(user, &read("etc/passwd"), &read("etc/group"))
}

/// How the container ended, and whether its command was started at all.
fn run_container(spec: &Spec, scratch: &Path) -> Result<(ExitStatus, bool)> {
    let (spec_path, started) = (scratch.join("spec.json"), scratch.join("started"));
    std::fs::write(&spec_path, serde_json::to_vec(spec)?).context("write the container's settings")?;
    std::fs::create_dir(scratch.join("rw")).context("create a directory")?;
    let program = std::env::current_exe().ok().filter(|path| path.exists()).unwrap_or_else(|| PathBuf::from("/proc/self/exe"));
    let forwarding = Forwarding::begin()?;
    let mut container = Command::new(program).arg("record-container").arg(scratch).spawn().context("start the container")?;
    let _running = forwarding.to(container.id())?;
    let status = container.wait().context("wait for the container")?;
    Ok((status, started.exists()))
}

fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(crate::exit::FAILURE)
}

/// What was recorded is in `output`, whole, and a line says what it is.
fn write_profile(args: &RecordArgs, recorded: &Path, output: &Path) -> Result<()> {
    let mut profile = profile_input::read_profile(recorded).context("the owner wrote no profile; its log (owner.log) says why")?;
    if let Some(limit) = args.limit {
        profile = profile.trimmed(limit);
    }
    clip_indexer::write_clip(output, &profile.to_bytes()?)?;
    let report = ProfileReport::new(&profile);
    let needed = report.layers.iter().filter(|layer| layer.is_needed()).count();
    writeln!(
        std::io::stderr(),
        "{}: {} of tar in {} runs, in {needed} of {} layers, first needed within {:.1} s",
        output.display(),
        size(report.bytes),
        report.runs,
        report.layers.len(),
        report.seconds
    )?;
    Ok(())
}
