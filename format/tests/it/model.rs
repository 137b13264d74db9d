//! What is written is what is read: the pair of writer and reader against a map from path to inode.

use std::{collections::HashMap, ops::Range};

use clip_format::{
    erofs::{Body, Extent, FileExtent, FileType, Index, Inode, InodeSpec, check::check, write_image},
    units::{LayerIndex, Nid, StreamOffset},
};
use proptest::{collection::vec, prelude::*, sample::Index as Pick};

use crate::trees::{Tree, every_kind, extent, index, node, regular};

/// The pieces of a file as the reader should give them.
fn pieces(size: u64, extents: &[FileExtent]) -> Vec<Extent> {
    let mut pieces: Vec<Extent> = Vec::new();
    let mut add = |file: Range<u64>, data: Option<(LayerIndex, StreamOffset)>| {
        if file.is_empty() {
            return;
        }
        if let (Some(last), Some((layer, stream))) = (pieces.last_mut(), data)
            && last.data.is_some_and(|(other, start)| other == layer && start.get() + (last.file.end - last.file.start) == stream.get())
        {
            last.file.end = file.end;
            return;
        }
        pieces.push(Extent { file, data });
    };
    let mut at = 0;
    for extent in extents {
        add(at..extent.file_offset, None);
        at = extent.file_offset + extent.len;
        add(extent.file_offset..at, Some((extent.layer, extent.stream)));
    }
    add(at..size, None);
    pieces
}

fn cut(pieces: &[Extent], range: &Range<u64>) -> Vec<Extent> {
    let inside = pieces.iter().filter_map(|piece| {
        let file = piece.file.start.max(range.start)..piece.file.end.min(range.end);
        let data = piece.data.map(|(layer, stream)| (layer, StreamOffset(stream.get() + (file.start.saturating_sub(piece.file.start)))));
        (!file.is_empty()).then_some(Extent { file, data })
    });
    inside.collect()
}

fn compare_inode(index: &Index, spec: &InodeSpec, inode: &Inode) {
    assert_eq!(inode.mode & 0o7777, spec.permissions & 0o7777);
    assert_eq!((inode.uid, inode.gid), (spec.uid, spec.gid));
    assert_eq!((inode.mtime_s, inode.mtime_ns), (spec.mtime_s, spec.mtime_ns));
    let mut wanted = spec.xattrs.clone();
    wanted.sort();
    let mut found: Vec<_> = index.xattrs(inode).map(|xattr| xattr.unwrap()).map(|(name, value)| (name, value.to_vec())).collect();
    found.sort();
    assert_eq!(found, wanted);
    assert_eq!(inode.has_xattrs, !wanted.is_empty());
    for (name, value) in &wanted {
        assert_eq!(index.xattr(inode, name).unwrap(), Some(value.as_slice()));
    }
    assert_eq!(index.xattr(inode, b"user.absent-name").unwrap(), None);
    match &spec.body {
        Body::Directory(names) => {
            assert_eq!(inode.file_type, FileType::Directory);
            assert_eq!(index.dir_entries(inode, 0).count(), names.len() + 2);
        }
        Body::Regular { size, extents } => compare_file(index, inode, *size, extents),
        Body::Symlink(target) => assert_eq!(index.link_target(inode).unwrap(), target.as_slice()),
        Body::CharDevice(major, minor) => {
            assert_eq!((inode.file_type, inode.rdev_major, inode.rdev_minor), (FileType::CharDevice, *major, *minor));
        }
        Body::BlockDevice(major, minor) => {
            assert_eq!((inode.file_type, inode.rdev_major, inode.rdev_minor), (FileType::BlockDevice, *major, *minor));
        }
        Body::Fifo => assert_eq!(inode.file_type, FileType::Fifo),
        Body::Socket => assert_eq!(inode.file_type, FileType::Socket),
    }
}

