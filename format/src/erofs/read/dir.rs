//! Directories: blocks of sorted entries, and the two binary searches that find a name.

use std::cmp::Ordering;

use super::{DirEntry, FileType, Index, Inode};
use crate::{
    bounded::{field, record_at},
    erofs::layout::{BLOCK_BYTES, DIRENT_BYTES, NID_UNIT, RawDirent},
    error::FormatError,
    limits::NAME_BYTES_MAX,
    units::Nid,
};

/// Bits of `DirEntry::next` that count entries within a block: a block holds at most 39.
const ENTRY_BITS: u32 = 6;
const _: () = assert!(BLOCK_BYTES / (DIRENT_BYTES + 1) < 1 << ENTRY_BITS);

/// One checked block: `count` entries, then their names.
struct DirBlock<'a> {
    bytes: &'a [u8],
    /// Which block of the directory.
    number: u64,
    count: u64,
}

impl<'a> DirBlock<'a> {
    /// Block `number` of a directory whose content is `content`.
    fn open(content: &'a [u8], number: u64) -> Result<Self, FormatError> {
        let start = (number * BLOCK_BYTES) as usize;
        let bytes = content.get(start..).unwrap_or_default();
        let bytes = &bytes[..bytes.len().min(BLOCK_BYTES as usize)];
        let first: &RawDirent = record_at(bytes, "directory block", 0)?;
        let names_start = u64::from(first.name_offset.get());
        if names_start < DIRENT_BYTES || !names_start.is_multiple_of(DIRENT_BYTES) || names_start >= bytes.len() as u64 {
            let expected = format!("a multiple of {DIRENT_BYTES} below {}", bytes.len());
            return Err(field("directory nameoff of a block's first entry", start as u64, expected, names_start));
        }
        Ok(Self { bytes, number, count: names_start / DIRENT_BYTES })
    }

    fn raw(&self, position: u64) -> Result<&'a RawDirent, FormatError> {
        record_at(self.bytes, "directory entry", position * DIRENT_BYTES)
    }

    /// The entry at `position < count`.
    fn entry(&self, position: u64) -> Result<DirEntry<'a>, FormatError> {
        let raw = self.raw(position)?;
        let start = usize::from(raw.name_offset.get());
        let end = if position + 1 < self.count {
            usize::from(self.raw(position + 1)?.name_offset.get())
        } else {
            let last = self.bytes.get(start..).unwrap_or_default();
            start + last.iter().position(|&byte| byte == 0).unwrap_or(last.len())
        };
        let offset = self.number * BLOCK_BYTES + position * DIRENT_BYTES;
        let names_start = (self.count * DIRENT_BYTES) as usize;
        let name = if start < names_start { None } else { self.bytes.get(start..end) };
        let name = name.ok_or_else(|| field("directory nameoff", offset, "names in order inside the block", start))?;
        if name.is_empty() || name.len() > NAME_BYTES_MAX || name.iter().any(|byte| matches!(byte, 0 | b'/')) {
            let expected = format!("1..={NAME_BYTES_MAX} bytes without NUL and slash");
            return Err(field("directory name", offset, expected, name.escape_ascii()));
        }
        let file_type =
            FileType::from_dirent_byte(raw.file_type).ok_or_else(|| field("directory file_type", offset, "1..=7", raw.file_type))?;
        Ok(DirEntry { nid: Nid(raw.nid.get()), name, file_type, next: (self.number << ENTRY_BITS) | (position + 1) })
    }

    fn find(&self, name: &[u8]) -> Result<Option<DirEntry<'a>>, FormatError> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            let entry = self.entry(middle)?;
            match entry.name.cmp(name) {
                Ordering::Equal => return Ok(Some(entry)),
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
            }
        }
        Ok(None)
    }
}

/// The entries of one directory; ends after the first error.
struct DirEntries<'a> {
    content: Result<&'a [u8], FormatError>,
    block: Option<DirBlock<'a>>,
    number: u64,
    position: u64,
    done: bool,
}

impl<'a> DirEntries<'a> {
    fn advance(&mut self) -> Result<Option<DirEntry<'a>>, FormatError> {
        let content = self.content.clone()?;
        loop {
            if self.number >= (content.len() as u64).div_ceil(BLOCK_BYTES) {
                return Ok(None);
            }
            let block = match self.block.take() {
                Some(block) => block,
                None => DirBlock::open(content, self.number)?,
            };
            if self.position < block.count {
                let entry = block.entry(self.position)?;
                self.position += 1;
                self.block = Some(block);
                return Ok(Some(entry));
            }
            self.number += 1;
            self.position = 0;
        }
    }
}

impl<'a> Iterator for DirEntries<'a> {
    type Item = Result<DirEntry<'a>, FormatError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let item = self.advance().transpose();
        self.done = !matches!(item, Some(Ok(_)));
        item
    }
}

impl Index {
    fn dir_content(&self, dir: &Inode) -> Result<&[u8], FormatError> {
        if dir.file_type != FileType::Directory {
            return Err(field("inode type", dir.nid.get() * NID_UNIT, "a directory", format!("{:?}", dir.file_type)));
        }
        self.flat_bytes(dir)
    }

    /// The entry called `name`, or `None`. Cost: a binary search over blocks, then within one.
    ///
    /// # Errors
    /// `Corrupt`; also when `dir` is not a directory.
    pub fn lookup<'a>(&'a self, dir: &Inode, name: &[u8]) -> Result<Option<DirEntry<'a>>, FormatError> {
        let content = self.dir_content(dir)?;
        let (mut low, mut high) = (0, (content.len() as u64).div_ceil(BLOCK_BYTES));
        let mut candidate = None;
        while low < high {
            let middle = low + (high - low) / 2;
            let block = DirBlock::open(content, middle)?;
            if block.entry(0)?.name <= name {
                low = middle + 1;
                candidate = Some(block);
            } else {
                high = middle;
            }
        }
        candidate.map_or(Ok(None), |block| block.find(name))
    }

    /// The entries of `dir` in byte order, `.` and `..` included, from position `from` (0 = the start, else an entry's `next`).
    pub fn dir_entries<'a>(&'a self, dir: &Inode, from: u64) -> impl Iterator<Item = Result<DirEntry<'a>, FormatError>> + use<'a> {
        let content = self.dir_content(dir);
        let (number, position) = (from >> ENTRY_BITS, from & ((1 << ENTRY_BITS) - 1));
        DirEntries { content, block: None, number, position, done: false }
    }
}
