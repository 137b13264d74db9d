//! `mount.clip`: what mount(8) runs for `mount -t clip`, fstab lines and systemd .mount units.

use std::{ffi::OsString, process::ExitCode};

use clap::Parser as _;

use crate::{
    args::{Cli, Command, MountArgs, MountHelperArgs},
    exit,
    resolve::{self, Unknown},
};

/// mount(8): a command line that cannot be used.
const USAGE: u8 = 1;

/// As `run`, for `main`.
pub fn main(argv: &[OsString]) -> ExitCode {
    ExitCode::from(run(argv))
}

/// Mounts as `argv` says; the codes are mount(8)'s.
pub fn run(argv: &[OsString]) -> u8 {
    let helper = match MountHelperArgs::try_parse_from(argv) {
        Ok(helper) => helper,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { USAGE } else { 0 };
        }
    };
    crate::log::start((helper.verbose > 0).then_some("info"), "warn");
    if let Some(reason) = refusal(&helper) {
        exit::report(&anyhow::anyhow!(reason));
        return USAGE;
    }
    let unknown = if helper.sloppy { Unknown::Ignore } else { Unknown::Refuse };
    let plan = match resolve::mount_plan(&mount_args(helper.source, helper.dir, helper.options), unknown) {
        Ok(plan) => plan,
        Err(error) => {
            exit::report(&error);
            return if error.is::<exit::UsageError>() || error.is::<clip_fuse::MountError>() { USAGE } else { exit::MOUNT_FAILED };
        }
    };
    if helper.fake {
        return 0;
    }
    match super::mount::mount(&plan, false) {
        Ok(()) => 0,
        Err(error) => {
            exit::report(&error);
            exit::MOUNT_FAILED
        }
    }
}

fn refusal(helper: &MountHelperArgs) -> Option<String> {
    if let Some(namespace) = &helper.namespace {
        return Some(format!("-N {}: mounting in another namespace is not supported; run mount inside it", namespace.display()));
    }
    match helper.fs_type.as_deref() {
        None | Some("clip" | "fuse.clip") => None,
        Some(other) => Some(format!("-t {other}: expected clip")),
    }
}

/// `clip mount` with these names and lists and nothing else; the environment counts as always.
fn mount_args(source: std::path::PathBuf, dir: std::path::PathBuf, options: Vec<String>) -> MountArgs {
    let argv: [OsString; 5] = ["clip".into(), "mount".into(), "--".into(), source.clone().into(), dir.clone().into()];
    let mut args = match Cli::try_parse_from(argv) {
        Ok(Cli { command: Command::Mount(args), .. }) => args,
        // An environment variable that cannot be used: ignored here, since mount(8) users cannot see whose it is.
        _ => MountArgs {
            clip: source,
            dir,
            read: crate::args::ReadArgs::default(),
            foreground: false,
            allow_other: false,
            options: Vec::new(),
            stop_timeout: None,
            stats: None,
            log_file: None,
            session_threads: None,
            kernel_read_ahead: None,
        },
    };
    args.options = options;
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A command line that cannot be used is mount(8)'s code 1; a source that is not there is 32.
    #[test]
    fn codes_are_those_of_mount() {
        let run = |argv: &[&str]| run(&argv.iter().map(OsString::from).collect::<Vec<_>>());
        assert_eq!(run(&["mount.clip"]), 1);
        assert_eq!(run(&["mount.clip", "/a", "/b", "-t", "ext4"]), 1);
        assert_eq!(run(&["mount.clip", "/nonexistent/a.clip", "/", "-o", "ro"]), 32);
    }
}
