//! Any bytes are a zstd stream with its spans or an error, and the pieces they come in change nothing.
#![no_main]

/// The decoder's own files, and not the crate around them: that would be instrumented with its network and TLS.
#[path = "../../engine/src"]
mod engine {
    #[allow(dead_code)]
    pub mod zstd;
}

mod spans {
    use clip_format::{checkpoints::SpanStart, units::CompressedOffset};

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct SpanDraft {
        pub start: SpanStart,
        pub compressed: CompressedOffset,
        pub stream: u64,
    }
}

#[allow(dead_code)]
#[path = "../../indexer/src/layer/frame_cuts.rs"]
mod frame_cuts;

use clip_format::checkpoints::SpanStart;
use engine::zstd::{Zstd, ZstdError, ZstdStop};
use frame_cuts::FrameCuts;
use libfuzzer_sys::fuzz_target;
use spans::SpanDraft;

/// Small, so that short inputs have many spans.
const SPAN_BYTES: u64 = 64;
/// 1 MiB: what a frame asks for is taken, and large windows would be all that a run does.
const WINDOW_LOG_MAX: u8 = 20;
/// A block of one repeated byte is 128 KiB of output: after so much the rest is left out.
const STREAM_BYTES_MAX: usize = 1 << 20;

#[derive(Debug, PartialEq, Eq)]
struct Found {
    stream: Vec<u8>,
    spans: Vec<SpanDraft>,
    breaks_off_in: Option<&'static str>,
}

/// The spans of the first `stream_max` bytes of `blob`, found as the indexer finds them, with `room` bytes of output at a time.
fn find(blob: &[u8], chunk: usize, room: usize, stream_max: usize) -> Result<Found, ZstdError> {
    let (mut zstd, mut cuts, mut stream, mut consumed) = (Zstd::new(WINDOW_LOG_MAX), FrameCuts::new(SPAN_BYTES), Vec::new(), 0);
    let (mut known, mut buffer) = (Vec::new(), vec![0; room]);
    loop {
        let input = &blob[consumed..blob.len().min(consumed + chunk)];
        let wanted = room.min(stream_max - stream.len()).min((cuts.span_end_max() - stream.len() as u64) as usize);
        let step = zstd.step(input, &mut buffer[..wanted])?;
        consumed += step.consumed;
        stream.extend_from_slice(&buffer[..step.produced]);
        if stream.len() as u64 == cuts.span_end_max() {
            known.push(cuts.full());
        }
        match step.stop {
            ZstdStop::FrameStart { header_len, content_bytes, .. } => {
                let start = consumed - usize::from(header_len);
                assert_eq!(blob[start..start + 4], [0x28, 0xb5, 0x2f, 0xfd]);
                known.extend(cuts.frame_start(stream.len() as u64, start as u64, 0, content_bytes));
                cuts.block_start(consumed as u64);
            }
            ZstdStop::BlockEnd => cuts.block_start(consumed as u64),
            _ => {}
        }
        let is_stuck = step.consumed == 0 && step.produced == 0 && step.stop == ZstdStop::More;
        if is_stuck || stream.len() == stream_max {
            assert!(consumed == blob.len() || stream.len() == stream_max, "no progress at {consumed}");
            let spans = cuts.finish();
            assert!(known.windows(2).all(|pair| pair[0] <= pair[1]), "{known:?}");
            return Ok(Found { stream, spans, breaks_off_in: zstd.is_within() });
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let [chunk, room, blob @ ..] = bytes else { return };
    let whole = find(blob, blob.len().max(1), 4096, STREAM_BYTES_MAX);
    let pieces = find(blob, usize::from(*chunk) + 1, usize::from(*room) + 1, STREAM_BYTES_MAX);
    let Ok(found) = &whole else { return assert!(pieces.is_err()) };
    assert!(found.stream.len() == STREAM_BYTES_MAX || pieces.as_ref() == Ok(found), "{chunk} {room}");
    for pair in found.spans.windows(2) {
        let len = pair[1].stream - pair[0].stream;
        assert!(len > 0 && len <= 2 * SPAN_BYTES && pair[0].compressed <= pair[1].compressed, "{pair:?}");
    }
    let starts = found.spans.iter().map(|span| span.stream).collect::<Vec<_>>();
    // A last one may be of no bytes.
    for row in starts.windows(4) {
        assert!(row.windows(2).any(|span| span[1] - span[0] >= SPAN_BYTES), "{row:?}");
    }
    assert!(found.spans.first().is_none_or(|span| span.stream == 0 && span.start != SpanStart::Chained));
    for span in found.spans.iter().filter(|span| span.start != SpanStart::Chained).take(4) {
        let expected = &found.stream[span.stream as usize..];
        let rest = find(&blob[span.compressed.get() as usize..], 4096, 4096, expected.len());
        assert!(rest.as_ref().is_ok_and(|rest| rest.stream == *expected), "{span:?} of {} bytes", found.stream.len());
    }
});
