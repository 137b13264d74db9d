//! The planned image as bytes.

use zerocopy::{
    IntoBytes,
    little_endian::{I64, U16, U32, U64},
};

use super::{
    Body, Device,
    plan::{Form, Place, Plan},
    sparse::{self, Chunk},
    survey::Survey,
};
use crate::{
    bounded::field,
    erofs::layout::{self, BLOCK_BYTES},
    error::FormatError,
};

/// The image, zeros where nothing is put. Every place comes from the plan, so all writes lie inside.
struct Image(Vec<u8>);

impl Image {
    fn put(&mut self, at: u64, bytes: &[u8]) {
        self.0[at as usize..][..bytes.len()].copy_from_slice(bytes);
    }
}

pub(super) fn encode(survey: &Survey<'_>, plan: &Plan, devices: &[Device]) -> Result<Vec<u8>, FormatError> {
    let mut image = Image(vec![0; plan.image_bytes as usize]);
    put_devices(&mut image, plan, devices);
    let record = layout::TreeRecord {
        magic: layout::RECORD_MAGIC,
        flags: U32::new(survey.flags()),
        reserved0: U32::new(0),
        file_bytes: U64::new(survey.file_bytes()),
        reserved: [0; 40],
    };
    image.put(layout::inodes_start(devices.len()) - layout::RECORD_BYTES, record.as_bytes());
    for inode in 0..survey.inodes.len() {
        put_inode(&mut image, survey, plan, inode)?;
    }
    let mut superblock = superblock(survey, plan, devices.len());
    image.put(layout::SUPERBLOCK_OFFSET, superblock.as_bytes());
    superblock.uuid = content_uuid(&image.0);
    image.put(layout::SUPERBLOCK_OFFSET, superblock.as_bytes());
    Ok(image.0)
}

fn superblock(survey: &Survey<'_>, plan: &Plan, devices: usize) -> layout::SuperBlock {
    layout::SuperBlock {
        magic: U32::new(layout::EROFS_MAGIC),
        checksum: U32::new(0),
        feature_compat: U32::new(0),
        block_bits: layout::BLOCK_BITS as u8,
        extra_slots: 0,
        root_nid: U16::new(plan.nid(survey.root) as u16),
        inodes: U64::new(survey.inodes.len() as u64),
        epoch: U64::new(0),
        fixed_nsec: U32::new(0),
        blocks: U32::new((plan.image_bytes / BLOCK_BYTES) as u32),
        meta_block: U32::new(0),
        xattr_block: U32::new(0),
        uuid: [0; 16],
        volume_name: layout::VOLUME_NAME,
        feature_incompat: U32::new(layout::INCOMPAT_CHUNKED_FILE | layout::INCOMPAT_DEVICE_TABLE),
        compression: U16::new(0),
        extra_devices: U16::new(devices as u16),
        device_slot: U16::new((layout::DEVICES_OFFSET / layout::DEVICE_SLOT_BYTES) as u16),
        dir_block_bits: 0,
        xattr_prefix_count: 0,
        xattr_prefix_start: U32::new(0),
        packed_nid: U64::new(0),
        reserved: [0; 24],
    }
}

/// A version 8 UUID (RFC 9562 section 5.8) of the image's bytes with the UUID itself zero.
fn content_uuid(image: &[u8]) -> [u8; 16] {
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&blake3::hash(image).as_bytes()[..16]);
    uuid[6] = (uuid[6] & 0x0f) | 0x80;
    uuid[8] = (uuid[8] & 0x3f) | 0x80;
    uuid
}

fn put_devices(image: &mut Image, plan: &Plan, devices: &[Device]) {
    // Unified addresses serve only readers that see all layers as one flat device; past 32 bits there are none.
    let mut unified = Some((plan.image_bytes / BLOCK_BYTES) as u32);
    for (number, device) in devices.iter().enumerate() {
        let blocks = device.stream_size.div_ceil(BLOCK_BYTES) as u32;
        let end = unified.and_then(|start| start.checked_add(blocks));
        let slot = layout::DeviceSlot {
            tag: device.tag,
            blocks: U32::new(blocks),
            unified_block: U32::new(unified.filter(|_| end.is_some()).unwrap_or(0)),
            reserved: [0; 56],
        };
        image.put(layout::DEVICES_OFFSET + number as u64 * layout::DEVICE_SLOT_BYTES, slot.as_bytes());
        unified = end;
    }
}

