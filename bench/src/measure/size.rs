//! How large the `.clip` is.

use anyhow::{Context, Result};
use clip_format::header::Header;

use super::Findings;
use crate::{
    report::{Figure, Unit},
    setup::{Setup, sections_hash},
};

/// Bytes of the `.clip` a file and a MiB of stream, by section.
///
/// # Errors
/// When the header is damaged.
pub fn measure(setup: &Setup) -> Result<Findings> {
    let header = Header::from_bytes(&setup.clip.bytes)?;
    let work = sections_hash(&setup.clip.bytes)?;
    let files = setup.clip.files.len() as f64;
    let stream_bytes: u64 = setup.clip.info.layers.iter().map(|layer| layer.stream_size).sum();
    let stream_mib = stream_bytes as f64 / f64::from(1 << 20);
    let spans: u64 = setup.clip.checkpoints.layers().iter().map(|table| u64::from(table.len())).sum();
    let paths: Vec<_> = setup.clip.files.iter().map(|file| &file.path[..]).collect();
    let paths = zstd::bulk::compress(&paths.join(&b'\n'), 19).context("compress the paths")?.len() as f64;
    let digests = (spans * 32) as f64;
    let sizes = [
        ("size.clip", "the .clip", header.file_len() as f64, 1.0, "the paths (zstd -19) and 32 bytes of digest a span", paths + digests),
        ("size.clip.per_mib", "the .clip, a MiB of stream", header.file_len() as f64, stream_mib, "as above, a MiB", paths + digests),
        ("size.index.per_file", "the index section, a file", header.index.stored_len as f64, files, "the paths, zstd -19, a file", paths),
        (
            "size.checkpoints.per_mib",
            "checkpoints and windows, a MiB of stream",
            (header.checkpoints.stored_len + header.windows.stored_len) as f64,
            stream_mib,
            "32 bytes of digest a span",
            digests,
        ),
        (
            "size.windows.per_checkpoint",
            "windows, a checkpoint",
            header.windows.stored_len as f64,
            spans as f64,
            "a whole window",
            32_768.0 * spans as f64,
        ),
    ];
    let figure = |(id, what, bytes, each, floor, floor_bytes): (&str, &str, f64, f64, &str, f64)| {
        Figure::new(id, what, Unit::Bytes, &[bytes / each]).floor(floor, &[floor_bytes / each]).work(&work)
    };
    Ok(Findings { figures: sizes.into_iter().map(figure).collect(), skipped: Vec::new() })
}
