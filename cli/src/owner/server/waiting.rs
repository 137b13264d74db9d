//! Whoever waits for the end of a mount, for as long as the mount lives: that takes no place of a request.

use std::{io::Read as _, os::unix::net::UnixStream, sync::Arc, time::Duration};

use anyhow::{Context, Result};

use super::{
    super::protocol::{self, Reply},
    Owner,
};

/// Foreground mounts of one owner. Source: chosen; each has a thread that waits and a connection, beside the mount itself.
pub(super) const WAITERS_MAX: usize = 4096;
/// How long the last line may take. Source: judgement; it has room in the socket's buffer.
const TELL_MAX: Duration = Duration::from_secs(1);

/// The connection of a process that waits for its mount's end.
pub(super) struct Waiter(UnixStream);

impl Waiter {
    /// The process knows that its mount has ended, or is gone.
    pub(super) fn tell(&self) {
        if let Err(error) = protocol::send(&mut &self.0, &Reply::Ended) {
            tracing::debug!("whoever waited for a mount was not told of its end: {error}");
        }
        let _ = self.0.shutdown(std::net::Shutdown::Both);
    }
}

impl Owner {
    /// The answer to one who wants to wait where `most` do already.
    pub(super) fn waits_too_many(&self, most: usize) -> Option<Reply> {
        let waiting = self.state().mounts.values().filter(|served| served.waiter.is_some()).count();
        let message = || {
            let pid = std::process::id();
            format!(
                "the owner (pid {pid}) serves {waiting} foreground mounts and no more; mount without --foreground, or use another --cache-dir"
            )
        };
        (waiting >= most).then(|| Reply::Refused { message: message() })
    }

    /// Whoever is at the other end of `stream` is told when mount `id` has ended; when they go away first, it is detached.
    pub(super) fn tell_when_ended(self: &Arc<Self>, id: u64, stream: &UnixStream) -> Result<()> {
        stream.set_read_timeout(None)?;
        stream.set_write_timeout(Some(TELL_MAX))?;
        let (waiter, mut watched) = (Waiter(stream.try_clone()?), stream.try_clone()?);
        let owner = Arc::downgrade(self);
        let spawned = std::thread::Builder::new().name("waiter".to_owned()).spawn(move || {
            let _ = watched.read(&mut [0]);
            if let Some(owner) = owner.upgrade() {
                owner.detach(id);
            }
        });
        if spawned.is_err() {
            self.detach(id);
        }
        match self.state().mounts.get_mut(&id) {
            Some(served) => served.waiter = Some(waiter),
            None => waiter.tell(),
        }
        spawned.map(drop).context("a thread for a waiting mount")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clip_engine::{Engine, EngineConfig};

    use super::{
        super::super::{protocol::Reply, settings::OwnerWish},
        Owner,
    };

    /// Claim: where as many wait as may, one more is refused, with what to do.
    #[test]
    fn one_too_many_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::start(EngineConfig::new(dir.path().join("cache"))).unwrap();
        let (owner, _events) = Owner::new(engine, OwnerWish::default().in_foreground());
        assert_eq!(owner.waits_too_many(1), None);
        let Some(Reply::Refused { message }) = owner.waits_too_many(0) else { panic!("not refused") };
        assert!(message.contains("--foreground"), "{message}");
    }
}
