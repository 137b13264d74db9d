//! Any bytes as the checkpoints of two layers, and as a window.
#![no_main]

use std::sync::Arc;

use clip_format::{
    checkpoints::{Checkpoints, WindowRange},
    digest::Digest,
    storage_info::{Codec, LayerInfo},
    units::{SpanIndex, StreamOffset},
    windows::expand_window,
};
use libfuzzer_sys::fuzz_target;

fn layer(codec: Codec, compressed_size: u64, stream_size: u64) -> LayerInfo {
    let digest = Digest::Sha256([0; 32]);
    LayerInfo { digest, diff_id: digest, media_type: String::new(), compressed_size, stream_size, codec }
}

fuzz_target!(|bytes: &[u8]| {
    let _ = expand_window(bytes, WindowRange { offset: 0, len: bytes.len() as u32 });
    // The sizes that `seeds` uses.
    let layers = [layer(Codec::Gzip, 400_000, 3 << 20), layer(Codec::Plain, 2 << 20, 2 << 20), layer(Codec::Zstd, 300_000, 2 << 20)];
    let Ok(checkpoints) = Checkpoints::open(Arc::new(bytes.to_vec()), &layers, 10_000) else { return };
    for (table, layer) in checkpoints.layers().iter().zip(&layers) {
        let mut end = 0;
        for span in (0..table.len()).map(SpanIndex) {
            let range = table.stream_range(span);
            assert_eq!(range.start, end, "spans tile the stream");
            end = range.end;
            assert_eq!(table.span_at(StreamOffset(range.start)), Some(span));
            let entry = table.entry_of(span);
            assert!(entry <= span && table.next_entry(span).is_none_or(|next| next > span));
            let blob = table.compressed_range(entry);
            assert!(blob.start < blob.end || blob.start == blob.end && blob.end <= layer.compressed_size);
            let _ = table.span(span);
        }
        assert_eq!(end, layer.stream_size);
        let _ = table.spans_digest();
    }
});
