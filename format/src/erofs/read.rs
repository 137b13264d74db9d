//! Zero-copy reading of an index. Every accessor is total: hostile bytes give `Err`, never a panic, a loop or a read outside.

mod dir;
mod extents;
mod inode;
mod resolve;
mod xattr;

use std::{fmt, ops::Range};

use super::layout::{self, BLOCK_BYTES, SuperBlock, TreeRecord};
use crate::{
    bounded::{expect_eq, field, record_at},
    bytes::SharedBytes,
    error::FormatError,
    limits,
    units::{LayerIndex, Nid, StreamOffset},
};

/// An EROFS image as clip writes them, over bytes that are never parsed as a whole.
#[derive(Clone)]
pub struct Index {
    bytes: SharedBytes,
    root: Nid,
    devices: u16,
    inode_count: u64,
    flags: u32,
    file_bytes: u64,
}

impl fmt::Debug for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Index").field("root", &self.root).field("devices", &self.devices).finish_non_exhaustive()
    }
}

/// The kind of a directory entry or inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileType {
    /// S_IFREG
    Regular,
    /// S_IFDIR
    Directory,
    /// S_IFLNK
    Symlink,
    /// S_IFCHR
    CharDevice,
    /// S_IFBLK
    BlockDevice,
    /// S_IFIFO
    Fifo,
    /// S_IFSOCK
    Socket,
}

/// One inode's attributes and where its parts are; a small copy, no borrow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    /// Its number, and `st_ino`.
    pub nid: Nid,
    /// From `mode`.
    pub file_type: FileType,
    /// With the S_IFMT bits.
    pub mode: u32,
    /// 32 bits.
    pub uid: u32,
    /// 32 bits.
    pub gid: u32,
    /// Length in bytes (of a symlink: of its target; of a directory: of its entry blocks).
    pub size: u64,
    /// Number of names (of a directory: 2 + subdirectories).
    pub nlink: u32,
    /// Major number of a device, else 0.
    pub rdev_major: u32,
    /// Minor number of a device, else 0.
    pub rdev_minor: u32,
    /// Seconds since 1970, negative before.
    pub mtime_s: i64,
    /// `< 1_000_000_000`
    pub mtime_ns: u32,
    /// There are xattrs.
    pub has_xattrs: bool,
    /// Where its bytes are; checked to lie inside the image.
    content: Content,
    /// Byte range of the xattr body; checked to lie inside the image.
    xattr_body: (u64, u64),
}

/// Where an inode's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    /// Nowhere: an empty file, a device.
    None,
    /// `size` bytes of the image from here.
    Flat(u64),
    /// In the layers: chunks of `1 << bits` bytes, their table at byte `table`.
    Chunks { bits: u32, table: u64 },
}

/// One name of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// The inode.
    pub nid: Nid,
    /// Without NUL or slash.
    pub name: &'a [u8],
    /// As the entry says.
    pub file_type: FileType,
    /// Pass to `Index::dir_entries` to continue after this entry.
    pub next: u64,
}

/// A piece of a regular file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where in the file, half-open.
    pub file: Range<u64>,
    /// Where the bytes are; `None` is a hole.
    pub data: Option<(LayerIndex, StreamOffset)>,
}

impl Index {
    /// Checks the superblock and device table only: constant time. Accessors check what they touch; [`super::check::check`] checks all.
    ///
    /// # Errors
    /// `Corrupt` or `Unsupported`, naming the field.
    pub fn open(bytes: SharedBytes) -> Result<Self, FormatError> {
        let image = (*bytes).as_ref();
        let superblock: SuperBlock = *record_at(image, "index superblock", layout::SUPERBLOCK_OFFSET)?;
        check_superblock(&superblock, image.len() as u64)?;
        let devices = superblock.extra_devices.get();
        let record_at_byte = layout::inodes_start(usize::from(devices)) - layout::RECORD_BYTES;
        let record: TreeRecord = *record_at(image, "index tree record", record_at_byte)?;
        if record.magic != layout::RECORD_MAGIC {
            return Err(field("index tree record magic", record_at_byte, layout::RECORD_MAGIC.escape_ascii(), record.magic.escape_ascii()));
        }
        let flags = record.flags.get();
        if flags & !layout::FLAGS_KNOWN != 0 || record.reserved0.get() != 0 || record.reserved != [0; 40] {
            return Err(FormatError::Unknown {
                what: "index tree record flags",
                expected: format!("the flags {:#x}", layout::FLAGS_KNOWN),
                found: format!("{flags:#x} and reserved bytes in use"),
            });
        }
        let root = Nid(u64::from(superblock.root_nid.get()));
        let (inode_count, file_bytes) = (superblock.inodes.get(), record.file_bytes.get());
        let index = Self { bytes, root, devices, inode_count, flags, file_bytes };
        let found = index.inode(root)?.file_type;
        if found != FileType::Directory {
            return Err(field("index root", root.get() * layout::NID_UNIT, "a directory", format!("{found:?}")));
        }
        Ok(index)
    }

