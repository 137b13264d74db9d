//! The one place where an error's kind becomes an errno.

use clip_engine::ErrorKind;
use rustix::io::Errno;

/// What a system call on the mount fails with.
///
/// `Denied` is about the registry's permissions, not the file's: EACCES would send the user to look at file modes, so it is EIO, and
/// the log says which credentials failed. `Exhausted` is a full disk or a limit, where ENOSPC tells the operator what to look at.
pub(crate) fn errno(kind: ErrorKind) -> Errno {
    match kind {
        ErrorKind::Corrupt | ErrorKind::Unavailable | ErrorKind::Denied => Errno::IO,
        ErrorKind::Exhausted => Errno::NOSPC,
        ErrorKind::Unsupported => Errno::OPNOTSUPP,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No failure of the network or of the registry's permissions looks like a failure of file permissions.
    #[test]
    fn registry_failures_are_eio() {
        for kind in [ErrorKind::Corrupt, ErrorKind::Unavailable, ErrorKind::Denied] {
            assert_eq!(errno(kind), Errno::IO);
        }
    }
}
