//! One layer's own members into the tree.

use std::collections::BTreeMap;

use clip_format::{limits::NAME_BYTES_MAX, units::LayerIndex};

use super::{
    Attributes, INODES_MAX, Node, NodeId, NodeKind, ROOT, Tree, Xattrs,
    path::{PathError, cleaned},
    whiteout::{Marker, Removed, marker},
};
use crate::tar_entry::{self, Entry, EntryKind};

/// A member that cannot be part of any tree; the caller adds the layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MergeError {
    /// Stream offset and member.
    pub(crate) place: String,
    pub(crate) expected: String,
    pub(crate) found: String,
}

impl MergeError {
    pub(super) fn new(entry: &Entry, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self { place: tar_entry::place(entry.offset, &entry.path), expected: expected.into(), found: found.into() }
    }
}

/// A hard link that came before its target.
struct PendingLink {
    entry: Entry,
    dir: NodeId,
    name: Vec<u8>,
    node: NodeId,
}

impl Tree {
    /// Applies a layer: its whiteouts to what is below, then its members in order, a later one of a name in place of an earlier one.
    pub(crate) fn merge(&mut self, layer: LayerIndex, entries: Vec<Entry>) -> Result<(), MergeError> {
        let removed = self.apply_whiteouts(&entries)?;
        let mut pending = Vec::new();
        for entry in entries {
            self.add(layer, entry, &mut pending)?;
        }
        self.resolve_pending(pending, &removed)
    }

    pub(super) fn new_implied_dir(&mut self, parent: NodeId, name: &[u8]) -> NodeId {
        let node = self.push(Node { attributes: Attributes::implied(), kind: NodeKind::Directory(BTreeMap::new()) });
        self.link(parent, name, node);
        node
    }

    fn push(&mut self, node: Node) -> NodeId {
        let id = NodeId(u32::try_from(self.nodes.len()).expect("INODES_MAX is checked for each member, and a path has at most 4095 parts"));
        self.nodes.push(node);
        id
    }

    fn add(&mut self, layer: LayerIndex, entry: Entry, pending: &mut Vec<PendingLink>) -> Result<(), MergeError> {
        if self.nodes.len() >= INODES_MAX {
            return Err(MergeError::new(&entry, format!("at most {INODES_MAX} inodes in all layers"), "one more"));
        }
        let path = entry.path.clone();
        let parts = cleaned(&path);
        match marker(&parts) {
            Marker::None => {}
            Marker::Ignored => {
                self.ignored_markers += 1;
                return Ok(());
            }
            _ => return Ok(()),
        }
        let Some((name, parents)) = parts.split_last() else { return self.add_root(entry) };
        if let Some(long) = parts.iter().map(|part| part.len()).find(|len| *len > NAME_BYTES_MAX) {
            return Err(MergeError::new(&entry, format!("names of at most {NAME_BYTES_MAX} bytes"), format!("one of {long}")));
        }
        let dir = self.ensure_dir(parents).map_err(|error| path_error(&entry, error))?;
        match entry.kind {
            EntryKind::HardLink(_) => self.add_link(entry, dir, name, pending),
            EntryKind::Directory => self.add_dir(entry, dir, name),
            _ => {
                let node = self.make_node(layer, entry);
                let node = self.push(node);
                self.link(dir, name, node);
            }
        }
        Ok(())
    }

    fn add_root(&mut self, entry: Entry) -> Result<(), MergeError> {
        if entry.kind != EntryKind::Directory {
            return Err(MergeError::new(&entry, "a directory as the root", entry.kind.as_str()));
        }
        let attributes = self.take_attributes(entry);
        self.node_mut(ROOT).attributes = attributes;
        Ok(())
    }

    /// A directory over a directory keeps its children and takes the new attributes.
    fn add_dir(&mut self, entry: Entry, dir: NodeId, name: &[u8]) {
        let attributes = self.take_attributes(entry);
        match self.child(dir, name) {
            Some(node) if self.children(node).is_some() => self.node_mut(node).attributes = attributes,
            _ => {
                let node = self.push(Node { attributes, kind: NodeKind::Directory(BTreeMap::new()) });
                self.link(dir, name, node);
            }
        }
    }

    /// As in umoci a hard link is one more name for the inode, whatever attributes its own header has.
    fn add_link(&mut self, entry: Entry, dir: NodeId, name: &[u8], pending: &mut Vec<PendingLink>) {
        match self.link_target(&entry) {
            Some(target) if matches!(self.node(target).kind, NodeKind::Directory(_) | NodeKind::PendingLink) => {}
            Some(target) => return self.link(dir, name, target),
            None => {}
        }
        let node = self.push(Node { attributes: Attributes::implied(), kind: NodeKind::PendingLink });
        self.link(dir, name, node);
        pending.push(PendingLink { entry, dir, name: name.to_vec(), node });
    }

    /// The node that a hard link names: symbolic links in the parents are followed, a last one is not.
    fn link_target(&self, entry: &Entry) -> Option<NodeId> {
        let EntryKind::HardLink(target) = &entry.kind else { return None };
        let parts = cleaned(target);
        let Some((name, parents)) = parts.split_last() else { return Some(ROOT) };
        let dir = self.existing_dir(parents, &mut |_| false).ok().flatten()?;
        self.child(dir, name)
    }

