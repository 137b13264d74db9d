//! One kind of operation, done to every name of a tree by several threads at once.

use std::{
    collections::HashSet,
    ffi::CString,
    fs::DirEntry,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
    sync::Barrier,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clip_format::{
    erofs::{FileType, Index},
    units::Nid,
};
use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags},
    io::Errno,
};

use crate::corpus::content::Draws;

/// Files over this are left out of open+read+close, which is about files and not about bytes. Source: 4 pages.
const SMALL_BYTES: u64 = 16 << 10;
/// Names of one storm at most: some seconds of the slowest.
const NAMES_MAX: usize = 20_000;

/// A kind of operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Storm {
    Stat,
    Missing,
    OpenRead,
    Readdir,
}

/// What is operated on, as paths without a leading slash, in an order that has nothing to do with the tree's.
pub(super) struct Targets {
    names: Vec<PathBuf>,
    small: Vec<(PathBuf, u64)>,
    directories: Vec<PathBuf>,
    entries: usize,
}

impl Targets {
    /// Of the tree of `index`.
    pub(super) fn of(index: &Index) -> Result<Self> {
        let mut targets = Self { names: Vec::new(), small: Vec::new(), directories: Vec::new(), entries: 0 };
        let mut left = vec![(index.root(), PathBuf::new())];
        let mut seen = HashSet::new();
        while let Some((nid, path)) = left.pop() {
            ensure!(seen.insert(nid), "{}: a directory in two places; the .clip is damaged", path.display());
            targets.add_directory(index, nid, &path, &mut left)?;
            targets.directories.push(path);
        }
        let mut draws = Draws::new(0x5707);
        shuffle(&mut targets.names, &mut draws);
        shuffle(&mut targets.small, &mut draws);
        targets.names.truncate(NAMES_MAX);
        targets.small.truncate(NAMES_MAX);
        ensure!(!targets.names.is_empty() && !targets.small.is_empty(), "an image without small files: nothing to measure");
        Ok(targets)
    }

    fn add_directory(&mut self, index: &Index, nid: Nid, path: &Path, left: &mut Vec<(Nid, PathBuf)>) -> Result<()> {
        for entry in index.dir_entries(&index.inode(nid)?, 0) {
            let entry = entry?;
            if matches!(entry.name, b"." | b"..") {
                continue;
            }
            let path = path.join(std::ffi::OsStr::from_bytes(entry.name));
            self.entries += 1;
            match entry.file_type {
                FileType::Directory => left.push((entry.nid, path.clone())),
                FileType::Regular => self.add_file(index, entry.nid, &path)?,
                _ => {}
            }
            self.names.push(path);
        }
        Ok(())
    }

    /// Files in one piece only: the trivial file system has no others.
    fn add_file(&mut self, index: &Index, nid: Nid, path: &Path) -> Result<()> {
        let inode = index.inode(nid)?;
        if (1..=SMALL_BYTES).contains(&inode.size) {
            let first = index.extents(&inode, 0..inode.size).next().context("a file without bytes")??;
            if first.file.end == inode.size && first.data.is_some() {
                self.small.push((path.to_owned(), inode.size));
            }
        }
        Ok(())
    }
}

fn shuffle<T>(items: &mut [T], draws: &mut Draws) {
    for at in (1..items.len()).rev() {
        items.swap(at, draws.below(at as u64 + 1) as usize);
    }
}

impl Storm {
    pub(super) const ALL: [Self; 4] = [Self::Stat, Self::Missing, Self::OpenRead, Self::Readdir];

