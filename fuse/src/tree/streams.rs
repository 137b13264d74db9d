//! A bounded memory of who reads which inode: what was used lately is kept, the rest is forgotten.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use clip_format::units::Nid;

/// Locks, so that session threads seldom meet. Source: a power of two over the largest number of session threads that make sense (8).
const SHARDS: usize = 16;
/// Inodes of one generation of one shard. A shard holds at most two generations, all together 8,192 inodes: more than a node's
/// processes read at one moment. Reaching it forgets the older generation: these readers earn their read-ahead anew.
const GENERATION_MAX: usize = 256;

/// Streams by inode.
pub(super) struct Streams<S> {
    shards: [Mutex<Generations<S>>; SHARDS],
}

struct Generations<S> {
    young: HashMap<Nid, Arc<S>>,
    old: HashMap<Nid, Arc<S>>,
}

impl<S: Default> Streams<S> {
    pub(super) fn new() -> Self {
        Self { shards: std::array::from_fn(|_| Mutex::new(Generations { young: HashMap::new(), old: HashMap::new() })) }
    }

    /// The stream of `nid`, a new one when it was not read lately.
    pub(super) fn of(&self, nid: Nid) -> Arc<S> {
        let shard = &self.shards[(nid.get() as usize) % SHARDS];
        let mut generations = shard.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stream) = generations.young.get(&nid) {
            return Arc::clone(stream);
        }
        let stream = generations.old.remove(&nid).unwrap_or_default();
        if generations.young.len() >= GENERATION_MAX {
            generations.old = std::mem::take(&mut generations.young);
        }
        generations.young.insert(nid, Arc::clone(&stream));
        stream
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However many inodes are read, the map stays bounded, and an inode that is read all the time keeps its stream.
    #[test]
    fn bounded_and_keeps_what_is_used() {
        let streams: Streams<Mutex<u32>> = Streams::new();
        let busy = streams.of(Nid(0));
        for nid in 1..100_000 {
            streams.of(Nid(nid));
            assert!(Arc::ptr_eq(&busy, &streams.of(Nid(0))));
        }
        let kept: usize = streams.shards.iter().map(|shard| shard.lock().map_or(0, |g| g.young.len() + g.old.len())).sum();
        assert!(kept <= 2 * SHARDS * GENERATION_MAX, "{kept}");
    }
}
