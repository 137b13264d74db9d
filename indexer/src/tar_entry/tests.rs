#![allow(clippy::unwrap_used)]
use proptest::prelude::*;

use super::*;

fn parse_in(bytes: &[u8], chunk: usize) -> Result<Vec<Entry>, TarError> {
    let mut parser = TarParser::new();
    let mut entries = Vec::new();
    for piece in bytes.chunks(chunk.max(1)) {
        parser.push(piece, &mut |entry| {
            entries.push(entry);
            Ok::<(), TarError>(())
        })?;
    }
    parser.finish()?;
    Ok(entries)
}

fn parse(bytes: &[u8]) -> Result<Vec<Entry>, TarError> {
    parse_in(bytes, bytes.len())
}

/// A header block made by hand, so that every field can be wrong.
fn header(name: &[u8], flag: u8, size: u64) -> Vec<u8> {
    let mut block = vec![0; 512];
    block[..name.len()].copy_from_slice(name);
    block[100..108].copy_from_slice(b"0004755\0");
    block[108..116].copy_from_slice(b"0001750\0");
    block[116..124].copy_from_slice(b"  144 \0\0");
    block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    block[136..148].copy_from_slice(b"00000000144\0");
    block[156] = flag;
    block[257..265].copy_from_slice(b"ustar\x0000");
    block
}

fn seal(mut block: Vec<u8>) -> Vec<u8> {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

fn padded(data: &[u8]) -> Vec<u8> {
    let mut bytes = data.to_vec();
    bytes.resize(data.len().next_multiple_of(512), 0);
    bytes
}

fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let body = key.len() + value.len() + 3;
    let mut len = body + 1;
    while len != body + len.to_string().len() {
        len = body + len.to_string().len();
    }
    [format!("{len} {key}=").as_bytes(), value, b"\n"].concat()
}

fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let data: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
    [seal(header(b"pax", b'x', data.len() as u64)), padded(&data)].concat()
}

fn file(name: &[u8], data: &[u8]) -> Vec<u8> {
    [seal(header(name, b'0', data.len() as u64)), padded(data)].concat()
}

const END: [u8; 1024] = [0; 1024];

/// The fields of a plain header come out as they went in, and data is found where it stands.
#[test]
fn reads_a_plain_member() {
    let entries = parse(&[file(b"bin/su", b"hello"), END.to_vec()].concat()).unwrap();
    let [entry] = entries.as_slice() else { panic!("one member") };
    assert_eq!((entry.path.as_slice(), entry.permissions, entry.uid, entry.gid), (&b"bin/su"[..], 0o4755, 1000, 100));
    assert_eq!((entry.mtime_s, entry.mtime_ns), (100, 0));
    let data = vec![DataExtent { file_offset: 0, len: 5, stream: 512 }];
    assert_eq!(entry.kind, EntryKind::Regular { size: 5, data });
}

/// What the tar crate writes is read back: kinds, long names, large ids, devices.
#[test]
fn reads_what_the_tar_crate_writes() {
    let mut builder = tar::Builder::new(Vec::new());
    let long = "d/".repeat(90) + "file";
    let mut head = tar::Header::new_gnu();
    head.set_size(3);
    head.set_mode(0o644);
    head.set_uid(3_000_000);
    head.set_mtime(1 << 33);
    head.set_cksum();
    builder.append_data(&mut head, &long, &b"abc"[..]).unwrap();
    let mut link = tar::Header::new_gnu();
    link.set_entry_type(tar::EntryType::Symlink);
    link.set_size(0);
    builder.append_link(&mut link, "link", "t".repeat(300)).unwrap();
    let mut device = tar::Header::new_gnu();
    device.set_entry_type(tar::EntryType::Char);
    device.set_size(0);
    device.set_device_major(5).unwrap();
    device.set_device_minor(1).unwrap();
    builder.append_data(&mut device, "dev/console", &b""[..]).unwrap();
    let bytes = builder.into_inner().unwrap();
    let entries = parse(&bytes).unwrap();
    assert_eq!(entries[0].path, long.as_bytes());
    assert_eq!((entries[0].uid, entries[0].mtime_s), (3_000_000, 1 << 33));
    assert_eq!(entries[1].kind, EntryKind::Symlink(vec![b't'; 300]));
    assert_eq!(entries[2].kind, EntryKind::CharDevice(5, 1));
}

