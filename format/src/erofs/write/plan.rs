//! Which form each inode takes, and where it stands.

use super::{
    Body, Device, FileExtent,
    sparse::{self, Chunking},
    survey::Survey,
};
use crate::{
    bounded::field,
    erofs::layout::{self, BLOCK_BYTES},
    error::FormatError,
    limits,
};

/// The form of one inode's content.
pub(super) enum Form {
    /// Nothing: empty files, devices, fifos, sockets.
    Empty,
    /// Right behind the inode and its xattrs, in the same block.
    Inline,
    /// In blocks of their own, from this byte.
    Blocks(u64),
    /// In the layers.
    Chunks(Chunking, Vec<FileExtent>),
}

/// One inode's place.
pub(super) struct Place {
    /// A multiple of 32.
    pub offset: u64,
    pub xattr_bytes: u64,
    /// `i_size`.
    pub size: u64,
    pub form: Form,
}

/// Where everything stands. `places` is parallel to the tree's inodes.
pub(super) struct Plan {
    pub places: Vec<Place>,
    /// Length of the image, a multiple of 4096.
    pub image_bytes: u64,
}

impl Plan {
    pub(super) fn new(survey: &Survey<'_>, devices: &[Device]) -> Result<Self, FormatError> {
        check_devices(devices)?;
        let mut places = Vec::with_capacity(survey.inodes.len());
        for inode in 0..survey.inodes.len() {
            places.push(measure(survey, inode, devices)?);
        }
        let mut cursor = layout::inodes_start(devices.len());
        for &inode in &survey.order {
            cursor = settle(&mut places[inode as usize], cursor);
        }
        cursor = cursor.next_multiple_of(BLOCK_BYTES);
        for &inode in &survey.order {
            let place = &mut places[inode as usize];
            if let Form::Blocks(start) = &mut place.form {
                *start = cursor;
                cursor += place.size.next_multiple_of(BLOCK_BYTES);
            }
        }
        let image_bytes = cursor.next_multiple_of(layout::IMAGE_ALIGN);
        if image_bytes > limits::INDEX_BYTES_MAX {
            return Err(FormatError::Limit { what: "index, bytes".to_owned(), max: limits::INDEX_BYTES_MAX, found: image_bytes });
        }
        debug_assert!(places[survey.root].offset / layout::NID_UNIT <= u64::from(u16::MAX), "the root is the first inode");
        Ok(Self { places, image_bytes })
    }

    pub(super) fn nid(&self, inode: usize) -> u64 {
        self.places[inode].offset / layout::NID_UNIT
    }
}

fn check_devices(devices: &[Device]) -> Result<(), FormatError> {
    if devices.len() > limits::LAYERS_MAX {
        let (max, found) = (limits::LAYERS_MAX as u64, devices.len() as u64);
        return Err(FormatError::Limit { what: "layers".to_owned(), max, found });
    }
    // One block less than 32 bits can count: the last address says "hole".
    let max = limits::STREAM_BYTES_MAX - BLOCK_BYTES;
    match devices.iter().position(|device| device.stream_size > max) {
        None => Ok(()),
        Some(layer) => Err(FormatError::Limit { what: format!("layer {layer}, bytes"), max, found: devices[layer].stream_size }),
    }
}

/// Gives the inode the first fitting place at or after `cursor`, and returns the byte behind it.
fn settle(place: &mut Place, cursor: u64) -> u64 {
    let mut start = cursor.next_multiple_of(layout::NID_UNIT);
    let head = layout::INODE_BYTES + place.xattr_bytes;
    let len = match &place.form {
        Form::Empty | Form::Blocks(_) => head,
        Form::Inline => {
            let len = head + place.size;
            if start % BLOCK_BYTES + len > BLOCK_BYTES {
                start = start.next_multiple_of(BLOCK_BYTES);
            }
            len
        }
        Form::Chunks(chunking, _) => head.next_multiple_of(layout::CHUNK_INDEX_BYTES) + chunking.count * layout::CHUNK_INDEX_BYTES,
    };
    place.offset = start;
    start + len
}

