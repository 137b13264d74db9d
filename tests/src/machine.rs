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

/// Where a missing tool comes from.
const SETUP: &str = include_str!("../../scripts/setup");

/// True, after printing why, when this machine lacks one of `needs`.
///
/// # Panics
/// When `scripts/setup` does not know one of the tools: nobody's machine would have it but ours.
#[must_use]
pub fn lacks(needs: &[Need]) -> bool {
    for need in needs {
        if let Need::Tool(tool) = need {
            assert!(is_set_up(tool), "{tool}: a test needs it, and scripts/setup does not install it");
        }
    }
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

/// Whether `scripts/setup` names a package for `tool`: by a line `tool:package`, the first of which begins with `needs="`.
fn is_set_up(tool: &str) -> bool {
    SETUP.lines().filter_map(|line| line.split_once(':')).any(|(program, _)| program.rsplit('"').next() == Some(tool))
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]
    use std::path::PathBuf;

    use super::*;

    /// Every Rust file below `dir`.
    fn sources(dir: &Path) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        entries
            .flat_map(|path| match path.is_dir() {
                true => sources(&path),
                false => vec![path],
            })
            .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
            .collect()
    }

    /// Claim: every tool that a test asks for by name is one that scripts/setup installs.
    #[test]
    fn every_tool_is_set_up() {
        let (mut tools, start) = (Vec::new(), "Need::Tool(\"");
        for file in sources(Path::new(env!("CARGO_MANIFEST_DIR"))) {
            let text = std::fs::read_to_string(file).unwrap();
            tools.extend(
                text.split(start).skip(1).filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())).filter(|tool| !tool.is_empty()),
            );
        }
        assert!(tools.len() > 20, "{tools:?}");
        for tool in tools.iter().map(String::as_str).chain(["docker-registry", "cc", "zstd", "pzstd", "gzip", "pigz"]) {
            assert!(is_set_up(tool), "{tool}: a test needs it, and scripts/setup does not install it");
        }
        assert!(!is_set_up("registry") && !is_set_up("docker") && !is_set_up("cargo"));
    }
}
