//! The merged tree: what a container sees when every layer is applied, bottom to top.
//!
//! The rules of the OCI image specification, as umoci applies them: a layer's whiteouts first, on lower layers only; then its own members in their order. Paths are confined to
//! the root and resolved as umoci resolves them: cleaned by their text, then symbolic links in the parents followed inside the root.

mod merge;
mod output;
mod path;
mod whiteout;

use std::{cell::Cell, collections::BTreeMap};

use crate::tar_entry::{DataExtent, tally::Tally};
use clip_format::units::LayerIndex;

/// Inodes of one image. Source: clip_format::limits::INDEX_BYTES_MAX, about 16 million files.
pub(crate) const INODES_MAX: usize = 16 << 20;

/// A node's place in the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct NodeId(u32);

/// The root's place.
const ROOT: NodeId = NodeId(0);

/// What a tar header says about an inode, whatever its kind.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Attributes {
    permissions: u16,
    uid: u32,
    gid: u32,
    mtime_ns: u32,
    mtime_s: i64,
    /// Boxed: few inodes have any.
    xattrs: Option<Box<Xattrs>>,
}

/// Full names and values.
type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

impl Attributes {
    /// Of a directory that no layer names.
    fn implied() -> Self {
        Self { permissions: 0o755, uid: 0, gid: 0, mtime_ns: 0, mtime_s: 0, xattrs: None }
    }
}

enum NodeKind {
    Directory(BTreeMap<Box<[u8]>, NodeId>),
    Regular {
        size: u64,
        layer: LayerIndex,
        data: Box<[DataExtent]>,
    },
    Symlink(Box<[u8]>),
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
    /// A hard link whose target was not there when it came; none is left after a layer is merged.
    PendingLink,
}

struct Node {
    attributes: Attributes,
    kind: NodeKind,
}

/// A tree being merged. Nodes that are no longer reached stay in the arena until the end.
pub(crate) struct Tree {
    nodes: Vec<Node>,
    /// The last parent directory that was looked up, by its text: most members follow a neighbour.
    last_parent: Option<(Vec<u8>, NodeId)>,
    dropped_xattrs: Tally,
    ignored_markers: u64,
    /// Parts of the symbolic links that paths have led through so far.
    link_parts: Cell<u64>,
}

impl Tree {
    /// A root without children: 0755, root, mtime 0.
    pub(crate) fn new() -> Self {
        let root = Node { attributes: Attributes::implied(), kind: NodeKind::Directory(BTreeMap::new()) };
        Self { nodes: vec![root], last_parent: None, dropped_xattrs: Tally::default(), ignored_markers: 0, link_parts: Cell::new(0) }
    }

    /// What was left out, a line each.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let mut lines: Vec<String> = self
            .dropped_xattrs
            .iter()
            .map(|(namespace, count)| {
                format!("{count} extended attributes of the namespace \"{namespace}\" were dropped: EROFS has none for it")
            })
            .collect();
        if self.dropped_xattrs.others() > 0 {
            lines.push(format!("{} extended attributes of other namespaces were dropped", self.dropped_xattrs.others()));
        }
        if self.ignored_markers > 0 {
            lines.push(format!("{} members with names of the form .wh..wh.* were ignored (left over from aufs)", self.ignored_markers));
        }
        lines
    }

    fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.0 as usize]
    }

    fn children(&self, id: NodeId) -> Option<&BTreeMap<Box<[u8]>, NodeId>> {
        match &self.node(id).kind {
            NodeKind::Directory(children) => Some(children),
            _ => None,
        }
    }

    fn child(&self, dir: NodeId, name: &[u8]) -> Option<NodeId> {
        self.children(dir)?.get(name).copied()
    }

    /// Gives `dir` a child, in place of one of the same name.
    fn link(&mut self, dir: NodeId, name: &[u8], child: NodeId) {
        let NodeKind::Directory(children) = &mut self.node_mut(dir).kind else { return };
        if children.insert(name.into(), child).is_some() {
            self.last_parent = None;
        }
    }
}

#[cfg(test)]
mod tests;
