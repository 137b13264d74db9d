//! Damaged and hostile bytes: an error or the same meaning, never a panic, a loop or another meaning.

use std::sync::Arc;

use clip_format::{
    checkpoints::Checkpoints,
    clip_file::{ClipFile, with_profile},
    erofs::{Body, Index, check::check},
    error::{ErrorKind, FormatError},
    profile::Profile,
    storage_info::StorageInfo,
    windows::expand_window,
};

use crate::golden::profile;
use crate::trees::{Tree, clip, every_kind, extent, node, regular};

/// A few of each thing, short enough to try every byte.
pub fn small() -> Tree {
    let mut tree = Tree::new(&[3 << 20, 2048]);
    let dir = tree.directory(0, b"dir");
    let file = tree.add(dir, b"file", regular(4000, vec![extent(0, 4000, 0, 512)]));
    tree.link(0, b"again", file);
    tree.add(dir, b"sparse", regular(2000, vec![extent(512, 512, 1, 0), extent(1536, 464, 1, 512)]));
    let mut link = node(0o777, Body::Symlink(b"file".to_vec()));
    link.xattrs.push((b"user.x".to_vec(), b"value".to_vec()));
    tree.add(dir, b"link", link);
    for number in 0..30 {
        tree.add(dir, format!("a-longer-name-{number}").as_bytes(), regular(0, vec![]));
    }
    tree
}

/// Everything that a reader can learn from the file.
type Meaning = ([u8; 32], Vec<u8>, StorageInfo, Vec<u8>, Vec<u8>, Option<Profile>);

fn read_all(bytes: &[u8]) -> Result<Meaning, FormatError> {
    let file = ClipFile::parse(bytes)?;
    let (index, info, checkpoints, windows) = (file.index()?, file.storage_info()?, file.checkpoints()?, file.windows()?);
    check(&Index::open(Arc::new(index.clone()))?)?;
    let tables = Checkpoints::open(Arc::new(checkpoints.clone()), &info.layers, windows.len() as u64)?;
    assert_eq!(tables.layers().len(), info.layers.len());
    Ok((file.header().image_id(), index, info, checkpoints, windows.to_vec(), file.profile()?))
}

#[test]
fn a_flip_of_any_byte_is_an_error_or_changes_nothing() {
    let mut bytes = with_profile(&clip(&small(), 40), &profile()).unwrap();
    let meaning = read_all(&bytes).unwrap();
    for position in 0..bytes.len() {
        for mask in [0xff, 0x01] {
            bytes[position] ^= mask;
            if let Ok(found) = read_all(&bytes) {
                assert!(found == meaning, "the flip of byte {position} with {mask:#x} gave another meaning");
            }
            bytes[position] ^= mask;
        }
    }
}

#[test]
fn every_shorter_file_is_an_error() {
    let bytes = with_profile(&clip(&small(), 40), &profile()).unwrap();
    for len in 0..bytes.len() {
        assert!(read_all(&bytes[..len]).is_err(), "{len} bytes");
    }
    assert!(read_all(&[bytes.as_slice(), b"x"].concat()).is_err(), "a byte behind the end");
}

/// Uses every accessor on every inode and directory that can be reached, within bounds.
fn use_all(index: &Index) {
    let _ = check(index);
    let mut pending = vec![index.root()];
    let mut budget = 2000;
    while let Some(nid) = pending.pop() {
        let Ok(inode) = index.inode(nid) else { continue };
        for entry in index.dir_entries(&inode, 0).flatten() {
            let _ = index.lookup(&inode, entry.name);
            budget -= 1;
            if budget > 0 && entry.name != b"." && entry.name != b".." {
                pending.push(entry.nid);
            }
        }
        let _ = index.lookup(&inode, b"file");
        let _ = index.link_target(&inode);
        let _ = index.extents(&inode, 0..u64::MAX).count();
        let _ = index.xattrs(&inode).count();
        let _ = index.xattr(&inode, b"user.x");
    }
    for path in [b"dir/file".as_slice(), b"dir/link/x", b"again"] {
        let _ = index.resolve(path);
    }
}

#[test]
fn a_flip_of_any_byte_of_a_bare_index_never_panics_or_loops() {
    let mut image = small().image();
    for position in 1024..image.len() {
        for mask in [0xff, 0x80, 0x01] {
            image[position] ^= mask;
            if let Ok(index) = Index::open(Arc::new(image.clone())) {
                use_all(&index);
            }
            image[position] ^= mask;
        }
    }
}

#[test]
fn every_shorter_index_is_an_error() {
    let image = small().image();
    for len in 0..image.len() {
        assert!(Index::open(Arc::new(image[..len].to_vec())).is_err(), "{len} bytes");
    }
}

