//! Paths of members: cleaned by their text, then resolved inside the root as umoci's securejoin does.

use std::collections::VecDeque;

use super::{NodeId, NodeKind, ROOT, Tree};

/// Symbolic links followed for one path. Source: cyphar/filepath-securejoin 0.2, which umoci resolves with.
const LINKS_MAX: usize = 255;

/// Why a parent directory could not be found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PathError {
    /// More than `LINKS_MAX` symbolic links.
    Loop,
    /// This part of the path exists and is no directory.
    NotADirectory(Vec<u8>),
}

/// The parts of `path` after `.`, `..` and empty parts are resolved by their text; `..` at the root stays there.
pub(super) fn cleaned(path: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            _ => parts.push(part),
        }
    }
    parts
}

/// One part of a resolved path: its name, and its node where it exists.
type Step = (Vec<u8>, Option<NodeId>);

impl Tree {
    /// The directory at `parts`, symbolic links followed inside the root, or `None` when some part does not exist or is no directory.
    /// `stop_at` may end the walk (as if nothing were there) before the symbolic link at the given number of literal parts is followed.
    pub(super) fn existing_dir(&self, parts: &[&[u8]], stop_at: &mut dyn FnMut(usize) -> bool) -> Result<Option<NodeId>, PathError> {
        let Some(steps) = self.resolve(parts, stop_at)? else { return Ok(None) };
        let dir = steps.last().map_or(Some(ROOT), |step| step.1);
        Ok(dir.filter(|dir| self.children(*dir).is_some()))
    }

    /// As `existing_dir`, creating what is missing: 0755, root, mtime 0.
    pub(super) fn ensure_dir(&mut self, parts: &[&[u8]]) -> Result<NodeId, PathError> {
        let key = parts.join(&b'/');
        if let Some((text, dir)) = &self.last_parent
            && *text == key
        {
            return Ok(*dir);
        }
        let steps = self.resolve(parts, &mut |_| false)?.unwrap_or_default();
        let mut dir = ROOT;
        for (place, (name, node)) in steps.iter().enumerate() {
            // What did not exist may do so now, where an earlier `..` made the same name come twice.
            dir = match node.or_else(|| self.child(dir, name)) {
                Some(node) if self.children(node).is_some() => node,
                Some(_) => {
                    let names: Vec<&[u8]> = steps[..=place].iter().map(|step| step.0.as_slice()).collect();
                    return Err(PathError::NotADirectory(names.join(&b'/')));
                }
                None => self.new_implied_dir(dir, name),
            };
        }
        self.last_parent = Some((key, dir));
        Ok(dir)
    }

    /// The path without symbolic links; parts that do not exist are taken as they are written.
    fn resolve(&self, parts: &[&[u8]], stop_at: &mut dyn FnMut(usize) -> bool) -> Result<Option<Vec<Step>>, PathError> {
        let mut steps: Vec<Step> = Vec::with_capacity(parts.len());
        let mut rest: VecDeque<Vec<u8>> = VecDeque::new();
        let mut links = 0;
        let mut literal = 0;
        while let Some(part) = rest.pop_front().or_else(|| {
            let part = parts.get(literal)?;
            literal += 1;
            Some(part.to_vec())
        }) {
            match part.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    steps.pop();
                    continue;
                }
                _ => {}
            }
            let parent = steps.last().map_or(Some(ROOT), |step| step.1);
            let node = parent.and_then(|parent| self.child(parent, &part));
            let target = match node.map(|node| &self.node(node).kind) {
                Some(NodeKind::Symlink(target)) => target,
                _ => {
                    steps.push((part, node));
                    continue;
                }
            };
            if links == 0 && stop_at(literal) {
                return Ok(None);
            }
            links += 1;
            if links > LINKS_MAX {
                return Err(PathError::Loop);
            }
            if target.starts_with(b"/") {
                steps.clear();
            }
            for part in target.rsplit(|byte| *byte == b'/') {
                rest.push_front(part.to_vec());
            }
        }
        Ok(Some(steps))
    }
}
