//! Resume at checkpoints and verify, in memory, on one core.

use std::{
    io::Read as _,
    ops::Range,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clip_engine::inner_loops::resume;
use clip_format::{
    checkpoints::{SpanStart, SpanTable},
    storage_info::Codec,
    units::{LayerIndex, SpanIndex},
    windows::expand_window,
};
use flate2::{Decompress, FlushDecompress, Status};

use super::{Findings, SameWork, timed};
use crate::{
    corpus::content::Draws,
    floor,
    report::{Figure, Spread, Unit, megabytes_per_second, milliseconds},
    setup::{Scale, Setup},
};

const FLOOR: &str = "the layer from its start on, without CRC-32, and BLAKE3 hashes its spans";
/// The project's own bar.
const BAR: f64 = 0.95;
/// Stream bytes that one run decodes each way. Source: chosen: half a second of work.
const RUN_BYTES: u64 = 256 << 20;
/// Stream bytes between two changes from one way to the other, so that a loaded machine slows both. Source: chosen: 25 ms of work.
const TURN_BYTES: u64 = 16 << 20;

/// `clip-bench decode`
#[derive(Clone, Debug, Default, clap::Args)]
#[command(after_help = "\
Spans of one layer are drawn at random, decoded from their checkpoints and verified, all in memory and on one core. The floor decodes
the layer from its start and hashes the same spans; both take turns of 16 MiB.")]
pub struct DecodeArgs {
    /// The layer to decode, from 0, the base [default: that of the largest file]
    #[arg(long, value_name = "N")]
    pub layer: Option<u16>,
}

/// Rate of resume and verify of random spans against plain decoding and BLAKE3, and what of it the windows take.
///
/// # Errors
/// When the layer cannot be fetched or a span is not as the index says.
pub fn measure(setup: &Setup, args: &DecodeArgs) -> Result<Findings> {
    let layer = args.layer.map_or(setup.clip.large.layer, LayerIndex);
    let layers = setup.clip.info.layers.len();
    ensure!(usize::from(layer.get()) < layers, "expected a layer from 0 to {}, found {layer}", layers - 1);
    let bench = Bench {
        table: setup.clip.checkpoints.layer(layer),
        windows: &setup.clip.windows,
        blob: &setup.origin.blob(layer)?,
        codec: setup.clip.info.layers[usize::from(layer.get())].codec,
    };
    let mut findings = Findings::default();
    let spans = bench.entries();
    if spans.is_empty() {
        findings.skip("decode", "the layer has no checkpoint inside a deflate stream, and no frame behind the first");
        return Ok(findings);
    }
    let mut runs = Runs::default();
    let mut work = SameWork::default();
    for _ in 0..setup.runs {
        bench.run(setup, &spans, &mut runs, &mut work)?;
    }
    let what = format!("resume and verify of random spans, in memory, one core, {} spans a run", bench.drawn(setup, &spans).len());
    let rate = Figure::new("decode.resume", &what, Unit::MegabytesPerSecond, &runs.rates);
    let rate = rate.floor(&format!("{} {FLOOR}", floor::decoder(bench.codec)), &runs.floors);
    let rate = if bench.codec == Codec::Gzip { rate.bar_of_ratio(BAR) } else { rate };
    let rate = rate.counter("windows expanded, share of the time", Unit::Count, &runs.window_shares);
    findings.figures.push(rate.work(&work.hash()));
    let each = Figure::new("decode.resume.span", "one span resumed and verified, p50", Unit::Milliseconds, &runs.span_ms);
    findings.figures.push(each.distribution("resume and verify", &runs.all_spans_ms).work(&work.hash()));
    Ok(findings)
}

struct Bench<'a> {
    table: &'a SpanTable,
    windows: &'a [u8],
    blob: &'a [u8],
    codec: Codec,
}

/// One value a run.
#[derive(Default)]
struct Runs {
    rates: Vec<f64>,
    floors: Vec<f64>,
    window_shares: Vec<f64>,
    span_ms: Vec<f64>,
    /// One value a span.
    all_spans_ms: Vec<f64>,
}

