//! What the file system needs to know of where bytes come from.

use std::{ops::Range, sync::Arc};

use clip_engine::{Image, ReadStream, image::ReadDone};
use clip_format::{erofs::Index, units::LayerIndex};

/// An index and the bytes of its layers. [`Image`] is the one that matters; tests bring their own.
pub trait ByteSource: Send + Sync + 'static {
    /// What is remembered of one inode's reader, to tell sequential readers from random ones.
    type Stream: Default + Send + Sync + 'static;

    /// The file tree. Always the same one.
    fn index(&self) -> &Index;

    /// False once the index is known to be damaged: nothing that it says counts any more.
    fn is_sound(&self) -> bool {
        true
    }

    /// The bytes `range` of a layer's stream if they can be had at once. The slice is exactly that long; it may only be handed to a
    /// system call, never touched, since it can be a map of a file that someone cuts.
    fn present(&self, layer: LayerIndex, range: Range<u64>) -> Option<&[u8]>;

    /// Gets the bytes `range` of a layer's stream and calls `done` with exactly these, or why not, from any thread, perhaps before this
    /// returns. Never blocks. `done` does not block either.
    fn read(&self, layer: LayerIndex, range: Range<u64>, done: ReadDone);

    /// As [`Self::read`], of a file that ends at `file_end` of the layer's stream.
    fn read_in_file(&self, layer: LayerIndex, range: Range<u64>, _file_end: u64, done: ReadDone) {
        self.read(layer, range, done);
    }

    /// Whether [`Self::note_read`] could start anything; else the reader need not be remembered, which takes locks.
    fn may_read_ahead(&self, _layer: LayerIndex, _range: &Range<u64>, _file_end: u64) -> bool {
        true
    }

    /// Tells that the reader behind `stream` asked for `range` of a file that ends at `file_end` of the layer's stream.
    fn note_read(&self, stream: &Self::Stream, layer: LayerIndex, range: Range<u64>, file_end: u64);
}

impl ByteSource for Arc<Image> {
    type Stream = ReadStream;

    fn index(&self) -> &Index {
        Image::index(self)
    }

    fn is_sound(&self) -> bool {
        self.undamaged().is_ok()
    }

    fn present(&self, layer: LayerIndex, range: Range<u64>) -> Option<&[u8]> {
        Image::present(self, layer, range)
    }

    fn read(&self, layer: LayerIndex, range: Range<u64>, done: ReadDone) {
        Image::read(self, layer, range, done);
    }

    fn read_in_file(&self, layer: LayerIndex, range: Range<u64>, file_end: u64, done: ReadDone) {
        Image::read_in_file(self, layer, range, file_end, done);
    }

    fn may_read_ahead(&self, layer: LayerIndex, range: &Range<u64>, file_end: u64) -> bool {
        Image::may_read_ahead(self, layer, range, file_end)
    }

    fn note_read(&self, stream: &ReadStream, layer: LayerIndex, range: Range<u64>, file_end: u64) {
        Image::note_read(self, stream, layer, range, file_end);
    }
}
