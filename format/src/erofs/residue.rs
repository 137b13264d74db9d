//! The index as zstd gets it: numbers that follow from others are replaced by their difference from what is expected, which is mostly 0.
//!
//! zstd finds repetitions, but not that a number is the one before plus 3: sorted names' nids, name offsets and the block addresses of
//! files in tar order are most of what it cannot squeeze. One walk over the tree does both directions: it learns each number's real
//! value as it passes, and expects the next from those before. docs/format.md has the rules.
//!
//! Source: the 9,414 inodes of a Debian base, 1,196,032 bytes: 118,717 bytes at level 19, 71,393 as residue; xz -9e of the image 96,372.
//! Written is level 12 or 9 (`clip_file.rs` has why): 78,594 bytes of that residue.

use std::ops::Range;

use zerocopy::FromBytes;

use super::{
    layout::{self, BLOCK_BYTES, DIRENT_BYTES, NULL_BLOCK, RawInode, SuperBlock},
    read::FileType,
};
use crate::limits::{FILE_BYTES_MAX, INDEX_BYTES_MAX};

/// Names that one block can hold.
const BLOCK_NAMES_MAX: usize = (BLOCK_BYTES / (DIRENT_BYTES + 1)) as usize;

#[derive(Clone, Copy)]
enum Direction {
    ToResidue,
    FromResidue,
}

/// Replaces an image by its residue, of the same length. Bytes that are no image stay as they are.
///
/// Cost: one walk, bounded by the image's length.
pub(crate) fn to_residue(image: &mut [u8]) {
    walk(image, Direction::ToResidue);
}

/// Undoes [`to_residue`] for an image whose parts do not overlap; of other bytes anything may come, and the section's hash tells.
pub(crate) fn from_residue(image: &mut [u8]) {
    walk(image, Direction::FromResidue);
}

fn walk(image: &mut [u8], direction: Direction) {
    let superblock = image.get(layout::SUPERBLOCK_OFFSET as usize..).and_then(|bytes| SuperBlock::ref_from_prefix(bytes).ok());
    let Some((superblock, _)) = superblock else { return };
    let root = u64::from(superblock.root_nid.get());
    let (nids, budget) = (image.len() / layout::NID_UNIT as usize, image.len() as u64);
    let mut walk = Walk {
        image,
        direction,
        last_nid: root,
        device: 1,
        cursors: vec![0; 1 << 16],
        seen: vec![0; nids / 64 + 1],
        budget,
        pending: vec![(short(root), short(root))],
    };
    while let Some((nid, parent)) = walk.pending.pop() {
        if walk.inode(u64::from(nid), u64::from(parent)).is_none() {
            return;
        }
    }
}

/// Every nid of an image of up to INDEX_BYTES_MAX fits. What does not is outside any image, and so is what it becomes: the walk ends there.
fn short(nid: u64) -> u32 {
    u32::try_from(nid).unwrap_or(u32::MAX)
}

const _: () = assert!(INDEX_BYTES_MAX / layout::NID_UNIT < u32::MAX as u64);

struct Walk<'a> {
    image: &'a mut [u8],
    direction: Direction,
    /// Of the last name that was met.
    last_nid: u64,
    /// Device id of the last file that was met.
    device: u16,
    /// By device id: the block behind the last file, and one for each name since, for its tar header.
    cursors: Vec<u32>,
    /// One bit a nid.
    seen: Vec<u64>,
    /// Bytes of directories still to be looked at: an honest image has no more than its length.
    budget: u64,
    /// Inodes still to be visited, each with its first name's directory; the next one last. A name takes 13 bytes of a directory, so that
    /// this is smaller than the image.
    pending: Vec<(u32, u32)>,
}

