#![allow(clippy::unwrap_used)]

use super::*;
use crate::error::ErrorKind;

fn header() -> Header {
    let section = |position, stored_len, raw_len, fill| Section { position, stored_len, raw_len, blake3: [fill; 32] };
    Header {
        index: section(512, 1000, 70_000, 1),
        storage_info: section(1512, 300, 900, 2),
        checkpoints: section(1812, 64, 80, 3),
        windows: section(1876, 5, 5, 4),
        profile: None,
    }
}

/// The header with `change` made to it and a checksum that fits.
fn changed(change: impl FnOnce(&mut RawHeader)) -> Result<Header, FormatError> {
    let bytes = header().to_bytes();
    let mut raw = *RawHeader::ref_from_bytes(&bytes).unwrap();
    change(&mut raw);
    raw.blake3 = *blake3::hash(&raw.as_bytes()[..CHECKED_BYTES]).as_bytes();
    Header::from_bytes(raw.as_bytes())
}

#[test]
fn the_first_54_bytes_are_the_original_systems() {
    let bytes = header().to_bytes();
    assert_eq!(bytes[..9], [0x89, 0x43, 0x4c, 0x49, 0x50, 0x0d, 0x0a, 0x1a, 0x0a]);
    assert_eq!(bytes[9], 1);
    let number = |at: usize| i64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    assert_eq!([number(10), number(18), number(26), number(34)], [1000, 512, 300, 1512]);
    assert_eq!(&bytes[42..54], b"oci\0\0\0\0\0\0\0\0\0");
}

#[test]
fn what_is_written_is_read() {
    assert_eq!(Header::from_bytes(&header().to_bytes()).unwrap(), header());
    assert_eq!(header().file_len(), 1881);
    assert_ne!(header().image_id(), Header { windows: Section { blake3: [5; 32], ..header().windows }, ..header() }.image_id());
}

/// A file without a profile has the four sections that it always had; with one there is a fifth, and the id is another.
#[test]
fn a_profile_is_a_fifth_section() {
    let profile = Section { position: 1881, stored_len: 200, raw_len: 200, blake3: [6; 32] };
    let with = Header { profile: Some(profile), ..header() };
    assert_eq!(Header::from_bytes(&with.to_bytes()).unwrap(), with);
    assert_eq!(with.file_len(), 2081);
    assert_ne!(with.image_id(), header().image_id());
    assert_eq!(header().to_bytes()[54], 4);
    assert_eq!(with.to_bytes()[54], 5);
    for count in [3, 5, 6] {
        assert!(changed(|raw| raw.section_count = U16::new(count)).is_err(), "{count} sections");
    }
}

#[test]
fn another_version_is_named_before_its_checksum_is_looked_at() {
    let mut bytes = header().to_bytes();
    bytes[9] = 2;
    let error = Header::from_bytes(&bytes).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert_eq!(
        error.to_string(),
        "header version: this version of clip reads versions [1], found 2; use a newer clip or index the image again"
    );
}

#[test]
fn unknown_flags_kinds_and_codecs_are_unsupported_and_named() {
    let named = |error: FormatError| (error.kind(), error.to_string().split(':').next().map(str::to_owned));
    let cases: [(&str, Result<Header, FormatError>); 6] = [
        ("header flags", changed(|raw| raw.flags = U64::new(1 << 40))),
        ("header storage type", changed(|raw| raw.storage_type = *b"s3\0\0\0\0\0\0\0\0\0\0")),
        ("header section kind", changed(|raw| raw.sections[2].kind = U16::new(9))),
        ("header section compression", changed(|raw| raw.sections[0].compression = U16::new(7))),
        ("header section count", changed(|raw| raw.section_count = U16::new(6))),
        ("header reserved bytes", changed(|raw| raw.sections[4].position = U64::new(1))),
    ];
    for (what, result) in cases {
        assert_eq!(named(result.unwrap_err()), (ErrorKind::Unsupported, Some(what.to_owned())));
    }
}

#[test]
fn sections_that_overlap_leave_gaps_or_are_too_large_are_errors() {
    let cases = [
        changed(|raw| raw.sections[1].position = U64::new(1511)),
        changed(|raw| raw.sections[1].position = U64::new(1513)),
        changed(|raw| raw.sections[0].position = U64::new(0)),
        changed(|raw| raw.index_position = I64::new(-1)),
        changed(|raw| raw.index_len = I64::new(999)),
        changed(|raw| raw.storage_info_position = I64::new(0)),
        changed(|raw| raw.sections[0].raw_len = U64::new(u64::MAX)),
        changed(|raw| raw.sections[3].stored_len = U64::new(u64::MAX)),
        changed(|raw| raw.sections[3].raw_len = U64::new(4)),
    ];
    for (number, case) in cases.into_iter().enumerate() {
        assert!(case.is_err(), "case {number}");
    }
}

#[test]
fn a_file_of_another_kind_or_a_short_one_is_an_error_that_says_so() {
    assert!(Header::from_bytes(b"").is_err());
    let error = Header::from_bytes(b"\x7fELF and more").unwrap_err().to_string();
    assert!(error.contains("this is not a .clip file"), "{error}");
    assert!(matches!(Header::from_bytes(&header().to_bytes()[..511]), Err(FormatError::Truncated { expected: 512, found: 511, .. })));
}

#[test]
fn a_flipped_byte_fails_the_checksum() {
    let good = header().to_bytes();
    for position in 10..HEADER_LEN {
        let mut bytes = good;
        bytes[position] ^= 0x20;
        assert!(matches!(Header::from_bytes(&bytes), Err(FormatError::Hash { what: "header", .. })), "byte {position}");
    }
}
