//! Who reads sequentially earns read-ahead; who does not pays nothing. Pure.

use std::ops::Range;

/// Sequential streams that are told apart in one inode. Source: judgement, not measured: opens are answered once,
/// so that readers of one file look alike; four cover a parallel copy.
const STREAMS_MAX: usize = 4;
/// How far from its expected place a read may start and still continue a stream: the kernel sends several requests at once, in any
/// order. Source: four requests of 256 KiB, the larger of the kernel's read-ahead sizes that we set.
const SLACK_BYTES: u64 = 1 << 20;

/// The recent readers of one inode.
#[derive(Default)]
pub(crate) struct History {
    /// Most recently used first.
    streams: Vec<Stream>,
}

#[derive(Clone, Copy, Debug)]
struct Stream {
    layer: u16,
    /// Where the next read is expected.
    next: u64,
    /// Up to where read-ahead was asked for. Meaningless while `window` is 0.
    ahead: u64,
    /// How far ahead of `next` to stay, in bytes; 0 until the stream has shown itself sequential.
    window: u64,
    /// Bytes read one after another so far, while `window` is 0.
    run: u64,
}

/// Bounds of read-ahead.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    /// What a stream's first read-ahead covers, and what it has to read one after another to earn that. Source: page faults on a library
    /// read around themselves, two or three neighbouring pieces of 128 KiB and then elsewhere; a span's worth of bytes is more than that.
    pub(crate) window_bytes_min: u64,
    /// 0 turns read-ahead off.
    pub(crate) window_bytes_max: u64,
}

impl History {
    /// What to read ahead now that `range` of `layer` is being read, of a file that ends at `file_end`.
    pub(crate) fn note(&mut self, layer: u16, range: &Range<u64>, file_end: u64, limits: Limits) -> Option<Range<u64>> {
        if limits.window_bytes_max == 0 || range.start >= range.end {
            return None;
        }
        let Some(place) = self.streams.iter().position(|stream| stream.continues(layer, range)) else {
            self.streams.truncate(STREAMS_MAX - 1);
            self.streams.insert(0, Stream { layer, next: range.end, ahead: 0, window: 0, run: range.end - range.start });
            return None;
        };
        self.streams[..=place].rotate_right(1);
        self.streams[0].advance(range, file_end, limits)
    }
}

impl Stream {
    fn continues(&self, layer: u16, range: &Range<u64>) -> bool {
        self.layer == layer
            && range.end > self.next.saturating_sub(SLACK_BYTES)
            && range.start <= self.next.saturating_add(self.tolerance())
    }

    /// A stream that is only suspected to be sequential must be continued exactly.
    fn tolerance(&self) -> u64 {
        if self.window == 0 { 0 } else { SLACK_BYTES }
    }

    fn advance(&mut self, range: &Range<u64>, file_end: u64, limits: Limits) -> Option<Range<u64>> {
        if range.end <= self.next {
            return None;
        }
        let skipped = range.start.saturating_sub(self.next);
        self.run += range.end - self.next.max(range.start);
        self.next = range.end;
        // What was skipped had been read ahead for nothing.
        if skipped > range.end - range.start {
            self.shrink(limits);
        }
        self.window = self.window.min(limits.window_bytes_max);
        if self.window == 0 {
            if self.run < limits.window_bytes_min {
                return None;
            }
            self.window = limits.window_bytes_min.min(limits.window_bytes_max);
            self.ahead = self.next;
        }
        self.ahead = self.ahead.max(self.next);
        // Ask again only when half of the window is used up, so that requests stay large.
        if self.ahead - self.next > self.window / 2 {
            return None;
        }
        let end = self.next.saturating_add(self.window).min(file_end);
        let asked = self.ahead..end;
        if asked.start >= asked.end {
            return None;
        }
        self.ahead = end;
        self.window = self.window.saturating_mul(2).min(limits.window_bytes_max);
        Some(asked)
    }

