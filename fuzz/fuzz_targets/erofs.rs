//! Any bytes as an index: every accessor is total.
#![no_main]

use std::sync::Arc;

use clip_format::{
    erofs::{FileType, Index, check::check},
    units::Nid,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(index) = Index::open(Arc::new(bytes.to_vec())) else { return };
    if let Ok(counts) = check(&index) {
        assert_eq!(counts.inodes_with_xattrs > 0, index.any_xattrs());
        checked_tree_is_readable(&index);
    }
    for nid in 0..(bytes.len() as u64 / 32).min(4096) {
        let Ok(inode) = index.inode(Nid(nid)) else { continue };
        for entry in index.dir_entries(&inode, 0).take(200).flatten() {
            let _ = index.lookup(&inode, entry.name);
        }
        let _ = index.link_target(&inode);
        let _ = index.extents(&inode, 0..u64::MAX).take(200).count();
        let _ = index.extents(&inode, 513..100_000).take(200).count();
        let _ = index.xattrs(&inode).count();
        let _ = index.xattr(&inode, b"security.capability");
    }
    let _ = index.resolve(b"usr/../bin/./sh/x");
});

/// After the check nothing may fail, and lookup finds what listing shows.
fn checked_tree_is_readable(index: &Index) {
    let mut pending = vec![index.root()];
    while let Some(nid) = pending.pop() {
        let dir = index.inode(nid).expect("checked");
        for entry in index.dir_entries(&dir, 0) {
            let entry = entry.expect("checked");
            assert_eq!(index.lookup(&dir, entry.name).expect("checked"), Some(entry));
            if entry.file_type == FileType::Directory && entry.name != b"." && entry.name != b".." {
                pending.push(entry.nid);
            }
        }
    }
}
