//! Two trees on disk, compared in everything that a program can see of them.
//!
//! The only exclusions are what file systems and unpackers choose for themselves: size and nlink of directories, and the mtime of parents that no layer names.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{File, Metadata},
    io::Read,
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{FileExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// Differences that are reported before the comparison gives up. Source: more than a screenful helps nobody.
const DIFFERENCES_MAX: usize = 50;
/// Files over this length are compared where the expected one has data, and at both ends. Source: hashing 64 MiB takes 0.1 s here.
const HASHED_BYTES_MAX: u64 = 64 << 20;

/// What may differ.
#[derive(Clone, Debug, Default)]
pub struct Exclusions {
    /// Directories that no layer names: their mtime is whatever the unpacker left (ours is 0). Paths relative to the root, `""` for the root itself.
    pub unnamed_parents: BTreeSet<PathBuf>,
    /// Paths that are compared by no one, with all that is below them, for a stated reason.
    pub paths: BTreeMap<PathBuf, &'static str>,
}

impl Exclusions {
    /// Excludes the mtime of `paths`, relative to the root.
    #[must_use]
    pub fn unnamed<'a>(mut self, paths: impl IntoIterator<Item = &'a str>) -> Self {
        self.unnamed_parents.extend(paths.into_iter().map(PathBuf::from));
        self
    }

    /// Excludes `path` and what is below it.
    #[must_use]
    pub fn without(mut self, path: &str, reason: &'static str) -> Self {
        self.paths.insert(PathBuf::from(path), reason);
        self
    }
}

/// What the two trees held and where they differ.
#[derive(Debug, Default)]
pub struct Comparison {
    /// Entries of the expected tree.
    pub entries: usize,
    /// Bytes compared.
    pub bytes: u64,
    /// At most 50, readable.
    pub differences: Vec<String>,
}

impl Comparison {
    /// Fails with the differences when there are any.
    ///
    /// # Panics
    /// Then.
    pub fn assert_same(&self, claim: &str) {
        assert!(self.entries > 1, "{claim}: the expected tree is empty");
        assert!(self.differences.is_empty(), "{claim}: {} differences:\n{}", self.differences.len(), self.differences.join("\n"));
    }

    fn differs(&mut self, path: &Path, what: &str, expected: impl std::fmt::Display, found: impl std::fmt::Display) {
        if self.differences.len() < DIFFERENCES_MAX {
            self.differences.push(format!("{path:?}: {what}: expected {expected}, found {found}"));
        }
    }
}

/// One entry of a tree.
struct Entry {
    metadata: Metadata,
    link_target: Option<Vec<u8>>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Every entry by its path relative to the root.
type Tree = BTreeMap<PathBuf, Entry>;

/// Walks `expected` and `found` and compares type, mode, owner, size, mtime, link target, which names share an inode, nlink, rdev, xattrs and
/// contents.
///
/// # Errors
/// When either tree cannot be walked; a file of `found` that cannot be read is a difference.
pub fn compare(expected: &Path, found: &Path, exclusions: &Exclusions) -> Result<Comparison> {
    let expected_tree = walk(expected, exclusions)?;
    let found_tree = walk(found, exclusions)?;
    let mut comparison = Comparison { entries: expected_tree.len(), ..Comparison::default() };
    for (path, theirs) in &expected_tree {
        match found_tree.get(path) {
            Some(ours) => compare_entry(path, theirs, ours, exclusions, &mut comparison),
            None => comparison.differs(path, "name", "present", "absent"),
        }
    }
    for path in found_tree.keys().filter(|path| !expected_tree.contains_key(*path)) {
        comparison.differs(path, "name", "absent", "present");
    }
    compare_link_groups(&expected_tree, &found_tree, &mut comparison);
    compare_contents(expected, found, &expected_tree, &found_tree, &mut comparison);
    Ok(comparison)
}

fn walk(root: &Path, exclusions: &Exclusions) -> Result<Tree> {
    let mut tree = Tree::new();
    let mut waiting = vec![PathBuf::new()];
    while let Some(path) = waiting.pop() {
        if exclusions.paths.contains_key(&path) {
            continue;
        }
        // Joining an empty path would add a slash, and that would follow a symlink.
        let full = if path.as_os_str().is_empty() { root.to_owned() } else { root.join(&path) };
        let metadata = full.symlink_metadata().with_context(|| format!("stat {full:?}"))?;
        if metadata.is_dir() {
            for child in full.read_dir().with_context(|| format!("read directory {full:?}"))? {
                waiting.push(path.join(child?.file_name()));
            }
        }
        let link_target = match metadata.is_symlink() {
            true => Some(full.read_link().with_context(|| format!("read link {full:?}"))?.into_os_string().into_vec()),
            false => None,
        };
        let xattrs = xattrs(&full).with_context(|| format!("xattrs of {full:?}"))?;
        tree.insert(path, Entry { metadata, link_target, xattrs });
    }
    Ok(tree)
}

/// The extended attributes of `path` itself, never of a link's target.
fn xattrs(path: &Path) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut names = vec![0u8; 65_536];
    let len = match rustix::fs::llistxattr(path, &mut names[..]) {
        Ok(len) => len,
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => return Ok(BTreeMap::new()),
        Err(error) => return Err(error.into()),
    };
    let mut found = BTreeMap::new();
    for name in names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0u8; 65_536];
        let len = rustix::fs::lgetxattr(path, name, &mut value[..])?;
        value.truncate(len);
        found.insert(name.to_vec(), value);
    }
    Ok(found)
}

