//! Many pieces of layer streams, read side by side and handed over in order, in bounded memory.

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{Arc, mpsc},
};

use clip_engine::{Bytes, EngineError, Image};
use clip_format::{
    erofs::{Extent, Inode},
    error::FormatError,
    units::LayerIndex,
};

/// Bytes of one piece at most. Source: one default span.
pub const PIECE_BYTES_MAX: u64 = 1 << 20;
/// Pieces under way. Source: 16 x 1 MiB fills the 16 requests that a node may have open by default.
const PIECES_IN_FLIGHT_MAX: usize = 16;
/// Bytes under way; one piece may always be.
const BYTES_IN_FLIGHT_MAX: u64 = 16 << 20;

/// Bytes of a layer's stream that somebody wants, and what they are for.
#[derive(Clone, Debug)]
pub struct Piece<T> {
    /// What they are for.
    pub tag: T,
    /// Which layer.
    pub layer: LayerIndex,
    /// Which bytes of its stream.
    pub range: Range<u64>,
}

type Answer = mpsc::Receiver<Result<Bytes, EngineError>>;

/// What came of one piece: exactly its bytes, or why not.
pub type Fetched<T> = (Piece<T>, Result<Bytes, EngineError>);

/// Reads what `wanted` yields and yields it in the same order; up to a bound is under way at any time.
pub struct Pieces<T, I> {
    image: Arc<Image>,
    wanted: I,
    under_way: VecDeque<(Piece<T>, Answer)>,
    bytes: u64,
}

impl<T, I: Iterator<Item = Piece<T>>> Pieces<T, I> {
    /// Nothing is asked for until the first `next`.
    pub fn new(image: Arc<Image>, wanted: I) -> Self {
        Self { image, wanted, under_way: VecDeque::new(), bytes: 0 }
    }

    fn top_up(&mut self) {
        while self.under_way.len() < PIECES_IN_FLIGHT_MAX && self.bytes < BYTES_IN_FLIGHT_MAX {
            let Some(piece) = self.wanted.next() else { return };
            let (answer, answered) = mpsc::sync_channel(1);
            self.bytes += piece.range.end - piece.range.start;
            self.image.read(
                piece.layer,
                piece.range.clone(),
                Box::new(move |result| {
                    let _ = answer.send(result);
                }),
            );
            self.under_way.push_back((piece, answered));
        }
    }
}

impl<T, I: Iterator<Item = Piece<T>>> Iterator for Pieces<T, I> {
    type Item = Fetched<T>;

    fn next(&mut self) -> Option<Self::Item> {
        self.top_up();
        let (piece, answered) = self.under_way.pop_front()?;
        self.bytes -= piece.range.end - piece.range.start;
        let result = answered.recv().unwrap_or(Err(EngineError::Stopped));
        let wanted = piece.range.end - piece.range.start;
        assert!(result.as_ref().map_or(true, |bytes| bytes.len() as u64 == wanted), "a read gives exactly the bytes asked for");
        Some((piece, result))
    }
}

/// A place in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InFile<F> {
    /// Which file.
    pub file: F,
    /// Where in it.
    pub offset: u64,
}

/// The data of `extent`, cut into pieces of at most [`PIECE_BYTES_MAX`]; nothing for a hole.
pub fn cut<F: Copy>(file: F, extent: Extent) -> impl Iterator<Item = Piece<InFile<F>>> {
    let len = extent.file.end.saturating_sub(extent.file.start);
    extent.data.into_iter().flat_map(move |(layer, stream)| {
        let start = extent.file.start;
        (0..len).step_by(PIECE_BYTES_MAX as usize).map(move |at| {
            let piece_len = PIECE_BYTES_MAX.min(len - at);
            let from = stream.get().saturating_add(at);
            Piece { tag: InFile { file, offset: start + at }, layer, range: from..from.saturating_add(piece_len) }
        })
    })
}

/// All extents of a regular file, holes included.
pub fn file_extents(index: &clip_format::erofs::Index, file: &Inode) -> Result<Vec<Extent>, FormatError> {
    index.extents(file, 0..file.size).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clip_format::units::StreamOffset;

    /// The pieces of an extent are its bytes, in order, none over the bound; a hole has none.
    #[test]
    fn pieces_cover_the_extent() {
        let len = 2 * PIECE_BYTES_MAX + 5;
        let extent = Extent { file: 100..100 + len, data: Some((LayerIndex(1), StreamOffset(512))) };
        let pieces: Vec<_> = cut(7_u32, extent).collect();
        assert_eq!(pieces.len(), 3);
        let mut at = 0;
        for piece in &pieces {
            assert_eq!(piece.tag, InFile { file: 7, offset: 100 + at });
            assert_eq!(piece.range.start, 512 + at);
            at += piece.range.end - piece.range.start;
        }
        assert_eq!(at, len);
        assert_eq!(cut(7_u32, Extent { file: 0..len, data: None }).count(), 0);
    }
}
