//! Which spans of a layer are on disk: a bitmap, in memory and in the file `spans`.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    sync::{Mutex, PoisonError},
};

use clip_format::units::SpanIndex;

/// The bitmap and its file. Bit `span % 8` of byte `span / 8`; bits past the last span mean nothing.
///
/// Nothing is synced: a bit that was lost costs a fetch, and a bit that is set too much costs a hash, since every owner verifies
/// what it finds.
pub(crate) struct Presence {
    file: File,
    bits: Mutex<Vec<u8>>,
}

/// Bytes of a bitmap for `spans` spans.
pub(crate) fn bitmap_bytes(spans: u32) -> usize {
    spans.div_ceil(8) as usize
}

impl Presence {
    /// What `file` says, which must be [`bitmap_bytes`] long.
    pub(crate) fn open(file: File, spans: u32) -> std::io::Result<Self> {
        let mut bits = vec![0; bitmap_bytes(spans)];
        file.read_exact_at(&mut bits, 0)?;
        Ok(Self { file, bits: Mutex::new(bits) })
    }

    pub(crate) fn get(&self, span: SpanIndex) -> bool {
        let (byte, bit) = place(span);
        self.bits.lock().unwrap_or_else(PoisonError::into_inner)[byte] & bit != 0
    }

    /// Sets or clears the bit of `span`, in memory and in the file. Cost: one `pwrite` of one byte.
    pub(crate) fn set(&self, span: SpanIndex, on_disk: bool) -> std::io::Result<()> {
        let (byte, bit) = place(span);
        let mut bits = self.bits.lock().unwrap_or_else(PoisonError::into_inner);
        if on_disk {
            bits[byte] |= bit
        } else {
            bits[byte] &= !bit
        }
        // Under the lock, so that neighbours in one byte do not overwrite each other.
        self.file.write_all_at(&bits[byte..=byte], byte as u64)
    }
}

fn place(span: SpanIndex) -> (usize, u8) {
    ((span.get() / 8) as usize, 1 << (span.get() % 8))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// Claim: what is set is there for the next owner, neighbours untouched, even when threads set bits of one byte at once.
    #[test]
    fn bits_survive() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(bitmap_bytes(20) as u64).unwrap();
        let presence = Presence::open(file.try_clone().unwrap(), 20).unwrap();
        std::thread::scope(|scope| {
            for span in (0..20).step_by(2) {
                let presence = &presence;
                scope.spawn(move || presence.set(SpanIndex(span), true).unwrap());
            }
        });
        presence.set(SpanIndex(4), false).unwrap();
        let next = Presence::open(file, 20).unwrap();
        let found: Vec<u32> = (0..20).filter(|&span| next.get(SpanIndex(span))).collect();
        assert_eq!(found, [0, 2, 6, 8, 10, 12, 14, 16, 18]);
    }
}
