//! The tree as a whole: the order inodes are stored in, who is whose parent, how many names each has.

use super::{Body, InodeSpec};
use crate::{
    bounded::field,
    erofs::{FileType, layout},
    error::FormatError,
    limits,
};

/// No parent, no directory number, no place yet.
const NONE: u32 = u32::MAX;

/// What one pass over the tree learns.
pub(super) struct Survey<'a> {
    pub inodes: &'a [InodeSpec],
    pub root: usize,
    /// Every inode once: a directory's children next to each other, in byte order of their first names.
    pub order: Vec<u32>,
    /// The directory of each inode's first name.
    parents: Vec<u32>,
    pub links: Vec<u32>,
    /// Sorted entries of every directory, `.` and `..` included.
    entries: Vec<Vec<(&'a [u8], usize)>>,
    /// Where an inode's entries stand in `entries`.
    dir_numbers: Vec<u32>,
}

impl<'a> Survey<'a> {
    pub(super) fn new(inodes: &'a [InodeSpec], root: usize) -> Result<Self, FormatError> {
        let count = inodes.len();
        if count as u64 >= u64::from(NONE) {
            return Err(FormatError::Limit { what: "inodes".to_owned(), max: u64::from(NONE) - 1, found: count as u64 });
        }
        let mut survey = Self {
            inodes,
            root,
            order: Vec::with_capacity(count),
            parents: vec![NONE; count],
            links: vec![0; count],
            entries: Vec::new(),
            dir_numbers: vec![NONE; count],
        };
        match inodes.get(root).map(|inode| &inode.body) {
            Some(Body::Directory(_)) => survey.walk()?,
            _ => return Err(field("tree root", root as u64, "a directory", "something else")),
        }
        if survey.order.len() != count {
            return Err(field("tree", 0, format!("{count} inodes below the root"), survey.order.len()));
        }
        Ok(survey)
    }

    fn walk(&mut self) -> Result<(), FormatError> {
        self.order.push(self.root as u32);
        self.parents[self.root] = self.root as u32;
        let mut pending = vec![self.root];
        while let Some(dir) = pending.pop() {
            let first_new = self.order.len();
            self.visit(dir)?;
            let directories = self.order[first_new..].iter().rev().map(|&child| child as usize);
            pending.extend(directories.filter(|&child| matches!(self.inodes[child].body, Body::Directory(_))));
        }
        Ok(())
    }

    /// Sorts the entries of `dir` and gives its new children their places.
    fn visit(&mut self, dir: usize) -> Result<(), FormatError> {
        let Body::Directory(names) = &self.inodes[dir].body else { return Ok(()) };
        let mut entries = Vec::with_capacity(names.len() + 2);
        entries.extend(names.iter().map(|(name, child)| (name.as_slice(), *child)));
        entries.sort_unstable();
        self.links[dir] += 2;
        for (position, &(name, child)) in entries.iter().enumerate() {
            self.check_name(dir, name)?;
            if position > 0 && entries[position - 1].0 == name {
                return Err(field("directory", 0, "each name once", self.path_in(dir, name)));
            }
            self.adopt(dir, name, child)?;
        }
        let parent = self.parents[dir] as usize;
        for (name, target) in [(b"..".as_slice(), parent), (b".", dir)] {
            let position = entries.partition_point(|entry| entry.0 < name);
            entries.insert(position, (name, target));
        }
        self.dir_numbers[dir] = self.entries.len() as u32;
        self.entries.push(entries);
        Ok(())
    }

    fn check_name(&self, dir: usize, name: &[u8]) -> Result<(), FormatError> {
        if name.len() > limits::NAME_BYTES_MAX {
            let what = format!("{}: name, bytes", self.path_in(dir, name));
            return Err(FormatError::Limit { what, max: limits::NAME_BYTES_MAX as u64, found: name.len() as u64 });
        }
        if name.is_empty() || name == b"." || name == b".." || name.iter().any(|byte| matches!(byte, 0 | b'/')) {
            let expected = "1..=255 bytes without NUL and slash, not `.` or `..`";
            return Err(field("directory name", 0, expected, self.path_in(dir, name)));
        }
        Ok(())
    }

    fn adopt(&mut self, dir: usize, name: &[u8], child: usize) -> Result<(), FormatError> {
        let Some(inode) = self.inodes.get(child) else {
            return Err(field("directory entry's inode", child as u64, format!("below {}", self.inodes.len()), self.path_in(dir, name)));
        };
        let is_directory = matches!(inode.body, Body::Directory(_));
        if self.parents[child] == NONE {
            self.parents[child] = dir as u32;
            self.order.push(child as u32);
        } else if is_directory {
            return Err(field("directory", 0, "one name", format!("a second: {}", self.path_in(dir, name))));
        }
        if is_directory {
            self.links[dir] += 1;
        } else {
            self.links[child] += 1;
        }
        Ok(())
    }

    /// The sorted entries of directory `inode`.
    pub(super) fn entries_of(&self, inode: usize) -> &[(&'a [u8], usize)] {
        self.entries.get(self.dir_numbers[inode] as usize).map_or(&[], Vec::as_slice)
    }

    /// The first path of `inode`, for messages.
    pub(super) fn path_of(&self, inode: usize) -> String {
        let mut parts = Vec::new();
        let mut here = inode;
        while here != self.root {
            let parent = self.parents[here] as usize;
            let Body::Directory(names) = &self.inodes[parent].body else { break };
            parts.extend(names.iter().find(|entry| entry.1 == here).map(|entry| entry.0.escape_ascii().to_string()));
            here = parent;
        }
        parts.reverse();
        format!("/{}", parts.join("/"))
    }

    fn path_in(&self, dir: usize, name: &[u8]) -> String {
        format!("{}/{}", self.path_of(dir).trim_end_matches('/'), name.escape_ascii())
    }

    pub(super) fn file_type(&self, inode: usize) -> FileType {
        match self.inodes[inode].body {
            Body::Directory(_) => FileType::Directory,
            Body::Regular { .. } => FileType::Regular,
            Body::Symlink(_) => FileType::Symlink,
            Body::CharDevice(..) => FileType::CharDevice,
            Body::BlockDevice(..) => FileType::BlockDevice,
            Body::Fifo => FileType::Fifo,
            Body::Socket => FileType::Socket,
        }
    }

    /// The flags of the tree record.
    pub(super) fn flags(&self) -> u32 {
        let mut flags = 0;
        for (name, _) in self.inodes.iter().flat_map(|inode| &inode.xattrs) {
            flags |= layout::FLAG_ANY_XATTRS;
            if layout::split_xattr_name(name).is_some_and(|(index, _)| layout::is_acl_index(index)) {
                flags |= layout::FLAG_ANY_ACLS;
            }
        }
        flags
    }

    /// Sum of the sizes of regular files.
    pub(super) fn file_bytes(&self) -> u64 {
        let sizes = self.inodes.iter().map(|inode| if let Body::Regular { size, .. } = inode.body { size } else { 0 });
        sizes.fold(0, u64::saturating_add)
    }
}