/// Everything about one inode but its place.
fn measure(survey: &Survey<'_>, inode: usize, devices: &[Device]) -> Result<Place, FormatError> {
    let path = || survey.path_of(inode);
    let spec = &survey.inodes[inode];
    if spec.mtime_ns >= 1_000_000_000 {
        return Err(field("mtime nanoseconds", inode as u64, "below 1000000000", format!("{} of {}", spec.mtime_ns, path())));
    }
    let xattr_bytes = xattr_bytes(&spec.xattrs, &path)?;
    let flat = |size: u64| {
        let fits = layout::INODE_BYTES + xattr_bytes + size <= BLOCK_BYTES;
        (size, if fits { Form::Inline } else { Form::Blocks(0) })
    };
    let (size, form) = match &spec.body {
        Body::Directory(_) => flat(dir_bytes(survey.entries_of(inode))),
        Body::Symlink(target) => flat(target_bytes(target, &path)?),
        Body::Regular { size: 0, extents } if extents.is_empty() => (0, Form::Empty),
        Body::Regular { size, extents } => {
            let extents = sparse::joined(*size, extents, devices, &path)?;
            (*size, Form::Chunks(sparse::chunking(*size, &extents, &path)?, extents))
        }
        Body::CharDevice(major, minor) | Body::BlockDevice(major, minor) => {
            for (what, number, max) in [("major", *major, layout::MAJOR_MAX), ("minor", *minor, layout::MINOR_MAX)] {
                if number > max {
                    let what = format!("{}: {what} device number", path());
                    return Err(FormatError::Limit { what, max: u64::from(max), found: u64::from(number) });
                }
            }
            (0, Form::Empty)
        }
        Body::Fifo | Body::Socket => (0, Form::Empty),
    };
    Ok(Place { offset: 0, xattr_bytes, size, form })
}

fn target_bytes(target: &[u8], path: &dyn Fn() -> String) -> Result<u64, FormatError> {
    let (max, found) = (limits::LINK_TARGET_BYTES_MAX as u64, target.len() as u64);
    if found > max {
        return Err(FormatError::Limit { what: format!("{}: symlink target, bytes", path()), max, found });
    }
    if target.is_empty() || target.contains(&0) {
        return Err(field(
            "symlink target",
            0,
            "1..=4095 bytes without NUL",
            format!("{:?} of {}", target.escape_ascii().to_string(), path()),
        ));
    }
    Ok(found)
}

/// Length of the directory's content: full blocks, then the used part of the last.
fn dir_bytes(entries: &[(&[u8], usize)]) -> u64 {
    let mut full = 0;
    let mut used = 0;
    for (name, _) in entries {
        let more = layout::DIRENT_BYTES + name.len() as u64;
        if used + more > BLOCK_BYTES {
            full += BLOCK_BYTES;
            used = 0;
        }
        used += more;
    }
    full + used
}

/// Length of the xattr body, 0 without.
fn xattr_bytes(xattrs: &[(Vec<u8>, Vec<u8>)], path: &dyn Fn() -> String) -> Result<u64, FormatError> {
    if xattrs.is_empty() {
        return Ok(0);
    }
    let limit = |what: &str, max: u64, found: u64| Err(FormatError::Limit { what: format!("{}: {what}", path()), max, found });
    let mut bytes = layout::XATTR_HEADER_BYTES;
    for (name, value) in xattrs {
        if !super::xattr_is_storable(name) {
            return Err(FormatError::Unknown {
                what: "extended attribute",
                expected: "user.*, trusted.*, security.* and POSIX ACLs, up to 255 bytes after the prefix".to_owned(),
                found: format!("{} of {}", name.escape_ascii(), path()),
            });
        }
        if value.len() > usize::from(u16::MAX) {
            return limit(&format!("value of {}, bytes", name.escape_ascii()), u64::from(u16::MAX), value.len() as u64);
        }
        let rest = layout::split_xattr_name(name).map_or(0, |(_, rest)| rest.len());
        bytes += (layout::XATTR_ENTRY_BYTES + (rest + value.len()) as u64).next_multiple_of(layout::XATTR_ENTRY_BYTES);
    }
    let max = layout::XATTR_HEADER_BYTES + u64::from(u16::MAX - 1) * layout::XATTR_ENTRY_BYTES;
    if bytes > max {
        return limit("extended attributes, bytes", max, bytes);
    }
    Ok(bytes)
}
