//! Digests of the algorithm that another digest names; the blob's own.

use bytes::Bytes;
use clip_format::digest::Digest;
use crossbeam::channel::Receiver;
use sha2::{Digest as _, Sha256, Sha512};

/// A running digest of the algorithm that another digest names.
pub(super) enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    pub(super) fn like(digest: &Digest) -> Self {
        match digest {
            Digest::Sha256(_) => Hasher::Sha256(Sha256::new()),
            Digest::Sha512(_) => Hasher::Sha512(Sha512::new()),
        }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(hasher) => hasher.update(bytes),
            Hasher::Sha512(hasher) => hasher.update(bytes),
        }
    }

    pub(super) fn finish(self) -> Digest {
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
