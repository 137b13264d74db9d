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
    /// with it, and so does `guard`, whoever stops waiting.
    ///
    /// Cost: one operation of the ring, which goes to the kernel with those of other spans when the shard next waits; a dup and a close.
    ///
    /// # Errors
    /// The system's; a full disk is one of them.
    pub(crate) async fn write_all(self, file: &Arc<File>, bytes: Bytes, offset: u64, guard: impl Send + 'static) -> io::Result<()> {
        match self {
            Disk::Uring => {
                let file = tokio_uring::fs::File::from_std(file.try_clone()?);
                // Dropped, not closed by the ring: that would be a second operation and wait, to close what is only a second name.
                // A shard's ring waits for its writes when it ends, and the lock for the shard.
                let written = file.write_all_at(bytes, offset).await.0;
                drop(guard);
                written
            }
            Disk::Pool => {
                let file = file.clone();
                on_pool(move || file.write_all_at(&bytes, offset), guard).await
            }
        }
    }
}

/// Runs `work` on the runtime's pool, which may outlive the runtime; `guard` lives until it is over.
async fn on_pool(work: impl FnOnce() -> io::Result<()> + Send + 'static, guard: impl Send + 'static) -> io::Result<()> {
    let work = move || {
        let done = work();
        drop(guard);
        done
    };
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{sync::mpsc, time::Duration};

    use super::*;

    /// Claim: what a write keeps is kept until the write is over, though it hangs and the runtime is gone meanwhile.
    #[test]
    fn a_write_that_hangs_keeps_its_guard() {
        let (guard, (go, hangs), (started, is_hanging)) = (Arc::new(()), mpsc::channel::<()>(), mpsc::channel());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let work = move || {
            started.send(()).unwrap();
            hangs.recv().map_err(io::Error::other)
        };
        let write = on_pool(work, guard.clone());
        runtime.block_on(async { drop(tokio::time::timeout(Duration::from_millis(20), write).await) });
        is_hanging.recv().unwrap();
        runtime.shutdown_background();
        assert_eq!(Arc::strong_count(&guard), 2);
        go.send(()).unwrap();
        while Arc::strong_count(&guard) > 1 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
