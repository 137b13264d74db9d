//! Streaming inflate over zlib-rs: from a stream's start for the indexer, from a checkpoint for reads.
//!
//! The only unsafe code of the decoder stands here: the C interface of libz-rs-sys, since the Rust one has no
//! `inflatePrime`, `inflateSetDictionary` or `Z_BLOCK`.

use std::ffi::{CStr, c_int};

use clip_format::{limits::WINDOW_BYTES, units::CompressedOffset};
use libz_rs_sys as z;
use thiserror::Error;

/// windowBits of a gzip member with a 32 KiB window. Source: zlib.h, inflateInit2.
const GZIP: c_int = 15 + 16;
/// windowBits of raw deflate data with a 32 KiB window. Source: zlib.h, inflateInit2.
const RAW: c_int = -15;
/// Bit of `data_type`: decoding the stream's last block. Source: zlib.h, inflate.
const LAST_BLOCK: c_int = 64;
/// Bit of `data_type`: stopped right after a block (or a header). Source: zlib.h, inflate.
const AFTER_BLOCK: c_int = 128;

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
    /// At the end of a deflate block that is not the stream's last. Only with [`Until::Block`]; never before a gzip member's
    /// first output byte, where the member's own start is the better place to enter.
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

/// Where a checkpoint stands, from a [`Stop::Block`]: `consumed` bytes of the blob are used up to and including the last byte of the
/// step, `unused_bits` of that byte belong to the next block. The answer is the byte that holds the next block's first bit and the
/// number of its bits that are used already, as a span record has them; at a byte boundary the offset is `consumed` and the bits are 0.
#[must_use]
pub fn checkpoint_place(consumed: u64, unused_bits: u8) -> (CompressedOffset, u8) {
    debug_assert!(unused_bits < 8 && (unused_bits == 0 || consumed > 0));
    match unused_bits {
        0 => (CompressedOffset(consumed), 0),
        bits => (CompressedOffset(consumed.saturating_sub(1)), 8 - bits),
    }
}

/// A decoder of one gzip member or of raw deflate data from a checkpoint. Reusable through the `reset_*` methods.
///
/// Shape: about 48 KiB, allocated once. zlib keeps no pointer to the `z_stream`, but its contract forbids moving it: it is boxed.
pub struct Inflate {
    stream: Box<z::z_stream>,
    gzip: bool,
}

// SAFETY: the stream owns its state, which lives in one heap allocation of an allocator that any thread may free from; its input and
// output pointers are set anew in each step from slices that outlive the call, and are not read outside it.
unsafe impl Send for Inflate {}

impl Inflate {
    /// At the start of a gzip member: header, data and trailer (CRC-32 and length are checked).
    #[must_use]
    pub fn gzip() -> Self {
        Self::with_window_bits(GZIP)
    }

    /// At a checkpoint: `bit_offset` bits of `first_byte` are used already (0: the byte is not taken, feed it as input); `window` is the history.
    #[must_use]
    pub fn raw(window: Option<&[u8; WINDOW_BYTES]>, bit_offset: u8, first_byte: u8) -> Self {
        let mut inflate = Self::with_window_bits(RAW);
        inflate.enter(window, bit_offset, first_byte);
        inflate
    }

    /// As `gzip`, keeping the allocation.
    pub fn reset_gzip(&mut self) {
        self.reset(GZIP);
    }

    /// As `raw`, keeping the allocation.
    pub fn reset_raw(&mut self, window: Option<&[u8; WINDOW_BYTES]>, bit_offset: u8, first_byte: u8) {
        self.reset(RAW);
        self.enter(window, bit_offset, first_byte);
    }

    /// Decodes from `input` into `output` until one of them ends or `until` says stop.
    ///
    /// # Errors
    /// Data that is no valid stream, or whose trailer does not match.
    pub fn step(&mut self, input: &[u8], output: &mut [u8], until: Until) -> Result<Step, InflateError> {
        let mut done = Step { consumed: 0, produced: 0, stop: Stop::More };
        loop {
            let part = self.inflate(&input[done.consumed..], &mut output[done.produced..], until)?;
            done.consumed += part.consumed;
            done.produced += part.produced;
            done.stop = part.stop;
            let full = done.consumed == input.len() || done.produced == output.len();
            let stuck = part.consumed == 0 && part.produced == 0;
            if matches!(part.stop, Stop::Block { .. }) && self.gzip && self.stream.total_out == 0 {
                done.stop = Stop::More;
            }
            if done.stop != Stop::More || full || stuck {
                return Ok(done);
            }
        }
    }

