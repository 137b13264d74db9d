//! Opening files by names that somebody else chose.

use std::{
    fs::{File, Metadata, OpenOptions},
    io,
    os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _},
    path::Path,
};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

/// Opens a file for reading if it is a regular one, or a link to one. Whatever else has that name is not opened: to open a FIFO waits for
/// a writer, and to open a device may do something.
///
/// # Errors
/// As of `open(2)`; `InvalidInput` for what is no regular file, naming what it is.
///
/// Cost: four system calls beside the open.
pub fn open_regular(path: &Path) -> io::Result<File> {
    check(&std::fs::metadata(path)?)?;
    // It may be another by now: so without waiting, and once more.
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path)?;
    check(&file.metadata()?)?;
    // A read of a regular file that may not wait can fail on some file systems.
    fcntl_setfl(&file, fcntl_getfl(&file)? - OFlags::NONBLOCK)?;
    Ok(file)
}

fn check(metadata: &Metadata) -> io::Result<()> {
    let kind = metadata.file_type();
    let found = match () {
        () if kind.is_file() => return Ok(()),
        () if kind.is_dir() => "a directory",
        () if kind.is_fifo() => "a FIFO",
        () if kind.is_socket() => "a socket",
        () => "a device",
    };
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("expected a regular file, found {found}")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::Read as _;

    use super::*;

    /// Claim: a regular file is opened, through a link too, and whatever else there is refused by its name, without waiting for anybody.
    #[test]
    fn only_regular_files_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("file"), b"text").unwrap();
        std::os::unix::fs::symlink("file", at("link")).unwrap();
        let mut text = String::new();
        open_regular(&at("link")).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "text");
        rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
        let refused = |path: &Path| open_regular(path).unwrap_err().to_string();
        assert_eq!(refused(&at("fifo")), "expected a regular file, found a FIFO");
        assert_eq!(refused(dir.path()), "expected a regular file, found a directory");
        assert_eq!(refused(Path::new("/dev/zero")), "expected a regular file, found a device");
        assert_eq!(open_regular(&at("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