/// PAX records win over the header; times may be negative with a fraction; both xattr spellings are read.
#[test]
fn pax_records_apply() {
    let records: &[(&str, &[u8])] = &[
        ("path", b"long/\xffname"),
        ("mtime", b"-1.25"),
        ("uid", b"70000"),
        ("SCHILY.xattr.user.a", b"raw\0value"),
        ("SCHILY.xattr.user.gone", b""),
        ("LIBARCHIVE.xattr.user.a", b"b3RoZXI"),
        ("LIBARCHIVE.xattr.user.b%3d", b"b3RoZXI="),
    ];
    let entries = parse(&[pax(records), file(b"short", b""), file(b"next", b""), END.to_vec()].concat()).unwrap();
    assert_eq!(entries[0].path, b"long/\xffname");
    assert_eq!((entries[0].mtime_s, entries[0].mtime_ns, entries[0].uid), (-2, 750_000_000, 70_000));
    let xattrs = vec![(b"user.a".to_vec(), b"raw\0value".to_vec()), (b"user.b=".to_vec(), b"other".to_vec())];
    assert_eq!(entries[0].xattrs, xattrs);
    assert_eq!((entries[1].path.as_slice(), entries[1].mtime_s), (&b"next"[..], 100), "records end with their member");
}

/// `-0.5` is half a second before 1970, not after.
#[test]
fn pax_times_keep_their_sign() {
    for (text, expected) in [("-0.5", (-1, 500_000_000)), ("0.5", (0, 500_000_000)), ("7", (7, 0)), ("1.1234567899", (1, 123_456_789))] {
        let bytes = [pax(&[("mtime", text.as_bytes())]), file(b"f", b""), END.to_vec()].concat();
        let entry = parse(&bytes).unwrap().remove(0);
        assert_eq!((entry.mtime_s, entry.mtime_ns), expected, "{text}");
    }
}

/// Base-256 numbers, negative ones too, are read as GNU tar writes them.
#[test]
fn base_256_numbers() {
    assert_eq!(header::number("size", &[0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]).unwrap(), 2 << 32);
    assert_eq!(header::number("mtime", &[0xff; 12]).unwrap(), -1);
    assert!(header::number("size", &[0x80, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0]).is_err());
    assert_eq!(header::number("mode", b"  755 \0\0").unwrap(), 0o755);
    assert_eq!(header::number("mode", b"\0\0\0\0\0\0\0\0").unwrap(), 0);
    assert!(header::number("mode", b"0000789\0").is_err());
}

/// Links, directories and devices have no data, whatever their size field says, as in Go.
#[test]
fn header_only_members_have_no_data() {
    let mut link = header(b"hard", b'1', 4096);
    link[157..160].copy_from_slice(b"f\0\0");
    let bytes = [file(b"f", b"x"), seal(link), seal(header(b"d", b'5', 99)), file(b"g", b"y"), END.to_vec()].concat();
    let entries = parse(&bytes).unwrap();
    let names: Vec<&[u8]> = entries.iter().map(|entry| entry.path.as_slice()).collect();
    assert_eq!(names, [&b"f"[..], b"hard", b"d", b"g"]);
}

/// A v7 name that ends in a slash is a directory; a prefix is joined with a slash; type 7 is a file.
#[test]
fn old_names_and_prefixes() {
    let mut v7 = header(b"dir/", 0, 0);
    v7[257..265].fill(0);
    let mut prefixed = header(b"name", b'7', 0);
    prefixed[345..350].copy_from_slice(b"a/b/c");
    let entries = parse(&[seal(v7), seal(prefixed), END.to_vec()].concat()).unwrap();
    assert_eq!(entries[0].kind, EntryKind::Directory);
    assert_eq!(entries[1].path, b"a/b/c/name");
    assert_eq!(entries[1].kind, EntryKind::Regular { size: 0, data: vec![] });
}

