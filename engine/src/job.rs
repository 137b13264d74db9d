//! One decode job: a group's compressed bytes in, verified spans out, on whichever shard was idle.

use std::{
    rc::Rc,
    sync::{Arc, atomic::AtomicBool},
};

use bytes::{Buf, Bytes};
use clip_format::units::SpanIndex;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::{
    buffers::Buffer,
    core::BUDGET_UNIT,
    decode::Decoder,
    error::EngineError,
    image_layer::{ImageLayer, Suspended, Work},
    metrics::count,
    progress::{self, Progress},
    shard::Shard,
    span::{SPAN_LEN_MAX, VerifiedSpan},
};

/// A group whose bytes arrive on `input`; closing the channel early means that the fetch failed.
pub(crate) struct DecodeJob {
    pub(crate) layer: Arc<ImageLayer>,
    pub(crate) work: Work,
    pub(crate) input: mpsc::Receiver<Bytes>,
    /// Given back when the job ends: a flow starts no more jobs than it has turns.
    pub(crate) turn: OwnedSemaphorePermit,
    /// The flow's failure is in the log; of several groups with wrong bytes one is enough.
    pub(crate) said: Arc<AtomicBool>,
}

/// Decodes `job` to its last wanted span. What fails, fails the spans that are left, with one log line here unless the fetch said it.
pub(crate) async fn run(job: DecodeJob, shard: Rc<Shard>) {
    let (claims, layer, said) = (job.work.claims.clone(), job.layer.store.digest, job.said.clone());
    if let Err(error) = decode(job, &shard).await
        && !claims.has_failed()
    {
        shard.core.say_fetch_failed(&said, &layer, &error);
        drop(claims.fail(error));
    }
}

async fn decode(job: DecodeJob, shard: &Rc<Shard>) -> Result<(), EngineError> {
    let DecodeJob { layer, work, input, turn: _turn, said: _ } = job;
    let decoder = match work.decoder {
        Some(decoder) => decoder,
        None => layer.enter(work.entry)?,
    };
    let mut source = Source { decoder, input, chunk: Bytes::new(), used: 0 };
    let mut next = work.group.from;
    while let Some(span) = work.claims.next_span() {
        let (bytes, held) = next_span(&layer, &mut source, span, shard).await?;
        next = SpanIndex(span.get() + 1);
        if work.claims.passed(span) {
            let verified = verify(&layer, span, bytes)?;
            count(&shard.core.counters.spans_fetched, 1);
            if let Some(delivered) = work.claims.deliver(span, &verified) {
                shard.keep(delivered, verified, held);
            }
        }
        tokio::task::yield_now().await;
    }
    let end = layer.table.next_entry(work.entry).map_or(layer.table.len(), SpanIndex::get);
    if next.get() < end {
        let position = work.group.compressed.start + source.used;
        layer.suspend(Suspended { entry: work.entry, next, position, decoder: source.decoder });
    }
    Ok(())
}

/// A decoder and the bytes it has not seen.
struct Source {
    decoder: Decoder,
    input: mpsc::Receiver<Bytes>,
    chunk: Bytes,
    used: u64,
}

/// The next span's bytes, not verified, and the part of the budget that they take.
async fn next_span(
    layer: &ImageLayer,
    source: &mut Source,
    span: SpanIndex,
    shard: &Shard,
) -> Result<(Buffer, OwnedSemaphorePermit), EngineError> {
    let range = layer.table.stream_range(span);
    let len = range.end - range.start;
    if len > SPAN_LEN_MAX {
        return Err(layer.store.bad(span, format!("at most {SPAN_LEN_MAX} bytes"), format!("{len} bytes")));
    }
    // A span larger than the whole budget takes all of it, and so passes alone.
    let units = u32::try_from(len.div_ceil(BUDGET_UNIT)).unwrap_or(u32::MAX).min(shard.core.budget_units);
    let held = room(units, layer, shard).await?;
    let mut bytes = layer.store.buffers.take(len as usize);
    let mut filled = 0;
    loop {
        // Before more input is waited for: the decoder may hold output of input that it has used.
        let decoded = source.decoder.decode(&source.chunk, &mut bytes[filled..]);
        let (used, written) = decoded.map_err(|error| layer.store.bad(span, "bytes that decompress", error.to_string()))?;
        source.chunk.advance(used);
        source.used += used as u64;
        filled += written;
        if filled == bytes.len() {
            break;
        }
        let Some(chunk) = source.input.recv().await else {
            return Err(layer.store.bad(span, format!("{len} bytes"), format!("{filled} bytes, then the compressed bytes end")));
        };
        source.chunk = chunk;
    }
    count(&shard.core.counters.bytes_decoded, len);
    Ok((bytes, held))
}

/// Waits for a part of the budget as long as others get theirs, or bytes arrive: only a disk that hangs stops both.
async fn room(units: u32, layer: &ImageLayer, shard: &Shard) -> Result<OwnedSemaphorePermit, EngineError> {
    let (core, waiting) = (&shard.core, Progress::default());
    let idle_max = core.config.read_timeout;
    let held = progress::acquire(&core.budget, units, &[&waiting, &core.room, &core.progress], idle_max).await.ok_or_else(|| {
        let what = format!("room for decoded bytes of layer {} (is the disk of the cache hanging?)", layer.store.digest);
        EngineError::Deadline { what, waited: idle_max }
    })??;
    core.room.touch();
    Ok(held)
}

fn verify(layer: &ImageLayer, span: SpanIndex, bytes: Buffer) -> Result<VerifiedSpan, EngineError> {
    let expected = layer.store.table.span(span).digest;
    VerifiedSpan::verify(bytes, &expected).map_err(|found| {
        let text = |digest| format!("BLAKE3 {}", hex::encode(digest));
        layer.store.bad(span, text(expected), text(found))
    })
}
