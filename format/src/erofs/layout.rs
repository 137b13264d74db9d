//! The on-disk structures, proved at compile time.
//!
//! Source: linux fs/erofs/erofs_fs.h (6.18). docs/format.md has the same tables for readers; a test compares the two.

use std::mem::offset_of;

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{I64, U16, U32, U64},
};

use super::read::FileType;

pub(crate) const BLOCK_BITS: u32 = 9;
/// Tar data is 512-aligned, and so a block address reaches every file.
pub(crate) const BLOCK_BYTES: u64 = 1 << BLOCK_BITS;
/// Kernels read metadata by whole pages. Source: fs/erofs/fileio.c (7.3).
pub(crate) const IMAGE_ALIGN: u64 = 4096;
pub(crate) const NID_UNIT: u64 = 32;
pub(crate) const SUPERBLOCK_OFFSET: u64 = 1024;
pub(crate) const DEVICES_OFFSET: u64 = SUPERBLOCK_OFFSET + size_of::<SuperBlock>() as u64;
pub(crate) const EROFS_MAGIC: u32 = 0xE0F5_E1E2;
pub(crate) const INCOMPAT_CHUNKED_FILE: u32 = 0x4;
pub(crate) const INCOMPAT_DEVICE_TABLE: u32 = 0x8;
/// Shown by blkid.
pub(crate) const VOLUME_NAME: [u8; 16] = *b"clip\0\0\0\0\0\0\0\0\0\0\0\0";

/// i_format bit 0: the 64-byte inode.
pub(crate) const FORMAT_EXTENDED: u16 = 1;
pub(crate) const LAYOUT_FLAT_PLAIN: u16 = 0;
pub(crate) const LAYOUT_FLAT_INLINE: u16 = 2;
pub(crate) const LAYOUT_CHUNK_BASED: u16 = 4;
/// Chunk format: 8-byte indexes with a device id follow.
pub(crate) const CHUNK_INDEXES: u32 = 0x20;
pub(crate) const CHUNK_BITS_MASK: u32 = 0x1f;
/// Bits of the largest chunk, 2^40 bytes.
pub(crate) const CHUNK_BITS_MAX: u32 = BLOCK_BITS + CHUNK_BITS_MASK;
/// A block address that says "hole".
pub(crate) const NULL_BLOCK: u32 = u32::MAX;

/// The record's mark, at the end of the device table.
pub(crate) const RECORD_MAGIC: [u8; 8] = *b"CLIPTREE";
pub(crate) const FLAG_ANY_XATTRS: u32 = 1;
pub(crate) const FLAG_ANY_ACLS: u32 = 2;
pub(crate) const FLAGS_KNOWN: u32 = FLAG_ANY_XATTRS | FLAG_ANY_ACLS;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub(crate) struct SuperBlock {
    pub magic: U32,
    pub checksum: U32,
    pub feature_compat: U32,
    pub block_bits: u8,
    pub extra_slots: u8,
    pub root_nid: U16,
    pub inodes: U64,
    pub epoch: U64,
    pub fixed_nsec: U32,
    pub blocks: U32,
    pub meta_block: U32,
    pub xattr_block: U32,
    pub uuid: [u8; 16],
    pub volume_name: [u8; 16],
    pub feature_incompat: U32,
    pub compression: U16,
    pub extra_devices: U16,
    pub device_slot: U16,
    pub dir_block_bits: u8,
    pub xattr_prefix_count: u8,
    pub xattr_prefix_start: U32,
    pub packed_nid: U64,
    pub reserved: [u8; 24],
}

/// One external device: a layer stream.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub(crate) struct DeviceSlot {
    pub tag: [u8; 64],
    pub blocks: U32,
    pub unified_block: U32,
    pub reserved: [u8; 56],
}