    /// One call of zlib's inflate, on at most 4 GiB of each side.
    fn inflate(&mut self, input: &[u8], output: &mut [u8], until: Until) -> Result<Step, InflateError> {
        let avail_in = u32::try_from(input.len()).unwrap_or(u32::MAX);
        let avail_out = u32::try_from(output.len()).unwrap_or(u32::MAX);
        let stream = &mut *self.stream;
        (stream.next_in, stream.avail_in) = (input.as_ptr(), avail_in);
        (stream.next_out, stream.avail_out) = (output.as_mut_ptr(), avail_out);
        let flush = match until {
            Until::Full => z::Z_NO_FLUSH,
            Until::Block => z::Z_BLOCK,
        };
        // SAFETY: the stream was initialised by inflateInit2_; next_in and next_out point at avail_in and avail_out bytes of slices
        // that are borrowed for longer than this call.
        let code = unsafe { z::inflate(stream, flush) };
        let consumed = (avail_in - stream.avail_in) as usize;
        let produced = (avail_out - stream.avail_out) as usize;
        let stop = match code {
            z::Z_STREAM_END => Stop::End,
            // No progress possible is no error: more input or output is.
            z::Z_OK | z::Z_BUF_ERROR => stop_of(stream.data_type, until),
            _ => return Err(self.error(code)),
        };
        Ok(Step { consumed, produced, stop })
    }

    fn with_window_bits(window_bits: c_int) -> Self {
        let mut stream = Box::new(z::z_stream::default());
        let size = c_int::try_from(size_of::<z::z_stream>()).expect("a struct of 112 bytes");
        // SAFETY: a default z_stream holds the crate's allocator; the version is a static C string.
        let code = unsafe { z::inflateInit2_(&mut *stream, window_bits, z::zlibVersion(), size) };
        assert_eq!(code, z::Z_OK, "constant arguments are valid, so only memory can be short");
        Self { stream, gzip: window_bits == GZIP }
    }

    fn reset(&mut self, window_bits: c_int) {
        // SAFETY: the stream was initialised by inflateInit2_.
        let code = unsafe { z::inflateReset2(&mut *self.stream, window_bits) };
        assert_eq!(code, z::Z_OK, "constant arguments are valid");
        self.gzip = window_bits == GZIP;
    }

    /// Gives a fresh raw stream its history and the unused bits of the first byte.
    fn enter(&mut self, window: Option<&[u8; WINDOW_BYTES]>, bit_offset: u8, first_byte: u8) {
        assert!(bit_offset < 8, "a checkpoint's bit offset is below 8");
        if let Some(window) = window {
            // SAFETY: the stream was initialised by inflateInit2_; the window is WINDOW_BYTES readable bytes.
            let code = unsafe { z::inflateSetDictionary(&mut *self.stream, window.as_ptr(), WINDOW_BYTES as u32) };
            assert_eq!(code, z::Z_OK, "a raw stream takes a dictionary at any time");
        }
        if bit_offset > 0 {
            // SAFETY: the stream was initialised by inflateInit2_.
            let code = unsafe { z::inflatePrime(&mut *self.stream, c_int::from(8 - bit_offset), c_int::from(first_byte >> bit_offset)) };
            assert_eq!(code, z::Z_OK, "at most 7 bits into an empty bit buffer");
        }
    }

    fn error(&self, code: c_int) -> InflateError {
        let message = self.stream.msg;
        if message.is_null() {
            return InflateError { reason: format!("zlib error {code}") };
        }
        // SAFETY: a non-null msg points at a static NUL-terminated string of the library.
        let message = unsafe { CStr::from_ptr(message) };
        InflateError { reason: message.to_string_lossy().into_owned() }
    }
}

impl Drop for Inflate {
    fn drop(&mut self) {
        // SAFETY: the stream was initialised by inflateInit2_ and is ended once.
        unsafe { z::inflateEnd(&mut *self.stream) };
    }
}

/// The meaning of `data_type` after a call that neither failed nor ended the stream.
fn stop_of(data_type: c_int, until: Until) -> Stop {
    let after_block = data_type & AFTER_BLOCK != 0 && data_type & LAST_BLOCK == 0;
    if until == Until::Block && after_block { Stop::Block { unused_bits: (data_type & 7) as u8 } } else { Stop::More }
}

#[cfg(test)]
mod tests;