impl Bench<'_> {
    /// Spans that a checkpoint in a deflate stream starts, or a frame behind the first: they are decoded from their own bytes alone.
    fn entries(&self) -> Vec<SpanIndex> {
        let starts_one = |span: &SpanIndex| match self.table.span(*span).start {
            SpanStart::Deflate { .. } => true,
            SpanStart::Frame { .. } => span.get() > 0,
            _ => false,
        };
        (0..self.table.len()).map(SpanIndex).filter(starts_one).collect()
    }

    /// The spans of one run, the same in each.
    fn drawn(&self, setup: &Setup, spans: &[SpanIndex]) -> Vec<SpanIndex> {
        let wanted = if setup.scale == Scale::Tiny { TURN_BYTES / 8 } else { RUN_BYTES };
        let (mut draws, mut bytes, mut drawn) = (Draws::new(setup.seed ^ 0xdec0), 0, Vec::new());
        while bytes < wanted {
            let span = spans[draws.below(spans.len() as u64) as usize];
            bytes += len(&self.table.stream_range(span));
            drawn.push(span);
        }
        drawn
    }

    fn run(&self, setup: &Setup, spans: &[SpanIndex], runs: &mut Runs, work: &mut SameWork) -> Result<()> {
        let (mut floor, mut out, mut hasher) = (PlainDecoding::new(self)?, Vec::new(), blake3::Hasher::new());
        let (mut bytes, mut took, mut windows) = (0, Duration::ZERO, Duration::ZERO);
        let mut each = Vec::new();
        for span in self.drawn(setup, spans) {
            let range = self.table.compressed_range(span);
            let compressed = &self.blob[usize::try_from(range.start)?..usize::try_from(range.end)?];
            let (cost, ()) = timed(|| Ok(resume(self.table, self.windows, span, compressed, &mut out)?))?;
            hasher.update(&self.table.span(span).digest);
            (bytes, took) = (bytes + out.len() as u64, took + cost);
            each.push(milliseconds(cost));
            windows += timed(|| self.expand(span))?.0;
            if bytes > floor.bytes + TURN_BYTES.min(bytes / 2) {
                floor.advance_to(bytes)?;
            }
        }
        floor.advance_to(bytes)?;
        work.check("spans resumed", hasher.finalize())?;
        runs.rates.push(megabytes_per_second(bytes, took));
        runs.floors.push(megabytes_per_second(floor.bytes, floor.took));
        if self.codec == Codec::Gzip {
            runs.window_shares.push(windows.as_secs_f64() / took.as_secs_f64());
        }
        runs.span_ms.push(Spread::of(&each).median);
        runs.all_spans_ms.append(&mut each);
        Ok(())
    }

    fn expand(&self, span: SpanIndex) -> Result<()> {
        if let SpanStart::Deflate { window, .. } = self.table.span(span).start {
            std::hint::black_box(expand_window(self.windows, window)?);
        }
        Ok(())
    }
}

fn len(range: &Range<u64>) -> u64 {
    range.end - range.start
}

/// Decodes the layer from its start on, again and again, and checks each span's BLAKE3. As at a checkpoint, no CRC-32 is computed.
struct PlainDecoding<'a> {
    bench: &'a Bench<'a>,
    decoder: Decoder<'a>,
    span: u32,
    out: Vec<u8>,
    bytes: u64,
    took: Duration,
}

enum Decoder<'a> {
    Gzip {
        inflate: Decompress,
        /// Of the blob, where the deflate stream of this member begins.
        start: usize,
    },
    Zstd(zstd::stream::read::Decoder<'static, &'a [u8]>),
}

impl<'a> Decoder<'a> {
    fn at_start(bench: &Bench<'a>) -> Result<Self> {
        match bench.codec {
            Codec::Gzip => Self::at_member(bench.blob, 0),
            Codec::Zstd => Ok(Self::Zstd(zstd::stream::read::Decoder::with_buffer(bench.blob)?)),
            Codec::Plain => anyhow::bail!("a plain layer has nothing to decode"),
        }
    }

    /// At the member whose header is at `member` of the blob.
    fn at_member(blob: &[u8], member: usize) -> Result<Self> {
        Ok(Self::Gzip { inflate: Decompress::new(false), start: deflate_start(blob, member)? })
    }

