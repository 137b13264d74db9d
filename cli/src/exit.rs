//! Exit codes and the one place that prints errors.

use std::{io::Write, path::Path, process::ExitCode, sync::Arc};

use clip_engine::EngineError;
use clip_fuse::MountError;

/// Something failed; the reason is on stderr.
pub const FAILURE: u8 = 1;
/// The command line cannot be used.
pub const USAGE: u8 = 2;
/// mount(8): the mount failed.
pub const MOUNT_FAILED: u8 = 32;
/// 128 + SIGPIPE: whoever read our output has gone.
const PIPE_CLOSED: u8 = 141;

/// What a command found, when it is not an error of its own: `verify` and `doctor` have said what is wrong already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All is well.
    Good,
    /// Something examined is bad; it has been reported.
    Bad,
    /// A command that was run has ended with this code.
    Exit(u8),
}

/// Prints clap's own message and gives its code: 0 for help and version, 2 for a command line that cannot be used.
pub fn usage(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS }
}

/// The code for `result`; an error has been printed.
pub fn finish(result: anyhow::Result<Outcome>) -> ExitCode {
    match result {
        Ok(Outcome::Good) => ExitCode::SUCCESS,
        Ok(Outcome::Bad) => ExitCode::from(FAILURE),
        Ok(Outcome::Exit(code)) => ExitCode::from(code),
        Err(error) if is_closed_pipe(&error) => ExitCode::from(PIPE_CLOSED),
        Err(error) => {
            report(&error);
            ExitCode::from(if error.is::<UsageError>() { USAGE } else { FAILURE })
        }
    }
}

/// Options that contradict each other: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// `clip: message: cause: cause` on stderr.
pub fn report(error: &anyhow::Error) {
    let _ = writeln!(std::io::stderr(), "clip: {}", chain_text(error));
}

/// The error and its causes in one line; a cause that an outer message already quotes is not said twice.
pub fn chain_text(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.contains(&cause) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&cause);
    }
    text
}

/// As [`chain_text`], with the advice to let `clip doctor` look where that may find more: at registry and FUSE.
pub fn advised_text(error: &anyhow::Error, clip: &Path) -> String {
    let helps = error.chain().any(|cause| match cause.downcast_ref::<EngineError>() {
        Some(error) => is_of_registry(error),
        None => matches!(cause.downcast_ref::<MountError>(), Some(MountError::System { .. })),
    });
    let text = chain_text(error);
    if helps { format!("{text} (clip doctor {} checks machine and registry)", clip.display()) } else { text }
}

fn is_of_registry(error: &EngineError) -> bool {
    use EngineError::{Credentials, Deadline, EveryHost, GivenUp, Nowhere, Protocol, Status, Transport};
    matches!(
        error,
        Transport { .. }
            | Status { .. }
            | EveryHost { .. }
            | Protocol { .. }
            | Deadline { .. }
            | GivenUp { .. }
            | Nowhere { .. }
            | Credentials { .. }
    )
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let io = |cause: &'_ (dyn std::error::Error + 'static)| {
        cause
            .downcast_ref::<std::io::Error>()
            .or_else(|| cause.downcast_ref::<Arc<std::io::Error>>().map(Arc::as_ref))
            .map(std::io::Error::kind)
    };
    error.chain().any(|cause| io(cause) == Some(std::io::ErrorKind::BrokenPipe))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cause that the outer message quotes is said once.
    #[test]
    fn causes_are_said_once() {
        let inner = std::io::Error::other("no such thing");
        let error = anyhow::Error::from(inner).context("open x: no such thing").context("cannot start");
        assert_eq!(chain_text(&error), "cannot start: open x: no such thing");
    }

    /// Claim: a reader that is gone is known by the error of standard output and by that of a file that is written to.
    #[test]
    fn a_closed_pipe_is_known() {
        let closed = || std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        let of_file = EngineError::Io { operation: "write", path: "/p".into(), source: Arc::new(closed()) };
        assert!(is_closed_pipe(&anyhow::Error::from(closed()).context("x")) && is_closed_pipe(&anyhow::Error::from(of_file)));
        assert!(!is_closed_pipe(&EngineError::Stopped.into()));
    }

    /// Claim: clip doctor is named where FUSE or a registry failed, and not where what was typed is at fault.
    #[test]
    fn doctor_is_named_where_it_helps() {
        let source = std::sync::Arc::new(std::io::Error::from(std::io::ErrorKind::PermissionDenied));
        let of_fuse = MountError::System { operation: "open", path: "/dev/fuse".into(), source, hint: "" };
        let typed = MountError::Mountpoint { path: "/m".into(), expected: "a directory", found: "a file".to_owned() };
        let registry = EngineError::Deadline { what: "GET x".to_owned(), waited: std::time::Duration::from_secs(1) };
        let text = |error: anyhow::Error| advised_text(&error.context("more"), Path::new("a.clip"));
        assert!(text(of_fuse.into()).contains("clip doctor a.clip") && text(registry.into()).contains("clip doctor a.clip"));
        assert!(!text(typed.into()).contains("doctor") && !text(EngineError::Stopped.into()).contains("doctor"));
    }

    /// A reader that went away is no failure worth a message.
    #[test]
    fn closed_pipe_is_found_below_context() {
        let error = anyhow::Error::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        assert!(is_closed_pipe(&error.context("write")));
        assert!(!is_closed_pipe(&anyhow::anyhow!("other")));
    }
}
