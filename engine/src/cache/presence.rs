//! Which spans of a layer are on disk: a bitmap, in memory and in the file `spans`.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
};

use clip_format::units::SpanIndex;

/// The bitmap and its file. Bit `span % 8` of byte `span / 8`; bits past the last span mean nothing.
///
/// Nothing is synced, and the file is some way behind: a bit that was lost costs a fetch, and a bit that is set too much costs a hash,
/// since every owner verifies what it finds.
pub(crate) struct Presence {
    file: File,
    bits: Box<[AtomicU8]>,
    /// The file does not have the bits.
    changed: AtomicBool,
    writing: Mutex<()>,
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
        let bits = bits.into_iter().map(AtomicU8::new).collect();
        Ok(Self { file, bits, changed: AtomicBool::new(false), writing: Mutex::new(()) })
    }

    pub(crate) fn get(&self, span: SpanIndex) -> bool {
        let (byte, bit) = place(span);
        self.bits[byte].load(Ordering::Relaxed) & bit != 0
    }

    /// Sets or clears the bit of `span` in memory. Cost: no lock, no system call.
    pub(crate) fn set(&self, span: SpanIndex, on_disk: bool) {
        let (byte, bit) = place(span);
        if on_disk {
            self.bits[byte].fetch_or(bit, Ordering::Relaxed);
        } else {
            self.bits[byte].fetch_and(!bit, Ordering::Relaxed);
        }
        self.changed.store(true, Ordering::Release);
    }

    /// The file has the bits as they were when this was called. Cost: one `pwrite` of the whole (an eighth of a byte a span) when any was
    /// changed since the last time, else nothing.
    ///
    /// # Errors
    /// The system's; it is tried again next time.
    pub(crate) fn write(&self) -> std::io::Result<()> {
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.changed.swap(false, Ordering::Acquire) {
            return Ok(());
        }
        let bits: Vec<u8> = self.bits.iter().map(|byte| byte.load(Ordering::Relaxed)).collect();
        let written = self.file.write_all_at(&bits, 0);
        if written.is_err() {
            self.changed.store(true, Ordering::Release);
        }
        written
    }
}

fn place(span: SpanIndex) -> (usize, u8) {
    ((span.get() / 8) as usize, 1 << (span.get() % 8))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// Claim: what is set and written is there for the next owner, neighbours untouched, even when threads set bits of one byte at once;
    /// the file is written once for all of them.
    #[test]
    fn bits_survive() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(bitmap_bytes(20) as u64).unwrap();
        let presence = Presence::open(file.try_clone().unwrap(), 20).unwrap();
        std::thread::scope(|scope| {
            for span in (0..20).step_by(2) {
                let presence = &presence;
                scope.spawn(move || presence.set(SpanIndex(span), true));
            }
        });
        presence.set(SpanIndex(4), false);
        let found = |file: &File| {
            let next = Presence::open(file.try_clone().unwrap(), 20).unwrap();
            (0..20).filter(|&span| next.get(SpanIndex(span))).collect::<Vec<u32>>()
        };
        assert!(found(&file).is_empty(), "nothing was written yet");
        presence.write().unwrap();
        assert_eq!(found(&file), [0, 2, 6, 8, 10, 12, 14, 16, 18]);
        file.set_len(0).unwrap();
        presence.write().unwrap();
        assert_eq!(file.metadata().unwrap().len(), 0, "what has not changed is not written again");
    }
}