fn compare_file(index: &Index, inode: &Inode, size: u64, extents: &[FileExtent]) {
    assert_eq!((inode.file_type, inode.size), (FileType::Regular, size));
    let wanted = pieces(size, extents);
    for range in [0..u64::MAX, 0..size, size / 3..size / 2 + 1, 511..513, size..size + 1, 7..7] {
        let found: Vec<_> = index.extents(inode, range.clone()).map(|extent| extent.unwrap()).collect();
        assert_eq!(found, cut(&wanted, &(range.start..range.end.min(size))), "range {range:?} of {size}");
    }
    assert_eq!(index.data_bytes(inode).unwrap(), extents.iter().map(|extent| extent.len).sum::<u64>());
}

/// Writes the tree, reads it back in every way, and compares.
fn compare(tree: &Tree) {
    let image = tree.image();
    assert!(image == tree.image(), "the writer is a pure function");
    let index = index(image);
    let paths = tree.paths();
    let mut nids: HashMap<usize, Nid> = HashMap::from([(0, index.root())]);
    let mut names: HashMap<usize, u32> = HashMap::new();
    for (path, &place) in &paths {
        let cut = path.iter().rposition(|&byte| byte == b'/');
        let (dir, name) = cut.map_or((&[][..], &b"."[..]), |cut| (&path[..cut], &path[cut + 1..]));
        let dir = index.inode(nids[&paths[dir]]).unwrap();
        let entry = index.lookup(&dir, name).unwrap().unwrap();
        let inode = index.inode(entry.nid).unwrap();
        assert_eq!(entry.file_type, inode.file_type);
        assert_eq!(*nids.entry(place).or_insert(entry.nid), entry.nid, "one inode, one nid");
        assert_ne!(entry.nid, Nid(1));
        *names.entry(place).or_default() += 1;
        compare_inode(&index, &tree.inodes[place], &inode);
    }
    let mut distinct: Vec<_> = nids.values().collect();
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), tree.inodes.len(), "every inode has a nid of its own");
    for (place, &nid) in &nids {
        let inode = index.inode(nid).unwrap();
        match &tree.inodes[*place].body {
            Body::Directory(entries) => {
                let subdirectories = entries.iter().filter(|entry| matches!(tree.inodes[entry.1].body, Body::Directory(_)));
                assert_eq!(inode.nlink as usize, 2 + subdirectories.count());
                compare_listing(&index, &inode, entries);
            }
            _ => assert_eq!(inode.nlink, names[place]),
        }
    }
    let counts = check(&index).unwrap();
    assert_eq!(counts.names as usize, paths.len() - 1);
    assert_eq!(counts.inodes_with_xattrs > 0, index.any_xattrs());
    assert_eq!(index.inode_count() as usize, tree.inodes.len());
}

fn compare_listing(index: &Index, dir: &Inode, entries: &[(Vec<u8>, usize)]) {
    let mut wanted: Vec<&[u8]> = entries.iter().map(|entry| entry.0.as_slice()).chain([b".".as_slice(), b".."]).collect();
    wanted.sort();
    let all: Vec<_> = index.dir_entries(dir, 0).map(|entry| entry.unwrap()).collect();
    assert_eq!(all.iter().map(|entry| entry.name).collect::<Vec<_>>(), wanted);
    for (position, entry) in all.iter().enumerate().step_by(1 + all.len() / 10) {
        let rest: Vec<_> = index.dir_entries(dir, entry.next).map(|entry| entry.unwrap()).collect();
        assert_eq!(rest, all[position + 1..], "a listing continues after any entry");
        assert_eq!(index.lookup(dir, entry.name).unwrap(), Some(*entry));
        assert_eq!(index.lookup(dir, &[entry.name, b"\x01"].concat()).unwrap(), None);
    }
}

#[test]
fn a_tree_of_every_kind_is_read_as_written() {
    compare(&every_kind());
}

