//! The file system without a kernel.
#![allow(missing_docs, clippy::unwrap_used)]

mod sample;

use std::{
    ops::ControlFlow,
    sync::mpsc::{Receiver, Sender, channel},
    time::Duration,
};

use clip_format::{
    erofs::{FileType, Index},
    units::LayerIndex,
};
use clip_fuse::tree::{Attr, NodeId, ReadReply, SeekTo, Tree};
use rustix::io::Errno;
use sample::{FILE_AT, FILE_LEN, MANY, SPARSE_LEN, SPARSE_PIECE, SPARSE_SECOND, Source, Supply};

struct Answer(Sender<Result<Vec<u8>, Errno>>);

impl ReadReply for Answer {
    fn data(self, bytes: &[u8]) {
        self.0.send(Ok(bytes.to_vec())).unwrap();
    }

    fn fail(self, errno: Errno) {
        self.0.send(Err(errno)).unwrap();
    }
}

fn tree() -> (Source, Tree<Source>) {
    let source = sample::source(true);
    (source.clone(), Tree::new(source))
}

fn find(tree: &Tree<Source>, path: &str) -> Attr {
    path.split('/').fold(tree.getattr(NodeId::ROOT).unwrap(), |dir, name| tree.lookup(dir.node, name.as_bytes()).unwrap().unwrap())
}

fn ask(tree: &Tree<Source>, path: &str, offset: u64, size: u32) -> Receiver<Result<Vec<u8>, Errno>> {
    let (send, receive) = channel();
    tree.read(find(tree, path).node, offset, size, Answer(send));
    receive
}

fn read(tree: &Tree<Source>, path: &str, offset: u64, size: u32) -> Result<Vec<u8>, Errno> {
    ask(tree, path, offset, size).recv_timeout(Duration::from_secs(10)).unwrap()
}

/// The root is node 1 from every side: by itself, as `.`, and as `..` of its children.
#[test]
fn the_root_is_node_1() {
    let (_, tree) = tree();
    assert_eq!(tree.getattr(NodeId::ROOT).unwrap().node, NodeId(1));
    let dots = |node| {
        let mut dots = Vec::new();
        tree.readdir(node, 0, |entry| {
            if entry.name == b"." || entry.name == b".." {
                dots.push((entry.name.to_vec(), entry.node));
            }
            ControlFlow::Continue(())
        })
        .unwrap();
        dots
    };
    assert_eq!(dots(NodeId::ROOT), [(b".".to_vec(), NodeId(1)), (b"..".to_vec(), NodeId(1))]);
    let dir = find(&tree, "dir").node;
    assert_ne!(dir, NodeId(1));
    assert_eq!(dots(dir), [(b".".to_vec(), dir), (b"..".to_vec(), NodeId(1))]);
}

/// Attributes are those of the image; holes count no blocks.
#[test]
fn attributes() {
    let (_, tree) = tree();
    let file = find(&tree, "file");
    assert_eq!((file.size, file.nlink, file.permissions), (FILE_LEN as u64, 2, 0o644));
    assert_eq!(file.blocks, (FILE_LEN as u64).div_ceil(512));
    assert_eq!(file.node, find(&tree, "hard").node);
    assert_eq!(find(&tree, "sparse").blocks, 2 * SPARSE_PIECE / 512);
    assert_eq!(find(&tree, "id").permissions, 0o4755);
    let old = find(&tree, "old");
    assert_eq!((old.mtime_s, old.mtime_ns), (-5, 250_000_000));
    let owned = find(&tree, "owned");
    assert_eq!((owned.uid, owned.gid), (100_000, 200_000));
    assert_eq!((find(&tree, "dir/null").rdev, find(&tree, "dir/null").file_type), (0x103, FileType::CharDevice));
    assert_eq!(find(&tree, "dir/disk").rdev, (70_000 & 0xff) | 259 << 8 | (70_000 & 0xf_ff00) << 12);
    assert_eq!(find(&tree, "dir/fifo").file_type, FileType::Fifo);
    assert_eq!(find(&tree, "empty").blocks, 0);
}