/// What clip knows of the tree as a whole; stands after the device table, where no other reader looks.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub(crate) struct TreeRecord {
    pub magic: [u8; 8],
    pub flags: U32,
    pub reserved0: U32,
    pub file_bytes: U64,
    pub reserved: [u8; 40],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub(crate) struct RawInode {
    pub format: U16,
    pub xattr_count: U16,
    pub mode: U16,
    pub start_high: U16,
    pub size: U64,
    /// Start block, device number, or chunk format: the layout and mode say which.
    pub union: U32,
    pub ino: U32,
    pub uid: U32,
    pub gid: U32,
    pub mtime_s: I64,
    pub mtime_ns: U32,
    pub nlink: U32,
    pub reserved: [u8; 16],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub(crate) struct ChunkIndex {
    pub start_high: U16,
    pub device_id: U16,
    pub start: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub(crate) struct XattrHeader {
    pub name_filter: U32,
    pub shared_count: u8,
    pub reserved: [u8; 7],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub(crate) struct XattrEntry {
    pub name_len: u8,
    pub name_index: u8,
    pub value_size: U16,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub(crate) struct RawDirent {
    pub nid: U64,
    pub name_offset: U16,
    pub file_type: u8,
    pub reserved: u8,
}

pub(crate) const INODE_BYTES: u64 = size_of::<RawInode>() as u64;
pub(crate) const DIRENT_BYTES: u64 = size_of::<RawDirent>() as u64;
pub(crate) const CHUNK_INDEX_BYTES: u64 = size_of::<ChunkIndex>() as u64;
pub(crate) const XATTR_HEADER_BYTES: u64 = size_of::<XattrHeader>() as u64;
pub(crate) const XATTR_ENTRY_BYTES: u64 = size_of::<XattrEntry>() as u64;
pub(crate) const DEVICE_SLOT_BYTES: u64 = size_of::<DeviceSlot>() as u64;
pub(crate) const RECORD_BYTES: u64 = size_of::<TreeRecord>() as u64;

const _: () = {
    assert!(size_of::<SuperBlock>() == 128);
    assert!(offset_of!(SuperBlock, root_nid) == 0x0e);
    assert!(offset_of!(SuperBlock, uuid) == 0x30);
    assert!(offset_of!(SuperBlock, feature_incompat) == 0x50);
    assert!(offset_of!(SuperBlock, device_slot) == 0x58);
    assert!(offset_of!(SuperBlock, packed_nid) == 0x60);
    assert!(size_of::<DeviceSlot>() == 128);
    assert!(DEVICES_OFFSET.is_multiple_of(DEVICE_SLOT_BYTES));
    assert!(size_of::<TreeRecord>() == 64);
    assert!(size_of::<RawInode>() == 64);
    assert!(offset_of!(RawInode, union) == 0x10);
    assert!(offset_of!(RawInode, mtime_s) == 0x20);
    assert!(size_of::<ChunkIndex>() == 8);
    assert!(size_of::<XattrHeader>() == 12);
    assert!(size_of::<XattrEntry>() == 4);
    assert!(size_of::<RawDirent>() == 12);
};

/// The byte position where inodes may begin: after the superblock, the devices and the tree record.
pub(crate) fn inodes_start(devices: usize) -> u64 {
    DEVICES_OFFSET + DEVICE_SLOT_BYTES * devices as u64 + RECORD_BYTES
}

/// The part of a full xattr name that an entry's name index stands for. Source: fs/erofs/erofs_fs.h EROFS_XATTR_INDEX_*.
const XATTR_PREFIXES: [(u8, &[u8]); 5] =
    [(1, b"user."), (2, b"system.posix_acl_access"), (3, b"system.posix_acl_default"), (4, b"trusted."), (6, b"security.")];

/// The name index and the rest of a full xattr name, or `None` for a namespace that EROFS lacks.
pub(crate) fn split_xattr_name(name: &[u8]) -> Option<(u8, &[u8])> {
    XATTR_PREFIXES.iter().find_map(|&(index, prefix)| {
        let rest = name.strip_prefix(prefix)?;
        (is_acl_index(index) == rest.is_empty()).then_some((index, rest))
    })
}

/// What a name index stands for.
pub(crate) fn xattr_prefix(index: u8) -> Option<&'static [u8]> {
    XATTR_PREFIXES.iter().find(|entry| entry.0 == index).map(|entry| entry.1)
}

pub(crate) fn is_acl_index(index: u8) -> bool {
    matches!(index, 2 | 3)
}

impl FileType {
    pub(crate) fn mode_bits(self) -> u32 {
        match self {
            FileType::Regular => 0o100_000,
            FileType::Directory => 0o040_000,
            FileType::Symlink => 0o120_000,
            FileType::CharDevice => 0o020_000,
            FileType::BlockDevice => 0o060_000,
            FileType::Fifo => 0o010_000,
            FileType::Socket => 0o140_000,
        }
    }

    pub(crate) fn from_mode(mode: u32) -> Option<Self> {
        ALL_TYPES.into_iter().find(|kind| kind.mode_bits() == mode & 0o170_000)
    }

    /// The type byte of a directory entry. Source: include/linux/fs_types.h FT_*.
    pub(crate) fn dirent_byte(self) -> u8 {
        match self {
            FileType::Regular => 1,
            FileType::Directory => 2,
            FileType::CharDevice => 3,
            FileType::BlockDevice => 4,
            FileType::Fifo => 5,
            FileType::Socket => 6,
            FileType::Symlink => 7,
        }
    }

    pub(crate) fn from_dirent_byte(byte: u8) -> Option<Self> {
        ALL_TYPES.into_iter().find(|kind| kind.dirent_byte() == byte)
    }
}

const ALL_TYPES: [FileType; 7] = [
    FileType::Regular,
    FileType::Directory,
    FileType::Symlink,
    FileType::CharDevice,
    FileType::BlockDevice,
    FileType::Fifo,
    FileType::Socket,
];

/// Bits of a device's major number. Source: include/linux/kdev_t.h new_encode_dev.
pub(crate) const MAJOR_MAX: u32 = 0xfff;
/// Bits of a device's minor number.
pub(crate) const MINOR_MAX: u32 = 0xf_ffff;

/// A device number as the kernel stores it in 32 bits.
pub(crate) fn encode_rdev(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// Major and minor.
pub(crate) fn decode_rdev(rdev: u32) -> (u32, u32) {
    ((rdev >> 8) & MAJOR_MAX, (rdev & 0xff) | ((rdev >> 12) & 0xf_ff00))
}
