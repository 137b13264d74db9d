//! The full structural check, run once when an index is expanded.

use std::collections::HashMap;

use super::{
    layout::{self, NID_UNIT},
    read::{DirEntry, FileType, Index, Inode},
};
use crate::{
    bounded::{expect_eq, field},
    error::FormatError,
    units::Nid,
};

/// What a checked index holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Regular files (inodes).
    pub regular_files: u64,
    /// Directories.
    pub directories: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Devices, fifos and sockets.
    pub special_files: u64,
    /// Names, `.` and `..` not counted.
    pub names: u64,
    /// Sum of the sizes of regular files.
    pub file_bytes: u64,
    /// Inodes with at least one extended attribute.
    pub inodes_with_xattrs: u64,
}

/// Walks the whole tree: every inode, name, extent and xattr is readable, names are sorted and unique, each directory has one parent,
/// link counts are right, every extent lies within its layer's stream.
///
/// Cost: time and memory are bounded by the image's length, whatever it says: parts that are shared between inodes are an error.
///
/// # Errors
/// `Corrupt`, naming the nid and the field.
pub fn check(index: &Index) -> Result<Counts, FormatError> {
    let mut walk = Walk {
        index,
        seen: vec![0; (index.image_len() / NID_UNIT).div_ceil(64) as usize],
        links: HashMap::new(),
        looked_at: 0,
        any_acls: false,
        counts: Counts::default(),
        pending: Vec::new(),
    };
    let root = index.inode(index.root())?;
    walk.first_look(&root)?;
    walk.pending.push((root.nid, root.nid));
    while let Some((dir, parent)) = walk.pending.pop() {
        walk.directory(dir, parent)?;
    }
    walk.finish()
}

struct Walk<'a> {
    index: &'a Index,
    /// One bit a nid.
    seen: Vec<u64>,
    /// Names still to be found of inodes with more than one.
    links: HashMap<Nid, u32>,
    /// Bytes of directories, chunk tables and xattrs so far.
    looked_at: u64,
    any_acls: bool,
    counts: Counts,
    /// Directories with their parents.
    pending: Vec<(Nid, Nid)>,
}

fn at(nid: Nid) -> u64 {
    nid.get() * NID_UNIT
}

impl Walk<'_> {
    /// Marks `nid`; true the first time.
    fn mark(&mut self, nid: Nid) -> bool {
        let (word, bit) = ((nid.get() / 64) as usize, 1 << (nid.get() % 64));
        let first = self.seen[word] & bit == 0;
        self.seen[word] |= bit;
        first
    }

    /// Parts of an honest image never overlap, so that all of them together are no longer than it.
    fn spend(&mut self, nid: Nid, bytes: u64) -> Result<(), FormatError> {
        self.looked_at = self.looked_at.saturating_add(bytes);
        if self.looked_at > self.index.image_len() {
            return Err(field("index inode's parts", at(nid), "parts of its own", "parts shared with other inodes"));
        }
        Ok(())
    }

    fn directory(&mut self, nid: Nid, parent: Nid) -> Result<(), FormatError> {
        let dir = self.index.inode(nid)?;
        self.spend(nid, dir.size)?;
        let index = self.index;
        let mut previous: Option<&[u8]> = None;
        let (mut own, mut up, mut subdirectories) = (false, false, 0u32);
        for entry in index.dir_entries(&dir, 0) {
            let entry = entry?;
            if previous.is_some_and(|previous| previous >= entry.name) {
                return Err(field("directory order", at(nid), "names in rising byte order", entry.name.escape_ascii()));
            }
            previous = Some(entry.name);
            match entry.name {
                b"." => own = entry.nid == nid,
                b".." => up = entry.nid == parent,
                _ => {
                    self.counts.names += 1;
                    subdirectories += u32::from(self.entry(nid, &entry)?);
                }
            }
        }
        if !own || !up {
            return Err(field("directory `.` and `..`", at(nid), format!("{nid} and {parent}"), "others or none"));
        }
        expect_eq("directory i_nlink", at(nid), subdirectories.saturating_add(2), dir.nlink)
    }

    /// True for a directory.
    fn entry(&mut self, dir: Nid, entry: &DirEntry<'_>) -> Result<bool, FormatError> {
        let inode = self.index.inode(entry.nid)?;
        if inode.file_type != entry.file_type {
            let found = format!("{:?} for nid {}", entry.file_type, entry.nid);
            return Err(field("directory file_type", at(dir), format!("{:?}", inode.file_type), found));
        }
        let first = self.mark(entry.nid);
        if inode.file_type == FileType::Directory {
            if !first {
                return Err(field("directory", at(entry.nid), "one parent", format!("a second: nid {dir}")));
            }
            self.account(&inode)?;
            self.pending.push((entry.nid, dir));
            return Ok(true);
        }
        if first {
            self.account(&inode)?;
            if inode.nlink != 1 {
                self.links.insert(entry.nid, inode.nlink);
            }
        }
        self.count_link(entry.nid, inode.nlink, first)?;
        Ok(false)
    }

    fn count_link(&mut self, nid: Nid, nlink: u32, first: bool) -> Result<(), FormatError> {
        if nlink == 1 && first {
            return Ok(());
        }
        match self.links.get_mut(&nid).filter(|left| **left > 0) {
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Err(field("inode i_nlink", at(nid), "as many as there are names", nlink)),
        }
    }

    fn first_look(&mut self, root: &Inode) -> Result<(), FormatError> {
        self.mark(root.nid);
        self.account(root)
    }

    /// Reads everything of an inode that is met for the first time.
    fn account(&mut self, inode: &Inode) -> Result<(), FormatError> {
        self.spend(inode.nid, layout::INODE_BYTES + Index::chunk_table_bytes(inode) + Index::xattr_body_bytes(inode))?;
        if inode.has_xattrs {
            self.counts.inodes_with_xattrs += 1;
            for xattr in self.index.xattr_parts(inode) {
                self.any_acls |= layout::is_acl_index(xattr?.index);
            }
        }
        match inode.file_type {
            FileType::Regular => {
                self.counts.regular_files += 1;
                self.counts.file_bytes = self.counts.file_bytes.saturating_add(inode.size);
                self.index.data_bytes(inode)?;
            }
            FileType::Directory => self.counts.directories += 1,
            FileType::Symlink => {
                self.counts.symlinks += 1;
                self.spend(inode.nid, inode.size)?;
                self.index.link_target(inode)?;
            }
            _ => self.counts.special_files += 1,
        }
        Ok(())
    }

    fn finish(self) -> Result<Counts, FormatError> {
        if let Some((nid, left)) = self.links.iter().filter(|entry| *entry.1 > 0).min() {
            return Err(field("inode i_nlink", at(*nid), "as many as there are names", format!("{left} too many")));
        }
        let counts = self.counts;
        let inodes = counts.regular_files + counts.directories + counts.symlinks + counts.special_files;
        expect_eq("index superblock inos", layout::SUPERBLOCK_OFFSET + 0x10, inodes, self.index.inode_count())?;
        expect_eq("index tree record file bytes", 0, counts.file_bytes, self.index.file_bytes())?;
        expect_eq("index tree record flag for xattrs", 0, counts.inodes_with_xattrs > 0, self.index.any_xattrs())?;
        expect_eq("index tree record flag for ACLs", 0, self.any_acls, self.index.any_acls())?;
        Ok(counts)
    }
}