impl Walk<'_> {
    /// The real value of the number of `N` bytes at `at`, which the other form of it replaces. `None` outside the image.
    fn number<const N: usize>(&mut self, at: u64, expected: u64) -> Option<u64> {
        let start = usize::try_from(at).ok()?;
        let field = self.image.get_mut(start..start.checked_add(N)?)?;
        let mut wide = [0; 8];
        wide[..N].copy_from_slice(field);
        let stored = u64::from_le_bytes(wide);
        let (real, other) = match self.direction {
            Direction::ToResidue => (stored, stored.wrapping_sub(expected)),
            Direction::FromResidue => (stored.wrapping_add(expected), stored.wrapping_add(expected)),
        };
        field.copy_from_slice(&other.to_le_bytes()[..N]);
        Some(real & (u64::MAX >> (64 - 8 * N)))
    }

    fn inode(&mut self, nid: u64, parent: u64) -> Option<()> {
        let at = nid.checked_mul(layout::NID_UNIT)?;
        let (raw, _) = RawInode::read_from_prefix(self.image.get(usize::try_from(at).ok()?..)?).ok()?;
        let (word, bit) = ((nid / 64) as usize, 1 << (nid % 64));
        let first_name = self.seen[word] & bit == 0;
        self.seen[word] |= bit;
        let xattr_bytes = match u64::from(raw.xattr_count.get()) {
            0 => 0,
            count => layout::XATTR_HEADER_BYTES + (count - 1) * layout::XATTR_ENTRY_BYTES,
        };
        let tail = at + layout::INODE_BYTES + xattr_bytes;
        let layout_kind = raw.format.get() >> 1;
        match FileType::from_mode(u32::from(raw.mode.get()))? {
            FileType::Directory if first_name && layout_kind == layout::LAYOUT_FLAT_INLINE => {
                self.directory(nid, parent, tail, raw.size.get())
            }
            FileType::Directory if first_name => self.directory(nid, parent, u64::from(raw.union.get()) * BLOCK_BYTES, raw.size.get()),
            FileType::Regular if first_name && layout_kind == layout::LAYOUT_CHUNK_BASED && raw.size.get() <= FILE_BYTES_MAX => {
                self.chunked(at, tail, raw.size.get())
            }
            _ => self.header_passed(self.device),
        }
    }

    /// One more tar header stands before the next file's data.
    fn header_passed(&mut self, device: u16) -> Option<()> {
        let cursor = &mut self.cursors[usize::from(device)];
        *cursor = cursor.wrapping_add(1);
        Some(())
    }

    /// The chunk format of the file at `at`; and where it is one chunk, its device and block.
    fn chunked(&mut self, at: u64, tail: u64, size: u64) -> Option<()> {
        let bits = size.next_power_of_two().trailing_zeros().clamp(layout::BLOCK_BITS, layout::CHUNK_BITS_MAX);
        let one_chunk = u64::from(layout::CHUNK_INDEXES | (bits - layout::BLOCK_BITS));
        if self.number::<4>(at + 0x10, one_chunk)? != one_chunk {
            return self.header_passed(self.device);
        }
        let table = tail.next_multiple_of(layout::CHUNK_INDEX_BYTES);
        let device = self.number::<2>(table + 2, u64::from(self.device))? as u16;
        self.header_passed(device)?;
        let start = self.number::<4>(table + 4, u64::from(self.cursors[usize::from(device)]))? as u32;
        if start != NULL_BLOCK {
            self.device = device;
            self.cursors[usize::from(device)] = start.wrapping_add(size.div_ceil(BLOCK_BYTES) as u32);
        }
        Some(())
    }

    fn directory(&mut self, nid: u64, parent: u64, start: u64, size: u64) -> Option<()> {
        self.header_passed(self.device)?;
        self.budget = self.budget.checked_sub(size)?;
        let end = usize::try_from(start.checked_add(size)?).ok().filter(|end| *end <= self.image.len())?;
        let first_child = self.pending.len();
        for block in (start as usize..end).step_by(BLOCK_BYTES as usize) {
            self.block(block..end.min(block + BLOCK_BYTES as usize), nid, parent)?;
        }
        self.pending[first_child..].reverse();
        Some(())
    }

    /// Name offsets first, since the names tell which nids to expect.
    fn block(&mut self, block: Range<usize>, dir: u64, parent: u64) -> Option<()> {
        let dirent = |position: usize| block.start as u64 + position as u64 * DIRENT_BYTES;
        let names_start = self.image.get(block.start + 8..block.start + 10)?;
        let names_start = u16::from_le_bytes([names_start[0], names_start[1]]);
        let count = usize::from(names_start) / DIRENT_BYTES as usize;
        let mut offsets = [names_start; BLOCK_NAMES_MAX];
        for position in 1..count {
            let offset = self.number::<2>(dirent(position) + 8, u64::from(offsets[position - 1]))?;
            *offsets.get_mut(position)? = offset as u16;
        }
        for position in 0..count {
            let end = if position + 1 < count { block.start + usize::from(offsets[position + 1]) } else { block.end };
            let name = self.image.get(block.start + usize::from(*offsets.get(position)?)..end)?;
            let own = match name.split(|byte| *byte == 0).next() {
                Some(b".") => Some(dir),
                Some(b"..") => Some(parent),
                _ => None,
            };
            let nid = self.number::<8>(dirent(position), own.unwrap_or(self.last_nid))?;
            if own.is_none() {
                self.last_nid = nid;
                self.pending.push((short(nid), short(dir)));
            }
        }
        Some(())
    }
}

#[cfg(test)]
mod tests;
