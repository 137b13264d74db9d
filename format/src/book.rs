//! docs/format.md says what the code does: its offset tables against the structures.
#![cfg(test)]

use std::{collections::BTreeMap, mem::offset_of};

use crate::{
    checkpoints::record::{RawHead, RawLayer, RawSpan},
    erofs::layout::{ChunkIndex, DeviceSlot, RawDirent, RawInode, SuperBlock, TreeRecord, XattrEntry, XattrHeader},
    header::{RawHeader, RawSection},
    profile::record::{RawDigest, RawProfile, RawProfileLayer},
};

const BOOK: &str = include_str!("../../docs/format.md");

/// Field offsets and names of one structure, and its length.
type Table = (Vec<(usize, String)>, usize);

macro_rules! table {
    ($name:ident { $($field:ident),* $(,)? }) => {
        (stringify!($name).to_owned(), (vec![$((offset_of!($name, $field), stringify!($field).to_owned())),*], size_of::<$name>()))
    };
}

fn code() -> BTreeMap<String, Table> {
    BTreeMap::from([
        table!(RawHeader {
            magic,
            version,
            index_len,
            index_position,
            storage_info_len,
            storage_info_position,
            storage_type,
            section_count,
            flags,
            sections,
            reserved,
            blake3,
        }),
        table!(RawSection { kind, compression, reserved, position, stored_len, raw_len, blake3 }),
        table!(SuperBlock {
            magic,
            checksum,
            feature_compat,
            block_bits,
            extra_slots,
            root_nid,
            inodes,
            epoch,
            fixed_nsec,
            blocks,
            meta_block,
            xattr_block,
            uuid,
            volume_name,
            feature_incompat,
            compression,
            extra_devices,
            device_slot,
            dir_block_bits,
            xattr_prefix_count,
            xattr_prefix_start,
            packed_nid,
            reserved,
        }),
        table!(DeviceSlot { tag, blocks, unified_block, reserved }),
        table!(TreeRecord { magic, flags, reserved0, file_bytes, reserved }),
        table!(RawInode { format, xattr_count, mode, start_high, size, union, ino, uid, gid, mtime_s, mtime_ns, nlink, reserved }),
        table!(ChunkIndex { start_high, device_id, start }),
        table!(XattrHeader { name_filter, shared_count, reserved }),
        table!(XattrEntry { name_len, name_index, value_size }),
        table!(RawDirent { nid, name_offset, file_type, reserved }),
        table!(RawHead { layers, span_bytes, reserved }),
        table!(RawLayer { first_span, spans, reserved }),
        table!(RawProfile { magic, version, layers, runs, flags, stored_len, raw_len, body_blake3, blake3 }),
        table!(RawDigest { algorithm, reserved, bytes }),
        table!(RawProfileLayer { digest, stream_size, spans_blake3 }),
        table!(RawSpan { compressed, stream, window_offset, window_len, kind, bit_offset, window_log, reserved, blake3 }),
    ])
}

/// The tables below each `### Name` of the book; rows must follow each other without gaps.
fn book() -> BTreeMap<String, Table> {
    let mut tables = BTreeMap::new();
    for chapter in BOOK.split("\n### ").skip(1) {
        let (name, text) = chapter.split_once('\n').unwrap_or((chapter, ""));
        let text = text.split("\n## ").next().unwrap_or(text);
        let mut table: Table = (Vec::new(), 0);
        for row in text.lines().filter(|line| line.starts_with("| ") && line.as_bytes()[2].is_ascii_digit()) {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let (offset, len): (usize, usize) = (cells[1].parse().expect(row), cells[2].parse().expect(row));
            assert_eq!(offset, table.1, "{name}: a gap before {row}");
            table.0.push((offset, cells[3].to_owned()));
            table.1 += len;
        }
        tables.insert(name.to_owned(), table);
    }
    tables
}

#[test]
fn the_offset_tables_of_the_book_are_those_of_the_code() {
    let (code, book) = (code(), book());
    for (name, table) in &code {
        assert_eq!(book.get(name), Some(table), "{name}");
    }
    assert_eq!(book.len(), code.len(), "the book has a table of something that is not in the code");
}
