//! `clip cat`

use std::{ffi::OsStr, io::Write, os::unix::ffi::OsStrExt as _};

use anyhow::{Context, Result, bail};
use clip_format::erofs::{FileType, Inode};

use crate::{
    args::CatArgs,
    clip_input::{self, CacheChoice, OpenedImage},
    display::escaped,
    exit::{self, Outcome},
    output::stdout,
    pieces::{Pieces, cut, file_extents},
};

/// The contents of every path, in order, are on standard output. A path that cannot be read is reported and the next one follows,
/// as with cat(1); a standard output that cannot be written ends it.
pub fn run(args: &CatArgs) -> Result<Outcome> {
    let opened = clip_input::open_image(&args.clip, &args.read, CacheChoice::Shared)?;
    let mut out = Output { to: stdout(), failed: false };
    let mut outcome = Outcome::Good;
    for path in &args.paths {
        let copied = find_file(&opened, path)
            .and_then(|file| copy(&opened, &file, &mut out).with_context(|| escaped(path.as_bytes())))
            .and_then(|()| Ok(out.flush()?));
        match copied {
            Err(error) if !out.failed => {
                exit::report(&error);
                outcome = Outcome::Bad;
            }
            other => other?,
        }
    }
    Ok(outcome)
}

/// A writer that knows whether the failure of a copy was its own.
struct Output<W> {
    to: W,
    failed: bool,
}

impl<W: Write> Write for Output<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.to.write(bytes);
        self.failed |= written.as_ref().is_err_and(|error| error.kind() != std::io::ErrorKind::Interrupted);
        written
    }

    fn flush(&mut self) -> std::io::Result<()> {
        let flushed = self.to.flush();
        self.failed |= flushed.is_err();
        flushed
    }
}

fn find_file(opened: &OpenedImage, path: &OsStr) -> Result<Inode> {
    let (inode, _) = clip_input::resolve_following(opened.image.index(), path.as_bytes())?;
    match inode.file_type {
        FileType::Regular => Ok(inode),
        FileType::Directory => bail!("{}: is a directory", escaped(path.as_bytes())),
        _ => bail!("{}: is no regular file", escaped(path.as_bytes())),
    }
}

/// Writes the bytes of `file`, holes as zeros, fetching ahead in bounded memory.
pub fn copy(opened: &OpenedImage, file: &Inode, out: &mut impl Write) -> Result<()> {
    let extents = file_extents(opened.image.index(), file)?;
    let wanted = extents.into_iter().flat_map(|extent| cut((), extent));
    let mut written = 0;
    for (piece, bytes) in Pieces::new(opened.image.clone(), wanted) {
        zeros(out, piece.tag.offset - written)?;
        let bytes = bytes?;
        out.write_all(&bytes)?;
        written = piece.tag.offset + bytes.len() as u64;
    }
    zeros(out, file.size - written)
}

fn zeros(out: &mut impl Write, mut count: u64) -> Result<()> {
    static ZEROS: [u8; 65_536] = [0; 65_536];
    while count > 0 {
        let now = count.min(ZEROS.len() as u64);
        out.write_all(&ZEROS[..now as usize])?;
        count -= now;
    }
    Ok(())
}

/// A small file as a whole, or `None` when the image has no regular file there. At most `len_max` bytes.
pub fn small_file(opened: &OpenedImage, path: &[u8], len_max: u64) -> Result<Option<Vec<u8>>> {
    let Ok((file, _)) = clip_input::resolve_following(opened.image.index(), path) else { return Ok(None) };
    if file.file_type != FileType::Regular {
        return Ok(None);
    }
    anyhow::ensure!(file.size <= len_max, "{}: expected at most {len_max} bytes, found {}", escaped(path), file.size);
    let mut bytes = Vec::new();
    copy(opened, &file, &mut bytes).with_context(|| escaped(path))?;
    Ok(Some(bytes))
}
