//! `clip extract`: a tree of an image as files, never outside the directory given.

mod node;
mod place;

use std::{
    collections::{HashMap, HashSet},
    os::unix::ffi::OsStrExt as _,
};

use anyhow::{Context, Result, bail, ensure};
use clip_format::{
    erofs::{Extent, FileType, Index, Inode},
    units::Nid,
};

use crate::{
    args::ExtractArgs,
    clip_input::{self, CacheChoice, OpenedImage},
    display::escaped,
    exit::{self, Outcome},
    interrupt,
    pieces::{Pieces, cut, file_extents},
};
use node::{Node, Skipped};
use place::{DirId, Place};

/// The tree, or the path asked for, is below `DIR`. A failure or an interruption after the first step says that a part of it is.
pub fn run(args: &ExtractArgs) -> Result<Outcome> {
    let opened = clip_input::open_image(&args.clip, &args.read, CacheChoice::Shared)?;
    let path = args.path.as_ref().map_or(&b"/"[..], |path| path.as_bytes());
    let index = opened.image.index();
    let (top, found) = clip_input::resolve_following(index, path)?;
    interrupt::watch()?;
    let mut place = Place::open(&args.dir, args.force)?;
    let partial = format!("{} holds a partial tree", args.dir.display());
    let said = partial.clone();
    let interrupted = interrupt::on_interrupt(move || exit::report(&anyhow::anyhow!("interrupted: {said}")));
    fill(&opened, &mut place, &top, &found).context(partial)?;
    drop(interrupted);
    report_skipped(&place.skipped);
    Ok(Outcome::Good)
}

/// `top`, found as `found` in the image, is in `place`, with all below it.
fn fill(opened: &OpenedImage, place: &mut Place, top: &Inode, found: &[u8]) -> Result<()> {
    let index = opened.image.index();
    let files =
        if top.file_type == FileType::Directory { Walk::new(index, place).tree(top)? } else { Walk::new(index, place).one(top, found)? };
    write_files(opened, place, files)?;
    place.finish(top, top.file_type == FileType::Directory, index)
}

/// A regular file whose name exists already and whose data is still to come.
struct File {
    directory: DirId,
    name: Vec<u8>,
    node: Node,
    inode: Inode,
}

/// Makes everything but the data of regular files.
struct Walk<'a> {
    index: &'a Index,
    place: &'a mut Place,
    files: Vec<File>,
    /// Where the first name of an inode with several went.
    linked: HashMap<Nid, (DirId, Vec<u8>, Node)>,
    directories: HashSet<Nid>,
}

impl<'a> Walk<'a> {
    fn new(index: &'a Index, place: &'a mut Place) -> Self {
        Self { index, place, files: Vec::new(), linked: HashMap::new(), directories: HashSet::new() }
    }

    fn one(mut self, inode: &Inode, path: &[u8]) -> Result<Vec<File>> {
        let name = path.split(|byte| *byte == b'/').rfind(|part| !part.is_empty()).unwrap_or(b"");
        let root = self.place.root();
        self.entry(root, name, inode)?;
        Ok(self.files)
    }

    fn tree(mut self, top: &Inode) -> Result<Vec<File>> {
        let mut open = vec![(self.place.root(), top.clone())];
        while let Some((at, directory)) = open.pop() {
            ensure!(self.directories.insert(directory.nid), "{}: a directory in two places; the .clip is damaged", self.place.path(at));
            for entry in self.index.dir_entries(&directory, 0) {
                let entry = entry.with_context(|| self.place.path(at))?;
                if entry.name == b"." || entry.name == b".." {
                    continue;
                }
                let inode = self.index.inode(entry.nid).with_context(|| self.place.path(at))?;
                if let Some(child) = self.entry(at, entry.name, &inode)? {
                    open.push((child, inode));
                }
            }
        }
        Ok(self.files)
    }