    /// The next bytes of the stream fill `out`.
    fn fill(&mut self, blob: &[u8], out: &mut [u8]) -> Result<()> {
        let mut made = 0;
        while made < out.len() {
            let (inflate, start) = match self {
                Self::Zstd(frames) => return Ok(frames.read_exact(out)?),
                Self::Gzip { inflate, start } => (inflate, *start),
            };
            let before = (inflate.total_in(), inflate.total_out());
            let input = &blob[start + usize::try_from(before.0)?..];
            let status = inflate.decompress(input, &mut out[made..], FlushDecompress::None)?;
            made += usize::try_from(inflate.total_out() - before.1)?;
            if status == Status::StreamEnd && made < out.len() {
                // A layer whose blob ends here has fewer bytes than its spans.
                *self = Self::at_member(blob, start + usize::try_from(inflate.total_in())? + TRAILER_BYTES)?;
            } else if (inflate.total_in(), inflate.total_out()) == before {
                anyhow::bail!("the layer's blob ends too early");
            }
        }
        Ok(())
    }
}

impl<'a> PlainDecoding<'a> {
    fn new(bench: &'a Bench<'a>) -> Result<Self> {
        Ok(Self { bench, decoder: Decoder::at_start(bench)?, span: 0, out: Vec::new(), bytes: 0, took: Duration::ZERO })
    }

    fn advance_to(&mut self, bytes: u64) -> Result<()> {
        let started = Instant::now();
        while self.bytes < bytes {
            self.next_span()?;
        }
        self.took += started.elapsed();
        Ok(())
    }

    fn next_span(&mut self) -> Result<()> {
        let table = self.bench.table;
        if self.span == table.len() {
            (self.decoder, self.span) = (Decoder::at_start(self.bench)?, 0);
        }
        self.out.resize(usize::try_from(len(&table.stream_range(SpanIndex(self.span))))?, 0);
        self.decoder.fill(self.bench.blob, &mut self.out).with_context(|| format!("span {}", self.span))?;
        let expected = table.span(SpanIndex(self.span)).digest;
        ensure!(*blake3::hash(&self.out).as_bytes() == expected, "span {} has another BLAKE3", self.span);
        (self.span, self.bytes) = (self.span + 1, self.bytes + self.out.len() as u64);
        Ok(())
    }
}

/// CRC-32 and length after a member's deflate data. Source: RFC 1952 section 2.3.
const TRAILER_BYTES: usize = 8;

/// Where the deflate data of the gzip member at `member` of `blob` begins. Source: RFC 1952 section 2.3.
fn deflate_start(blob: &[u8], member: usize) -> Result<usize> {
    let byte = |at: usize| blob.get(at).copied().with_context(|| format!("a gzip header that ends at {at}"));
    ensure!(byte(member)? == 0x1f && byte(member + 1)? == 0x8b, "no gzip member at {member}");
    let (flags, mut at) = (byte(member + 3)?, member + 10);
    if flags & 4 != 0 {
        at += 2 + usize::from(u16::from_le_bytes([byte(at)?, byte(at + 1)?]));
    }
    for text in [8, 16] {
        if flags & text != 0 {
            while byte(at)? != 0 {
                at += 1;
            }
            at += 1;
        }
    }
    let start = if flags & 2 != 0 { at + 2 } else { at };
    ensure!(start <= blob.len(), "a gzip header that ends at {}", blob.len());
    Ok(start)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write as _;

    use super::*;

    /// Claim: a header is passed whatever it holds, and one that is cut is an error.
    #[test]
    fn headers_are_passed() {
        let full = flate2::GzBuilder::new().extra(vec![1, 2, 3]).filename("name").comment("comment");
        for builder in [flate2::GzBuilder::new(), full] {
            let mut gzip = builder.write(Vec::new(), flate2::Compression::new(6));
            gzip.write_all(b"some bytes").unwrap();
            let blob = gzip.finish().unwrap();
            let (start, mut out) = (deflate_start(&blob, 0).unwrap(), vec![0; 10]);
            Decompress::new(false).decompress(&blob[start..], &mut out, FlushDecompress::None).unwrap();
            assert_eq!(out, b"some bytes");
            assert!(deflate_start(&blob[..5], 0).is_err() && deflate_start(&blob[1..], 0).is_err());
        }
    }
}
