//! The hash jobs of a layer: the blob's digest; and of the stream its digest, the spans' digests and the windows' compression.

use bytes::Bytes;
use clip_format::{digest::Digest, error::FormatError, limits::WINDOW_BYTES, windows::compress_window};
use crossbeam::channel::{Receiver, Sender};
use sha2::{Digest as _, Sha256, Sha512};

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

/// What the stream hash job takes.
pub(super) enum HashJob {
    /// The next stream bytes; a span ends and another begins before each of these places.
    Block { bytes: BlockBytes, cuts: Vec<usize> },
    /// The sparse window of a span.
    Window { span: usize, window: Box<[u8; WINDOW_BYTES]> },
}

/// What the stream hash job knows at the end.
pub(super) struct StreamHashes {
    pub(super) digest: Digest,
    /// One a span; the last may be of no bytes.
    pub(super) spans: Vec<[u8; 32]>,
    /// Windows that are not all zero, by span.
    pub(super) frames: Vec<(usize, Vec<u8>)>,
}

/// A running digest of the algorithm that another digest names.
enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    fn like(digest: &Digest) -> Self {
        match digest {
            Digest::Sha256(_) => Hasher::Sha256(Sha256::new()),
            Digest::Sha512(_) => Hasher::Sha512(Sha512::new()),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(hasher) => hasher.update(bytes),
            Hasher::Sha512(hasher) => hasher.update(bytes),
        }
    }

    fn finish(self) -> Digest {
        match self {
            Hasher::Sha256(hasher) => Digest::Sha256(hasher.finalize().into()),
            Hasher::Sha512(hasher) => Digest::Sha512(hasher.finalize().into()),
        }
    }
}

/// The digest of `bytes`, by the algorithm of `like`.
pub(crate) fn digest_of(like: &Digest, bytes: &[u8]) -> Digest {
    let mut hasher = Hasher::like(like);
    hasher.update(bytes);
    hasher.finish()
}

/// The blob's digest, by the algorithm of `like`, when the channel closes.
pub(super) fn blob_digest(like: &Digest, chunks: &Receiver<Bytes>) -> Digest {
    let mut hasher = Hasher::like(like);
    chunks.iter().for_each(|chunk| hasher.update(&chunk));
    hasher.finish()
}

/// The stream's digests and compressed windows, when the channel closes. Buffers go back through `used`.
///
/// # Errors
/// zstd's own.
pub(super) fn stream_hashes(like: &Digest, jobs: &Receiver<HashJob>, used: &Sender<Vec<u8>>) -> Result<StreamHashes, FormatError> {
    let mut hasher = Hasher::like(like);
    let mut span = blake3::Hasher::new();
    let mut hashes = StreamHashes { digest: *like, spans: Vec::new(), frames: Vec::new() };
    for job in jobs {
        match job {
            HashJob::Block { bytes, cuts } => {
                hasher.update(bytes.as_slice());
                let mut start = 0;
                for cut in cuts {
                    span.update(&bytes.as_slice()[start..cut]);
                    hashes.spans.push(*span.finalize().as_bytes());
                    span.reset();
                    start = cut;
                }
                span.update(&bytes.as_slice()[start..]);
                if let BlockBytes::Own(buffer, _) = bytes {
                    // A full channel only means that the decoder has buffers enough.
                    let _ = used.try_send(buffer);
                }
            }
            HashJob::Window { span, window } => {
                let frame = compress_window(&window)?;
                if !frame.is_empty() {
                    hashes.frames.push((span, frame));
                }
            }
        }
    }
    hashes.spans.push(*span.finalize().as_bytes());
    hashes.digest = hasher.finish();
    Ok(hashes)
}