    /// What a hard link names in the tree as the layers below left it, where this layer took that file, or a directory above it, away.
    fn removed_target(&self, entry: &Entry, removed: &Removed) -> Option<NodeId> {
        let EntryKind::HardLink(target) = &entry.kind else { return None };
        let lower = |dir: NodeId, name: &&[u8]| removed.get(&(dir, (*name).into())).copied().or_else(|| self.child(dir, name));
        cleaned(target).iter().try_fold(ROOT, lower).filter(|target| self.children(*target).is_none())
    }

    /// Links whose targets came later, in any order and through each other. Cost: each is looked at once, and once more as it resolves.
    fn resolve_pending(&mut self, pending: Vec<PendingLink>, removed: &Removed) -> Result<(), MergeError> {
        // A later member of the same name has taken the place of some: they mean nothing any more.
        let alive: Vec<PendingLink> = pending.into_iter().filter(|link| self.child(link.dir, &link.name) == Some(link.node)).collect();
        let mut waits_for: BTreeMap<NodeId, Vec<usize>> = BTreeMap::new();
        let mut ready: Vec<(usize, NodeId)> = Vec::new();
        for (place, link) in alive.iter().enumerate() {
            let now = self.link_target(&link.entry);
            let is_file = now.is_some_and(|target| self.children(target).is_none());
            let target = if is_file { now } else { self.removed_target(&link.entry, removed).or(now) };
            match target {
                None => return Err(missing_target(&link.entry, "nothing there")),
                Some(target) => match self.node(target).kind {
                    NodeKind::Directory(_) => return Err(missing_target(&link.entry, "a directory")),
                    NodeKind::PendingLink => waits_for.entry(target).or_default().push(place),
                    _ => ready.push((place, target)),
                },
            }
        }
        while let Some((place, target)) = ready.pop() {
            let link = &alive[place];
            self.link(link.dir, &link.name, target);
            ready.extend(waits_for.remove(&link.node).unwrap_or_default().into_iter().map(|place| (place, target)));
        }
        match waits_for.values().flatten().min() {
            Some(place) => Err(missing_target(&alive[*place].entry, "only hard links to each other")),
            None => Ok(()),
        }
    }

    fn make_node(&mut self, layer: LayerIndex, mut entry: Entry) -> Node {
        let kind = match std::mem::replace(&mut entry.kind, EntryKind::Fifo) {
            EntryKind::Regular { size, data } => NodeKind::Regular { size, layer, data: data.into() },
            EntryKind::Symlink(target) => {
                // Linux knows no mode of a symbolic link: all bits are shown as set.
                entry.permissions = 0o777;
                NodeKind::Symlink(target.into())
            }
            EntryKind::CharDevice(major, minor) => NodeKind::CharDevice(major, minor),
            EntryKind::BlockDevice(major, minor) => NodeKind::BlockDevice(major, minor),
            EntryKind::Fifo => NodeKind::Fifo,
            EntryKind::Directory => NodeKind::Directory(BTreeMap::new()),
            EntryKind::HardLink(_) => NodeKind::PendingLink,
        };
        Node { attributes: self.take_attributes(entry), kind }
    }

    fn take_attributes(&mut self, entry: Entry) -> Attributes {
        let mut kept: Xattrs = Vec::new();
        for (name, value) in entry.xattrs {
            if erofs_has(&name) {
                kept.push((name, value));
            } else {
                let namespace = name.split(|byte| *byte == b'.').next().unwrap_or_default();
                self.dropped_xattrs.add(namespace);
            }
        }
        let xattrs = (!kept.is_empty()).then(|| Box::new(kept));
        let Entry { permissions, uid, gid, mtime_s, mtime_ns, .. } = entry;
        Attributes { permissions, uid, gid, mtime_ns, mtime_s, xattrs }
    }
}

/// Namespaces of extended attributes. Source: linux fs/erofs/xattr.h, erofs_xattr_prefix (6.18).
fn erofs_has(name: &[u8]) -> bool {
    let with_name = [&b"user."[..], b"trusted.", b"security."].iter().any(|prefix| name.len() > prefix.len() && name.starts_with(prefix));
    with_name || name == b"system.posix_acl_access" || name == b"system.posix_acl_default"
}

pub(super) fn path_error(entry: &Entry, error: PathError) -> MergeError {
    match error {
        PathError::Loop => {
            MergeError::new(entry, "a path of at most 255 symbolic links, with at most 4096 names in them", "a longer chain or a loop")
        }
        PathError::TooMuch => {
            MergeError::new(entry, "paths that lead through few symbolic links in all", "more links than any image has a use for")
        }
        PathError::NotADirectory(path) => {
            MergeError::new(entry, format!("a directory at {:?}", String::from_utf8_lossy(&path)), "something that is no directory")
        }
    }
}

fn missing_target(entry: &Entry, found: &str) -> MergeError {
    let EntryKind::HardLink(target) = &entry.kind else { return MergeError::new(entry, "a hard link", found) };
    MergeError::new(entry, format!("a file that is no directory at {:?}, the hard link's target", String::from_utf8_lossy(target)), found)
}
