//! Streaming inflate over zlib-rs: from a stream's start for the indexer, from a checkpoint for reads.
//!
//! The only unsafe code of the decoder stands here: the C interface of libz-rs-sys, since the Rust one has no
//! `inflatePrime`, `inflateSetDictionary` or `Z_BLOCK`.

use clip_format::limits::WINDOW_BYTES;
use thiserror::Error;

/// What one call did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Input bytes used.
    pub consumed: usize,
    /// Output bytes written.
    pub produced: usize,
    /// Where decoding stands.
    pub stop: Stop,
}

/// Why a call to [`Inflate::step`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Input used up or output full; call again with more of either.
    More,
    /// At the end of a deflate block that is not the stream's last. Only with [`Until::Block`].
    Block {
        /// Bits of the last consumed byte that belong to the next block. `< 8`
        unused_bits: u8,
    },
    /// A gzip member (or raw deflate stream) ended; its trailer was checked (gzip) or is still in the input (raw).
    End,
}

/// Where a call may stop early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// Nowhere: input or output decides.
    Full,
    /// At each block boundary. Each stop copies the window, so ask only near a wanted checkpoint.
    Block,
}

/// Bytes that are no deflate or gzip stream.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{reason}")]
pub struct InflateError {
    /// zlib's own words.
    pub reason: String,
}

/// A decoder of one gzip member or of raw deflate data from a checkpoint. Reusable through the `reset_*` methods.
pub struct Inflate {}

impl Inflate {
    /// At the start of a gzip member: header, data and trailer (CRC-32 and length are checked).
    #[must_use]
    pub fn gzip() -> Self {
        todo!()
    }

    /// At a checkpoint: `bit_offset` bits of `first_byte` are used already (0: the byte is not taken, feed it as input); `window` is the history.
    #[must_use]
    pub fn raw(window: Option<&[u8; WINDOW_BYTES]>, bit_offset: u8, first_byte: u8) -> Self {
        let _ = (window, bit_offset, first_byte);
        todo!()
    }

    /// As `gzip`, keeping the allocation.
    pub fn reset_gzip(&mut self) {
        todo!()
    }

    /// As `raw`, keeping the allocation.
    pub fn reset_raw(&mut self, window: Option<&[u8; WINDOW_BYTES]>, bit_offset: u8, first_byte: u8) {
        let _ = (window, bit_offset, first_byte);
        todo!()
    }

    /// Decodes from `input` into `output` until one of them ends or `until` says stop.
    ///
    /// # Errors
    /// Data that is no valid stream, or whose trailer does not match.
    pub fn step(&mut self, input: &[u8], output: &mut [u8], until: Until) -> Result<Step, InflateError> {
        let _ = (input, output, until);
        todo!()
    }
}
