//! Writing spans to the cache: io_uring, or pwrite on the runtime's small pool.

use std::{fs::File, io, os::unix::fs::FileExt, sync::Arc};

use bytes::Bytes;

/// How one shard writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disk {
    /// On the shard's own ring.
    Uring,
    /// On the runtime's blocking threads.
    Pool,
}

impl Disk {
    /// All of `bytes` stand at `offset` of `file`; short writes go on where they stopped. The buffer lives until the kernel is done
    /// with it, whoever stops waiting.
    ///
    /// Cost: one operation of the ring, which goes to the kernel with those of other spans when the shard next waits; a dup and a close.
    ///
    /// # Errors
    /// The system's; a full disk is one of them.
    pub(crate) async fn write_all(self, file: &Arc<File>, bytes: Bytes, offset: u64) -> io::Result<()> {
        match self {
            Disk::Uring => {
                let file = tokio_uring::fs::File::from_std(file.try_clone()?);
                // Dropped, not closed by the ring: that would be a second operation and wait, to close what is only a second name.
                file.write_all_at(bytes, offset).await.0
            }
            Disk::Pool => {
                let file = file.clone();
                let write = tokio::task::spawn_blocking(move || file.write_all_at(&bytes, offset));
                write.await.map_err(io::Error::other)?
            }
        }
    }
}