/// Wrong questions get the errno that POSIX gives them.
#[test]
fn wrong_questions() {
    let (_, tree) = tree();
    let file = find(&tree, "file").node;
    assert_eq!(tree.lookup(NodeId::ROOT, b"none").unwrap(), None);
    assert_eq!(tree.lookup(NodeId::ROOT, &[b'n'; 256]).unwrap_err(), Errno::NAMETOOLONG);
    assert_eq!(tree.lookup(file, b"x").unwrap_err(), Errno::NOTDIR);
    assert_eq!(tree.readlink(file).unwrap_err(), Errno::INVAL);
    assert_eq!(tree.readdir(file, 0, |_| ControlFlow::Continue(())).unwrap_err(), Errno::NOTDIR);
    assert_eq!(read(&tree, "dir", 0, 10).unwrap_err(), Errno::ISDIR);
    assert_eq!(read(&tree, "link", 0, 10).unwrap_err(), Errno::INVAL);
    for node in [0, u64::MAX, 1 << 40] {
        assert_eq!(tree.getattr(NodeId(node)).unwrap_err(), Errno::IO, "{node}");
    }
}

/// Claim: an index that is found damaged while it is in use answers nothing any more.
#[test]
fn a_damaged_index_answers_nothing() {
    let (source, tree) = tree();
    let link = find(&tree, "link").node;
    source.0.damaged.store(true, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(tree.getattr(NodeId::ROOT).unwrap_err(), Errno::IO);
    assert_eq!(tree.lookup(NodeId::ROOT, b"file").unwrap_err(), Errno::IO);
    assert_eq!(tree.readlink(link).unwrap_err(), Errno::IO);
}

/// Links, xattrs and sizes.
#[test]
fn links_xattrs_statfs() {
    let (_, tree) = tree();
    assert_eq!(tree.readlink(find(&tree, "link").node).unwrap(), b"file");
    assert_eq!(tree.readlink(find(&tree, "far").node).unwrap(), [b'x'; 3000]);
    let marked = find(&tree, "marked").node;
    assert_eq!(tree.getxattr(marked, b"user.comment").unwrap(), Some(&b"hello"[..]));
    assert_eq!(tree.getxattr(marked, b"security.capability").unwrap(), Some(sample::CAPABILITY));
    assert_eq!(tree.getxattr(marked, b"user.none").unwrap(), None);
    assert_eq!(tree.getxattr(find(&tree, "file").node, b"user.comment").unwrap(), None);
    let names = tree.listxattr(marked).unwrap();
    let mut names: Vec<&[u8]> = names.split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
    names.sort_unstable();
    assert_eq!(names, [&b"security.capability"[..], b"user.comment"]);
    assert!(tree.listxattr(find(&tree, "file").node).unwrap().is_empty());
    let statfs = tree.statfs();
    assert!(statfs.blocks * u64::from(statfs.block_bytes) >= FILE_LEN as u64);
    assert!(statfs.files > 15);
}

/// A directory of 10,000 entries is listed once each, in pieces of any size, with and without attributes.
#[test]
fn a_big_directory_in_pieces() {
    let (_, tree) = tree();
    let many = find(&tree, "many").node;
    for piece in [1, 7, 100_000] {
        let (mut names, mut from) = (Vec::new(), 0);
        loop {
            let mut left = piece;
            let before = names.len();
            tree.readdirplus(many, from, |entry, attr| {
                if left == 0 {
                    return ControlFlow::Break(());
                }
                assert_eq!(attr.node, entry.node);
                (left, from) = (left - 1, entry.next);
                names.push(entry.name.to_vec());
                ControlFlow::Continue(())
            })
            .unwrap();
            if names.len() == before {
                break;
            }
        }
        assert_eq!(names.len(), MANY + 2);
        names.sort();
        names.dedup();
        assert_eq!(names.len(), MANY + 2);
    }
}

/// Present bytes are served at any place without a read, short at the end; read-ahead learns where the file ends.
#[test]
fn present_reads() {
    let (source, tree) = tree();
    let whole = source.bytes(LayerIndex(0), FILE_AT as u64..(FILE_AT + FILE_LEN) as u64);
    for (offset, size) in [(0, 4096), (4095, 2), (1_000_000, 1 << 20), (FILE_LEN as u64 - 5, 4096)] {
        let end = (offset as usize + size as usize).min(FILE_LEN);
        assert_eq!(read(&tree, "file", offset, size).unwrap(), &whole[offset as usize..end]);
    }
    assert!(read(&tree, "file", FILE_LEN as u64, 4096).unwrap().is_empty());
    assert!(read(&tree, "file", u64::MAX, 4096).unwrap().is_empty());
    assert!(read(&tree, "empty", 0, 4096).unwrap().is_empty());
    assert_eq!(source.reads(), 0);
    let notes = source.0.notes.lock().unwrap();
    assert_eq!(notes.len(), 4);
    let end = (FILE_AT + FILE_LEN) as u64;
    assert_eq!(notes[1], (LayerIndex(0), FILE_AT as u64 + 4095..FILE_AT as u64 + 4097, end));
}

/// A read that must be fetched is answered later, and nothing waits for it meanwhile.
#[test]
fn parked_reads() {
    let (source, tree) = tree();
    source.supply(1, Supply::Held);
    let parked = ask(&tree, "slow", 10, 5000);
    assert!(parked.try_recv().is_err());
    assert_eq!(read(&tree, "file", 0, 10).unwrap().len(), 10);
    source.release();
    assert_eq!(parked.recv().unwrap().unwrap(), source.bytes(LayerIndex(1), 1034..6034));
}

/// A sparse file reads as its pieces among zeros, whatever is present and in whatever order the rest comes.
#[test]
fn sparse_reads() {
    let (source, tree) = tree();
    let whole = sample::sparse_bytes(&source);
    for supply in [Supply::Present, Supply::Fetched, Supply::Held] {
        source.supply(0, supply);
        source.supply(1, supply);
        for (offset, size) in [(0, SPARSE_LEN), (SPARSE_PIECE - 100, 200), (SPARSE_SECOND - 7, 4096), (SPARSE_PIECE, 4096), (5, 6)] {
            let answer = ask(&tree, "sparse", offset, size as u32);
            source.release();
            let bytes = answer.recv_timeout(Duration::from_secs(10)).unwrap().unwrap();
            assert!(bytes == whole[offset as usize..(offset + size) as usize], "{supply:?} {offset} {size}");
        }
    }
    assert_eq!(source.held(), 0);
}

/// One failed piece fails the read once, however many pieces there are, and the file can be read again later.
#[test]
fn failed_reads() {
    let (source, tree) = tree();
    source.supply(1, Supply::Failing);
    assert_eq!(read(&tree, "sparse", 0, SPARSE_LEN as u32).unwrap_err(), Errno::IO);
    assert_eq!(read(&tree, "slow", 0, 4096).unwrap_err(), Errno::IO);
    let reads = source.reads();
    // The kernel's second question for a page of the failed range.
    assert_eq!(read(&tree, "slow", 100, 10).unwrap_err(), Errno::IO);
    assert_eq!(source.reads(), reads);
    source.supply(1, Supply::Present);
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(read(&tree, "slow", 0, 4096).unwrap().len(), 4096);
}

/// lseek finds data and holes, and the end of the file is a hole.
#[test]
fn seeks() {
    let (_, tree) = tree();
    let sparse = find(&tree, "sparse").node;
    assert_eq!(tree.seek(sparse, 0, SeekTo::Data), Ok(0));
    assert_eq!(tree.seek(sparse, 10, SeekTo::Hole), Ok(SPARSE_PIECE));
    assert_eq!(tree.seek(sparse, SPARSE_PIECE, SeekTo::Data), Ok(SPARSE_SECOND));
    assert_eq!(tree.seek(sparse, SPARSE_PIECE + 5, SeekTo::Hole), Ok(SPARSE_PIECE + 5));
    assert_eq!(tree.seek(sparse, SPARSE_SECOND + SPARSE_PIECE, SeekTo::Data), Err(Errno::NXIO));
    assert_eq!(tree.seek(sparse, SPARSE_LEN, SeekTo::Hole), Err(Errno::NXIO));
    let file = find(&tree, "file").node;
    assert_eq!(tree.seek(file, 7, SeekTo::Hole), Ok(FILE_LEN as u64));
    assert_eq!(tree.seek(file, 7, SeekTo::Data), Ok(7));
}

/// A damaged index gives errors, never a panic: each byte of a small one is flipped and the tree walked.
#[test]
fn damaged_indexes() {
    let source = sample::tiny();
    let image = source.1;
    for at in 0..image.len() {
        let mut damaged = image.clone();
        damaged[at] ^= 0xff;
        let Ok(index) = Index::open(std::sync::Arc::new(damaged)) else { continue };
        let tree = Tree::new(sample::over(index, source.0.0.layers.clone()));
        let mut nodes = vec![NodeId::ROOT];
        for step in 0..200 {
            let Some(node) = nodes.get(step).copied() else { break };
            let _ = tree.getattr(node);
            let _ = tree.readlink(node);
            let _ = tree.listxattr(node);
            let _ = tree.getxattr(node, b"user.a");
            let _ = tree.seek(node, 0, SeekTo::Hole);
            let _ = tree.readdirplus(node, 0, |entry, _| {
                if nodes.len() < 200 {
                    nodes.push(entry.node);
                }
                ControlFlow::Continue(())
            });
            let (send, receive) = channel();
            tree.read(node, 0, 65_536, Answer(send));
            receive.recv_timeout(Duration::from_secs(10)).unwrap().ok();
        }
    }
}