#[test]
fn paths_resolve_inside_the_image() {
    let tree = every_kind();
    let index = index(tree.image());
    let resolve = |path: &[u8]| index.resolve(path).unwrap();
    let one = resolve(b"/files/one-byte").unwrap();
    for path in [b"files//one-byte".as_slice(), b"./files/./one-byte", b"/../../files/one-byte", b"names/../files/one-byte"] {
        assert_eq!(resolve(path).as_ref(), Some(&one), "{}", path.escape_ascii());
    }
    assert_eq!(resolve(b"specials/absolute/../files/one-byte"), Some(one), "an absolute link starts at the image's root");
    assert_eq!(resolve(b"specials/up").unwrap().file_type, FileType::Symlink, "a last symlink is not followed");
    assert_eq!(resolve(b"").unwrap().nid, index.root());
    for path in [b"absent".as_slice(), b"files/one-byte/x", b"specials/loop/x", b"specials/up/x"] {
        assert_eq!(resolve(path), None, "{}", path.escape_ascii());
    }
}

#[test]
fn accessors_of_the_wrong_kind_are_errors() {
    let index = index(every_kind().image());
    let file = index.resolve(b"files/large").unwrap().unwrap();
    let dir = index.resolve(b"files").unwrap().unwrap();
    assert!(index.lookup(&file, b"x").is_err());
    assert!(index.dir_entries(&file, 0).next().unwrap().is_err());
    assert!(index.link_target(&dir).is_err());
    assert!(index.extents(&dir, 0..1).next().unwrap().is_err());
    assert!(index.inode(Nid(1)).is_err());
    assert!(index.inode(Nid(u64::MAX)).is_err());
    assert_eq!(index.dir_entries(&dir, u64::MAX).count(), 0, "a position past the end ends the listing");
}

/// One step of building a random tree.
#[derive(Clone, Debug)]
struct Step {
    dir: Pick,
    name: Vec<u8>,
    kind: Kind,
    permissions: u32,
    ids: (u32, u32),
    mtime: (i64, u32),
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Clone, Debug)]
enum Kind {
    Directory,
    Link(Pick),
    File { size: u64, layer: u16, block: u64 },
    Sparse { bits: u32, pieces: Vec<(u64, u64)>, tail: u64 },
    Symlink(Vec<u8>),
    Device(bool, u32, u32),
    Fifo,
    Socket,
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte = any::<u8>().prop_map(|byte| if byte == 0 || byte == b'/' { b'x' } else { byte });
    prop_oneof![
        8 => "[a-z.]{1,6}".prop_map(String::into_bytes),
        3 => vec(byte.clone(), 1..40),
        1 => vec(byte, 200..=255),
    ]
}

fn xattrs() -> impl Strategy<Value = Vec<(Vec<u8>, Vec<u8>)>> {
    let prefix = prop_oneof![Just("user."), Just("trusted."), Just("security.")];
    let named = (prefix, "[a-z]{1,20}").prop_map(|(prefix, rest)| format!("{prefix}{rest}"));
    let full = prop_oneof![9 => named, 1 => Just("system.posix_acl_access".to_owned())];
    let set = proptest::collection::btree_map(full.prop_map(String::into_bytes), vec(any::<u8>(), 0..200), 1..4);
    prop_oneof![4 => Just(Vec::new()), 1 => set.prop_map(|set| set.into_iter().rev().collect())]
}