fn regions(entry: &Entry) -> (u64, Vec<(u64, u64, u64)>) {
    let EntryKind::Regular { size, data } = &entry.kind else { panic!("a file") };
    (*size, data.iter().map(|extent| (extent.file_offset, extent.len, extent.stream)).collect())
}

/// PAX sparse maps 0.0, 0.1 and 1.0 and old GNU ones describe the same file.
#[test]
fn all_sparse_formats_agree() {
    let data = [vec![1; 512], vec![2; 1024]].concat();
    let one = pax(&[
        ("GNU.sparse.map", b"512,512,4096,1024"),
        ("GNU.sparse.numblocks", b"2"),
        ("GNU.sparse.size", b"8192"),
        ("GNU.sparse.name", b"s"),
    ]);
    let zero_records: Vec<u8> = [
        record("GNU.sparse.size", b"8192"),
        record("GNU.sparse.numblocks", b"2"),
        record("GNU.sparse.offset", b"512"),
        record("GNU.sparse.numbytes", b"512"),
        record("GNU.sparse.offset", b"4096"),
        record("GNU.sparse.numbytes", b"1024"),
    ]
    .concat();
    let zero = [seal(header(b"pax", b'x', zero_records.len() as u64)), padded(&zero_records)].concat();
    let in_data =
        pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"8192"), ("GNU.sparse.name", b"s")]);
    let with_map = [padded(b"2\n512\n512\n4096\n1024\n"), data.clone()].concat();
    let mut old = header(b"s", b'S', 1536);
    old[257..265].copy_from_slice(b"ustar  \0");
    for (place, number) in [512_u64, 512, 4096, 1024].iter().enumerate() {
        old[386 + place * 12..398 + place * 12].copy_from_slice(format!("{number:011o}\0").as_bytes());
    }
    old[483..495].copy_from_slice(format!("{:011o}\0", 8192).as_bytes());
    for (bytes, at) in [
        ([one, file(b"x", &data)].concat(), 1536),
        ([zero, file(b"x", &data)].concat(), 1536),
        ([in_data, file(b"x", &with_map)].concat(), 2048),
        ([seal(old), data.clone()].concat(), 512),
    ] {
        for chunk in [bytes.len() + 1024, 100, 1] {
            let entries = parse_in(&[bytes.clone(), file(b"after", b"z"), END.to_vec()].concat(), chunk).unwrap();
            assert_eq!(regions(&entries[0]), (8192, vec![(512, 512, at), (4096, 1024, at + 512)]));
            assert_eq!(entries[1].path, b"after");
        }
    }
}

/// Maps that overlap, run over the end or disagree with the data are refused, with the member's name.
#[test]
fn hostile_sparse_maps_are_refused() {
    for map in ["512,512,512,512", "8000,512,8600,0", "0,18446744073709551615,0,0", "-1,5,6,7", "0,512,1024,512"] {
        let records = pax(&[("GNU.sparse.map", map.as_bytes()), ("GNU.sparse.numblocks", b"2"), ("GNU.sparse.size", b"8192")]);
        let error = parse(&[records, file(b"evil", &[0; 1536]), END.to_vec()].concat()).unwrap_err();
        assert_eq!(error.member, b"evil", "{map}");
    }
    let endless = pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.size", b"0")]);
    let data = [&b"400000\n"[..], &b"0\n".repeat(600_000)].concat();
    let error = parse(&[endless, file(b"evil", &data), END.to_vec()].concat()).unwrap_err();
    assert!(error.expected.contains("sparse map of at most"), "{error}");
}

