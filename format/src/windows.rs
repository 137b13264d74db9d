//! The windows: for each checkpoint that needs history, one zstd frame of a sparse window.
//!
//! A sparse window is the 32 KiB before the checkpoint with every byte that the data after it never refers to set to zero.

use crate::{
    bounded::slice_at,
    checkpoints::WindowRange,
    error::FormatError,
    limits::{self, WINDOW_BYTES},
};

const WHAT: &str = "window";
/// Source: the 1,105 windows of an image of Python packages: level 3 gives 1,319 bytes each in 21 us, level 6 1,268 in 71, level 7 1,246 in
/// 82, level 9 1,244 in 102, level 12 1,241 in 243.
const LEVEL: i32 = 7;

/// Windows of an image being indexed, appended one after another.
#[derive(Default)]
pub struct WindowsWriter {
    bytes: Vec<u8>,
}

impl WindowsWriter {
    /// Where `window` went. An all-zero window takes no bytes and gives an empty range.
    ///
    /// # Errors
    /// `Exhausted` past `WINDOWS_BYTES_MAX`.
    pub fn append(&mut self, window: &[u8; WINDOW_BYTES]) -> Result<WindowRange, FormatError> {
        let frame = WindowCompressor::new()?.compress(window)?;
        self.append_frame(&frame)
    }

    /// As `append`, for a frame that a [`WindowCompressor`] made.
    ///
    /// # Errors
    /// `Exhausted` past `WINDOWS_BYTES_MAX`.
    pub fn append_frame(&mut self, frame: &[u8]) -> Result<WindowRange, FormatError> {
        if frame.is_empty() {
            return Ok(WindowRange::default());
        }
        let offset = self.bytes.len() as u64;
        let found = offset + frame.len() as u64;
        if found > limits::WINDOWS_BYTES_MAX {
            return Err(FormatError::Limit { what: "windows, bytes".to_owned(), max: limits::WINDOWS_BYTES_MAX, found });
        }
        let len = frame.len() as u64;
        if len > u64::from(limits::WINDOW_FRAME_BYTES_MAX) {
            return Err(FormatError::Limit {
                what: "window frame, bytes".to_owned(),
                max: u64::from(limits::WINDOW_FRAME_BYTES_MAX),
                found: len,
            });
        }
        self.bytes.extend_from_slice(frame);
        Ok(WindowRange { offset, len: len as u32 })
    }

    /// Length of the section so far.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// True when no window needed bytes so far.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The section.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

fn zstd_error(error: &std::io::Error) -> FormatError {
    FormatError::Zstd { what: WHAT, reason: error.to_string() }
}

/// Makes the frames of windows, one after another with one state of zstd.
pub struct WindowCompressor(zstd::bulk::Compressor<'static>);

impl WindowCompressor {
    /// Cost: zstd's state, about a hundred KiB.
    ///
    /// # Errors
    /// zstd's own.
    pub fn new() -> Result<Self, FormatError> {
        let mut compressor = zstd::bulk::Compressor::new(LEVEL).map_err(|error| zstd_error(&error))?;
        // The expanded length is always the same.
        compressor.include_contentsize(false).map_err(|error| zstd_error(&error))?;
        Ok(Self(compressor))
    }

    /// One window as the section holds it; empty for an all-zero window.
    ///
    /// # Errors
    /// zstd's own.
    pub fn compress(&mut self, window: &[u8; WINDOW_BYTES]) -> Result<Vec<u8>, FormatError> {
        if window.iter().all(|&byte| byte == 0) {
            return Ok(Vec::new());
        }
        self.0.compress(window).map_err(|error| zstd_error(&error))
    }
}

/// The window at `range` of the windows section, or `None` for an empty range. Cost: one small zstd frame, no allocation past 32 KiB.
///
/// # Errors
/// `Corrupt` when the frame is damaged or does not expand to exactly 32 KiB.
pub fn expand_window(section: &[u8], range: WindowRange) -> Result<Option<Box<[u8; WINDOW_BYTES]>>, FormatError> {
    if range.len == 0 {
        return Ok(None);
    }
    let frame = slice_at(section, WHAT, range.offset, u64::from(range.len))?;
    let mut window = Box::new([0; WINDOW_BYTES]);
    let mut decompressor = zstd::bulk::Decompressor::new().map_err(|error| zstd_error(&error))?;
    let len = decompressor.decompress_to_buffer(frame, &mut window[..]).map_err(|error| zstd_error(&error))?;
    if len != WINDOW_BYTES {
        let (expected, found) = (WINDOW_BYTES as u64, len as u64);
        return Err(FormatError::Truncated { what: WHAT, offset: range.offset, expected, found });
    }
    Ok(Some(window))
}

#[cfg(test)]
mod tests;
