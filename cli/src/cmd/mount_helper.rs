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
    if let Err(error) = crate::log::start((helper.verbose > 0).then_some("info"), "warn", crate::log::Times::Hidden) {
        exit::report(&error.into());
        return USAGE;
    }
    if let Some(reason) = refusal(&helper) {
        exit::report(&anyhow::anyhow!(reason));
        return USAGE;
    }
    let unknown = if helper.sloppy { Unknown::Ignore } else { Unknown::Refuse };
    let plan = match resolve::mount_plan(&mount_args(helper.source, helper.dir, helper.options), unknown) {
        Ok(plan) => plan,
        Err(error) => {
            exit::report(&error);
            return if error.is::<exit::UsageError>() { USAGE } else { exit::MOUNT_FAILED };
        }
    };
    if plan.foreground {
        exit::report(&anyhow::anyhow!("mount option \"foreground\": mount(8) waits until its helper returns; use clip mount --foreground"));
        return USAGE;
    }
    if helper.fake {
        return 0;
    }
    match super::mount::mount(&plan) {
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
        _ => MountArgs::new(source, dir, crate::args::ReadArgs::default()),
    };
    args.options = options.iter().map(|list| without_rw(list)).collect();
    args
}

/// mount(8) itself puts `rw` into the list of every mount that is not `ro`, so here it asks for nothing. `context="a,b"` is not split:
/// a quoted value is left as it is. Source: util-linux libmount/src/context.c, the options given to helpers.
fn without_rw(list: &str) -> String {
    let mut quoted = false;
    let options = list.split(|character: char| {
        quoted ^= character == '"';
        character == ',' && !quoted
    });
    options.filter(|option| *option != "rw").collect::<Vec<_>>().join(",")
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

    /// The `rw` that mount(8) adds is no request to write; what only looks like it stays.
    #[test]
    fn rw_of_mount_is_dropped() {
        assert_eq!(without_rw("rw,nosuid"), "nosuid");
        assert_eq!(without_rw("nodev,rw"), "nodev");
        assert_eq!(without_rw("rw"), "");
        assert_eq!(without_rw("context=\"x,rw,y\",fsname=rw,rw"), "context=\"x,rw,y\",fsname=rw");
    }
}
