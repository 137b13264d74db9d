//! Whether a body still moves: bytes, in the time that somebody waited for them. Pure.

use std::time::Duration;

use super::retry::is_progress;

/// What a body has brought since it last moved on.
#[derive(Debug)]
pub(super) struct Headway {
    /// Bytes a second below which it stands still.
    rate_min: u64,
    stall_max: Duration,
    bytes: u64,
    waited: Duration,
}

impl Headway {
    pub fn new(rate_min: u64, stall_max: Duration) -> Self {
        Self { rate_min, stall_max, bytes: 0, waited: Duration::ZERO }
    }

    /// How long the next bytes may take.
    pub fn left(&self) -> Duration {
        self.stall_max.saturating_sub(self.waited)
    }

    /// `bytes` came after `waited`.
    pub fn note(&mut self, bytes: u64, waited: Duration) {
        (self.bytes, self.waited) = (self.bytes + bytes, self.waited + waited);
        if is_progress(self.bytes, self.waited, self.rate_min) {
            (self.bytes, self.waited) = (0, Duration::ZERO);
        }
    }

    /// No stall is waited for longer than `time` from now on.
    pub fn limit(&mut self, time: Duration) {
        self.stall_max = self.stall_max.min(time);
    }

    /// What came while it stood still, in words; `None`: not a byte.
    pub fn too_little(&self) -> Option<String> {
        let (bytes, rate, seconds) = (self.bytes, self.rate_min, self.stall_max.as_secs_f32());
        (bytes > 0).then(|| format!("the body stalls: {bytes} bytes in {seconds} s, expected {rate} a second (--min-rate)"))
    }

    pub fn stall_max(&self) -> Duration {
        self.stall_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Claim: a slow link moves on with every chunk, bursts with pauses move on, a byte a second does not; with no least rate any byte
    /// does.
    #[test]
    fn a_rate_not_a_byte_is_headway() {
        let mut slow = Headway::new(1024, 10 * SECOND);
        for _ in 0..1000 {
            slow.note(1200, SECOND);
            assert_eq!(slow.left(), 10 * SECOND);
        }
        slow.note(0, 8 * SECOND);
        assert_eq!(slow.left(), 2 * SECOND);
        slow.note(64 << 10, SECOND);
        assert_eq!(slow.left(), 10 * SECOND);
        let mut trickle = Headway::new(1024, 10 * SECOND);
        for _ in 0..10 {
            trickle.note(1, SECOND);
        }
        assert_eq!(trickle.left(), Duration::ZERO);
        assert!(trickle.too_little().is_some_and(|text| text.contains("10 bytes in 10 s")));
        let mut any = Headway::new(0, 10 * SECOND);
        any.note(1, 9 * SECOND);
        assert_eq!(any.left(), 10 * SECOND);
        assert_eq!(any.too_little(), None);
    }
}
