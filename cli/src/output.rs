//! What commands write: standard output, and files.

use std::{
    io::{IsTerminal as _, Result as IoResult, StdoutLock, Write},
    path::Path,
};

use anyhow::{Context, Result, ensure};
use clip_indexer::{Durability, OutputPlace};
use rustix::fs::Access;
use serde::Serialize;

use crate::exit::UsageError;

/// Standard output; its errors name it.
pub struct Stdout(StdoutLock<'static>);

/// Standard output, of this thread as long as the result lives.
pub fn stdout() -> Stdout {
    Stdout(std::io::stdout().lock())
}

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> IoResult<usize> {
        self.0.write(bytes).map_err(named)
    }

    fn flush(&mut self) -> IoResult<()> {
        self.0.flush().map_err(named)
    }
}

fn named(error: std::io::Error) -> std::io::Error {
    std::io::Error::new(error.kind(), format!("standard output: {error}"))
}

/// `report` is on standard output as JSON.
pub fn print_json(report: &impl Serialize) -> Result<()> {
    let mut out = stdout();
    serde_json::to_writer_pretty(&mut out, report).map_err(std::io::Error::from)?;
    writeln!(out)?;
    Ok(())
}

/// Where a command writes what it makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// `-`
    Stdout,
    /// Somewhere by name.
    Place(OutputPlace),
}

impl Output {
    /// What `typed` means. That it can be written is asked now, not after the work.
    pub fn find(typed: &Path) -> Result<Self> {
        if !names_stdout(typed) {
            return place(typed).map(Self::Place);
        }
        if std::io::stdout().is_terminal() {
            return Err(UsageError(format!("{}: standard output is a terminal; give a file name", typed.display())).into());
        }
        Ok(Self::Stdout)
    }

    /// Whether an interruption midway would leave half a file, and writing takes no longer than the disk.
    pub fn is_file(&self) -> bool {
        matches!(self, Self::Place(OutputPlace::File(_)))
    }

    /// `bytes` are there.
    pub fn write(&self, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Stdout => {
                let mut out = stdout();
                out.write_all(bytes)?;
                Ok(out.flush()?)
            }
            Self::Place(place) => Ok(place.write(bytes, Durability::Synced)?),
        }
    }
}

fn names_stdout(typed: &Path) -> bool {
    ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"].iter().any(|name| typed.as_os_str() == *name)
}

/// Whether `typed` is a name of standard output, or the regular file that it goes to.
pub fn is_stdout(typed: &Path) -> bool {
    let same = || {
        let (named, own) = (rustix::fs::stat(typed).ok()?, rustix::fs::fstat(std::io::stdout()).ok()?);
        let is_file = rustix::fs::FileType::from_raw_mode(own.st_mode) == rustix::fs::FileType::RegularFile;
        Some(is_file && (named.st_dev, named.st_ino) == (own.st_dev, own.st_ino))
    };
    names_stdout(typed) || same().unwrap_or(false)
}

/// Where bytes for `typed` go: into a directory that this user may write to, or through what is there.
pub fn place(typed: &Path) -> Result<OutputPlace> {
    let place = OutputPlace::find(typed)?;
    if let OutputPlace::File(path) = &place {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        ensure!(path.file_name().is_some() && !ends_with_slash(typed), "{}: expected a file name", typed.display());
        rustix::fs::access(parent, Access::WRITE_OK | Access::EXEC_OK).with_context(|| format!("output directory {}", parent.display()))?;
    }
    Ok(place)
}

fn ends_with_slash(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().ends_with(b"/")
}
