//! What a layer removes from the layers below it.

use std::collections::{HashMap, HashSet};

use super::{
    NodeId, NodeKind, Tree,
    merge::{MergeError, path_error},
    path::{PathError, cleaned},
};
use crate::tar_entry::{Entry, EntryKind};

/// How a marker's name begins. Source: OCI image-spec, layer.md, Whiteouts.
const MARKER: &[u8] = b".wh.";
/// Markers of the storage driver itself begin with this. Source: docker pkg/archive/whiteouts.go.
const META: &[u8] = b".wh..wh.";
/// The one such name with a meaning in layers: the directory hides all that is below. Source: OCI image-spec, layer.md.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What a member's name asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Marker<'a> {
    /// An ordinary member.
    None,
    /// Empty the directory of lower names.
    Opaque,
    /// Remove this name.
    Remove(&'a [u8]),
    /// Left over from a storage driver.
    Ignored,
    /// Would name the directory itself or its parent.
    Invalid,
}

/// The marker in a cleaned path, whichever of its parts it stands in.
pub(super) fn marker<'a>(parts: &[&'a [u8]]) -> Marker<'a> {
    let Some((last, parents)) = parts.split_last() else { return Marker::None };
    if parents.iter().any(|part| part.starts_with(MARKER)) {
        return Marker::Ignored;
    }
    if *last == OPAQUE {
        return Marker::Opaque;
    }
    if last.starts_with(META) {
        return Marker::Ignored;
    }
    match last.strip_prefix(MARKER) {
        None => Marker::None,
        Some(b"" | b"." | b"..") => Marker::Invalid,
        Some(name) => Marker::Remove(name),
    }
}

/// Names that a layer's whiteouts took away, for hard links of the same layer to them.
pub(super) type Removed = HashMap<(NodeId, Box<[u8]>), NodeId>;

impl Tree {
    /// Applies the whiteouts of a layer to the tree as the layers below left it. All are resolved before the first is applied, so
    /// their order means nothing.
    pub(super) fn apply_whiteouts(&mut self, entries: &[Entry]) -> Result<Removed, MergeError> {
        let mut targets: Vec<(NodeId, Option<&[u8]>)> = Vec::new();
        let mut own_dirs: Option<HashSet<[u8; 32]>> = None;
        for entry in entries {
            let parts = cleaned(&entry.path);
            let name = match marker(&parts) {
                Marker::Opaque => None,
                Marker::Remove(name) => Some(name),
                Marker::Invalid => {
                    return Err(MergeError::new(
                        entry,
                        "a whiteout of a name in its directory",
                        "one of the directory itself or its parent",
                    ));
                }
                Marker::None | Marker::Ignored => continue,
            };
            let parents = &parts[..parts.len() - 1];
            // Where this layer puts a directory in place of a lower symbolic link, the marker means that directory: nothing lower is in it.
            let mut stop_at = |literal: usize| own_dirs.get_or_insert_with(|| directories(entries)).contains(&name_of(&parents[..literal]));
            match self.existing_dir(parents, &mut stop_at) {
                Ok(Some(dir)) => targets.push((dir, name)),
                Ok(None) | Err(PathError::NotADirectory(_)) => {}
                Err(error @ (PathError::Loop | PathError::TooMuch)) => return Err(path_error(entry, error)),
            }
        }
        Ok(self.remove(&targets))
    }

    fn remove(&mut self, targets: &[(NodeId, Option<&[u8]>)]) -> Removed {
        let mut removed = Removed::new();
        for (dir, name) in targets {
            let NodeKind::Directory(children) = &mut self.node_mut(*dir).kind else { continue };
            match name {
                Some(name) => removed.extend(children.remove_entry(*name).map(|(name, node)| ((*dir, name), node))),
                None => removed.extend(std::mem::take(children).into_iter().map(|(name, node)| ((*dir, name), node))),
            }
        }
        self.last_parent = None;
        removed
    }
}

/// The directories that are members, by [`name_of`].
fn directories(entries: &[Entry]) -> HashSet<[u8; 32]> {
    entries.iter().filter(|entry| entry.kind == EntryKind::Directory).map(|entry| name_of(&cleaned(&entry.path))).collect()
}

/// A cleaned path in few bytes, however many parts it has.
fn name_of(parts: &[&[u8]]) -> [u8; 32] {
    *blake3::hash(&parts.join(&b'/')).as_bytes()
}
