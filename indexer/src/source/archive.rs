//! A tar of image files, read in place: the blobs are ranges of it.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use clip_engine::{error::EngineError, files::open_regular, source::BlobSource};
use clip_format::digest::Digest;

use super::oci_layout::{LayoutFiles, read_small};
use crate::error::IndexError;

/// Members of an archive of images. Source: the largest known `docker save` has a few thousand.
const MEMBERS_MAX: usize = 1 << 20;
/// Links followed to one member.
const LINKS_MAX: usize = 8;

enum Member {
    /// Offset and length of the data.
    File(u64, u64),
    /// To this member.
    Link(String),
}

/// An archive whose members are known.
pub(super) struct Archive {
    path: PathBuf,
    members: HashMap<String, Member>,
}

impl Archive {
    /// Reads the headers only.
    ///
    /// # Errors
    /// `Io`, also for a file that is no tar; `Unsupported` for a compressed one.
    pub(super) fn open(path: &Path) -> Result<Self, IndexError> {
        let io = |error| EngineError::io("read the archive", path, error);
        let file = open_regular(path).map_err(|error| EngineError::io("open", path, error))?;
        refuse_compressed(&file, path)?;
        let len = file.metadata().map_err(io)?.len();
        let cut = |expected: String| IndexError::Image {
            what: path.display().to_string(),
            expected,
            found: format!("one that ends early, at byte {len}"),
        };
        // A tar is made of blocks.
        let in_header = |error| if len % 512 == 0 { io(error).into() } else { cut("a whole tar".to_owned()) };
        let mut archive = tar::Archive::new(file);
        let mut members = HashMap::new();
        for entry in archive.entries_with_seek().map_err(io)? {
            let entry = entry.map_err(in_header)?;
            let name = normal(&String::from_utf8_lossy(&entry.path_bytes()));
            let kind = entry.header().entry_type();
            let target = entry.link_name_bytes().map(|target| String::from_utf8_lossy(&target).into_owned()).unwrap_or_default();
            let member = if kind.is_file() || kind.is_contiguous() {
                let end = entry.raw_file_position().saturating_add(entry.size());
                if end > len {
                    return Err(cut(format!("a tar whose member {name} ends at byte {end}")));
                }
                Member::File(entry.raw_file_position(), entry.size())
            } else if kind.is_symlink() {
                let parent = name.rsplit_once('/').map_or("", |(parent, _)| parent);
                Member::Link(normal(&format!("{parent}/{target}")))
            } else if kind.is_hard_link() {
                Member::Link(normal(&target))
            } else {
                continue;
            };
            members.insert(name, member);
            if members.len() > MEMBERS_MAX {
                let what = path.display().to_string();
                return Err(IndexError::Image { what, expected: format!("at most {MEMBERS_MAX} members"), found: "more".to_owned() });
            }
        }
        Ok(Self { path: path.to_owned(), members })
    }

    /// The archive's own path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the member is, links followed, if it is there.
    pub(super) fn member(&self, name: &str) -> Option<BlobSource> {
        let mut name = normal(name);
        for _ in 0..LINKS_MAX {
            match self.members.get(&name)? {
                Member::File(offset, size) => return Some(BlobSource::File { path: self.path.clone(), offset: *offset, size: *size }),
                Member::Link(target) => name.clone_from(target),
            }
        }
        None
    }

    /// The blob of an OCI layout in the archive, if it is there.
    pub(super) fn blob(&self, digest: &Digest) -> Option<BlobSource> {
        self.member(&format!("blobs/{}/{}", digest.algorithm(), digest.to_hex()))
    }

    /// The bytes of a small member.
    ///
    /// # Errors
    /// `Image` when there is none, or it is too large.
    pub(super) fn read(&self, name: &str) -> Result<Bytes, IndexError> {
        let member = self.member(name).ok_or_else(|| IndexError::Image {
            what: self.path.display().to_string(),
            expected: format!("a member {name}"),
            found: "none such".to_owned(),
        })?;
        read_small(&member)
    }
}

impl LayoutFiles for Archive {
    fn index(&self) -> Result<Bytes, IndexError> {
        Archive::read(self, "index.json")
    }

    fn find(&self, digest: &Digest) -> Option<BlobSource> {
        self.blob(digest)
    }

    fn read(&self, blob: &BlobSource) -> Result<Bytes, IndexError> {
        read_small(blob)
    }
}

fn refuse_compressed(file: &fs::File, path: &Path) -> Result<(), IndexError> {
    use std::os::unix::fs::FileExt;
    let mut magic = [0; 4];
    let read = file.read_at(&mut magic, 0).map_err(|error| EngineError::io("read", path, error))?;
    let found = match &magic[..read] {
        [0x1f, 0x8b, ..] => "a gzip-compressed archive",
        [0x28, 0xb5, 0x2f, 0xfd] => "a zstd-compressed archive",
        [b'B', b'Z', b'h', _] => "a bzip2-compressed archive",
        [0xfd, b'7', b'z', b'X'] => "an xz-compressed archive",
        _ => return Ok(()),
    };
    Err(IndexError::Unsupported {
        what: path.display().to_string(),
        found: found.to_owned(),
        hint: "decompress it first: its layers are read in place".to_owned(),
    })
}

/// Without `.`, `..` and empty parts.
fn normal(name: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            _ => parts.push(part),
        }
    }
    parts.join("/")
}
