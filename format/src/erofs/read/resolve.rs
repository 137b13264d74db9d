//! From a path to an inode, inside the image only.

use super::{FileType, Index, Inode};
use crate::{error::FormatError, units::Nid};

/// Symlinks followed on one path. Source: MAXSYMLINKS, include/linux/namei.h.
const LINKS_FOLLOWED_MAX: usize = 40;

impl Index {
    /// Follows `path` (slash-separated, from the root, `.` and empty parts skipped, `..` confined to the root) without following a
    /// last symlink; symlinks on the way are followed inside the image, at most 40.
    ///
    /// # Errors
    /// `Corrupt`; a path that does not exist is `Ok(None)`.
    pub fn resolve(&self, path: &[u8]) -> Result<Option<Inode>, FormatError> {
        let root = self.inode(self.root())?;
        // Parts still to be walked, the next one last.
        let mut parts = Vec::new();
        push_parts(&mut parts, path);
        let mut trail = vec![root];
        let mut links = 0;
        while let Some(part) = parts.pop() {
            let Some(here) = trail.last().filter(|inode| inode.file_type == FileType::Directory) else { return Ok(None) };
            if part == b".." {
                if trail.len() > 1 {
                    trail.pop();
                }
                continue;
            }
            let Some(entry) = self.lookup(here, part)? else { return Ok(None) };
            let inode = self.inode(Nid(entry.nid.get()))?;
            if inode.file_type != FileType::Symlink || parts.is_empty() {
                trail.push(inode);
                continue;
            }
            links += 1;
            if links > LINKS_FOLLOWED_MAX {
                return Ok(None);
            }
            let target = self.link_target(&inode)?;
            if target.first() == Some(&b'/') {
                trail.truncate(1);
            }
            push_parts(&mut parts, target);
        }
        Ok(trail.pop())
    }
}

/// Adds the parts of `path`, the first one on top.
fn push_parts<'a>(parts: &mut Vec<&'a [u8]>, path: &'a [u8]) {
    parts.extend(path.rsplit(|&byte| byte == b'/').filter(|part| !part.is_empty() && *part != b"."));
}
