//! Layers to a directory, as a container store unpacks them: the plain way that a lazy mount is held against.
//!
//! Device files, fifos and sockets are left out: whatever runs in the tree gets a `/dev` of its own.

use std::{
    collections::HashSet,
    fs,
    io::{BufReader, Read},
    path::{Component, Path, PathBuf},
};

use anyhow::{Context, Result};
use flate2::read::MultiGzDecoder;
use tar::{Archive, EntryType};

/// Bytes of one read of a layer's stream. Source: as much as a pipe of a container store moves at a time.
const PIECE_BYTES: usize = 128 << 10;
const WHITEOUT: &str = ".wh.";
const OPAQUE: &str = ".wh..wh..opq";

/// Unpacks the layer `blob` over what is in `dir`: its whiteouts remove, its entries replace.
///
/// # Errors
/// When the blob is damaged or `dir` cannot be written.
pub fn unpack_layer(blob: &[u8], dir: &Path) -> Result<()> {
    let stream: Box<dyn Read + '_> = match blob {
        [0x1f, 0x8b, ..] => Box::new(MultiGzDecoder::new(blob)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::stream::read::Decoder::new(blob)?),
        _ => Box::new(blob),
    };
    let mut archive = Archive::new(BufReader::with_capacity(PIECE_BYTES, stream));
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(true);
    archive.set_preserve_mtime(true);
    archive.set_unpack_xattrs(true);
    let mut own = HashSet::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let parent = path.parent().unwrap_or(Path::new(""));
        if name == OPAQUE {
            remove_below(&dir.join(inside(parent)), &inside(parent), &own)?;
        } else if let Some(removed) = name.strip_prefix(WHITEOUT) {
            remove(&dir.join(inside(parent)).join(removed))?;
        } else if !matches!(entry.header().entry_type(), EntryType::Char | EntryType::Block | EntryType::Fifo) {
            clear_way(&dir.join(inside(&path)), entry.header().entry_type())?;
            entry.unpack_in(dir).with_context(|| format!("unpack {}", path.display()))?;
            own.insert(inside(&path));
        }
    }
    Ok(())
}

/// `path` without anything that would leave the directory.
fn inside(path: &Path) -> PathBuf {
    path.components().filter(|part| matches!(part, Component::Normal(_))).collect()
}

/// What is no directory gives way to anything, and a directory to what is none.
fn clear_way(path: &Path, to: EntryType) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() && to == EntryType::Directory => Ok(()),
        Ok(_) => remove(path),
        Err(_) => Ok(()),
    }
}

fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => Ok(()),
    };
    removed.with_context(|| format!("remove {}", path.display()))
}

/// Removes what lower layers left below `dir`, which is `path` in the image; what this layer made, `own`, stays.
fn remove_below(dir: &Path, path: &Path, own: &HashSet<PathBuf>) -> Result<()> {
    let Ok(entries) = fs::read_dir(dir) else { return Ok(()) };
    for entry in entries {
        let name = entry?.file_name();
        let (found, path) = (dir.join(&name), path.join(&name));
        if !own.contains(&path) {
            remove(&found)?;
        } else if fs::symlink_metadata(&found)?.is_dir() {
            remove_below(&found, &path, own)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn layer(entries: &[(&str, Option<&str>)]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, content) in entries {
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(if content.is_some() { EntryType::Regular } else { EntryType::Directory });
            header.set_mode(0o755);
            // The user that runs the test may own files.
            header.set_uid(u64::from(rustix::process::getuid().as_raw()));
            header.set_gid(u64::from(rustix::process::getgid().as_raw()));
            let content = content.unwrap_or_default().as_bytes();
            header.set_size(content.len() as u64);
            tar.append_data(&mut header, path, content).unwrap();
        }
        zstd::bulk::compress(&tar.into_inner().unwrap(), 1).unwrap()
    }

    /// Claim: a whiteout removes what is below, an opaque directory keeps what its own layer has, whatever the order.
    #[test]
    fn whiteouts_remove_lower_entries_only() {
        let dir = tempfile::tempdir().unwrap();
        let exists = |path: &str| dir.path().join(path).exists();
        unpack_layer(&layer(&[("a/", None), ("a/old", Some("1")), ("b", Some("2")), ("c", Some("3")), ("d/", None)]), dir.path()).unwrap();
        let upper = [("a/", None), ("a/new", Some("4")), ("a/.wh..wh..opq", Some("")), (".wh.b", Some("")), ("d", Some("5"))];
        unpack_layer(&layer(&upper), dir.path()).unwrap();
        assert_eq!([exists("a/old"), exists("a/new"), exists("b"), exists("c")], [false, true, false, true]);
        assert_eq!(fs::read_to_string(dir.path().join("d")).unwrap(), "5");
    }
}
