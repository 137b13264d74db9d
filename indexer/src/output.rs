//! The `.clip` on disk: whole, or not there at all.

use std::{io::Write, path::Path};

use clip_engine::error::EngineError;

use crate::error::IndexError;

/// Writes `clip` to `path` under a temporary name beside it, fsyncs and renames.
///
/// # Errors
/// `Io`; nothing is left behind.
pub(crate) fn write(path: &Path, clip: &[u8]) -> Result<(), IndexError> {
    let io = |operation, error| EngineError::io(operation, path, error);
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut temporary = tempfile::Builder::new()
        .prefix(".clip-")
        .suffix(".clip.tmp")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(dir)
        .map_err(|error| io("create a temporary file beside", error))?;
    temporary.write_all(clip).map_err(|error| io("write", error))?;
    temporary.as_file().sync_all().map_err(|error| io("sync", error))?;
    temporary.persist(path).map_err(|error| io("rename to", error.error))?;
    // The name itself must survive a crash too.
    std::fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| io("sync the directory of", error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A written file is whole, and no temporary name stays beside it; a failed write leaves nothing.
    #[test]
    fn a_clip_is_whole_or_absent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.clip");
        write(&path, b"first").unwrap();
        write(&path, b"second").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"second");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        let is_dir = dir.path().join("d");
        std::fs::create_dir(&is_dir).unwrap();
        assert!(write(&is_dir, b"x").is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
