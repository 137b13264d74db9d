//! What runs in a process of its own, so that its memory is nobody else's.

use std::{fs::File, io::Read as _, path::PathBuf};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::{corpus::LARGE_PATH, floor::PIECE_BYTES, machine, measure::mount, rootfs, serve, setup};

/// What a child does.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Role {
    /// Nothing.
    Idle,
    /// Indexes an image.
    Index {
        /// Where it is.
        reference: String,
    },
    /// Serves a mount until its standard input ends.
    Serve(serve::ServeArgs),
    /// Becomes a command in a chroot.
    Chroot {
        /// The new root.
        root: PathBuf,
        /// The command.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Mounts an image, and then reads its large file.
    Mount {
        /// The index.
        clip: PathBuf,
        /// An empty directory.
        mountpoint: PathBuf,
        /// A cache directory.
        cache: PathBuf,
    },
}

/// What a child's memory came to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Memory {
    /// VmHWM.
    pub peak_kib: u64,
    /// RssAnon.
    pub anonymous_kib: u64,
    /// BLAKE3 of what it produced so far, hex.
    pub work: String,
}

impl Memory {
    fn print(work: &blake3::Hash) -> Result<()> {
        let memory = Self {
            peak_kib: machine::status_kib("VmHWM")?,
            anonymous_kib: machine::status_kib("RssAnon")?,
            work: work.to_hex().to_string(),
        };
        println!("{}", serde_json::to_string(&memory)?);
        Ok(())
    }
}

/// Does what `role` says and prints a [`Memory`] a line: after the work, and for a mount before the reading too.
///
/// # Errors
/// Every kind.
pub fn run(role: &Role) -> Result<()> {
    match role {
        Role::Idle => Memory::print(&blake3::hash(b"")),
        Role::Index { reference } => Memory::print(&setup::sections_hash(&setup::index(reference)?.clip)?),
        Role::Serve(args) => serve::run(args),
        Role::Chroot { root, command } => rootfs::enter(root, command),
        Role::Mount { clip, mountpoint, cache } => {
            let (_engine, image) = setup::open(cache, clip)?;
            let mounted = mount::mount(image, mountpoint)?;
            let path = mountpoint.join(LARGE_PATH);
            let len = std::fs::metadata(&path)?.len();
            Memory::print(&blake3::hash(&len.to_le_bytes()))?;
            let read = hash_file(File::open(&path)?);
            // The file is closed: the kernel lets go.
            mount::end(mounted)?;
            Memory::print(&read?)
        }
    }
}

fn hash_file(mut file: File) -> Result<blake3::Hash> {
    let (mut hasher, mut piece) = (blake3::Hasher::new(), vec![0; PIECE_BYTES]);
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(hasher.finalize()),
            len => hasher.update(&piece[..len]),
        };
    }
}