fn kind() -> impl Strategy<Value = Kind> {
    let size = prop_oneof![Just(0), 1u64..5000, Just(512), Just(4096), 1u64..(1 << 22)];
    prop_oneof![
        3 => Just(Kind::Directory),
        2 => any::<Pick>().prop_map(Kind::Link),
        6 => (size, 0u16..3, 0u64..1000).prop_map(|(size, layer, block)| Kind::File { size, layer, block }),
        2 => (9u32..14, vec((0u64..4, 1u64..4), 0..6), 1u64..3000)
            .prop_map(|(bits, pieces, tail)| Kind::Sparse { bits, pieces, tail }),
        2 => vec(1u8..=255, 1..600).prop_map(Kind::Symlink),
        1 => (any::<bool>(), 0u32..=0xfff, 0u32..=0xf_ffff).prop_map(|(block, major, minor)| Kind::Device(block, major, minor)),
        1 => Just(Kind::Fifo),
        1 => Just(Kind::Socket),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let mtime = (any::<i64>(), 0u32..1_000_000_000);
    (any::<Pick>(), name(), kind(), 0u32..0o10000, any::<(u32, u32)>(), mtime, xattrs())
        .prop_map(|(dir, name, kind, permissions, ids, mtime, xattrs)| Step { dir, name, kind, permissions, ids, mtime, xattrs })
}

fn sparse(bits: u32, pieces: &[(u64, u64)], tail: u64) -> Body {
    let mut extents = Vec::new();
    let (mut at, mut stream) = (0, 512);
    for (number, &(hole, data)) in pieces.iter().enumerate() {
        at += hole << bits;
        extents.push(extent(at, data << bits, (number % 2) as u16, stream));
        at += data << bits;
        stream += data << bits;
    }
    Body::Regular { size: at + tail, extents }
}

fn build(steps: &[Step]) -> Tree {
    let mut tree = Tree::new(&[8 << 20, 9 << 20, 10 << 20]);
    let (mut dirs, mut others) = (vec![0], Vec::new());
    for step in steps {
        let dir = *step.dir.get(&dirs);
        let Body::Directory(names) = &tree.inodes[dir].body else { unreachable!() };
        if step.name == b"." || step.name == b".." || names.iter().any(|entry| entry.0 == step.name) {
            continue;
        }
        let body = match &step.kind {
            Kind::Link(pick) if !others.is_empty() => {
                tree.link(dir, &step.name, *pick.get(&others));
                continue;
            }
            Kind::Directory => Body::Directory(vec![]),
            Kind::File { size: 0, .. } => Body::Regular { size: 0, extents: vec![] },
            Kind::File { size, layer, block } => Body::Regular { size: *size, extents: vec![extent(0, *size, *layer, block * 512)] },
            Kind::Sparse { bits, pieces, tail } => sparse(*bits, pieces, *tail),
            Kind::Symlink(target) => Body::Symlink(target.clone()),
            Kind::Device(true, major, minor) => Body::BlockDevice(*major, *minor),
            Kind::Device(false, major, minor) => Body::CharDevice(*major, *minor),
            Kind::Fifo | Kind::Link(_) => Body::Fifo,
            Kind::Socket => Body::Socket,
        };
        let is_dir = matches!(body, Body::Directory(_));
        let (uid, gid) = step.ids;
        let (mtime_s, mtime_ns) = step.mtime;
        let spec = InodeSpec { uid, gid, mtime_s, mtime_ns, xattrs: step.xattrs.clone(), ..node(step.permissions, body) };
        let place = tree.add(dir, &step.name, spec);
        if is_dir { dirs.push(place) } else { others.push(place) }
    }
    tree
}

/// Claim: a file in the last block that a 32-bit address reaches is read as written; a layer one block longer is refused, by number and limit.
#[test]
fn layers_reach_to_two_tebibytes() {
    let last = (1 << 41) - 1024;
    let mut tree = Tree::new(&[4096, last + 512]);
    tree.add(0, b"far", regular(5, vec![extent(0, 5, 1, last)]));
    compare(&tree);
    tree.devices[1].stream_size += 512;
    let error = write_image(&tree.inodes, 0, &tree.devices).unwrap_err().to_string();
    assert!(error.contains("layer 1") && error.contains(&((1u64 << 41) - 512).to_string()), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn random_trees_are_read_as_written(steps in vec(step(), 0..120)) {
        compare(&build(&steps));
    }
}
