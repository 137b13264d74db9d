//! Files that are named on the command line.

use std::{
    fs::File,
    io::{Error, ErrorKind, Read as _, Result},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use rustix::fs::{FileType, Mode, OFlags};

/// The regular file at `path`, open for reading. Anything else is an error and waited for by nobody: a fifo would open when somebody writes
/// to it, and a device may never end.
pub fn open_regular(path: &Path) -> Result<File> {
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
    let found = match FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) {
        FileType::RegularFile => {
            let flags = rustix::fs::fcntl_getfl(&file)?;
            rustix::fs::fcntl_setfl(&file, flags & !OFlags::NONBLOCK)?;
            return Ok(file.into());
        }
        FileType::Directory => "a directory",
        FileType::Fifo => "a fifo",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        _ => "something else",
    };
    Err(Error::new(ErrorKind::InvalidInput, format!("expected a regular file, found {found}")))
}

/// All of the regular file at `path`.
pub fn read_regular(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_regular(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The `path` of `--ca`, absolute; it is a file now: what reads it may be another process, later.
pub fn ca_path(path: &Path) -> anyhow::Result<PathBuf> {
    let path = std::path::absolute(path).with_context(|| path.display().to_string())?;
    open_regular(&path).with_context(|| format!("--ca {}", path.display()))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Claim: a file is read, through a link too; a fifo without a writer, a device and a directory are refused at once and by name.
    #[test]
    fn only_regular_files_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("file"), "text").unwrap();
        std::os::unix::fs::symlink("file", at("link")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), FileType::Fifo, Mode::RWXU, 0).unwrap();
        let mut text = String::new();
        open_regular(&at("link")).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "text");
        for (path, what) in [(at("fifo"), "a fifo"), ("/dev/zero".into(), "a device"), (at(""), "a directory")] {
            let error = open_regular(&path).unwrap_err();
            assert_eq!(error.to_string(), format!("expected a regular file, found {what}"));
        }
        assert_eq!(open_regular(&at("none")).unwrap_err().kind(), ErrorKind::NotFound);
    }
}
