//! The stream on its way from inflate to the sink: the buffer that is being filled, and the blocks held back.
//!
//! A sink takes each block with the places at which spans begin. Where that is not decided yet, blocks wait here.

use std::collections::VecDeque;

use clip_format::limits::WINDOW_BYTES;

use super::stream::BlockBytes;
use crate::error::IndexError;

/// Stream bytes handed on at a time. Source: fits the second-level cache beside inflate's own state.
pub(super) const BLOCK_BYTES: usize = 256 << 10;

/// Takes the stream as it is decoded.
pub(super) trait StreamSink {
    /// The next stream bytes; a span begins at each of the places `cuts`; `compressed` bytes of the blob are used.
    fn block(&mut self, bytes: BlockBytes, cuts: Vec<usize>, compressed: u64) -> Result<(), IndexError>;
    /// A buffer of `BLOCK_BYTES`.
    fn buffer(&mut self) -> Vec<u8>;
}

/// A full buffer.
struct HeldBlock {
    buffer: Vec<u8>,
    filled: usize,
    /// Stream offset of its first byte.
    start: u64,
    compressed: u64,
}

impl HeldBlock {
    fn end(&self) -> u64 {
        self.start + self.filled as u64
    }
}

/// Stream bytes that the sink does not have yet, in order, and the cuts among them.
pub(super) struct Blocks {
    held: VecDeque<HeldBlock>,
    /// Stream offsets of cuts that the sink does not know. `>=` the start of the first block here; ascending.
    cuts: VecDeque<u64>,
    buffer: Vec<u8>,
    filled: usize,
    /// Stream offset of the buffer's first byte.
    start: u64,
    /// The last 32 KiB before the buffer.
    tail: Box<[u8; WINDOW_BYTES]>,
}

impl Blocks {
    pub(super) fn new() -> Self {
        let tail = Box::new([0; WINDOW_BYTES]);
        Self { held: VecDeque::new(), cuts: VecDeque::new(), buffer: Vec::new(), filled: 0, start: 0, tail }
    }

    /// Stream bytes so far.
    pub(super) fn stream(&self) -> u64 {
        self.start + self.filled as u64
    }

    /// Where the next bytes go, at most up to stream offset `end`; empty when the buffer is full.
    pub(super) fn room(&mut self, end: u64) -> &mut [u8] {
        let wanted = usize::try_from(end - self.stream()).unwrap_or(usize::MAX);
        let room = wanted.min(self.buffer.len() - self.filled);
        &mut self.buffer[self.filled..self.filled + room]
    }

    /// The first `len` bytes of `room` hold stream bytes now.
    pub(super) fn note_filled(&mut self, len: usize) {
        self.filled += len;
    }

    /// A span begins at stream offset `at`.
    ///
    /// `at` is in a block that is still here or at the end of the last, and not before the cuts so far.
    pub(super) fn cut(&mut self, at: u64) {
        self.cuts.push_back(at);
    }

    /// The last 32 KiB of the stream, of which the last `known` bytes are wanted and the others zero.
    pub(super) fn window(&self, known: u64) -> Box<[u8; WINDOW_BYTES]> {
        let mut window = joined_tail(&self.tail, &self.buffer[..self.filled]);
        let known = usize::try_from(known).unwrap_or(usize::MAX).min(WINDOW_BYTES);
        window[..WINDOW_BYTES - known].fill(0);
        window
    }

    /// A full buffer makes room for a fresh one and goes to the sink, unless a cut at or after stream offset `undecided` may still come.
    pub(super) fn advance(&mut self, undecided: Option<u64>, compressed: u64, sink: &mut impl StreamSink) -> Result<(), IndexError> {
        if self.filled < self.buffer.len() {
            return Ok(());
        }
        if self.filled > 0 {
            self.hold(compressed);
            self.release(undecided, sink)?;
        }
        self.buffer = sink.buffer();
        Ok(())
    }

    /// Everything goes to the sink: the stream is at its end.
    pub(super) fn finish(&mut self, compressed: u64, sink: &mut impl StreamSink) -> Result<(), IndexError> {
        self.hold(compressed);
        self.release(None, sink)
    }

    fn hold(&mut self, compressed: u64) {
        self.tail = joined_tail(&self.tail, &self.buffer[..self.filled]);
        let buffer = std::mem::take(&mut self.buffer);
        let block = HeldBlock { buffer, filled: self.filled, start: self.start, compressed };
        (self.start, self.filled) = (block.end(), 0);
        self.held.push_back(block);
    }

    fn release(&mut self, undecided: Option<u64>, sink: &mut impl StreamSink) -> Result<(), IndexError> {
        let decided = self.held.partition_point(|block| undecided.is_none_or(|place| block.end() <= place));
        for block in self.held.drain(..decided) {
            let known = self.cuts.partition_point(|cut| *cut <= block.end());
            let cuts = self.cuts.drain(..known).map(|cut| (cut - block.start) as usize).collect();
            sink.block(BlockBytes::Own(block.buffer, block.filled), cuts, block.compressed)?;
        }
        Ok(())
    }
}

/// The last 32 KiB of `tail` and then `bytes`.
fn joined_tail(tail: &[u8; WINDOW_BYTES], bytes: &[u8]) -> Box<[u8; WINDOW_BYTES]> {
    let mut joined = Box::new([0; WINDOW_BYTES]);
    let new = bytes.len().min(WINDOW_BYTES);
    joined[..WINDOW_BYTES - new].copy_from_slice(&tail[new..]);
    joined[WINDOW_BYTES - new..].copy_from_slice(&bytes[bytes.len() - new..]);
    joined
}
