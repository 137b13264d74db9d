//! One streaming pass over one layer: blob bytes in; members, spans, windows and digests out.
//!
//! Five threads a layer, joined by bounded channels: fetch -> inflate -> tar members and the stream's hashes; beside them the blob's own
//! hash, and the choice of checkpoints. Inflate is the longest of them and cannot be split, so that its thread does nothing else.
//! Nothing is held but the channels' chunks and the blocks whose cuts are not decided yet, whatever the blob expands to.

mod blocks;
mod candidates;
mod decoder_memory;
mod fetch;
mod frame_cuts;
mod gzip;
mod hash;
mod jury;
mod members;
mod metadata;
mod spans;
mod stream;
mod zstd;

use std::{panic, thread, time::Duration};

use bytes::Bytes;
use clip_engine::{error::EngineError, registry::Client, source::BlobSource, stretch::slow_stretch};
use clip_format::{
    checkpoints::{Span, SpanStart, WindowRange},
    digest::Digest,
    storage_info::{Codec, LayerInfo},
    units::LayerIndex,
};
use crossbeam::channel::{Receiver, bounded};

use candidates::Judged;
pub(crate) use decoder_memory::DecoderMemory;
use decoder_memory::DecoderShare;
pub(crate) use fetch::Cancel;
use fetch::{Fetched, Message};
use gzip::GzipSpans;
pub(crate) use hash::digest_of;
use jury::{Frames, Told, Verdict};
use members::Found;
pub(crate) use metadata::Metadata;
use spans::{PlainSpans, SpanDraft};
use stream::{BlockSender, StreamOutput};
use zstd::ZstdSpans;

use crate::{
    cpu_clock::thread_cpu,
    error::IndexError,
    options::{DiffIds, Windows},
    progress::{LayerEvent, Progress},
    tar_entry::Entry,
};

/// Blob chunks (up to 256 KiB each) between fetch and inflate. Source: at 16, a 2-core machine's scheduler never starves inflate.
const CHUNKS_IN_FLIGHT_MAX: usize = 16;
/// Stream blocks (256 KiB each) between inflate and the stream hashes. Source: judgement, not measured: as many as chunks before
/// inflate, 4 MiB a layer, 6 ms of its output.
const BLOCKS_IN_FLIGHT_MAX: usize = 16;
/// Used blocks on their way back: those in flight and those that waited for a cut, so that none is allocated twice. Source:
/// judgement, not measured: a cut waits for no more than are in flight; one that finds no room is freed, which costs an allocation.
const BLOCKS_BACK_MAX: usize = 2 * BLOCKS_IN_FLIGHT_MAX;
/// What inflate may tell the jury before it waits: each holds a chunk of the blob at most. Source: two rounds of six candidates with two
/// chunks for each.
const TOLD_MAX: usize = 48;

/// The longest start of a blob that tells what it is, bzip2's.
const MAGIC_BYTES_MAX: usize = 10;

/// A layer to be indexed: what the manifest and the config say of it.
#[derive(Clone, Debug)]
pub(crate) struct LayerInput {
    pub(crate) index: LayerIndex,
    pub(crate) digest: Digest,
    pub(crate) diff_id: Digest,
    pub(crate) media_type: String,
    /// The codec that the media type names.
    pub(crate) codec: Codec,
    pub(crate) blob: BlobSource,
}

/// How layers are indexed, whichever it is.
pub(crate) struct LayerSettings<'a> {
    pub(crate) span_bytes: u64,
    pub(crate) windows: Windows,
    pub(crate) diff_ids: DiffIds,
    pub(crate) client: &'a Client,
    /// Shared by all layers of the image.
    pub(crate) decoders: &'a DecoderMemory,
    /// As that.
    pub(crate) metadata: &'a Metadata,
    pub(crate) cancel: &'a Cancel,
    pub(crate) progress: &'a dyn Progress,
}

/// An indexed layer whose hashes all agree.
#[derive(Clone)]
pub(crate) struct LayerOutput {
    pub(crate) info: LayerInfo,
    /// Deflate starts have no windows yet: see `frames`.
    pub(crate) spans: Vec<Span>,
    /// Compressed windows, each with the place of its span; sorted.
    pub(crate) frames: Vec<(usize, Vec<u8>)>,
    pub(crate) entries: Vec<Entry>,
    pub(crate) members: u64,
    /// What the entries take in memory, about.
    pub(crate) metadata_bytes: u64,
    pub(crate) warnings: Vec<String>,
    pub(crate) cpu: LayerCpu,
}

