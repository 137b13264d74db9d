//! Where a layer is slow to read: long stretches of its stream that cannot be entered. Pure.

use std::{iter, ops::Range};

use clip_format::{checkpoints::SpanTable, units::SpanIndex};

/// Stretches up to this are nothing to speak of. Source: judgement, not measured: about what a far registry's round trip
/// costs is decoded meanwhile.
const STRETCH_BYTES_MIN: u64 = 32 << 20;
/// As that, in spans: who asks for large spans has asked for long decodes.
const STRETCH_SPANS_MIN: u64 = 16;

/// The longest stretch of a layer's stream between neighbouring entries, or from the last entry to the end, when it is long enough to be
/// worth a warning: a read just before its end decodes all of it.
///
/// Shape: `entries` are the stream offsets where decoding can begin, ascending from 0; `spans` is the number of all spans. Bytes,
/// half-open.
#[must_use]
pub fn slow_stretch(entries: impl IntoIterator<Item = u64>, spans: usize, stream_size: u64) -> Option<Range<u64>> {
    let span_bytes = stream_size / spans.max(1) as u64;
    let limit = STRETCH_BYTES_MIN.max(span_bytes.saturating_mul(STRETCH_SPANS_MIN));
    if stream_size <= limit {
        return None;
    }
    let mut longest = 0..0;
    let mut start = 0;
    for entry in entries.into_iter().chain([stream_size]) {
        if entry.saturating_sub(start) > longest.end - longest.start {
            longest = start..entry;
        }
        start = entry;
    }
    (longest.end - longest.start > limit).then_some(longest)
}

/// As [`slow_stretch`], of an opened table. Cost: a look at each entry's record; none for a stream below the limit.
pub(crate) fn slow_stretch_of(table: &SpanTable) -> Option<Range<u64>> {
    let first = (!table.is_empty()).then_some(SpanIndex(0));
    let entries = iter::successors(first, |&entry| table.next_entry(entry));
    slow_stretch(entries.map(|entry| table.stream_range(entry).start), table.len() as usize, table.stream_size())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Claim: the longest stretch is found at the start, in the middle and at the end, the first of several that are equal.
    #[test]
    fn the_longest_stretch_is_found_wherever_it_is() {
        let end = 200 * MIB;
        assert_eq!(slow_stretch([0], 200, end), Some(0..end));
        assert_eq!(slow_stretch([0, 90 * MIB, 130 * MIB], 200, end), Some(0..90 * MIB));
        assert_eq!(slow_stretch([0, 50 * MIB, 130 * MIB], 200, end), Some(50 * MIB..130 * MIB));
        assert_eq!(slow_stretch([0, 50 * MIB, 100 * MIB], 200, end), Some(100 * MIB..end));
        assert_eq!(slow_stretch([0, 100 * MIB], 200, end), Some(0..100 * MIB));
    }

    /// Claim: nothing is said up to 32 MiB, or up to 16 spans where those are longer; nor of a stream without bytes.
    #[test]
    fn short_stretches_are_not_spoken_of() {
        assert_eq!(slow_stretch([0], 32, 32 * MIB), None);
        assert_eq!(slow_stretch([0], 33, 33 * MIB), Some(0..33 * MIB));
        assert_eq!(slow_stretch((0..200).map(|span| span * MIB), 200, 200 * MIB), None);
        assert_eq!(slow_stretch([0], 16, 16 * 64 * MIB), None);
        assert_eq!(slow_stretch([0], 17, 17 * 64 * MIB), Some(0..17 * 64 * MIB));
        assert_eq!(slow_stretch([], 0, 0), None);
    }
}
