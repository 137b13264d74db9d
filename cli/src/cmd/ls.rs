//! `clip ls`

use std::{
    io::{IsTerminal as _, Write},
    os::unix::ffi::OsStrExt as _,
};

use anyhow::{Context, Result};
use clip_format::erofs::{FileType, Index, Inode};

use crate::{
    args::LsArgs,
    clip_input,
    display::{columns, escaped, mode, mtime, size_or_device},
    exit::{Outcome, report},
    output::stdout,
};

/// Deepest directory that is listed. Source: PATH_MAX / 2, linux/limits.h: deeper paths cannot be named.
const DEPTH_MAX: usize = 2048;
/// Lines of `-l` that are lined up together when a whole tree is listed.
const BLOCK_LINES_MAX: usize = 1024;

/// What is asked for is on standard output; paths that do not exist have been reported.
pub fn run(args: &LsArgs) -> Result<Outcome> {
    let bytes = clip_input::read_clip(&args.clip)?;
    let clip = clip_input::parse_clip(&args.clip, &bytes)?;
    let index = clip_input::open_index(&args.clip, &clip)?;
    let style = Style::from_args(args);
    let mut lister = Lister { index: &index, style, out: std::io::BufWriter::new(stdout()), rows: Vec::new() };
    let root = [std::ffi::OsString::from("/")];
    let paths = if args.paths.is_empty() { &root[..] } else { &args.paths };
    let mut outcome = Outcome::Good;
    for path in paths {
        match clip_input::resolve_exact(&index, path.as_bytes()) {
            Ok(inode) => lister.list(&inode, path.as_bytes(), args.directory, paths.len() > 1)?,
            Err(error) => {
                report(&error);
                outcome = Outcome::Bad;
            }
        }
    }
    lister.flush_rows()?;
    lister.out.flush()?;
    Ok(outcome)
}

#[derive(Clone, Copy)]
struct Style {
    long: bool,
    recursive: bool,
    null: bool,
    escape: bool,
}

impl Style {
    fn from_args(args: &LsArgs) -> Self {
        let escape = !args.null && (args.long || std::io::stdout().is_terminal());
        Self { long: args.long, recursive: args.recursive, null: args.null, escape }
    }
}

struct Lister<'a, W: Write> {
    index: &'a Index,
    style: Style,
    out: W,
    rows: Vec<Vec<String>>,
}

impl<W: Write> Lister<'_, W> {
    fn list(&mut self, inode: &Inode, path: &[u8], itself: bool, titled: bool) -> Result<()> {
        if inode.file_type != FileType::Directory || itself {
            return self.entry(inode, path);
        }
        if self.style.recursive {
            return self.tree(inode, path);
        }
        if titled {
            self.flush_rows()?;
            writeln!(self.out, "{}:", escaped(path))?;
        }
        self.directory(inode, path)
    }

    fn directory(&mut self, directory: &Inode, path: &[u8]) -> Result<()> {
        for entry in self.index.dir_entries(directory, 0) {
            let entry = entry.with_context(|| escaped(path))?;
            if entry.name != b"." && entry.name != b".." {
                let inode = self.index.inode(entry.nid).with_context(|| escaped(path))?;
                self.entry(&inode, entry.name)?;
            }
        }
        self.flush_rows()
    }

    /// Every path below and at `top`, parents before children, siblings in byte order.
    fn tree(&mut self, top: &Inode, path: &[u8]) -> Result<()> {
        let base = path.strip_suffix(b"/").unwrap_or(path).to_vec();
        self.entry(top, if base.is_empty() { b"/" } else { &base })?;
        let mut open = vec![(top.clone(), base, 0_u64)];
        while let Some((directory, at, from)) = open.pop() {
            let context = || escaped(&at);
            let Some(entry) = self.index.dir_entries(&directory, from).next() else { continue };
            let entry = entry.with_context(context)?;
            let (nid, name, next) = (entry.nid, entry.name.to_vec(), entry.next);
            anyhow::ensure!(next > from, "{}: a directory that does not end", context());
            let inode = if name == b"." || name == b".." { None } else { Some(self.index.inode(nid).with_context(context)?) };
            let child = [&at[..], b"/", &name].concat();
            open.push((directory, at, next));
            let Some(inode) = inode else { continue };
            self.entry(&inode, &child)?;
            if inode.file_type == FileType::Directory {
                anyhow::ensure!(open.len() < DEPTH_MAX, "{}: deeper than {DEPTH_MAX} directories", escaped(&child));
                open.push((inode, child, 0));
            }
        }
        Ok(())
    }

    fn entry(&mut self, inode: &Inode, name: &[u8]) -> Result<()> {
        if self.style.long {
            self.rows.push(long_row(self.index, inode, name)?);
            if self.rows.len() >= BLOCK_LINES_MAX {
                self.flush_rows()?;
            }
            return Ok(());
        }
        if self.style.escape {
            writeln!(self.out, "{}", escaped(name))?;
        } else {
            self.out.write_all(name)?;
            self.out.write_all(if self.style.null { b"\0" } else { b"\n" })?;
        }
        Ok(())
    }

    fn flush_rows(&mut self) -> Result<()> {
        for line in columns(&self.rows, &[false, true, true, true, true, false, false]) {
            writeln!(self.out, "{line}")?;
        }
        self.rows.clear();
        Ok(())
    }
}

/// mode, links, uid, gid, size or device, time, name and target.
fn long_row(index: &Index, inode: &Inode, name: &[u8]) -> Result<Vec<String>> {
    let mut shown = escaped(name);
    if inode.file_type == FileType::Symlink {
        let target = index.link_target(inode).with_context(|| escaped(name))?;
        shown = format!("{shown} -> {}", escaped(target));
    }
    let mode = mode(inode) + if inode.has_xattrs { "+" } else { "" };
    Ok(vec![mode, inode.nlink.to_string(), inode.uid.to_string(), inode.gid.to_string(), size_or_device(inode), mtime(inode), shown])
}