/// Processor time that a layer took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LayerCpu {
    /// Of all its threads.
    pub(crate) all: Duration,
    /// Of the choice of checkpoints: the candidates, their probes, and the windows' compression.
    pub(crate) windows: Duration,
}

/// What the decoding thread knows at the end.
struct Decoded {
    codec: Codec,
    drafts: Vec<SpanDraft>,
    stream_size: u64,
    windows_cpu: Duration,
    warnings: Vec<String>,
}

/// A thread's result, and the processor time that it took.
struct Job<T> {
    result: T,
    cpu: Duration,
}

impl<T> Job<T> {
    fn run(work: impl FnOnce() -> T) -> Self {
        let before = thread_cpu();
        let result = work();
        Self { result, cpu: thread_cpu().saturating_sub(before) }
    }
}

/// The layer, indexed; `None` when another layer's failure stopped the work.
///
/// # Errors
/// Every kind; all threads are joined before it returns.
pub(crate) fn index_layer(input: &LayerInput, settings: &LayerSettings<'_>) -> Result<Option<LayerOutput>, IndexError> {
    let (chunk_sender, chunks) = bounded(CHUNKS_IN_FLIGHT_MAX);
    let (blob_sender, blob_chunks) = bounded(CHUNKS_IN_FLIGHT_MAX);
    let (block_sender, blocks) = bounded(BLOCKS_IN_FLIGHT_MAX);
    let (used_sender, used_buffers) = bounded(BLOCKS_BACK_MAX);
    let (told_sender, told) = bounded::<Told>(TOLD_MAX);
    // A verdict is read before the next round begins.
    let (verdict_sender, verdicts) = bounded::<Verdict>(1);
    let (fetched, blob_hash, stream, jury, decoded) = thread::scope(|scope| {
        let fetch = scope.spawn(|| Job::run(|| fetch::fetch(&input.blob, settings.client, settings.cancel, chunk_sender, blob_sender)));
        let blob_hash = scope.spawn(|| Job::run(|| hash::blob_digest(&input.digest, &blob_chunks)));
        // The threads take their ends of the channels with them: one that fails or ends is noticed at the other end.
        let stream = scope.spawn(move || Job::run(|| stream::read_stream(input, settings, &blocks, &used_sender)));
        let jury = scope.spawn(move || Job::run(|| jury::judge_rounds(input.digest, &told, &verdict_sender)));
        let sink = BlockSender::new(block_sender, used_buffers);
        let judged = match settings.windows {
            Windows::Sparse => Judged::Beside { told: told_sender, verdicts },
            Windows::None => {
                drop(told_sender);
                Judged::Windowless(Box::default())
            }
        };
        let decoded = Job::run(|| decode(input, settings, chunks, judged, sink));
        if decoded.result.as_ref().is_err_and(|error| !is_of_bytes(error)) {
            // Wakes our own fetch too, wherever it waits.
            settings.cancel.stop();
        }
        (joined(fetch), joined(blob_hash), joined(stream), joined(jury), decoded)
    });
    let all = fetched.cpu + blob_hash.cpu + stream.cpu + jury.cpu + decoded.cpu;
    let found = matches!(fetched.result, Ok(Fetched::Whole)).then_some(blob_hash.result);
    if found == Some(input.digest) {
        settings.cancel.note_right();
    }
    let blamed = |error| blamed(error, input, found);
    // A job that failed has closed its channels: its own error says more than the decoder's. The members come before what is
    // decoded after them.
    let (stream, frames) = (stream.result.map_err(blamed)?, jury.result.map_err(blamed)?);
    let Some(decoded) = decoded.result.map_err(blamed)? else {
        // The bytes stopped coming: the fetch failed, or it was told to stop.
        return fetched.result.map(|_| None).map_err(IndexError::from);
    };
    check_digest(input, "the blob", input.digest, blob_hash.result)?;
    if let Some(digest) = stream.digest {
        let what = match decoded.codec {
            // Source: skopeo 1.9.3 with --dest-compress-format zstd:chunked, whose layers lack the zeros at the end.
            Codec::Zstd => "the layer stream (diff_id; some writers of zstd:chunked cut off a tar's end: see --skip-diff-id-check)",
            Codec::Plain | Codec::Gzip => "the layer stream (diff_id)",
        };
        check_digest(input, what, input.diff_id, digest)?;
    }
    let cpu = LayerCpu { all, windows: jury.cpu + decoded.windows_cpu };
    let mut output = assembled(input, decoded, stream, frames, cpu)?;
    output.warnings.extend(slow_stretch_warning(&output, settings.windows));
    settings.progress.layer(input.index, LayerEvent::Finished { members: output.members, stream: output.info.stream_size });
    Ok(Some(output))
}

