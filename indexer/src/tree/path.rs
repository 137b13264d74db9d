//! Paths of members: cleaned by their text, then resolved inside the root as umoci's securejoin does.

use super::{INODES_MAX, NodeId, NodeKind, ROOT, Tree};

/// Symbolic links followed for one path. Source: cyphar/filepath-securejoin 0.2, which umoci resolves with.
const LINKS_MAX: usize = 255;
/// Parts of all the targets that are followed for one path. Source: a path of PATH_MAX bytes has 2,048 names.
const LINK_PARTS_MAX: usize = 4096;
/// The same for all paths of an image. Source: 16 for each of the inodes that there can be; half a minute of look-ups.
pub(super) const IMAGE_LINK_PARTS_MAX: u64 = 16 * INODES_MAX as u64;

/// Why a parent directory could not be found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PathError {
    /// More than `LINKS_MAX` symbolic links, or `LINK_PARTS_MAX` parts in their targets.
    Loop,
    /// The paths so far and this one have led through more than `IMAGE_LINK_PARTS_MAX` parts of targets.
    TooMuch,
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
type Step<'a> = (&'a [u8], Option<NodeId>);

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
        let is_dir = |step: &Step<'_>| step.1.is_some_and(|node| self.children(node).is_some());
        let dir = match steps.iter().all(is_dir) {
            true => steps.last().and_then(|step| step.1).unwrap_or(ROOT),
            false => {
                // Names may stand in the tree, which changes now.
                let steps = steps.into_iter().map(|(name, node)| (name.to_vec(), node)).collect();
                self.create_dirs(steps)?
            }
        };
        self.last_parent = Some((key, dir));
        Ok(dir)
    }

    /// The directory at the end of `steps`, those made that are missing.
    fn create_dirs(&mut self, steps: Vec<(Vec<u8>, Option<NodeId>)>) -> Result<NodeId, PathError> {
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
        Ok(dir)
    }

    /// The path without symbolic links; parts that do not exist are taken as they are written.
    ///
    /// Cost: a look-up for each part of the path and of the targets that it leads through, which have a bound.
    fn resolve<'a>(&'a self, parts: &[&'a [u8]], stop_at: &mut dyn FnMut(usize) -> bool) -> Result<Option<Vec<Step<'a>>>, PathError> {
        let mut steps: Vec<Step<'a>> = Vec::with_capacity(parts.len());
        // The next one last.
        let mut rest: Vec<&'a [u8]> = Vec::new();
        let (mut links, mut link_parts, mut literal) = (0, 0, 0);
        while let Some(part) = rest.pop().or_else(|| {
            let part = parts.get(literal)?;
            literal += 1;
            Some(part)
        }) {
            match part {
                b"" | b"." => continue,
                b".." => {
                    steps.pop();
                    continue;
                }
                _ => {}
            }
            let parent = steps.last().map_or(Some(ROOT), |step| step.1);
            let node = parent.and_then(|parent| self.child(parent, part));
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
            if target.starts_with(b"/") {
                steps.clear();
            }
            let before = rest.len();
            rest.extend(target.rsplit(|byte| *byte == b'/'));
            links += 1;
            link_parts += rest.len() - before;
            self.link_parts.set(self.link_parts.get() + (rest.len() - before) as u64);
            if links > LINKS_MAX || link_parts > LINK_PARTS_MAX {
                return Err(PathError::Loop);
            }
            if self.link_parts.get() > IMAGE_LINK_PARTS_MAX {
                return Err(PathError::TooMuch);
            }
        }
        Ok(Some(steps))
    }
}