/// The byte position of `name` in the image.
fn position_of(image: &[u8], name: &[u8]) -> usize {
    image.windows(name.len()).position(|window| window == name).unwrap()
}

#[test]
fn a_directory_with_two_parents_or_a_cycle_is_corrupt() {
    let mut tree = Tree::new(&[]);
    let first = tree.directory(0, b"first-dir");
    tree.directory(first, b"inner-dir");
    let image = tree.image();
    let nid = |path: &[u8]| {
        let index = Index::open(Arc::new(image.clone())).unwrap();
        index.resolve(path).unwrap().unwrap().nid.get()
    };
    for (victim, target) in [(b"first-dir/inner-dir".as_slice(), b"first-dir".as_slice()), (b"first-dir/inner-dir", b"")] {
        let mut hostile = image.clone();
        let (from, to) = (nid(victim).to_le_bytes(), nid(target).to_le_bytes());
        for at in 0..hostile.len() - 12 {
            if hostile[at..at + 8] == from && hostile[at + 10] == 2 && at % 4 == 0 {
                hostile[at..at + 8].copy_from_slice(&to);
            }
        }
        let index = Index::open(Arc::new(hostile)).unwrap();
        assert_eq!(check(&index).unwrap_err().kind(), ErrorKind::Corrupt);
        use_all(&index);
    }
    assert!(position_of(&image, b"inner-dir") > 0);
}

#[test]
fn names_out_of_order_are_corrupt() {
    let mut tree = Tree::new(&[]);
    for name in [b"one-name".as_slice(), b"two-name"] {
        tree.add(0, name, node(0o644, Body::Fifo));
    }
    let mut image = tree.image();
    let at = position_of(&image, b"one-name");
    image[at..at + 8].copy_from_slice(b"two-zame");
    let index = Index::open(Arc::new(image)).unwrap();
    assert_eq!(check(&index).unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn data_outside_its_layer_is_corrupt() {
    let mut tree = Tree::new(&[1 << 20]);
    tree.add(0, b"f", regular(1000, vec![extent(0, 1000, 0, (1 << 20) - 1024)]));
    tree.devices[0].stream_size = 1 << 20;
    let mut image = tree.image();
    let index = Index::open(Arc::new(image.clone())).unwrap();
    check(&index).unwrap();
    let chunk = [0, 0, 1, 0].into_iter().chain(((1u32 << 11) - 2).to_le_bytes()).collect::<Vec<u8>>();
    let at = position_of(&image, &chunk);
    image[at + 4] += 1;
    let index = Index::open(Arc::new(image.clone())).unwrap();
    assert_eq!(check(&index).unwrap_err().kind(), ErrorKind::Corrupt);
    image[at + 4] -= 1;
    image[at + 2] = 2;
    let index = Index::open(Arc::new(image)).unwrap();
    assert_eq!(check(&index).unwrap_err().kind(), ErrorKind::Corrupt, "a device that is not there");
}

#[test]
fn a_section_that_expands_to_more_than_it_says_is_refused_early() {
    let mut bytes = clip(&small(), 0);
    let file = ClipFile::parse(&bytes).unwrap();
    let mut header = file.header().clone();
    header.index.raw_len -= 1;
    let head = header.to_bytes();
    bytes[..512].copy_from_slice(&head);
    assert!(ClipFile::parse(&bytes).unwrap().index().is_err());
    header.index.raw_len = 3 << 30;
    bytes[..512].copy_from_slice(&header.to_bytes());
    let error = ClipFile::parse(&bytes).unwrap().index().unwrap_err();
    assert!(matches!(error, FormatError::Truncated { .. }), "{error}");
}

#[test]
fn windows_of_every_kind_of_damage_are_errors() {
    let (spans, section) = crate::trees::spans(&[3 << 20], 700);
    let clip_format::checkpoints::SpanStart::Deflate { window, .. } = spans[0][1].start else { panic!("not a deflate start") };
    assert!(expand_window(&section, window).unwrap().is_some());
    for (offset, len) in [(0, window.len - 1), (1, window.len), (section.len() as u64, 10), (u64::MAX, 10)] {
        assert!(expand_window(&section, clip_format::checkpoints::WindowRange { offset, len }).is_err());
    }
}

#[test]
fn every_kind_survives_damage_too() {
    let mut image = every_kind().image();
    // Inodes and the first directory blocks: one byte of each 32.
    for position in (1024..40_000).step_by(37) {
        image[position] ^= 0x41;
        if let Ok(index) = Index::open(Arc::new(image.clone())) {
            use_all(&index);
        }
        image[position] ^= 0x41;
    }
}