/// A stream that ends inside a member, a header or before an announced member is an error; one that ends between members is not.
#[test]
fn truncation_is_told() {
    let whole = [pax(&[("path", b"p")]), file(b"a", &[7; 700]), file(b"b", b"")].concat();
    let fine = [0, whole.len() - 512, whole.len()];
    for cut in (0..=whole.len()).step_by(4) {
        // The padding after the last data byte may be missing, as in Go.
        let in_padding = (1536 + 700..2560).contains(&cut);
        assert_eq!(parse(&whole[..cut]).is_ok(), fine.contains(&cut) || in_padding, "cut at {cut}");
    }
    assert!(parse(&[whole, vec![0; 512]].concat()).is_ok(), "one zero block, then the end");
}

/// Bytes after the end marker mean nothing; a lone zero block before a member is an error, as in Go.
#[test]
fn the_end_marker_ends() {
    assert_eq!(parse(&[file(b"a", b""), END.to_vec(), vec![0xaa; 777]].concat()).unwrap().len(), 1);
    assert!(parse(&[file(b"a", b""), vec![0; 512], file(b"b", b"")].concat()).is_err());
}

/// Errors name offset, member and what was found.
#[test]
fn errors_say_where() {
    let mut bad = file(b"b", b"");
    bad[0] = b'c';
    let error = parse(&[file(b"a", b"x"), bad].concat()).unwrap_err();
    assert_eq!(error.offset, 1024);
    assert!(error.to_string().contains("checksum"), "{error}");
    let unknown = parse(&seal(header(b"v", b'V', 0))).unwrap_err();
    assert!(unknown.unsupported && unknown.found.contains("'V'"));
    let long = pax(&[("path", &[b'x'; 5000])]);
    assert!(parse(&[long, file(b"a", b"")].concat()).unwrap_err().expected.contains("4095"));
    let huge = seal(header(b"pax", b'x', SPECIAL_BYTES_MAX + 1));
    assert!(parse(&huge).unwrap_err().expected.contains("extended header"));
}

/// Global PAX headers are checked and counted, and change nothing.
#[test]
fn global_headers_change_nothing() {
    let data = record("mtime", b"5");
    let global = [seal(header(b"g", b'g', data.len() as u64)), padded(&data)].concat();
    let mut parser = TarParser::new();
    let mut entries = Vec::new();
    let bytes = [global, file(b"a", b"")].concat();
    let mut keep = |entry| {
        entries.push(entry);
        Ok::<(), TarError>(())
    };
    parser.push(&bytes, &mut keep).unwrap();
    assert_eq!(entries[0].mtime_s, 100);
    assert!(parser.ignored_globals().iter().eq([("mtime".to_owned(), 1)]) && parser.ignored_globals().others() == 0);
}

proptest! {
    /// The pieces that the bytes come in change nothing.
    #[test]
    fn chunking_means_nothing(names in prop::collection::vec(("[a-z/]{1,40}", 0_usize..2000), 0..12), chunk in 1_usize..3000) {
        let bytes: Vec<u8> = names
            .iter()
            .flat_map(|(name, size)| [pax(&[("path", name.as_bytes())]), file(b"n", &vec![b'd'; *size])].concat())
            .chain(END)
            .collect();
        let whole = parse(&bytes).unwrap();
        prop_assert_eq!(whole.len(), names.len());
        prop_assert_eq!(&parse_in(&bytes, chunk).unwrap(), &whole);
    }

    /// No bytes make the parser panic.
    #[test]
    fn any_bytes_are_an_archive_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..4096), seed in any::<u64>()) {
        let mut forged = [pax(&[("path", b"p")]), file(b"a", &[1; 600]), END.to_vec()].concat();
        for (place, byte) in bytes.iter().enumerate() {
            let target = (seed as usize).wrapping_add(place * 131) % forged.len();
            if place % 97 == 0 {
                forged[target] = *byte;
            }
        }
        let _ = parse(&forged);
        let _ = parse(&bytes);
    }
}
