//! What this machine can do. A test that needs more says `skipped: why` and passes.

use std::{fs::OpenOptions, path::Path};

/// Something a test cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// User 0: real owners, devices, mounts.
    Root,
    /// A /dev/fuse that opens.
    Fuse,
    /// A file system type of the running kernel.
    FileSystem(&'static str),
    /// A program in PATH.
    Tool(&'static str),
}

/// True, after printing why, when this machine lacks one of `needs`.
#[must_use]
pub fn lacks(needs: &[Need]) -> bool {
    let missing = needs.iter().find_map(reason);
    if let Some(reason) = &missing {
        // To the terminal even when the test harness captures output of passing tests: a skipped test must not look like a passed one.
        use std::io::Write;
        let test = std::thread::current().name().unwrap_or("test").to_owned();
        let _ = writeln!(std::io::stderr(), "skipped: {test}: {reason}");
    }
    missing.is_some()
}

fn reason(need: &Need) -> Option<String> {
    match need {
        Need::Root if !rustix::process::geteuid().is_root() => Some("not root".to_owned()),
        Need::Fuse => match OpenOptions::new().read(true).write(true).open("/dev/fuse") {
            Ok(_) => None,
            Err(error) => Some(format!("/dev/fuse: {error}")),
        },
        Need::FileSystem(name) if !kernel_knows(name) => Some(format!("the kernel has no {name}")),
        Need::Tool(tool) if !in_path(tool) => Some(format!("{tool} is not installed (scripts/setup installs it)")),
        _ => None,
    }
}

fn kernel_knows(file_system: &str) -> bool {
    // A module that is not loaded yet is not listed; modprobe's failure is not ours to report.
    let listed = || {
        let list = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
        list.lines().any(|line| line.split_whitespace().last() == Some(file_system))
    };
    listed() || {
        let _ = crate::process::run(std::process::Command::new("modprobe").arg(file_system));
        listed()
    }
}

fn in_path(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]).any(|dir| is_program(&dir.join(tool)))
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}
