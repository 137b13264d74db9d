//! One owner process per cache directory.

use std::{
    fs::File,
    io::{Read, Write},
    path::Path,
};

use rustix::fs::FlockOperation;

use super::open_private;
use crate::error::EngineError;

/// The lock of a cache directory, held until dropped (the kernel lets go of a dead owner's).
pub(crate) struct OwnerLock(#[expect(dead_code, reason = "held, not read")] File);

impl OwnerLock {
    /// Takes `<cache>/owner.lock` and writes our pid into it.
    ///
    /// # Errors
    /// `CacheBusy` with the owner's pid; `Io`.
    pub(crate) fn take(cache_dir: &Path) -> Result<Self, EngineError> {
        let path = cache_dir.join("owner.lock");
        let mut file = open_private(&path).map_err(|error| EngineError::io("open", &path, error))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(busy(cache_dir, &mut file)),
            Err(errno) => return Err(EngineError::io("lock", &path, errno.into())),
        }
        let written = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
        written.map_err(|error| EngineError::io("write", &path, error))?;
        Ok(Self(file))
    }
}

fn busy(cache_dir: &Path, file: &mut File) -> EngineError {
    let mut text = String::new();
    // A pid that cannot be read is unknown, no more.
    let _ = file.take(32).read_to_string(&mut text);
    EngineError::CacheBusy {
        path: cache_dir.to_owned(),
        pid: text.trim().parse().unwrap_or(0),
        hint: "use another --cache-dir or unmount what it serves",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// Claim: a second owner is refused with the first's pid, and welcome once the first is gone.
    #[test]
    fn the_second_owner_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let first = OwnerLock::take(dir.path()).unwrap();
        match OwnerLock::take(dir.path()) {
            Err(EngineError::CacheBusy { pid, .. }) => assert_eq!(pid, std::process::id()),
            other => panic!("{:?}", other.map(|_| ())),
        }
        drop(first);
        OwnerLock::take(dir.path()).unwrap();
    }
}
