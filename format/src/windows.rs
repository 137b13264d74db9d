//! The windows: for each checkpoint that needs history, one zstd frame of a sparse window.
//!
//! A sparse window is the 32 KiB before the checkpoint with every byte that the data after it never refers to set to zero.

use crate::{checkpoints::WindowRange, error::FormatError, limits::WINDOW_BYTES};

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
        let frame = compress_window(window)?;
        self.append_frame(&frame)
    }

    /// As `append`, for a frame that [`compress_window`] made.
    ///
    /// # Errors
    /// `Exhausted` past `WINDOWS_BYTES_MAX`.
    pub fn append_frame(&mut self, frame: &[u8]) -> Result<WindowRange, FormatError> {
        let _ = frame;
        todo!()
    }

    /// The section.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// One window as the section holds it; empty for an all-zero window.
///
/// # Errors
/// zstd's own.
pub fn compress_window(window: &[u8; WINDOW_BYTES]) -> Result<Vec<u8>, FormatError> {
    let _ = window;
    todo!()
}

/// The window at `range` of the windows section, or `None` for an empty range. Cost: one small zstd frame, no allocation past 32 KiB.
///
/// # Errors
/// `Corrupt` when the frame is damaged or does not expand to exactly 32 KiB.
pub fn expand_window(section: &[u8], range: WindowRange) -> Result<Option<Box<[u8; WINDOW_BYTES]>>, FormatError> {
    let _ = (section, range);
    todo!()
}