fn put_inode(image: &mut Image, survey: &Survey<'_>, plan: &Plan, inode: usize) -> Result<(), FormatError> {
    let (spec, place) = (&survey.inodes[inode], &plan.places[inode]);
    let (layout_kind, union) = match &place.form {
        Form::Empty => (layout::LAYOUT_FLAT_PLAIN, rdev(&spec.body)),
        Form::Inline => (layout::LAYOUT_FLAT_INLINE, 0),
        Form::Blocks(start) => (layout::LAYOUT_FLAT_PLAIN, (start / BLOCK_BYTES) as u32),
        Form::Chunks(chunking, _) => (layout::LAYOUT_CHUNK_BASED, layout::CHUNK_INDEXES | (chunking.bits - layout::BLOCK_BITS)),
    };
    let xattr_count = match place.xattr_bytes {
        0 => 0,
        bytes => 1 + (bytes - layout::XATTR_HEADER_BYTES) / layout::XATTR_ENTRY_BYTES,
    };
    let raw = layout::RawInode {
        format: U16::new(layout::FORMAT_EXTENDED | (layout_kind << 1)),
        xattr_count: U16::new(xattr_count as u16),
        mode: U16::new((survey.file_type(inode).mode_bits() | (spec.permissions & 0o7777)) as u16),
        start_high: U16::new(0),
        size: U64::new(place.size),
        union: U32::new(union),
        // st_ino is the nid, whatever stands here (tried on 6.18); a second rising number costs 1.8 bytes a file compressed.
        ino: U32::new(0),
        uid: U32::new(spec.uid),
        gid: U32::new(spec.gid),
        mtime_s: I64::new(spec.mtime_s),
        mtime_ns: U32::new(spec.mtime_ns),
        nlink: U32::new(survey.links[inode]),
        reserved: [0; 16],
    };
    image.put(place.offset, raw.as_bytes());
    put_xattrs(image, place.offset + layout::INODE_BYTES, &spec.xattrs, &|| survey.path_of(inode))?;
    put_content(image, survey, plan, inode, place);
    Ok(())
}

fn rdev(body: &Body) -> u32 {
    match body {
        Body::CharDevice(major, minor) | Body::BlockDevice(major, minor) => layout::encode_rdev(*major, *minor),
        _ => 0,
    }
}

fn put_content(image: &mut Image, survey: &Survey<'_>, plan: &Plan, inode: usize, place: &Place) {
    let tail = place.offset + layout::INODE_BYTES + place.xattr_bytes;
    let start = match &place.form {
        Form::Empty => return,
        Form::Inline => tail,
        Form::Blocks(start) => *start,
        Form::Chunks(chunking, extents) => {
            let mut at = tail.next_multiple_of(layout::CHUNK_INDEX_BYTES);
            for chunk in sparse::chunks(*chunking, extents) {
                let (device_id, block) = match chunk {
                    Chunk::Data { device_id, block } => (device_id, block),
                    Chunk::Hole => (0, layout::NULL_BLOCK),
                };
                let raw = layout::ChunkIndex { start_high: U16::new(0), device_id: U16::new(device_id), start: U32::new(block) };
                image.put(at, raw.as_bytes());
                at += layout::CHUNK_INDEX_BYTES;
            }
            return;
        }
    };
    match &survey.inodes[inode].body {
        Body::Symlink(target) => image.put(start, target),
        _ => put_entries(image, start, survey, plan, survey.entries_of(inode)),
    }
}

/// Blocks of entries and their names, cut where [`super::plan`] cut them.
fn put_entries(image: &mut Image, start: u64, survey: &Survey<'_>, plan: &Plan, entries: &[(&[u8], usize)]) {
    let mut block = start;
    let mut rest = entries;
    while !rest.is_empty() {
        let mut used = 0;
        let fitting = rest.iter().take_while(|(name, _)| {
            used += layout::DIRENT_BYTES + name.len() as u64;
            used <= BLOCK_BYTES
        });
        let (here, others) = rest.split_at(fitting.count());
        let mut name_at = here.len() as u64 * layout::DIRENT_BYTES;
        for (number, (name, child)) in here.iter().enumerate() {
            let dirent = layout::RawDirent {
                nid: U64::new(plan.nid(*child)),
                name_offset: U16::new(name_at as u16),
                file_type: survey.file_type(*child).dirent_byte(),
                reserved: 0,
            };
            image.put(block + number as u64 * layout::DIRENT_BYTES, dirent.as_bytes());
            image.put(block + name_at, name);
            name_at += name.len() as u64;
        }
        block += BLOCK_BYTES;
        rest = others;
    }
}

fn put_xattrs(image: &mut Image, start: u64, xattrs: &[(Vec<u8>, Vec<u8>)], path: &dyn Fn() -> String) -> Result<(), FormatError> {
    let mut sorted: Vec<_> =
        xattrs.iter().filter_map(|(name, value)| layout::split_xattr_name(name).map(|(index, rest)| (index, rest, value))).collect();
    sorted.sort_unstable();
    if let Some(twice) = sorted.windows(2).find(|pair| (pair[0].0, pair[0].1) == (pair[1].0, pair[1].1)) {
        return Err(field("extended attributes", 0, "each name once", format!("{} of {}", twice[0].1.escape_ascii(), path())));
    }
    // The header is all zeros.
    let mut at = start + layout::XATTR_HEADER_BYTES;
    for (index, rest, value) in sorted {
        let entry = layout::XattrEntry { name_len: rest.len() as u8, name_index: index, value_size: U16::new(value.len() as u16) };
        image.put(at, entry.as_bytes());
        image.put(at + layout::XATTR_ENTRY_BYTES, rest);
        image.put(at + layout::XATTR_ENTRY_BYTES + rest.len() as u64, value);
        at += (layout::XATTR_ENTRY_BYTES + (rest.len() + value.len()) as u64).next_multiple_of(layout::XATTR_ENTRY_BYTES);
    }
    Ok(())
}
