//! From a recorded profile to the spans to bring, in the order in which to bring them. Pure.

use std::ops::Range;

use clip_format::{
    checkpoints::SpanTable,
    profile::{Fit, Profile},
    units::LayerIndex,
};

use crate::plan;

/// Bytes of layer streams that are brought in the order of their places instead of the order of need, so that neighbours share a request.
/// Source: two cores decode them in 25 ms (680 MB/s each): that is how much later a span may come, and a reader that is
/// faster fetches it on demand. Bytes, not milliseconds: a profile from a cold node, where needs are far apart, replays as one from a warm.
const WINDOW_BYTES: u64 = 32 << 20;

/// Neighbouring spans of one layer of the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) layer: LayerIndex,
    pub(crate) spans: Range<u32>,
}

/// What `profile` needs of the layers whose spans are `tables`, each span once. `fit` is that of the same profile and layers.
///
/// Cost: proportional to the runs of the profile and the spans of the layers, however often a hostile profile names a layer.
pub(crate) fn parts(profile: &Profile, fit: &Fit, tables: &[SpanTable]) -> Vec<Part> {
    parts_by_window(profile, fit, tables, WINDOW_BYTES)
}

fn parts_by_window(profile: &Profile, fit: &Fit, tables: &[SpanTable], window_bytes: u64) -> Vec<Part> {
    let mut planned: Vec<Vec<bool>> = tables.iter().map(|table| vec![false; table.len() as usize]).collect();
    let mut parts = Vec::new();
    let (mut window, mut bytes): (Vec<(LayerIndex, u32)>, u64) = (Vec::new(), 0);
    for run in profile.runs() {
        let Some(layer) = fit.places.get(usize::from(run.layer)).copied().flatten() else { continue };
        let Some(table) = tables.get(usize::from(layer.get())) else { continue };
        // A stream of another length under the same digest is another index's lie; what is inside ours can still be brought.
        let Some(spans) = plan::spans_of(table, &run.stream) else { continue };
        let planned = &mut planned[usize::from(layer.get())];
        window.extend(spans.filter(|&span| !std::mem::replace(&mut planned[span as usize], true)).map(|span| (layer, span)));
        bytes = bytes.saturating_add(run.bytes());
        if bytes >= window_bytes {
            flush(&mut window, &mut parts);
            bytes = 0;
        }
    }
    flush(&mut window, &mut parts);
    parts
}

/// Adds the spans of a window to `parts`, by place, neighbours in one.
fn flush(window: &mut Vec<(LayerIndex, u32)>, parts: &mut Vec<Part>) {
    window.sort_unstable();
    let first = parts.len();
    for (layer, span) in window.drain(..) {
        match parts[first..].last_mut() {
            Some(part) if part.layer == layer && part.spans.end == span => part.spans.end += 1,
            _ => parts.push(Part { layer, spans: span..span + 1 }),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use clip_format::{
        checkpoints::{Checkpoints, Span, SpanStart},
        digest::Digest,
        profile::{ProfileLayer, Run},
        storage_info::{Codec, LayerInfo},
        units::{CompressedOffset, StreamOffset},
    };

    use super::*;

    /// Plain layers of these lengths, cut into spans of `span_len`.
    fn tables(streams: &[u64], span_len: usize) -> Vec<SpanTable> {
        let spans = |&size: &u64| {
            let span = |at| Span { start: SpanStart::Plain, compressed: CompressedOffset(at), stream: StreamOffset(at), digest: [0; 32] };
            (0..size).step_by(span_len).map(span).collect::<Vec<_>>()
        };
        let info = |(number, &size): (usize, &u64)| {
            let digest = Digest::Sha256([number as u8; 32]);
            LayerInfo { digest, diff_id: digest, media_type: String::new(), compressed_size: size, stream_size: size, codec: Codec::Plain }
        };
        let bytes = Checkpoints::encode(&streams.iter().map(spans).collect::<Vec<_>>()).unwrap();
        let infos: Vec<_> = streams.iter().enumerate().map(info).collect();
        Checkpoints::open(Arc::new(bytes), &infos, 0).unwrap().layers().to_vec()
    }

    fn profile(streams: &[u64], runs: &[(u16, Range<u64>, u32)]) -> Profile {
        let layer = |(number, &stream_size): (usize, &u64)| ProfileLayer {
            digest: Digest::Sha256([number as u8; 32]),
            stream_size,
            spans_digest: [0; 32],
        };
        let runs = runs.iter().map(|(layer, stream, ms)| Run { layer: *layer, stream: stream.clone(), ms: *ms }).collect();
        Profile::new(Digest::Sha256([9; 32]), streams.iter().enumerate().map(layer).collect(), runs).unwrap()
    }

    fn planned(profile: &Profile, digests: &[u8], tables: &[SpanTable]) -> Vec<(u16, Range<u32>)> {
        let digests: Vec<_> = digests.iter().map(|number| Digest::Sha256([*number; 32])).collect();
        let parts = parts_by_window(profile, &profile.fit(&digests), tables, 400);
        parts.into_iter().map(|part| (part.layer.get(), part.spans)).collect()
    }

    /// Claim: what was needed close to each other is brought by place with neighbours joined, what was needed later comes later.
    #[test]
    fn near_needs_are_sorted_and_joined() {
        let (streams, span) = ([1000, 500], 100);
        let runs = [(0, 300..400, 0), (1, 0..100, 20), (0, 100..300, 9000), (0, 400..500, 9000), (0, 0..100, 9001)];
        let found = planned(&profile(&streams, &runs), &[0, 1], &tables(&streams, span));
        assert_eq!(found, [(0, 1..4), (1, 0..1), (0, 0..1), (0, 4..5)]);
    }

    /// Claim: an index with other spans is served by place, each of its spans once, and layers that the image lacks are left out.
    #[test]
    fn other_spans_and_missing_layers() {
        let streams = [1000, 500];
        let runs = [(0, 0..400, 0), (1, 0..100, 0), (0, 400..500, 300), (0, 990..1000, 600)];
        let recorded = profile(&streams, &runs);
        assert_eq!(planned(&recorded, &[5, 0], &tables(&[500, 1000], 350)), [(1, 0..2), (1, 2..3)]);
        assert_eq!(planned(&recorded, &[5, 6], &tables(&streams, 100)), []);
        // Of a layer that claims to be shorter, what lies inside.
        assert_eq!(planned(&recorded, &[0], &tables(&[450], 100)), [(0, 0..4)]);
    }
}
