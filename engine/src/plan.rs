//! From a range of a layer stream to the spans it needs, the entry groups that hold them, and the requests that fetch those. Pure.

use std::{ops::Range, time::Duration};

use clip_format::{
    checkpoints::SpanTable,
    units::{SpanIndex, StreamOffset},
};

/// The spans that hold `range`, as numbers, half-open; `None` when it is empty or reaches past the stream.
pub(crate) fn spans_of(table: &SpanTable, range: &Range<u64>) -> Option<Range<u32>> {
    if range.start >= range.end || range.end > table.stream_size() {
        return None;
    }
    let first = table.span_at(StreamOffset(range.start))?;
    let last = table.span_at(StreamOffset(range.end - 1))?;
    Some(first.get()..last.get() + 1)
}

/// Wanted spans that one entry leads to.
///
/// Invariant: `entry <= wanted[0]`, `wanted` ascends, and no entry stands between `entry` and its last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Where decoding can begin.
    pub(crate) entry: SpanIndex,
    /// What must come out.
    pub(crate) wanted: Vec<SpanIndex>,
}

impl Wanted {
    pub(crate) fn last(&self) -> SpanIndex {
        self.wanted[self.wanted.len() - 1]
    }
}

/// `claimed` (ascending) by the entry that leads to each.
pub(crate) fn by_entry(table: &SpanTable, claimed: &[SpanIndex]) -> Vec<Wanted> {
    let mut groups: Vec<Wanted> = Vec::new();
    for &span in claimed {
        let entry = table.entry_of(span);
        match groups.last_mut() {
            Some(group) if group.entry == entry => group.wanted.push(span),
            _ => groups.push(Wanted { entry, wanted: vec![span] }),
        }
    }
    groups
}

/// What one decode job does: decode from `compressed.start`, which is span `from`, through span `last`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    /// The first span that comes out: an entry, or where a kept decoder stands.
    pub(crate) from: SpanIndex,
    /// The last span that is wanted.
    pub(crate) last: SpanIndex,
    /// The blob's bytes up to the next entry. Where `last` is not the group's end, the end is only an upper bound.
    pub(crate) compressed: Range<u64>,
    /// `last` is the span before the next entry, or the table's last: all of `compressed` is needed.
    pub(crate) whole: bool,
}

impl Group {
    /// The group that decodes from span `from`, whose bytes start at `start` of the blob, through `last`.
    pub(crate) fn new(table: &SpanTable, entry: SpanIndex, from: SpanIndex, start: u64, last: SpanIndex) -> Self {
        let end = table.next_entry(last).map_or(table.len(), SpanIndex::get);
        let compressed = start..table.compressed_range(entry).end;
        Group { from, last, compressed, whole: last.get() + 1 == end }
    }
}

/// How many of `groups` (ascending) the first request takes: neighbours, each needed to its end, with gaps of at most `bridge_bytes_max`
/// bytes between them, up to `request_bytes_max` in all.
pub(crate) fn joined(groups: &[Group], request_bytes_max: u64, bridge_bytes_max: u64) -> usize {
    let mut count = 1;
    while let [previous, next] = &groups[count - 1..(count + 1).min(groups.len())] {
        let gap = next.compressed.start.saturating_sub(previous.compressed.end);
        let is_near = previous.whole && gap <= bridge_bytes_max && next.compressed.end >= previous.compressed.end;
        if !is_near || next.compressed.end - groups[0].compressed.start > request_bytes_max {
            break;
        }
        count += 1;
    }
    count
}

/// No gap is wider than this, however far the registry is. Source: 1 MiB takes 5 ms of one core to receive through TLS, and a registry that
/// sends it to eight nodes for nothing has its line full.
const BRIDGE_BYTES_MAX: u64 = 1 << 20;

/// The widest gap that costs less to receive than another request does to make: what a connection carries in the time from a request to its
/// first byte. 0 when either is unknown.
///
/// Source: on loopback a request takes 0.3 ms and a connection brings 300 MB/s, so 90 KB are bridged, a quarter of a span; to a registry at
/// 20 ms and 50 MB/s all that [`BRIDGE_BYTES_MAX`] allows.
pub(crate) fn bridge_bytes(first_byte: Duration, bytes_per_second: u64) -> u64 {
    let carried = u128::from(bytes_per_second).saturating_mul(first_byte.as_micros()) / 1_000_000;
    u64::try_from(carried).unwrap_or(u64::MAX).min(BRIDGE_BYTES_MAX)
}

/// The part of `chunk` (bytes of the blob at `position`) that belongs to `wanted`, as a range of `chunk`. Empty when none does.
pub(crate) fn part_of(position: u64, chunk_len: usize, wanted: &Range<u64>) -> Range<usize> {
    let cut = |offset: u64| usize::try_from(offset.saturating_sub(position)).unwrap_or(usize::MAX).min(chunk_len);
    cut(wanted.start)..cut(wanted.end).max(cut(wanted.start))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(from: u32, last: u32, compressed: Range<u64>, whole: bool) -> Group {
        Group { from: SpanIndex(from), last: SpanIndex(last), compressed, whole }
    }

    /// Claim: neighbours join up to the limit, across a byte that a bit offset cuts; an unneeded tail ends the request, and so does a gap
    /// that is wider than what may be bridged.
    #[test]
    fn neighbours_and_small_gaps_join() {
        let touching = [group(0, 0, 0..100, true), group(1, 1, 99..200, true), group(2, 2, 200..300, true)];
        assert_eq!(joined(&touching, 1000, 0), 3);
        assert_eq!(joined(&touching, 250, 0), 2);
        assert_eq!(joined(&touching, 1, 0), 1, "one group is always taken");
        let apart = [group(0, 0, 0..100, true), group(2, 2, 200..300, true)];
        assert_eq!([0, 99, 100].map(|bridge| joined(&apart, 1000, bridge)), [1, 1, 2]);
        assert_eq!(joined(&apart, 299, 100), 1, "the gap counts");
        assert_eq!(joined(&[group(0, 0, 0..100, false), group(1, 1, 99..300, true)], 1000, 1000), 1);
    }

    /// Claim: a gap is bridged when it arrives sooner than the first byte of another request would, and never over 1 MiB.
    #[test]
    fn gaps_are_bridged_when_that_is_cheaper() {
        assert_eq!(bridge_bytes(Duration::from_micros(300), 300_000_000), 90_000);
        assert_eq!(bridge_bytes(Duration::from_millis(20), 50_000_000), 1_000_000);
        assert_eq!(bridge_bytes(Duration::from_millis(200), 100_000_000), 1 << 20);
        assert_eq!(bridge_bytes(Duration::MAX, u64::MAX), 1 << 20);
        assert_eq!(bridge_bytes(Duration::ZERO, 100), 0);
    }

    /// Claim: every byte of a chunk goes to the groups that need it, the cut byte to both, wherever chunks are cut.
    #[test]
    fn the_cut_byte_belongs_to_both() {
        assert_eq!(part_of(0, 10, &(0..5)), 0..5);
        assert_eq!(part_of(0, 10, &(4..20)), 4..10);
        assert_eq!(part_of(10, 10, &(4..20)), 0..10);
        assert_eq!(part_of(10, 10, &(30..40)), 10..10);
        assert_eq!(part_of(50, 10, &(30..40)), 0..0);
    }
}