fn compare_entry(path: &Path, theirs: &Entry, ours: &Entry, exclusions: &Exclusions, comparison: &mut Comparison) {
    let (expected, found) = (&theirs.metadata, &ours.metadata);
    if expected.mode() != found.mode() {
        comparison.differs(path, "mode", format!("{:o}", expected.mode()), format!("{:o}", found.mode()));
    }
    if (expected.uid(), expected.gid()) != (found.uid(), found.gid()) {
        let owner = |metadata: &Metadata| format!("{}:{}", metadata.uid(), metadata.gid());
        comparison.differs(path, "owner", owner(expected), owner(found));
    }
    if !expected.is_dir() && expected.size() != found.size() {
        comparison.differs(path, "size", expected.size(), found.size());
    }
    let mtime = |metadata: &Metadata| (metadata.mtime(), metadata.mtime_nsec());
    if mtime(expected) != mtime(found) && !exclusions.unnamed_parents.contains(path) {
        comparison.differs(path, "mtime", format!("{:?}", mtime(expected)), format!("{:?}", mtime(found)));
    }
    if expected.rdev() != found.rdev() {
        comparison.differs(path, "rdev", expected.rdev(), found.rdev());
    }
    if !expected.is_dir() && expected.nlink() != found.nlink() {
        comparison.differs(path, "nlink", expected.nlink(), found.nlink());
    }
    if theirs.link_target != ours.link_target {
        comparison.differs(path, "link target", format!("{:?}", theirs.link_target), format!("{:?}", ours.link_target));
    }
    if theirs.xattrs != ours.xattrs {
        comparison.differs(path, "xattrs", shown(&theirs.xattrs), shown(&ours.xattrs));
    }
}

fn shown(xattrs: &BTreeMap<Vec<u8>, Vec<u8>>) -> String {
    let each = xattrs.iter().map(|(name, value)| format!("{}={}", name.escape_ascii(), value.escape_ascii()));
    format!("{{{}}}", each.collect::<Vec<_>>().join(", "))
}

/// The sets of names that share one inode must be the same sets.
fn compare_link_groups(expected: &Tree, found: &Tree, comparison: &mut Comparison) {
    let (expected, found) = (link_groups(expected), link_groups(found));
    for group in expected.difference(&found) {
        comparison.differs(
            group.iter().next().map_or(Path::new(""), |path| path),
            "names of one inode",
            format!("{group:?}"),
            "no such group",
        );
    }
    for group in found.difference(&expected) {
        comparison.differs(
            group.iter().next().map_or(Path::new(""), |path| path),
            "names of one inode",
            "no such group",
            format!("{group:?}"),
        );
    }
}

fn link_groups(tree: &Tree) -> BTreeSet<BTreeSet<&PathBuf>> {
    let mut groups: BTreeMap<(u64, u64), BTreeSet<&PathBuf>> = BTreeMap::new();
    for (path, entry) in tree.iter().filter(|(_, entry)| !entry.metadata.is_dir()) {
        groups.entry((entry.metadata.dev(), entry.metadata.ino())).or_default().insert(path);
    }
    groups.into_values().filter(|group| group.len() > 1).collect()
}

fn compare_contents(expected: &Path, found: &Path, theirs: &Tree, ours: &Tree, comparison: &mut Comparison) {
    let regular = theirs.iter().filter(|(_, entry)| entry.metadata.is_file());
    for (path, entry) in regular.filter(|(path, _)| ours.get(*path).is_some_and(|entry| entry.metadata.is_file())) {
        let outcome = match entry.metadata.len() {
            0..=HASHED_BYTES_MAX => same_hash(&expected.join(path), &found.join(path)),
            _ => same_where_data_is(&expected.join(path), &found.join(path)),
        };
        match outcome {
            Ok(Ok(bytes)) => comparison.bytes += bytes,
            Ok(Err((theirs, ours))) => comparison.differs(path, "contents", theirs, ours),
            Err(error) => comparison.differs(path, "contents", "readable", format!("{error:#}")),
        }
    }
}

/// Bytes compared, or what differs as (expected, found).
type Sameness = std::result::Result<u64, (String, String)>;

fn same_hash(expected: &Path, found: &Path) -> Result<Sameness> {
    let (theirs, len) = hash(expected)?;
    let (ours, _) = hash(found)?;
    Ok(if theirs == ours { Ok(len) } else { Err((theirs, ours)) })
}

