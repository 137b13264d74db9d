//! An image's tree as hash maps, and its layers as maps of the cache files.

use std::{collections::HashMap, ops::Range, path::Path};

use anyhow::{Context, Result, ensure};
use clip_engine::{EngineError, image::ReadDone};
use clip_format::{
    clip_file::ClipFile,
    erofs::{FileType, Index},
    units::LayerIndex,
};
use clip_fuse::{
    ByteSource,
    tree::{Attr, NodeId, Tree},
    wire::{file_attr, kind},
};
use fuser::FileAttr;
use memmap2::Mmap;

use super::map::map;
use crate::machine;

/// An index that has no bytes to give: the files of a tree can be looked at, not read.
pub struct NoBytes(pub Index);

impl ByteSource for NoBytes {
    type Stream = ();

    fn index(&self) -> &Index {
        &self.0
    }

    fn present(&self, _: LayerIndex, _: Range<u64>) -> Option<&[u8]> {
        None
    }

    fn read(&self, _: LayerIndex, _: Range<u64>, done: ReadDone) {
        done(Err(EngineError::Stopped));
    }

    fn note_read(&self, (): &(), _: LayerIndex, _: Range<u64>, _: u64) {}
}

/// A name of a directory.
pub(super) struct Name {
    pub(super) node: u64,
    pub(super) kind: fuser::FileType,
    pub(super) name: Vec<u8>,
}

/// Everything that a request may ask for, ready.
#[derive(Default)]
pub struct TrivialTree {
    pub(super) attributes: HashMap<u64, FileAttr>,
    pub(super) names: HashMap<u64, HashMap<Vec<u8>, u64>>,
    /// In the order of the index, `.` and `..` included.
    pub(super) listings: HashMap<u64, Vec<Name>>,
    pub(super) links: HashMap<u64, Vec<u8>>,
    /// Files in one piece: which map, and where.
    pub(super) bytes: HashMap<u64, (usize, Range<usize>)>,
    pub(super) any_xattrs: bool,
    pub(super) any_acls: bool,
    maps: Vec<Mmap>,
}

/// A map of a copy of `stream`: while another process has a cache file open, its owner trusts no byte of it and hashes each at every use.
fn copy_mapped(stream: &Path) -> Result<Mmap> {
    let copy = tempfile::NamedTempFile::new().context("make a file for a copy of a cache file")?;
    std::fs::copy(stream, copy.path()).with_context(|| format!("copy {}", stream.display()))?;
    map(copy.path())
}

impl TrivialTree {
    /// The tree of the `.clip` at `clip`, with the bytes that are in `cache`, where every layer must be.
    ///
    /// # Errors
    /// When the index is damaged or a layer is not in the cache.
    pub fn new(clip: &Path, cache: &Path) -> Result<Self> {
        let bytes = fs_read(clip)?;
        let file = ClipFile::parse(&bytes)?;
        let index = Index::open(std::sync::Arc::new(file.index()?))?;
        let mut tree = Self { any_xattrs: index.any_xattrs(), any_acls: index.any_acls(), ..Self::default() };
        for layer in file.storage_info()?.layers {
            let dir = cache.join("layers").join(layer.digest.algorithm()).join(layer.digest.to_hex());
            tree.maps.push(copy_mapped(&machine::find_file(&dir, "stream")?)?);
        }
        let source = Tree::new(NoBytes(index));
        let mut directories = vec![NodeId::ROOT];
        tree.add_node(&source, NodeId::ROOT)?;
        while let Some(directory) = directories.pop() {
            ensure!(!tree.listings.contains_key(&directory.0), "directory {} in two places; the .clip is damaged", directory.0);
            tree.add_directory(&source, directory, &mut directories)?;
        }
        Ok(tree)
    }

    pub(super) fn slice(&self, node: u64, offset: u64, size: u32) -> Option<&[u8]> {
        let (map, range) = self.bytes.get(&node)?;
        let start = range.start.saturating_add(usize::try_from(offset).ok()?).min(range.end);
        let end = start.saturating_add(size as usize).min(range.end);
        self.maps.get(*map)?.get(start..end)
    }

    fn add_directory(&mut self, source: &Tree<NoBytes>, directory: NodeId, more: &mut Vec<NodeId>) -> Result<()> {
        let (mut names, mut listing, mut nodes) = (HashMap::new(), Vec::new(), Vec::new());
        let listed = source.readdir(directory, 0, |entry| {
            if !matches!(entry.name, b"." | b"..") {
                names.insert(entry.name.to_vec(), entry.node.0);
                nodes.push(entry.node);
                if entry.file_type == FileType::Directory {
                    more.push(entry.node);
                }
            }
            listing.push(Name { node: entry.node.0, kind: kind(entry.file_type), name: entry.name.to_vec() });
            std::ops::ControlFlow::Continue(())
        });
        listed.with_context(|| format!("list directory {}", directory.0))?;
        self.names.insert(directory.0, names);
        self.listings.insert(directory.0, listing);
        nodes.into_iter().try_for_each(|node| self.add_node(source, node))
    }

    fn add_node(&mut self, source: &Tree<NoBytes>, node: NodeId) -> Result<()> {
        if self.attributes.contains_key(&node.0) {
            return Ok(());
        }
        let attr = source.getattr(node).with_context(|| format!("attributes of inode {}", node.0))?;
        match attr.file_type {
            FileType::Symlink => drop(self.links.insert(node.0, source.readlink(node)?.to_vec())),
            FileType::Regular => self.add_bytes(&source.source().0, node, &attr)?,
            _ => {}
        }
        self.attributes.insert(node.0, file_attr(&attr));
        Ok(())
    }

    /// A file in several pieces has none here: it cannot be read, and no floor is taken from it.
    fn add_bytes(&mut self, index: &Index, node: NodeId, attr: &Attr) -> Result<()> {
        let inode = index.inode(clip_format::units::Nid(node.0))?;
        let Some(extent) = index.extents(&inode, 0..attr.size).next().transpose()? else {
            self.bytes.insert(node.0, (0, 0..0));
            return Ok(());
        };
        if let (true, Some((layer, stream))) = (extent.file == (0..attr.size), extent.data) {
            let start = usize::try_from(stream.get())?;
            self.bytes.insert(node.0, (usize::from(layer.get()), start..start + usize::try_from(attr.size)?));
        }
        Ok(())
    }
}

fn fs_read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("read {}", path.display()))
}
