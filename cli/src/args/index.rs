//! `clip index`

use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};
use clip_engine::registry::Reference;
use clip_format::storage_info::Platform;
use clip_indexer::ImageRef;

use super::ClientArgs;
use crate::values::{parse_count, parse_span_size, parse_timeout};

/// `clip index`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  clip index debian:12 -o debian.clip
  clip index --platform linux/arm64 ghcr.io/owner/image@sha256:... -o image.clip
  clip index oci:layout:latest --store-ref registry.example/image:1 -o image.clip
  clip index --profile python.profile --skip-diff-id-check python:3.12 -o python.clip
  clip index --json --quiet localhost:5000/torch -o torch.clip")]
pub struct IndexArgs {
    /// The image: in a registry, a layout or an archive.
    #[arg(
        value_name = "REF",
        help = "NAME[:TAG][@DIGEST] as docker takes it, oci:DIR[:TAG], oci-archive:FILE[:TAG] or docker-archive:FILE[:TAG]"
    )]
    pub image: ImageRef,
    /// The .clip to write, - for standard output. A file is replaced at once when it is whole, keeps its mode, and is untouched on failure;
    /// links are followed, a FIFO or device is written into
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Which image of a multi-platform one, OS/ARCH[/VARIANT] [default: this machine's]
    #[arg(long, value_parser = parse_platform)]
    pub platform: Option<Platform>,
    /// Distance of the checkpoints: what one small read decodes at least (64KiB to 64MiB) [default: 1MiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_span_size)]
    pub span_size: Option<u64>,
    /// Which decompressor state to keep. `sparse`: the few bytes that later data refers to, so that reading can start at every
    /// checkpoint. `none`: none of it; the .clip then holds no byte of any file, but a layer can only be entered at its start,
    /// at the start of a gzip member or after a full flush, so that a read may have to decode far
    #[arg(long, value_enum, default_value_t)]
    pub windows: WindowsArg,
    /// Don't hash the decompressed layers against the diff_ids of the image's config, and take these as they are: an eighth less
    /// processor time. The digests of the compressed layers, which fix every byte, are always checked; only a config that belongs
    /// to other layers goes unnoticed
    #[arg(long)]
    pub skip_diff_id_check: bool,
    /// Read the layers from here when mounted; its manifest must hold every layer of REF
    #[arg(long, value_name = "REF")]
    pub store_ref: Option<Reference>,
    /// Embed this access profile (clip record); a mount then fetches ahead what it names
    #[arg(long, value_name = "FILE")]
    pub profile: Option<PathBuf>,
    /// Layers indexed side by side [default: number of cores]
    #[arg(short, long, value_name = "N", value_parser = parse_count)]
    pub jobs: Option<usize>,
    /// How registries are spoken to.
    #[command(flatten)]
    pub client: ClientArgs,
    /// The run fails after this long without progress of a layer; until then what may pass is tried again [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = parse_timeout)]
    pub read_timeout: Option<Duration>,
    /// No progress on stderr
    #[arg(short, long)]
    pub quiet: bool,
    /// A summary as JSON on standard output
    #[arg(long)]
    pub json: bool,
}

/// `--windows`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum WindowsArg {
    /// Keep what later data refers to.
    #[default]
    Sparse,
    /// Keep none.
    None,
}

/// `OS/ARCH[/VARIANT]`
fn parse_platform(text: &str) -> Result<Platform, String> {
    let parts: Vec<&str> = text.split('/').collect();
    let bad = || format!("expected OS/ARCH[/VARIANT] such as linux/arm64/v8, found {text:?}");
    if parts.iter().any(|part| part.is_empty()) {
        return Err(bad());
    }
    match parts[..] {
        [os, architecture] => Ok(Platform { os: os.to_owned(), architecture: architecture.to_owned(), variant: None }),
        [os, architecture, variant] => {
            Ok(Platform { os: os.to_owned(), architecture: architecture.to_owned(), variant: Some(variant.to_owned()) })
        }
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Platforms have two or three parts, none empty.
    #[test]
    fn platforms() {
        assert_eq!(parse_platform("linux/arm64/v8").unwrap().variant.as_deref(), Some("v8"));
        for bad in ["", "linux", "linux/", "a/b/c/d"] {
            assert!(parse_platform(bad).is_err(), "{bad}");
        }
    }
}