/// Whether `error` may be the fault of whoever sent the bytes: then the rest is read for its digest, which tells.
fn is_of_bytes(error: &IndexError) -> bool {
    matches!(error, IndexError::Layer { .. } | IndexError::Engine(EngineError::Stopped))
}

/// `error`, of bytes that are wrong where their digest `found` is another than the layer's: that is what comes first.
fn blamed(error: IndexError, input: &LayerInput, found: Option<Digest>) -> IndexError {
    match (error, found) {
        (IndexError::Layer { layer, place, expected, found }, Some(digest)) if digest != input.digest => {
            let found =
                format!("{digest} (other bytes came than the manifest names; in them, {place}: expected {expected}, found {found})");
            IndexError::Layer { layer, place: "the blob as a whole".to_owned(), expected: input.digest.to_string(), found }
        }
        (error, _) => error,
    }
}

fn joined<T>(handle: thread::ScopedJoinHandle<'_, T>) -> T {
    handle.join().unwrap_or_else(|panic| panic::resume_unwind(panic))
}

/// The layer's spans; `None` when the bytes stop coming before their end.
fn decode(
    input: &LayerInput,
    settings: &LayerSettings<'_>,
    chunks: Receiver<Message>,
    judged: Judged,
    mut sink: BlockSender,
) -> Result<Option<Decoded>, IndexError> {
    let mut warnings = Vec::new();
    let mut windows_cpu = Duration::ZERO;
    let Some(head) = first_bytes(&chunks) else { return Ok(None) };
    settings.progress.layer(input.index, LayerEvent::Started);
    refuse_other_compression(input, &head.bytes)?;
    let codec = actual_codec(input, &head.bytes, &mut warnings);
    let (drafts, stream_size) = match codec {
        Codec::Gzip => {
            let mut spans = GzipSpans::new(input.digest, settings.span_bytes, judged);
            if !each_chunk(head, &chunks, &mut |chunk| spans.push(&chunk, &mut sink))? {
                return Ok(None);
            }
            windows_cpu = spans.windows_cpu();
            spans.finish(&mut sink)?
        }
        Codec::Zstd => {
            let share = DecoderShare::new(settings.decoders, settings.cancel);
            let mut spans = ZstdSpans::new(input.digest, settings.span_bytes, share);
            if !each_chunk(head, &chunks, &mut |chunk| spans.push(&chunk, &mut sink))? || spans.is_stopped() {
                return Ok(None);
            }
            spans.finish(&mut sink)?
        }
        Codec::Plain => {
            let mut spans = PlainSpans::new(input.digest, settings.span_bytes);
            if !each_chunk(head, &chunks, &mut |chunk| spans.push(chunk, &mut sink))? {
                return Ok(None);
            }
            spans.finish()
        }
    };
    Ok(Some(Decoded { codec, drafts, stream_size, windows_cpu, warnings }))
}

/// The first bytes of a blob.
struct Head {
    bytes: Bytes,
    /// They are all that there is.
    is_all: bool,
}

/// Enough bytes to tell how a layer is compressed, where the blob has them; chunks may be of any length.
fn first_bytes(chunks: &Receiver<Message>) -> Option<Head> {
    let mut bytes = Bytes::new();
    while bytes.len() < MAGIC_BYTES_MAX {
        match chunks.recv() {
            Ok(Message::Chunk(chunk)) if bytes.is_empty() => bytes = chunk,
            Ok(Message::Chunk(chunk)) => bytes = [bytes, chunk].concat().into(),
            Ok(Message::End) => return Some(Head { bytes, is_all: true }),
            Err(_) => return None,
        }
    }
    Some(Head { bytes, is_all: false })
}

/// Gives each chunk of the blob to `take`; false when they stop coming before the end.
fn each_chunk(head: Head, chunks: &Receiver<Message>, take: &mut dyn FnMut(Bytes) -> Result<(), IndexError>) -> Result<bool, IndexError> {
    take(head.bytes)?;
    let mut ended = head.is_all;
    while !ended {
        match chunks.recv() {
            Ok(Message::Chunk(chunk)) => take(chunk)?,
            Ok(Message::End) => ended = true,
            Err(_) => return Ok(false),
        }
    }
    Ok(true)
}

