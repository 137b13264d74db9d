//! `clip verify`

use std::{
    io::{IsTerminal as _, Write},
    path::Path,
};

use anyhow::{Context, Result};
use clip_format::{
    checkpoints::{Checkpoints, SpanStart},
    clip_file::ClipFile,
    erofs::check::{Counts, check},
    storage_info::StorageInfo,
    units::{LayerIndex, SpanIndex},
    windows::expand_window,
};
use serde::Serialize;

use super::inspect::open_checkpoints;
use crate::{
    args::VerifyArgs,
    clip_input::{self, CacheChoice},
    exit::Outcome,
    output::{print_json, stdout},
    pieces::{Piece, Pieces},
    values::size,
};

/// Damaged spans that are named for each layer; more are counted.
const DAMAGE_NAMED_MAX: usize = 20;

#[derive(Debug, Serialize)]
struct Verified {
    file: String,
    good: bool,
    counts: Counts,
    spans: u64,
    windows: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    layers: Option<Vec<LayerVerified>>,
}

#[derive(Debug, Serialize)]
struct LayerVerified {
    layer: usize,
    digest: String,
    spans: u64,
    stream_bytes: u64,
    damaged_spans: u64,
    damage: Vec<Damage>,
}

#[derive(Debug, Serialize)]
struct Damage {
    span: u32,
    reason: String,
}

/// Everything that was asked for has been checked; damage has been reported.
pub fn run(args: &VerifyArgs) -> Result<Outcome> {
    let bytes = clip_input::read_clip(&args.clip)?;
    let mut verified = check_file(&args.clip, &bytes).with_context(|| format!("{}: is damaged", args.clip.display()))?;
    if !args.json {
        let counts = &verified.counts;
        let mut out = stdout();
        writeln!(
            out,
            "{}: header, sections and index are sound: {} names, {} spans, {} windows",
            verified.file, counts.names, verified.spans, verified.windows
        )?;
    }
    if args.remote {
        let layers = check_layers(args)?;
        verified.good = layers.iter().all(|layer| layer.damaged_spans == 0);
        verified.layers = Some(layers);
    }
    if args.json {
        print_json(&verified)?;
    }
    Ok(if verified.good { Outcome::Good } else { Outcome::Bad })
}

/// The `.clip` agrees with itself: every byte is under a checksum, every structure is walked, every window expanded.
fn check_file(path: &Path, bytes: &[u8]) -> Result<Verified> {
    let clip = ClipFile::parse(bytes)?;
    let info = clip.storage_info()?;
    let checkpoints = open_checkpoints(&clip, &info)?;
    let index = clip_format::erofs::Index::open(std::sync::Arc::new(clip.index()?))?;
    anyhow::ensure!(
        index.layer_count() == info.layers.len(),
        "index: expected {} layers as the storage info has them, found {}",
        info.layers.len(),
        index.layer_count()
    );
    let counts = check(&index)?;
    let windows = check_windows(&clip, &checkpoints, &info)?;
    clip.profile()?;
    let spans = checkpoints.layers().iter().map(|layer| u64::from(layer.len())).sum();
    Ok(Verified { file: path.display().to_string(), good: true, counts, spans, windows, layers: None })
}

fn check_windows(clip: &ClipFile<'_>, checkpoints: &Checkpoints, info: &StorageInfo) -> Result<u64> {
    let section = clip.windows()?;
    let mut windows = 0;
    for (table, layer) in checkpoints.layers().iter().zip(&info.layers) {
        for span in 0..table.len() {
            let SpanStart::Deflate { window, .. } = table.span(SpanIndex(span)).start else { continue };
            if expand_window(section, window).with_context(|| format!("layer {}, span {span}", layer.digest))?.is_some() {
                windows += 1;
            }
        }
    }
    Ok(windows)
}

/// Every span of every layer, through the engine, which serves no byte that does not match its BLAKE3.
fn check_layers(args: &VerifyArgs) -> Result<Vec<LayerVerified>> {
    let opened = clip_input::open_image(&args.clip, &args.read, CacheChoice::Private)?;
    let image = &opened.image;
    let mut verified = Vec::new();
    for (number, info) in image.storage_info().layers.iter().enumerate() {
        let layer = LayerIndex(u16::try_from(number).context("layers")?);
        let table = image.checkpoints().layer(layer).clone();
        let spans = u64::from(table.len());
        let (digest, stream_bytes) = (info.digest.to_string(), info.stream_size);
        let mut report = LayerVerified { layer: number, digest, spans, stream_bytes, damaged_spans: 0, damage: Vec::new() };
        let wanted = (0..table.len()).map(SpanIndex).map(|span| Piece { tag: span, layer, range: table.stream_range(span) });
        for (piece, bytes) in Pieces::new(image.clone(), wanted) {
            let Err(error) = bytes else { continue };
            report.damaged_spans += 1;
            if report.damage.len() < DAMAGE_NAMED_MAX {
                report.damage.push(Damage { span: piece.tag.get(), reason: error.to_string() });
            }
        }
        if !args.json {
            print_layer(&report)?;
        }
        verified.push(report);
    }
    Ok(verified)
}

fn print_layer(report: &LayerVerified) -> Result<()> {
    let mut out = stdout();
    let state = match report.damaged_spans {
        0 => "sound".to_owned(),
        1 => "1 SPAN DAMAGED".to_owned(),
        several => format!("{several} SPANS DAMAGED"),
    };
    writeln!(out, "layer {} {}: {} spans, {}: {state}", report.layer, report.digest, report.spans, size(report.stream_bytes))?;
    for damage in &report.damage {
        writeln!(out, "  span {}: {}", damage.span, damage.reason)?;
    }
    if std::io::stdout().is_terminal() {
        out.flush()?;
    }
    Ok(())
}
