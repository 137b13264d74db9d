//! The index: an EROFS metadata image whose data lives in external devices, one device a layer.
//!
//! Source: linux fs/erofs/erofs_fs.h, super.c, inode.c, data.c, namei.c, dir.c, xattr.c (6.18).

pub mod check;
pub mod layout;
pub mod read;
pub(crate) mod residue;
pub mod write;

pub use read::{DirEntry, Extent, FileType, Index, Inode};
pub use write::{Body, Device, FileExtent, InodeSpec, write_image, xattr_is_storable};