/// Ways to compress that a layer may not have: `.tar.xz` and `.tar.bz2` under a media type of gzip or none.
///
/// Source: xz-file-format.txt section 2.1.1.1; bzip2's block and end magics, without which its header is a name that a tar may begin with.
fn refuse_other_compression(input: &LayerInput, head: &[u8]) -> Result<(), IndexError> {
    let found = match head {
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => "xz",
        [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, 0x53, 0x59, ..]
        | [b'B', b'Z', b'h', b'1'..=b'9', 0x17, 0x72, 0x45, 0x38, 0x50, 0x90, ..] => "bzip2",
        _ => return Ok(()),
    };
    Err(IndexError::Unsupported {
        what: format!("layer {}", input.digest),
        found: format!("compression with {found} (the media type is {})", input.media_type),
        hint: "layers are gzip, zstd or plain tar; build or convert the image again with one of these".to_owned(),
    })
}

/// The blob's own first bytes decide what it is; what the media type says of them is only worth a warning.
fn actual_codec(input: &LayerInput, head: &[u8], warnings: &mut Vec<String>) -> Codec {
    let found = match head {
        [0x1f, 0x8b, ..] => Codec::Gzip,
        // A frame, or a skippable frame before the first. Source: RFC 8878 sections 3.1.1 and 3.1.2.
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Codec::Zstd,
        _ => Codec::Plain,
    };
    if found != input.codec && !head.is_empty() {
        let is = match found {
            Codec::Plain => "not compressed",
            Codec::Gzip => "gzip",
            Codec::Zstd => "zstd",
        };
        warnings.push(format!("layer {}: the media type says {}, but the blob is {is}; read as it is", input.digest, input.media_type));
    }
    found
}

fn check_digest(input: &LayerInput, what: &str, expected: Digest, found: Digest) -> Result<(), IndexError> {
    if expected == found {
        return Ok(());
    }
    let place = format!("{what} as a whole");
    Err(IndexError::Layer { layer: input.digest, place, expected: expected.to_string(), found: found.to_string() })
}

fn assembled(
    input: &LayerInput,
    mut decoded: Decoded,
    stream: StreamOutput<'_>,
    frames: Frames,
    cpu: LayerCpu,
) -> Result<LayerOutput, IndexError> {
    let Found { entries, members, metadata_bytes } = stream.members.finish(&mut decoded.warnings)?;
    if decoded.drafts.last().is_some_and(|draft| draft.stream == decoded.stream_size) {
        // The stream ended right at a cut: there is no span after it.
        decoded.drafts.pop();
    }
    let spans = decoded.drafts.iter().zip(&stream.spans).map(|(draft, digest)| Span {
        start: draft.start,
        compressed: draft.compressed,
        stream: clip_format::units::StreamOffset(draft.stream),
        digest: *digest,
    });
    let spans: Vec<Span> = spans.collect();
    let frames = frames.into_iter().filter(|(_, frame)| !frame.is_empty());
    let frames = frames.filter_map(|(at, frame)| Some((spans.binary_search_by_key(&at, |span| span.stream.get()).ok()?, frame))).collect();
    Ok(LayerOutput {
        info: LayerInfo {
            digest: input.digest,
            diff_id: input.diff_id,
            media_type: input.media_type.clone(),
            compressed_size: input.blob.size(),
            stream_size: decoded.stream_size,
            codec: decoded.codec,
        },
        spans,
        frames,
        entries,
        members,
        metadata_bytes,
        warnings: decoded.warnings,
        cpu,
    })
}

/// What there is to say of the longest stretch that cannot be entered.
fn slow_stretch_warning(layer: &LayerOutput, windows: Windows) -> Option<String> {
    let entries = layer.spans.iter().filter(|span| span.start != SpanStart::Chained).map(|span| span.stream.get());
    let stretch = slow_stretch(entries, layer.spans.len(), layer.info.stream_size)?;
    let why = match (layer.info.codec, windows) {
        (Codec::Zstd, _) => {
            "it is one zstd frame, which is read from its start and kept as it passes (compress the layer in many frames, as zstd:chunked and the seekable format do)"
        }
        (_, Windows::Sparse) => "it is one deflate block, which has no place to begin inside (compress the layer with smaller blocks)",
        (_, Windows::None) => "--windows none leaves only gzip members and full flushes to begin at",
    };
    Some(format!(
        "layer {}: decoding cannot begin anywhere between stream offsets {} and {}, so that a read there may decode {} MiB: {why}",
        layer.info.digest,
        stretch.start,
        stretch.end,
        (stretch.end - stretch.start) >> 20
    ))
}

/// Puts the window of span `span` in its record.
pub(crate) fn set_window(span: &mut Span, range: WindowRange) {
    if let SpanStart::Deflate { window, .. } = &mut span.start {
        *window = range;
    }
}

#[cfg(test)]
mod tests;
