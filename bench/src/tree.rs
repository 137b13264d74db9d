//! The files of an index: what there is to read, and where its bytes are.

use std::collections::HashSet;

use anyhow::{Context, Result, ensure};
use clip_format::{
    erofs::{FileType, Index, Inode},
    units::{LayerIndex, Nid},
};

/// A regular file, under the first of its names.
#[derive(Clone, Debug)]
pub struct TreeFile {
    /// From the root, without a leading slash.
    pub path: Vec<u8>,
    /// Its inode.
    pub nid: Nid,
    /// Length.
    pub len: u64,
}

/// Bytes of a file that lie in one piece in one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where in the file.
    pub file: u64,
    /// Which layer.
    pub layer: LayerIndex,
    /// Where in its stream.
    pub stream: u64,
    /// How many.
    pub len: u64,
}

/// Every regular file of `index`, sorted by path. Cost: one pass over all directories.
///
/// # Errors
/// When the index is damaged.
pub fn files(index: &Index) -> Result<Vec<TreeFile>> {
    let (mut found, mut seen) = (Vec::new(), HashSet::new());
    let mut open = vec![(Vec::new(), index.inode(index.root())?)];
    while let Some((path, directory)) = open.pop() {
        ensure!(seen.insert(directory.nid), "{}: a directory in two places; the .clip is damaged", String::from_utf8_lossy(&path));
        for entry in index.dir_entries(&directory, 0) {
            let entry = entry?;
            if entry.name == b"." || entry.name == b".." {
                continue;
            }
            let inode = index.inode(entry.nid)?;
            let separator: &[u8] = if path.is_empty() { b"" } else { b"/" };
            let path = [&path, separator, entry.name].concat();
            match inode.file_type {
                FileType::Directory => open.push((path, inode)),
                FileType::Regular if seen.insert(inode.nid) => found.push(TreeFile { path, nid: inode.nid, len: inode.size }),
                _ => {}
            }
        }
    }
    found.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(found)
}

/// Where the bytes of `inode` are, in file order; holes left out.
///
/// # Errors
/// When the index is damaged.
pub fn pieces(index: &Index, inode: &Inode) -> Result<Vec<Piece>> {
    let mut found = Vec::new();
    for extent in index.extents(inode, 0..inode.size) {
        let extent = extent?;
        if let Some((layer, stream)) = extent.data {
            let Some(len) = extent.file.end.checked_sub(extent.file.start) else { anyhow::bail!("an extent that ends before it starts") };
            found.push(Piece { file: extent.file.start, layer, stream: stream.get(), len });
        }
    }
    Ok(found)
}

/// The longest file that lies in one piece.
///
/// # Errors
/// When there is none.
pub fn largest(index: &Index, files: &[TreeFile]) -> Result<(TreeFile, Piece)> {
    let mut by_len: Vec<_> = files.iter().collect();
    by_len.sort_by(|one, other| other.len.cmp(&one.len).then_with(|| one.path.cmp(&other.path)));
    for file in by_len {
        let inode = index.inode(file.nid)?;
        if let [piece] = pieces(index, &inode)?[..]
            && piece.len == file.len
        {
            return Ok((file.clone(), piece));
        }
    }
    None.context("the image has no file whose bytes lie in one piece")
}
