//! The merged tree as the EROFS writer takes it.

use clip_format::{
    erofs::{Body, FileExtent, InodeSpec},
    units::StreamOffset,
};

use super::{Node, NodeId, NodeKind, ROOT, Tree};

/// Marks a node that has no place yet.
const UNSEEN: u32 = u32::MAX;

impl Tree {
    /// Every inode that is reached from the root, which comes first; then directory by directory, names in byte order.
    /// A pure function of the tree.
    pub(crate) fn into_specs(self) -> Vec<InodeSpec> {
        let mut places = vec![UNSEEN; self.nodes.len()];
        let mut order = vec![ROOT];
        places[ROOT.0 as usize] = 0;
        let mut next = 0;
        while let Some(id) = order.get(next).copied() {
            next += 1;
            let Some(children) = self.children(id) else { continue };
            for child in children.values() {
                let place = &mut places[child.0 as usize];
                if *place == UNSEEN {
                    *place = order.len() as u32;
                    order.push(*child);
                }
            }
        }
        let mut nodes: Vec<Option<Node>> = self.nodes.into_iter().map(Some).collect();
        order.iter().filter_map(|id| nodes[id.0 as usize].take()).map(|node| spec(node, &places)).collect()
    }
}

fn spec(node: Node, places: &[u32]) -> InodeSpec {
    let attributes = node.attributes;
    InodeSpec {
        permissions: u32::from(attributes.permissions),
        uid: attributes.uid,
        gid: attributes.gid,
        mtime_s: attributes.mtime_s,
        mtime_ns: attributes.mtime_ns,
        xattrs: attributes.xattrs.map(|xattrs| *xattrs).unwrap_or_default(),
        body: body(node.kind, places),
    }
}

fn body(kind: NodeKind, places: &[u32]) -> Body {
    let place = |id: NodeId| places[id.0 as usize] as usize;
    match kind {
        NodeKind::Directory(children) => Body::Directory(children.into_iter().map(|(name, id)| (name.into_vec(), place(id))).collect()),
        NodeKind::Regular { size, layer, data } => {
            let extent = |piece: &crate::tar_entry::DataExtent| FileExtent {
                file_offset: piece.file_offset,
                len: piece.len,
                layer,
                stream: StreamOffset(piece.stream),
            };
            Body::Regular { size, extents: data.iter().map(extent).collect() }
        }
        NodeKind::Symlink(target) => Body::Symlink(target.into_vec()),
        NodeKind::CharDevice(major, minor) => Body::CharDevice(major, minor),
        NodeKind::BlockDevice(major, minor) => Body::BlockDevice(major, minor),
        NodeKind::Fifo => Body::Fifo,
        NodeKind::PendingLink => unreachable!("a merged layer leaves no pending link"),
    }
}