    /// The image's bytes.
    fn image(&self) -> &[u8] {
        (*self.bytes).as_ref()
    }

    /// Length of the image in bytes.
    #[must_use]
    pub fn image_len(&self) -> u64 {
        self.image().len() as u64
    }

    /// The root directory.
    #[must_use]
    pub fn root(&self) -> Nid {
        self.root
    }

    /// Number of layers = devices.
    #[must_use]
    pub fn layer_count(&self) -> usize {
        usize::from(self.devices)
    }

    /// Length of `layer`'s stream as its device says: rounded up to 512; `None` when there is no such layer.
    #[must_use]
    pub fn layer_bytes(&self, layer: LayerIndex) -> Option<u64> {
        if layer.get() >= self.devices {
            return None;
        }
        let offset = layout::DEVICES_OFFSET + u64::from(layer.get()) * layout::DEVICE_SLOT_BYTES;
        let slot: &layout::DeviceSlot = record_at(self.image(), "index device slot", offset).ok()?;
        Some(u64::from(slot.blocks.get()) * BLOCK_BYTES)
    }

    /// Number of inodes, as the superblock says.
    #[must_use]
    pub fn inode_count(&self) -> u64 {
        self.inode_count
    }

    /// True when some inode of the image has extended attributes (a flag of ours in the tree record): else `getxattr` needs no look.
    #[must_use]
    pub fn any_xattrs(&self) -> bool {
        self.flags & layout::FLAG_ANY_XATTRS != 0
    }

    /// True when some inode has POSIX ACLs.
    #[must_use]
    pub fn any_acls(&self) -> bool {
        self.flags & layout::FLAG_ANY_ACLS != 0
    }

    /// Sum of the sizes of regular files, for statfs.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }
}

fn check_superblock(superblock: &SuperBlock, image_len: u64) -> Result<(), FormatError> {
    let base = layout::SUPERBLOCK_OFFSET;
    if superblock.magic.get() != layout::EROFS_MAGIC {
        let found = format!("{:#x}", superblock.magic.get());
        return Err(field("index superblock magic", base, format!("{:#x}", layout::EROFS_MAGIC), found));
    }
    let features = (superblock.feature_compat.get(), superblock.feature_incompat.get());
    let known = (0, layout::INCOMPAT_CHUNKED_FILE | layout::INCOMPAT_DEVICE_TABLE);
    if features != known {
        return Err(FormatError::Unknown {
            what: "index superblock features (compatible, incompatible)",
            expected: format!("{:#x}, {:#x}", known.0, known.1),
            found: format!("{:#x}, {:#x}", features.0, features.1),
        });
    }
    expect_eq("index superblock blkszbits", base + 0x0c, layout::BLOCK_BITS, u32::from(superblock.block_bits))?;
    expect_eq("index superblock sb_extslots", base + 0x0d, 0, superblock.extra_slots)?;
    expect_eq("index superblock checksum", base + 0x04, 0, superblock.checksum.get())?;
    expect_eq("index superblock epoch", base + 0x18, 0, superblock.epoch.get())?;
    expect_eq("index superblock meta_blkaddr", base + 0x28, 0, superblock.meta_block.get())?;
    expect_eq("index superblock blocks, in bytes", base + 0x24, image_len, u64::from(superblock.blocks.get()) * BLOCK_BYTES)?;
    expect_eq("index superblock dirblkbits", base + 0x5a, 0, superblock.dir_block_bits)?;
    let slot = (layout::DEVICES_OFFSET / layout::DEVICE_SLOT_BYTES) as u16;
    expect_eq("index superblock devt_slotoff", base + 0x58, slot, superblock.device_slot.get())?;
    let devices = usize::from(superblock.extra_devices.get());
    if devices > limits::LAYERS_MAX {
        let (max, found) = (limits::LAYERS_MAX as u64, devices as u64);
        return Err(FormatError::Limit { what: "index devices".to_owned(), max, found });
    }
    Ok(())
}