/// SHA-256 and length of a file as it reads.
///
/// # Errors
/// The system's.
pub fn hash(path: &Path) -> Result<(String, u64)> {
    let mut file = File::open(path).with_context(|| format!("open {path:?}"))?;
    let (mut hasher, mut buffer, mut total) = (Sha256::new(), vec![0; 1 << 20], 0);
    loop {
        let len = file.read(&mut buffer).with_context(|| format!("read {path:?} at {total}"))?;
        if len == 0 {
            return Ok((hex::encode(hasher.finalize()), total));
        }
        hasher.update(&buffer[..len]);
        total += len as u64;
    }
}

/// For large sparse files: every data segment of the expected file, and a block after each, where a hole must read as zeros.
fn same_where_data_is(expected: &Path, found: &Path) -> Result<Sameness> {
    use rustix::fs::{SeekFrom, seek};
    let (theirs, ours) = (File::open(expected)?, File::open(found)?);
    let size = theirs.metadata()?.len();
    let (mut at, mut compared) = (0, 0);
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let start = match seek(&theirs, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => size.saturating_sub(4096).max(at),
            Err(error) => return Err(error.into()),
        };
        let end = seek(&theirs, SeekFrom::Hole(start)).map_or(size, |end| (end + 4096).min(size));
        at = start;
        while at < end {
            let len = usize::try_from((end - at).min(left.len() as u64))?;
            theirs.read_exact_at(&mut left[..len], at)?;
            ours.read_exact_at(&mut right[..len], at).with_context(|| format!("read at {at}"))?;
            if let Some(place) = left[..len].iter().zip(&right[..len]).position(|(a, b)| a != b) {
                let offset = at + place as u64;
                return Ok(Err((format!("{:#04x} at {offset}", left[place]), format!("{:#04x}", right[place]))));
            }
            at += len as u64;
            compared += len as u64;
        }
        if at >= size {
            return Ok(Ok(compared));
        }
    }
}

/// The directories above each of `named` that are not named themselves: what an unpacker must invent.
#[must_use]
pub fn parents_not_named(named: &BTreeSet<PathBuf>) -> BTreeSet<PathBuf> {
    let parents = named.iter().flat_map(|path| path.ancestors().skip(1).map(Path::to_owned));
    parents.filter(|parent| !named.contains(parent)).collect()
}

/// A member's name as a path below the root: no leading slashes or dots.
#[must_use]
pub fn below_root(name: &[u8]) -> PathBuf {
    let path = Path::new(std::ffi::OsStr::from_bytes(name));
    path.components().filter(|part| matches!(part, std::path::Component::Normal(_))).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn tree(dir: &Path) {
        std::fs::create_dir(dir).unwrap();
        std::fs::write(dir.join("a"), b"one").unwrap();
        std::fs::hard_link(dir.join("a"), dir.join("b")).unwrap();
        symlink("nowhere", dir.join("c")).unwrap();
        let epoch = std::time::SystemTime::UNIX_EPOCH;
        for name in ["a", ""] {
            File::open(dir.join(name)).unwrap().set_modified(epoch).unwrap();
        }
        let zero = rustix::fs::Timespec { tv_sec: 0, tv_nsec: 0 };
        let times = rustix::fs::Timestamps { last_access: zero, last_modification: zero };
        rustix::fs::utimensat(rustix::fs::CWD, dir.join("c"), &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }

    fn differences(change: impl FnOnce(&Path)) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let (left, right) = (dir.path().join("left"), dir.path().join("right"));
        tree(&left);
        tree(&right);
        change(&right);
        compare(&left, &right, &Exclusions::default().unnamed([""])).unwrap().differences
    }

    /// An oracle that sees nothing proves nothing: each kind of change is reported, and equal trees are not.
    #[test]
    fn every_kind_of_change_is_seen() {
        assert_eq!(differences(|_| ()), Vec::<String>::new());
        let mode = |dir: &Path| std::fs::set_permissions(dir.join("a"), PermissionsExt::from_mode(0o4755)).unwrap();
        assert!(differences(mode)[0].contains("mode"));
        let contents = |dir: &Path| {
            std::fs::write(dir.join("a"), b"two").unwrap();
            File::open(dir.join("a")).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        };
        assert!(differences(contents).iter().any(|line| line.contains("contents")));
        let links = |dir: &Path| {
            std::fs::remove_file(dir.join("b")).unwrap();
            std::fs::copy(dir.join("a"), dir.join("b")).unwrap();
        };
        assert!(differences(links).iter().any(|line| line.contains("names of one inode")));
        assert!(differences(|dir| std::fs::write(dir.join("d"), b"").unwrap())[0].contains("present"));
        assert!(differences(|dir| std::fs::remove_file(dir.join("c")).unwrap())[0].contains("absent"));
    }
}
