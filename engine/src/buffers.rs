//! Buffers for decoded bytes, used again instead of allocated anew.
//!
//! A fresh buffer of a span costs a page fault and the zeroing of a page for each 4 KiB of it, and what malloc gets back it may keep.
//! So buffers are maps of their own: kept up to a bound while there is work, given back to the system when there is none.

use std::{
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use memmap2::MmapMut;

/// Buffers below this are malloc's, which keeps such sizes at hand itself. Source: glibc's own threshold for maps, M_MMAP_THRESHOLD.
const POOLED_BYTES_MIN: usize = 128 << 10;
/// Lengths are rounded up to an eighth of the next power of two, so that spans of nearly one length use each other's buffers. Source: judgement,
/// not measured: spans of one layer differ by a deflate block, some tens of KiB in 1 MiB; a quarter of a buffer is wasted at most.
const STEPS: usize = 8;

/// The buffers of one engine.
pub(crate) struct Buffers {
    idle: Mutex<Idle>,
    mapped_bytes_max: u64,
}

#[derive(Default)]
struct Idle {
    /// Oldest first.
    maps: Vec<MmapMut>,
    /// Bytes of all maps, idle and in use.
    mapped_bytes: u64,
    /// The fewest there were since [`Buffers::trim`]: so many were not needed.
    fewest: usize,
}

impl Buffers {
    /// Keeps idle buffers as long as they and those in use are `mapped_bytes_max` bytes at most.
    pub(crate) fn new(mapped_bytes_max: u64) -> Arc<Self> {
        Arc::new(Self { idle: Mutex::default(), mapped_bytes_max })
    }

    /// A buffer of `len` bytes, whose contents are anything: what was in it before, or zeros.
    ///
    /// Cost: a look at the idle ones; a map when none fits.
    pub(crate) fn take(self: &Arc<Self>, len: usize) -> Buffer {
        let memory = if len < POOLED_BYTES_MIN { Memory::Heap(vec![0; len]) } else { self.map(rounded(len)) };
        Buffer { memory, len, home: self.clone() }
    }

    fn map(&self, size: usize) -> Memory {
        let mut idle = self.lock();
        let Some(place) = idle.maps.iter().rposition(|map| map.len() == size) else {
            idle.mapped_bytes += size as u64;
            let given_up = idle.shrink(self.mapped_bytes_max);
            drop(idle);
            // Before there is one map more. Unmapping takes a while: not under the lock.
            drop(given_up);
            return MmapMut::map_anon(size).map_or_else(
                |_| {
                    self.lock().mapped_bytes -= size as u64;
                    // Without a map (the system's limit on maps) the heap may still have room, and if not, that is the end as everywhere.
                    Memory::Heap(vec![0; size])
                },
                Memory::Map,
            );
        };
        let map = idle.maps.remove(place);
        idle.fewest = idle.fewest.min(idle.maps.len());
        Memory::Map(map)
    }

    fn put_back(&self, map: MmapMut) {
        let mut idle = self.lock();
        idle.maps.push(map);
        let given_up = idle.shrink(self.mapped_bytes_max);
        drop(idle);
        drop(given_up);
    }

    /// Gives the system back what was not needed since the last call. True when that was something.
    pub(crate) fn trim(&self) -> bool {
        let mut idle = self.lock();
        let unneeded = idle.fewest;
        let given_up = idle.give_up(unneeded);
        idle.fewest = idle.maps.len();
        drop(idle);
        !given_up.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Idle {
    /// Gives up the oldest until all maps together have `mapped_bytes_max` bytes at most, or none is idle.
    fn shrink(&mut self, mapped_bytes_max: u64) -> Vec<MmapMut> {
        let (mut left, mut count) = (self.mapped_bytes, 0);
        while let Some(oldest) = self.maps.get(count).filter(|_| left > mapped_bytes_max) {
            left -= oldest.len() as u64;
            count += 1;
        }
        self.give_up(count)
    }

    fn give_up(&mut self, count: usize) -> Vec<MmapMut> {
        let given_up: Vec<MmapMut> = self.maps.drain(..count).collect();
        self.mapped_bytes -= given_up.iter().map(|map| map.len() as u64).sum::<u64>();
        self.fewest = self.fewest.min(self.maps.len());
        given_up
    }
}

/// The length of the map that holds `len` bytes.
fn rounded(len: usize) -> usize {
    len.next_multiple_of(len.next_power_of_two() / STEPS)
}

/// Some bytes to write to, back among the idle ones when dropped.
pub(crate) struct Buffer {
    memory: Memory,
    /// Bytes in use; the memory has that many or more.
    len: usize,
    home: Arc<Buffers>,
}

enum Memory {
    Map(MmapMut),
    Heap(Vec<u8>),
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.memory {
            Memory::Map(map) => &map[..self.len],
            Memory::Heap(bytes) => &bytes[..self.len],
        }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Memory::Map(map) => &mut map[..self.len],
            Memory::Heap(bytes) => &mut bytes[..self.len],
        }
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl From<Buffer> for Bytes {
    /// Without a copy; the buffer goes back with the last slice of it.
    fn from(buffer: Buffer) -> Bytes {
        Bytes::from_owner(buffer)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Memory::Map(map) = std::mem::replace(&mut self.memory, Memory::Heap(Vec::new())) {
            self.home.put_back(map);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(buffers: &Buffers) -> (usize, u64) {
        let idle = buffers.lock();
        (idle.maps.len(), idle.mapped_bytes)
    }

    /// Claim: a buffer that was dropped serves the next length near its own, as long as that, and small ones are not kept.
    #[test]
    fn buffers_are_used_again() {
        let buffers = Buffers::new(8 << 20);
        let mut first = buffers.take(1_100_000);
        first.fill(7);
        let address = first.as_ptr();
        let whole = Bytes::from(first);
        let part = whole.slice(5..10);
        drop(whole);
        assert_eq!(kept(&buffers), (0, rounded(1_100_000) as u64), "a slice keeps the buffer");
        drop(part);
        let second = buffers.take(1_099_000);
        assert_eq!((second.len(), second.as_ptr()), (1_099_000, address));
        drop((second, buffers.take(4096)));
        assert_eq!(kept(&buffers), (1, rounded(1_100_000) as u64));
    }

    /// Claim: what is kept passes the bound never, not together with what is in use either; all of it goes back after a while without
    /// use, none that is used meanwhile.
    #[test]
    fn idle_buffers_are_bounded_and_go() {
        let buffers = Buffers::new(3 << 20);
        let many: Vec<Buffer> = (0..10).map(|_| buffers.take(1 << 20)).collect();
        drop(many);
        assert_eq!(kept(&buffers), (3, 3 << 20));
        assert!(!buffers.trim(), "they came just now");
        drop(buffers.take(1 << 20));
        assert!(buffers.trim());
        assert_eq!(kept(&buffers).0, 1, "two were not needed, one was");
        assert!(buffers.trim());
        assert_eq!(kept(&buffers), (0, 0));
        drop(Buffers::new(0).take(1 << 20));
    }

    /// Claim: buffers in use push idle ones out, of another size too, and come back within the bound.
    #[test]
    fn buffers_in_use_count() {
        let buffers = Buffers::new(4 << 20);
        drop([buffers.take(1 << 20), buffers.take(1 << 20)]);
        let large = buffers.take(3 << 20);
        assert_eq!(kept(&buffers), (1, 4 << 20), "one of the two made room");
        let larger = buffers.take(8 << 20);
        assert_eq!(kept(&buffers), (0, 11 << 20), "what is in use is not bounded here");
        drop(large);
        assert_eq!(kept(&buffers), (0, 8 << 20));
        drop(larger);
        assert_eq!(kept(&buffers), (0, 0));
    }

    /// Claim: rounding wastes a quarter at most, and the length fits.
    #[test]
    fn rounding_is_close() {
        for len in (POOLED_BYTES_MIN..9 << 20).step_by(77_777) {
            let size = rounded(len);
            assert!(size >= len && size - len <= len / 4, "{len} {size}");
        }
        assert_eq!(rounded(1 << 20), 1 << 20);
    }
}