    /// Halves the window; a stream that has the smallest one must earn it again.
    fn shrink(&mut self, limits: Limits) {
        let half = self.window / 2;
        (self.window, self.run) = if half >= limits.window_bytes_min { (half, self.run) } else { (0, 0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { window_bytes_min: 1 << 20, window_bytes_max: 32 << 20 };

    /// Claim: a sequential reader's read-ahead has no gap or overlap, grows to the limit, and never passes the file's end.
    #[test]
    fn sequential_reads_grow() {
        let mut history = History::default();
        let (file_end, mut ahead, mut largest) = (200 << 20, None, 0);
        for at in (0..file_end).step_by(128 << 10) {
            if let Some(asked) = history.note(0, &(at..at + (128 << 10)), file_end, LIMITS) {
                if let Some(ahead) = ahead {
                    assert_eq!(asked.start, ahead);
                }
                assert!(asked.start >= at && asked.end <= file_end);
                largest = largest.max(asked.end - at);
                ahead = Some(asked.end);
            }
        }
        assert_eq!(ahead, Some(file_end));
        assert!((30 << 20..=33 << 20).contains(&largest), "{largest}");
    }

    /// Claim: a few neighbouring reads, as page faults make them, earn nothing; a span's worth one after another does.
    #[test]
    fn a_short_run_earns_nothing() {
        let mut history = History::default();
        for place in 0..50u64 {
            for piece in 0..3 {
                let at = (place << 24) + (piece << 17);
                assert_eq!(history.note(0, &(at..at + (128 << 10)), 1 << 40, LIMITS), None);
            }
        }
        let asked = (0..16).filter_map(|step: u64| history.note(1, &(step << 17..(step + 1) << 17), 1 << 40, LIMITS)).next();
        assert_eq!(asked, Some(1 << 20..2 << 20));
    }

    /// Claim: a stream that skips what was read ahead for it loses half of its window each time, then all; memory that is short shrinks it
    /// at once; one that jumps away starts from nothing.
    #[test]
    fn windows_shrink() {
        let mut history = History::default();
        let read = |history: &mut History, at: u64, limits: Limits| history.note(0, &(at..at + (64 << 10)), 1 << 40, limits);
        let (mut at, end) = (0, 64 << 20);
        while at < end {
            read(&mut history, at, LIMITS);
            at += 64 << 10;
        }
        assert_eq!(history.streams[0].window, 32 << 20);
        for expected in [16, 8, 4, 2, 1, 0] {
            at += 512 << 10;
            read(&mut history, at, LIMITS);
            at += 64 << 10;
            // Asking doubles it again, so only what a skip leaves is looked at.
            let window = history.streams[0].window;
            assert!(window == expected << 20 || window == expected << 21, "{window} after a skip, expected {expected} MiB");
            history.streams[0].window = expected << 20;
        }
        history.streams[0].window = 32 << 20;
        let short = Limits { window_bytes_max: 4 << 20, ..LIMITS };
        read(&mut history, at, short);
        assert!(history.streams[0].window <= 4 << 20);
        read(&mut history, 500 << 20, LIMITS);
        assert_eq!((history.streams[0].window, history.streams[0].ahead), (0, 0));
    }

    /// Claim: random readers never cause a read-ahead.
    #[test]
    fn random_reads_pay_nothing() {
        let mut history = History::default();
        for step in 0..1000u64 {
            let at = (step * 7_919 % 1000) << 24;
            assert_eq!(history.note(0, &(at..at + 4096), 1 << 40, LIMITS), None);
        }
    }

    /// Claim: two sequential readers of one file, one from another layer, and the limit 0 are each seen as what they are.
    #[test]
    fn streams_are_told_apart() {
        let mut history = History::default();
        let mut asked = [0, 0];
        for step in 0..64u64 {
            for (stream, base) in [0u64, 500 << 20].into_iter().enumerate() {
                let at = base + step * (256 << 10);
                asked[stream] += u32::from(history.note(0, &(at..at + (256 << 10)), 1 << 40, LIMITS).is_some());
            }
        }
        assert!(asked[0] > 3 && asked[0] == asked[1], "{asked:?}");
        let off = Limits { window_bytes_max: 0, ..LIMITS };
        assert_eq!(history.note(0, &(100..200), 1 << 40, off), None);
        assert_eq!(history.note(1, &(64 * (256 << 10)..65 * (256 << 10)), 1 << 40, LIMITS), None, "another layer is another stream");
    }
}
