//! The engine's inner loops by themselves, for benches. No interface: what stands here changes with the engine.

use std::ops::Range;

use clip_format::{
    checkpoints::{SpanStart, SpanTable},
    units::SpanIndex,
    windows::expand_window,
};

use crate::{
    decode::Decoder,
    error::EngineError,
    plan::{self, Group},
};

/// `out` holds the bytes of `span`, verified: decoded from its entry, whose compressed bytes are `compressed`. Chained spans before it
/// are decoded into `out` and dropped.
///
/// # Errors
/// `Corrupt` for a damaged window, damaged bytes or another BLAKE3.
pub fn resume(table: &SpanTable, windows: &[u8], span: SpanIndex, compressed: &[u8], out: &mut Vec<u8>) -> Result<(), EngineError> {
    let bad = |expected: &str, found: String| EngineError::Invalid { what: format!("span {span}"), expected: expected.to_owned(), found };
    let entry = table.entry_of(span);
    let start = table.span(entry).start;
    let window = match start {
        SpanStart::Deflate { window, .. } => {
            expand_window(windows, window).map_err(|error| bad("a window that expands", error.to_string()))?
        }
        _ => None,
    };
    let mut decoder = Decoder::at(start, window).ok_or_else(|| bad("an entry", "a chained span".to_owned()))?;
    let mut used = 0;
    for at in entry.get()..=span.get() {
        let range = table.stream_range(SpanIndex(at));
        out.resize((range.end - range.start) as usize, 0);
        let (more, filled) = decoder.decode(&compressed[used..], out).map_err(|error| bad("bytes that decompress", error.to_string()))?;
        used += more;
        if filled < out.len() {
            return Err(bad(&format!("{} bytes", out.len()), format!("{filled} bytes, then the compressed bytes end")));
        }
    }
    let found = *blake3::hash(out).as_bytes();
    let expected = table.span(span).digest;
    if found == expected { Ok(()) } else { Err(bad(&hex::encode(expected), hex::encode(found))) }
}

/// How many requests a read of `range` takes when all of its spans are absent; 0 for a range outside the stream.
#[must_use]
pub fn plan(table: &SpanTable, range: &Range<u64>, request_bytes_max: u64) -> usize {
    let claimed: Vec<SpanIndex> = plan::spans_of(table, range).into_iter().flatten().map(SpanIndex).collect();
    let groups: Vec<Group> = plan::by_entry(table, &claimed)
        .iter()
        .map(|wanted| Group::new(table, wanted.entry, wanted.entry, table.compressed_range(wanted.entry).start, wanted.last()))
        .collect();
    let (mut requests, mut at) = (0, 0);
    while at < groups.len() {
        at += plan::joined(&groups[at..], request_bytes_max, 0);
        requests += 1;
    }
    requests
}
