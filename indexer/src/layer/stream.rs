//! What is made of the stream beside its decoder: tar members, the spans' digests, and the digest of the whole.

use bytes::Bytes;
use clip_engine::error::EngineError;
use clip_format::digest::Digest;
use crossbeam::channel::{Receiver, Sender};

use super::{
    LayerInput, LayerSettings,
    blocks::{BLOCK_BYTES, StreamSink},
    hash::Hasher,
    is_of_bytes,
    members::Members,
};
use crate::{error::IndexError, options::DiffIds};

/// Stream bytes on their way through.
pub(super) enum BlockBytes {
    /// A buffer that goes back to the decoder, and how much of it is filled.
    Own(Vec<u8>, usize),
    /// A chunk of the blob itself.
    Shared(Bytes),
}

impl BlockBytes {
    pub(super) fn as_slice(&self) -> &[u8] {
        match self {
            BlockBytes::Own(bytes, filled) => &bytes[..*filled],
            BlockBytes::Shared(bytes) => bytes,
        }
    }
}

/// The next stream bytes.
pub(super) struct Block {
    bytes: BlockBytes,
    /// A span ends and another begins before each of these places.
    cuts: Vec<usize>,
    /// Blob bytes used so far.
    compressed: u64,
}

/// The decoder's end: blocks to the job, used buffers back from it.
pub(super) struct BlockSender {
    blocks: Sender<Block>,
    used_buffers: Receiver<Vec<u8>>,
}

impl BlockSender {
    pub(super) fn new(blocks: Sender<Block>, used_buffers: Receiver<Vec<u8>>) -> Self {
        Self { blocks, used_buffers }
    }
}

impl StreamSink for BlockSender {
    fn block(&mut self, bytes: BlockBytes, cuts: Vec<usize>, compressed: u64) -> Result<(), IndexError> {
        let sent = self.blocks.send(Block { bytes, cuts, compressed });
        // The job's own error is told when it is joined.
        sent.map_err(|_| IndexError::Engine(EngineError::Stopped))
    }

    fn buffer(&mut self) -> Vec<u8> {
        self.used_buffers.try_recv().unwrap_or_else(|_| vec![0; BLOCK_BYTES])
    }
}

/// What the job knows when the decoder is gone.
pub(super) struct StreamOutput<'a> {
    /// Of the whole stream, where diff_ids are checked.
    pub(super) digest: Option<Digest>,
    /// One a span; the last may be of no bytes.
    pub(super) spans: Vec<[u8; 32]>,
    /// Of as much of the stream as there was.
    pub(super) members: Members<'a>,
}

/// Takes blocks until the decoder is gone. Buffers go back through `used`.
///
/// # Errors
/// The tar parser's; every fetch of the image is stopped by one that is not of the bytes.
pub(super) fn read_stream<'a>(
    input: &'a LayerInput,
    settings: &'a LayerSettings<'_>,
    blocks: &Receiver<Block>,
    used: &Sender<Vec<u8>>,
) -> Result<StreamOutput<'a>, IndexError> {
    let mut hasher = (settings.diff_ids == DiffIds::Checked).then(|| Hasher::like(&input.diff_id));
    let mut spans = SpanHashes::default();
    let mut members = Members::new(input, settings);
    for Block { bytes, cuts, compressed } in blocks {
        if let Err(error) = members.push(bytes.as_slice(), compressed) {
            if !is_of_bytes(&error) {
                settings.cancel.stop();
            }
            return Err(error);
        }
        if let Some(hasher) = &mut hasher {
            hasher.update(bytes.as_slice());
        }
        spans.update(bytes.as_slice(), &cuts);
        if let BlockBytes::Own(buffer, _) = bytes {
            // A full channel only means that the decoder has buffers enough.
            let _ = used.try_send(buffer);
        }
    }
    Ok(StreamOutput { digest: hasher.map(Hasher::finish), spans: spans.finish(), members })
}

/// The digests of the spans.
#[derive(Default)]
struct SpanHashes {
    current: blake3::Hasher,
    done: Vec<[u8; 32]>,
}

impl SpanHashes {
    fn update(&mut self, bytes: &[u8], cuts: &[usize]) {
        let mut start = 0;
        for &cut in cuts {
            self.current.update(&bytes[start..cut]);
            self.done.push(*self.current.finalize().as_bytes());
            self.current.reset();
            start = cut;
        }
        self.current.update(&bytes[start..]);
    }

    fn finish(mut self) -> Vec<[u8; 32]> {
        self.done.push(*self.current.finalize().as_bytes());
        self.done
    }
}
