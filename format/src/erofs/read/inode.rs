//! One inode: its attributes, and proof that its parts lie inside the image.

use super::{Content, FileType, Index, Inode};
use crate::{
    bounded::{field, record_at, slice_at},
    erofs::layout::{self, BLOCK_BYTES, RawInode},
    error::FormatError,
    limits,
    units::Nid,
};

impl Index {
    /// The inode at `nid`.
    ///
    /// # Errors
    /// `Corrupt` when there is none that could be read.
    pub fn inode(&self, nid: Nid) -> Result<Inode, FormatError> {
        let first = layout::inodes_start(self.layer_count()).div_ceil(layout::NID_UNIT);
        let last = self.image_len() / layout::NID_UNIT;
        if nid.get() < first || nid.get() >= last {
            return Err(field("index nid", 0, format!("{first}..{last}"), nid));
        }
        let at = nid.get() * layout::NID_UNIT;
        let raw: &RawInode = record_at(self.image(), "index inode", at)?;
        let mode = u32::from(raw.mode.get());
        let file_type =
            FileType::from_mode(mode).ok_or_else(|| field("inode i_mode", at + 4, "a known file type", format!("{mode:#o}")))?;
        if raw.mtime_ns.get() >= 1_000_000_000 {
            return Err(field("inode i_mtime_nsec", at + 0x28, "below 1000000000", raw.mtime_ns));
        }
        let xattr_body = self.xattr_body(raw, at)?;
        let content = self.content(raw, at, file_type, at + layout::INODE_BYTES + xattr_body.1)?;
        let (rdev_major, rdev_minor) = match file_type {
            FileType::CharDevice | FileType::BlockDevice => layout::decode_rdev(raw.union.get()),
            _ => (0, 0),
        };
        Ok(Inode {
            nid,
            file_type,
            mode,
            uid: raw.uid.get(),
            gid: raw.gid.get(),
            size: raw.size.get(),
            nlink: raw.nlink.get(),
            rdev_major,
            rdev_minor,
            mtime_s: raw.mtime_s.get(),
            mtime_ns: raw.mtime_ns.get(),
            has_xattrs: xattr_body.1 != 0,
            content,
            xattr_body,
        })
    }

    /// Start and length of the xattr body; length 0 without.
    fn xattr_body(&self, raw: &RawInode, at: u64) -> Result<(u64, u64), FormatError> {
        let start = at + layout::INODE_BYTES;
        let len = match u64::from(raw.xattr_count.get()) {
            0 => 0,
            count => layout::XATTR_HEADER_BYTES + (count - 1) * layout::XATTR_ENTRY_BYTES,
        };
        slice_at(self.image(), "inode xattr body", start, len)?;
        Ok((start, len))
    }

    fn content(&self, raw: &RawInode, at: u64, file_type: FileType, tail: u64) -> Result<Content, FormatError> {
        let size = raw.size.get();
        let format = raw.format.get();
        let layout_kind = format >> 1;
        let unknown = || FormatError::Unknown {
            what: "inode i_format",
            expected: "extended inodes, flat directories and symlinks, chunked files".to_owned(),
            found: format!("{format:#x} of a {file_type:?} at byte {at}"),
        };
        if format & layout::FORMAT_EXTENDED == 0 || raw.start_high.get() != 0 {
            return Err(unknown());
        }
        match (file_type, layout_kind) {
            (FileType::Regular, layout::LAYOUT_CHUNK_BASED) => self.chunks(raw, at, tail),
            (FileType::Regular, layout::LAYOUT_FLAT_PLAIN) if size == 0 => Ok(Content::None),
            (FileType::Directory | FileType::Symlink, layout::LAYOUT_FLAT_PLAIN) => {
                self.flat(at, file_type, size, u64::from(raw.union.get()) * BLOCK_BYTES)
            }
            (FileType::Directory | FileType::Symlink, layout::LAYOUT_FLAT_INLINE) => {
                if size > BLOCK_BYTES || tail % BLOCK_BYTES + size > BLOCK_BYTES {
                    return Err(field("inode inline tail", tail, "inside one block", format!("{size} bytes")));
                }
                self.flat(at, file_type, size, tail)
            }
            (FileType::CharDevice | FileType::BlockDevice | FileType::Fifo | FileType::Socket, layout::LAYOUT_FLAT_PLAIN) => {
                if size != 0 {
                    return Err(field("inode i_size of a special file", at + 8, 0, size));
                }
                Ok(Content::None)
            }
            _ => Err(unknown()),
        }
    }

    fn flat(&self, at: u64, file_type: FileType, size: u64, start: u64) -> Result<Content, FormatError> {
        let max = if file_type == FileType::Symlink { limits::LINK_TARGET_BYTES_MAX as u64 } else { self.image_len() };
        if size == 0 || size > max {
            return Err(field("inode i_size", at + 8, format!("1..={max}"), size));
        }
        slice_at(self.image(), "inode data", start, size)?;
        Ok(Content::Flat(start))
    }

    fn chunks(&self, raw: &RawInode, at: u64, tail: u64) -> Result<Content, FormatError> {
        let (size, format) = (raw.size.get(), raw.union.get());
        if format & !layout::CHUNK_BITS_MASK != layout::CHUNK_INDEXES {
            return Err(FormatError::Unknown {
                what: "inode chunk format",
                expected: format!("{:#x} and a size in the low 5 bits", layout::CHUNK_INDEXES),
                found: format!("{format:#x} at byte {at}"),
            });
        }
        if size == 0 || size > limits::FILE_BYTES_MAX {
            return Err(field("inode i_size", at + 8, format!("1..={}", limits::FILE_BYTES_MAX), size));
        }
        let bits = layout::BLOCK_BITS + (format & layout::CHUNK_BITS_MASK);
        let count = size.div_ceil(1 << bits);
        if count > limits::CHUNKS_PER_FILE_MAX {
            return Err(field("inode chunk count", at, format!("at most {}", limits::CHUNKS_PER_FILE_MAX), count));
        }
        let table = tail.next_multiple_of(layout::CHUNK_INDEX_BYTES);
        slice_at(self.image(), "inode chunk table", table, count * layout::CHUNK_INDEX_BYTES)?;
        Ok(Content::Chunks { bits, table })
    }

    /// The bytes of a directory or symlink.
    pub(super) fn flat_bytes(&self, inode: &Inode) -> Result<&[u8], FormatError> {
        match inode.content {
            Content::Flat(start) => slice_at(self.image(), "inode data", start, inode.size),
            Content::None | Content::Chunks { .. } => {
                let found = format!("{:?}", inode.file_type);
                Err(field("inode type", inode.nid.get() * layout::NID_UNIT, "a directory or symlink", found))
            }
        }
    }

    /// A symlink's target.
    ///
    /// # Errors
    /// `Corrupt`; also when `link` is not a symlink.
    pub fn link_target<'a>(&'a self, link: &Inode) -> Result<&'a [u8], FormatError> {
        let at = link.nid.get() * layout::NID_UNIT;
        if link.file_type != FileType::Symlink {
            return Err(field("inode type", at, "a symlink", format!("{:?}", link.file_type)));
        }
        let target = self.flat_bytes(link)?;
        if target.contains(&0) {
            return Err(field("symlink target", at, "no NUL", target.escape_ascii()));
        }
        Ok(target)
    }
}