    /// Makes one name; a directory is returned, for its entries.
    fn entry(&mut self, at: DirId, name: &[u8], inode: &Inode) -> Result<Option<DirId>> {
        check_name(name).with_context(|| self.place.path(at))?;
        let context = |place: &Place| format!("{}/{}", place.path(at), escaped(name));
        if inode.file_type == FileType::Directory {
            return self.place.make_dir(at, name, inode).map(Some).with_context(|| context(self.place));
        }
        if let Some((directory, first, node)) = self.linked.get(&inode.nid) {
            self.place.link((*directory, first), *node, at, name).with_context(|| context(self.place))?;
            return Ok(None);
        }
        let made = self.node(at, name, inode).with_context(|| context(self.place))?;
        if let Some(node) = made.filter(|_| inode.nlink > 1) {
            self.linked.insert(inode.nid, (at, name.to_vec(), node));
        }
        Ok(None)
    }

    /// Makes the first name of what is no directory; `None`: it was left out.
    fn node(&mut self, at: DirId, name: &[u8], inode: &Inode) -> Result<Option<Node>> {
        match inode.file_type {
            FileType::Regular => {
                let node = self.place.make_file(at, name, inode)?;
                self.files.push(File { directory: at, name: name.to_vec(), node, inode: inode.clone() });
                Ok(Some(node))
            }
            FileType::Symlink => self.place.make_symlink(at, name, self.index.link_target(inode)?, inode, self.index).map(Some),
            _ => self.place.make_special(at, name, inode, self.index),
        }
    }
}

/// A name that stays where it is put.
fn check_name(name: &[u8]) -> Result<()> {
    if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') || name.contains(&0) {
        bail!("the name {:?} could lead outside; the .clip is damaged or hostile", escaped(name));
    }
    Ok(())
}

/// Fills the files in the order of their bytes in the layers, so that each span is fetched and decoded once.
fn write_files(opened: &OpenedImage, place: &mut Place, files: Vec<File>) -> Result<()> {
    let index = opened.image.index();
    let mut wanted: Vec<(usize, Extent)> = Vec::new();
    for (number, file) in files.iter().enumerate() {
        let extents = file_extents(index, &file.inode).with_context(|| file_path(place, file))?;
        wanted.extend(extents.into_iter().filter(|extent| extent.data.is_some()).map(|extent| (number, extent)));
    }
    wanted.sort_by_key(|(_, extent)| extent.data);
    let pieces = wanted.into_iter().flat_map(|(number, extent)| cut(number, extent));
    let mut open: Option<(usize, std::fs::File)> = None;
    for (piece, bytes) in Pieces::new(opened.image.clone(), pieces) {
        let number = piece.tag.file;
        let file = &files[number];
        let context = |place: &Place| format!("{}, offset {}", file_path(place, file), piece.tag.offset);
        let bytes = bytes.with_context(|| context(place))?;
        if open.as_ref().is_none_or(|(other, _)| *other != number) {
            let opened = place.open_file(file.directory, &file.name, file.node);
            open = Some((number, opened.with_context(|| context(place))?));
        }
        if let Some((_, open)) = &open {
            std::os::unix::fs::FileExt::write_all_at(open, &bytes, piece.tag.offset).with_context(|| context(place))?;
        }
    }
    drop(open);
    for file in &files {
        place.finish_file(file.directory, &file.name, file.node, &file.inode, index).with_context(|| file_path(place, file))?;
    }
    Ok(())
}

fn file_path(place: &Place, file: &File) -> String {
    format!("{}/{}", place.path(file.directory), escaped(&file.name))
}

fn report_skipped(skipped: &Skipped) {
    if skipped.special_files > 0 {
        tracing::warn!("{} devices were not made: only root can", skipped.special_files);
    }
    if skipped.owners > 0 {
        tracing::warn!("{} owners were not set: only root can give files away", skipped.owners);
    }
    if skipped.set_id_bits > 0 {
        tracing::warn!(
            "{} files and directories are without the set-user-id or set-group-id bit of the image: their owner was not set",
            skipped.set_id_bits
        );
    }
    if skipped.xattrs > 0 {
        let reason = skipped.xattr_reason.as_deref().unwrap_or("only root can set all of them");
        tracing::warn!("{} extended attributes were not set: {reason}", skipped.xattrs);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No name of a hostile index can leave its directory.
    #[test]
    fn names_that_lead_outside_are_refused() {
        for bad in [&b""[..], b".", b"..", b"a/b", b"/etc/passwd", b"../x", b"a\0b"] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
        for good in [&b"a"[..], b"...", b".hidden", b"\xff", b"a\nb", b"-rf"] {
            assert!(check_name(good).is_ok(), "{good:?}");
        }
    }
}