    pub(super) fn id(self) -> &'static str {
        match self {
            Self::Stat => "stat",
            Self::Missing => "enoent",
            Self::OpenRead => "open_read_close",
            Self::Readdir => "readdir",
        }
    }

    pub(super) fn what(self) -> &'static str {
        match self {
            Self::Stat => "lstat of names",
            Self::Missing => "lstat of names that do not exist",
            Self::OpenRead => "open, read and close of files up to 16 KiB",
            Self::Readdir => "readdir of every directory, with lstat of each entry",
        }
    }

    pub(super) fn operations(self, targets: &Targets) -> usize {
        match self {
            Self::Stat | Self::Missing => targets.names.len(),
            Self::OpenRead => targets.small.len(),
            Self::Readdir => targets.entries,
        }
    }

    /// Operations a second below `root`, and a hash of all that they gave, taken after the clock.
    pub(super) fn rate(self, root: &Path, targets: &Targets, threads: usize) -> Result<(f64, blake3::Hash)> {
        let mut parts = (0..threads).map(|part| self.prepared(root, targets, part, threads)).collect::<Result<Vec<_>>>()?;
        // All stand ready before the clock starts.
        let ready = Barrier::new(threads);
        let times = std::thread::scope(|scope| {
            let run = |part: &mut Part| {
                ready.wait();
                let started = Instant::now();
                part.run()?;
                Ok::<_, anyhow::Error>((started, Instant::now()))
            };
            let running: Vec<_> = parts.iter_mut().map(|part| scope.spawn(move || run(part))).collect();
            let times = running.into_iter().map(|thread| thread.join().map_err(|_| anyhow::anyhow!("a client panicked"))?);
            times.collect::<Result<Vec<_>>>()
        })?;
        let (first, last) = (times.iter().map(|(started, _)| *started).min(), times.iter().map(|(_, ended)| *ended).max());
        let took = first.zip(last).map_or(Duration::ZERO, |(first, last)| last - first);
        let mut hasher = blake3::Hasher::new();
        parts.iter().for_each(|part| part.hash(&mut hasher));
        Ok((self.operations(targets) as f64 / took.as_secs_f64().max(1e-9), hasher.finalize()))
    }

    /// Every `threads`-th target from `part` on, with room for what comes out.
    fn prepared(self, root: &Path, targets: &Targets, part: usize, threads: usize) -> Result<Part> {
        let path = |path: &Path, more: &str| {
            let mut whole = root.join(path).into_os_string();
            whole.push(more);
            CString::new(whole.as_bytes()).context("a path with a NUL byte")
        };
        let every = |paths: &[PathBuf], more: &str| {
            paths.iter().skip(part).step_by(threads).map(|name| path(name, more)).collect::<Result<Vec<_>>>()
        };
        Ok(match self {
            Self::Stat => {
                let paths = every(&targets.names, "")?;
                Part::Stat { found: Vec::with_capacity(paths.len()), paths }
            }
            Self::Missing => Part::Missing { paths: every(&targets.names, ".none")? },
            Self::OpenRead => {
                let mine = targets.small.iter().skip(part).step_by(threads);
                let bytes = mine.clone().map(|(_, len)| *len as usize).sum::<usize>();
                let paths = mine.map(|(name, _)| path(name, "")).collect::<Result<Vec<_>>>()?;
                // Not zero, so that the pages are there before the clock starts; a byte more tells a file that is too long.
                Part::OpenRead { paths, bytes: vec![0xa5; bytes + 1] }
            }
            Self::Readdir => {
                let paths = targets.directories.iter().skip(part).step_by(threads).map(|path| root.join(path)).collect();
                Part::Readdir { paths, found: Vec::with_capacity(targets.entries) }
            }
        })
    }
}

/// What two stats of one file must agree in.
#[derive(Clone, Copy)]
struct Stat([u64; 8]);

/// What one thread does, and what it found.
enum Part {
    Stat { paths: Vec<CString>, found: Vec<Stat> },
    Missing { paths: Vec<CString> },
    OpenRead { paths: Vec<CString>, bytes: Vec<u8> },
    Readdir { paths: Vec<PathBuf>, found: Vec<(Vec<u8>, Stat)> },
}

impl Part {
    fn run(&mut self) -> Result<()> {
        match self {
            Self::Stat { paths, found } => {
                for path in paths {
                    let stat = rustix::fs::statat(CWD, path.as_c_str(), AtFlags::SYMLINK_NOFOLLOW).with_context(|| format!("{path:?}"))?;
                    let (size, blocks) = (stat.st_size as u64, stat.st_blocks as u64);
                    let owners = u64::from(stat.st_uid) << 32 | u64::from(stat.st_gid);
                    let time = (stat.st_mtime as u64, stat.st_mtime_nsec as u64);
                    found.push(Stat([stat.st_ino, size, blocks, u64::from(stat.st_mode), owners, stat.st_nlink as u64, time.0, time.1]));
                }
            }
            Self::Missing { paths } => {
                for path in paths {
                    let found = rustix::fs::statat(CWD, path.as_c_str(), AtFlags::SYMLINK_NOFOLLOW).err();
                    ensure!(found == Some(Errno::NOENT), "{path:?}: expected that it does not exist, found {found:?}");
                }
            }
            Self::OpenRead { paths, bytes } => {
                let mut at = 0;
                for path in paths {
                    let file = rustix::fs::open(path.as_c_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
                    while let read @ 1.. = rustix::io::read(&file, &mut bytes[at..])? {
                        at += read;
                    }
                }
                ensure!(at + 1 == bytes.len(), "expected {} bytes, found {at}", bytes.len() - 1);
            }
            Self::Readdir { paths, found } => {
                for path in paths {
                    for entry in std::fs::read_dir(&*path).with_context(|| format!("list {}", path.display()))? {
                        let entry = entry?;
                        let stat = entry_stat(&entry)?;
                        found.push((entry.file_name().as_bytes().to_vec(), stat));
                    }
                }
            }
        }
        Ok(())
    }

    fn hash(&self, hasher: &mut blake3::Hasher) {
        let stat = |hasher: &mut blake3::Hasher, stat: &Stat| {
            for field in stat.0 {
                hasher.update(&field.to_le_bytes());
            }
        };
        match self {
            Self::Stat { found, .. } => found.iter().for_each(|found| stat(hasher, found)),
            Self::Missing { paths } => {
                hasher.update(&paths.len().to_le_bytes());
            }
            Self::OpenRead { bytes, .. } => {
                hasher.update(bytes);
            }
            Self::Readdir { found, .. } => {
                for (name, of) in found {
                    hasher.update(name);
                    stat(hasher, of);
                }
            }
        }
    }
}

fn entry_stat(entry: &DirEntry) -> Result<Stat> {
    let stat = entry.metadata().with_context(|| format!("{}", entry.path().display()))?;
    let owners = u64::from(stat.uid()) << 32 | u64::from(stat.gid());
    let time = (stat.mtime() as u64, stat.mtime_nsec() as u64);
    Ok(Stat([stat.ino(), stat.size(), stat.blocks(), u64::from(stat.mode()), owners, stat.nlink(), time.0, time.1]))
}
