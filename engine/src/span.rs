//! One span's life, and the type that says its bytes are the right ones. No I/O.

use std::sync::atomic::{AtomicU8, Ordering};

use bytes::Bytes;
use clip_format::{limits::SPAN_BYTES_MAX, units::SpanIndex};

/// Bytes of the longest span that is decoded or verified. Source: docs/format.md: a span is never over twice the span size.
pub(crate) const SPAN_LEN_MAX: u64 = 2 * SPAN_BYTES_MAX;

/// Where a span's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum SpanState {
    /// Nowhere on this node.
    Absent = 0,
    /// One fetch is under way for it, or its verified bytes are on their way to the disk.
    InFlight = 1,
    /// On disk, and this process has seen that they are right.
    Present = 2,
    /// On disk since before this process, or since the file was changed by somebody else.
    Unverified = 3,
}

impl SpanState {
    fn from_raw(raw: u8) -> Self {
        match raw {
            0 => SpanState::Absent,
            1 => SpanState::InFlight,
            2 => SpanState::Present,
            _ => SpanState::Unverified,
        }
    }

    /// Whether a span may go from `self` to `next`.
    const fn may_become(self, next: Self) -> bool {
        use SpanState::{Absent, InFlight, Present, Unverified};
        matches!(
            (self, next),
            (Absent, InFlight) | (InFlight, Present | Absent | Unverified) | (Unverified, Present | Absent) | (Present, Unverified)
        )
    }
}

/// The state of every span of a layer.
pub(crate) struct SpanStates(Box<[AtomicU8]>);

impl SpanStates {
    /// Unverified where `on_disk` says so, else absent.
    pub(crate) fn new(spans: u32, on_disk: impl Fn(SpanIndex) -> bool) -> Self {
        let state = |span| if on_disk(SpanIndex(span)) { SpanState::Unverified } else { SpanState::Absent };
        Self((0..spans).map(|span| AtomicU8::new(state(span) as u8)).collect())
    }

    pub(crate) fn get(&self, span: SpanIndex) -> SpanState {
        SpanState::from_raw(self.0[span.get() as usize].load(Ordering::Acquire))
    }

    /// True when the span was `from` and is `to` now. Of several threads that try the same change, one is told true.
    pub(crate) fn change(&self, span: SpanIndex, from: SpanState, to: SpanState) -> bool {
        assert!(from.may_become(to), "a span never goes from {from:?} to {to:?}");
        self.0[span.get() as usize].compare_exchange(from as u8, to as u8, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Makes every present span unverified.
    pub(crate) fn doubt_all(&self) {
        for span in 0..self.0.len() as u32 {
            self.change(SpanIndex(span), SpanState::Present, SpanState::Unverified);
        }
    }
}

/// The bytes of one span, hashed to what its record says. [`VerifiedSpan::verify`] is the only way to one. Cheap to clone.
#[derive(Clone)]
pub(crate) struct VerifiedSpan(Bytes);

impl VerifiedSpan {
    /// `bytes` when their BLAKE3 is `expected`; else the BLAKE3 that they have.
    pub(crate) fn verify(bytes: impl Into<Bytes>, expected: &[u8; 32]) -> Result<Self, [u8; 32]> {
        let bytes = bytes.into();
        let found = *blake3::hash(&bytes).as_bytes();
        if found == *expected { Ok(Self(bytes)) } else { Err(found) }
    }

    pub(crate) fn bytes(&self) -> &Bytes {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Claim: of many threads that claim one absent span, exactly one wins.
    #[test]
    fn one_claim_wins() {
        let states = SpanStates::new(1, |_| false);
        let claim = || states.change(SpanIndex(0), SpanState::Absent, SpanState::InFlight);
        let wins: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(claim)).collect();
            threads.into_iter().map(|thread| usize::from(thread.join().expect("no panic"))).sum()
        });
        assert_eq!(wins, 1);
    }

    /// Claim: what was on disk before us starts unverified, and doubt spreads to present spans only.
    #[test]
    fn old_spans_start_unverified_and_doubt_spares_the_absent() {
        let states = SpanStates::new(3, |span| span.get() == 1);
        assert_eq!(states.get(SpanIndex(0)), SpanState::Absent);
        assert!(states.change(SpanIndex(1), SpanState::Unverified, SpanState::Present));
        assert!(states.change(SpanIndex(2), SpanState::Absent, SpanState::InFlight));
        states.doubt_all();
        assert_eq!([0, 1, 2].map(|span| states.get(SpanIndex(span))), [SpanState::Absent, SpanState::Unverified, SpanState::InFlight]);
    }

    /// Claim: bytes that hash to something else never become a verified span.
    #[test]
    fn only_the_right_bytes_verify() {
        let digest = *blake3::hash(b"right").as_bytes();
        assert!(VerifiedSpan::verify(b"right".to_vec(), &digest).is_ok_and(|span| &span.bytes()[..] == b"right"));
        assert!(VerifiedSpan::verify(b"wrong".to_vec(), &digest).is_err());
    }
}
