//! `clip inspect`

mod profile;

pub use profile::ProfileReport;

use std::{io::Write, path::Path};

use anyhow::{Context, Result};
use clip_format::{
    checkpoints::{Checkpoints, SpanStart, SpanTable},
    clip_file::ClipFile,
    digest::Digest,
    erofs::check::{Counts, check},
    header::{Header, Section},
    storage_info::{LayerInfo, Source, StorageInfo},
};
use serde::Serialize;

use crate::{
    args::InspectArgs,
    clip_input,
    display::{columns, escaped},
    exit::Outcome,
    output::{print_json, stdout},
    profile_input,
    values::size,
};

/// What `clip inspect` says, as `--json` has it.
#[derive(Debug, Serialize)]
struct Inspection {
    file: String,
    file_bytes: u64,
    image_id: String,
    version: u8,
    sections: Vec<SectionReport>,
    storage_info: StorageInfo,
    layers: Vec<LayerReport>,
    counts: Counts,
    inodes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    profile: Option<ProfileReport>,
}

/// What `clip inspect` says of an access profile.
#[derive(Debug, Serialize)]
struct ProfileInspection {
    file: String,
    file_bytes: u64,
    profile: ProfileReport,
}

#[derive(Debug, Serialize)]
struct SectionReport {
    name: &'static str,
    position: u64,
    stored_bytes: u64,
    raw_bytes: u64,
    blake3: String,
}

#[derive(Debug, Serialize)]
struct LayerReport {
    #[serde(flatten)]
    info: LayerInfo,
    access: Access,
    #[serde(flatten)]
    spans: SpanCounts,
}

/// How a layer is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Every span can be entered.
    Random,
    /// Some spans can only be reached from an earlier one.
    Partial,
    /// It is read from its start.
    Streamed,
}

impl Access {
    /// Of a layer with these spans.
    pub fn of(counts: &SpanCounts) -> Self {
        match counts.entries {
            entries if entries == counts.spans => Access::Random,
            1 => Access::Streamed,
            _ => Access::Partial,
        }
    }

    fn text(self, counts: &SpanCounts) -> String {
        match self {
            Access::Random => "random".to_owned(),
            Access::Partial => format!("at {} places", counts.entries),
            Access::Streamed => "from its start".to_owned(),
        }
    }
}

/// What the spans of one layer come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SpanCounts {
    /// Spans.
    pub spans: u64,
    /// Spans where decoding can start.
    pub entries: u64,
    /// Entries that need a window.
    pub windows: u64,
    /// Bytes of those windows, as stored.
    pub window_bytes: u64,
}

/// Counts the spans of `table`.
pub fn span_counts(table: &SpanTable) -> SpanCounts {
    let mut counts = SpanCounts::default();
    for span in 0..table.len() {
        let span = table.span(clip_format::units::SpanIndex(span));
        counts.spans += 1;
        if span.start != SpanStart::Chained {
            counts.entries += 1;
        }
        if let SpanStart::Deflate { window, .. } = span.start
            && window.len > 0
        {
            counts.windows += 1;
            counts.window_bytes += u64::from(window.len);
        }
    }
    counts
}

/// What the `.clip`, or the access profile, holds is on standard output.
pub fn run(args: &InspectArgs) -> Result<Outcome> {
    let bytes = clip_input::read_clip(&args.clip)?;
    if profile_input::is_profile(&bytes) {
        return inspect_profile(args, bytes.len() as u64);
    }
    let inspection = inspect(&args.clip, &bytes)?;
    if args.json {
        print_json(&inspection)?;
    } else {
        print(&inspection, &mut stdout())?;
    }
    Ok(Outcome::Good)
}

fn inspect_profile(args: &InspectArgs, file_bytes: u64) -> Result<Outcome> {
    let profile = ProfileReport::new(&profile_input::read_profile(&args.clip)?);
    let inspection = ProfileInspection { file: args.clip.display().to_string(), file_bytes, profile };
    if args.json {
        print_json(&inspection)?;
    } else {
        let mut out = stdout();
        writeln!(out, "File       {}, {}, access profile", inspection.file, size(file_bytes))?;
        inspection.profile.print(&mut out)?;
    }
    Ok(Outcome::Good)
}

fn inspect(path: &Path, bytes: &[u8]) -> Result<Inspection> {
    let clip = clip_input::parse_clip(path, bytes)?;
    let named = || path.display().to_string();
    let storage_info = clip.storage_info().with_context(named)?;
    let checkpoints = open_checkpoints(&clip, &storage_info).with_context(named)?;
    let index = clip_input::open_index(path, &clip)?;
    let counts = check(&index).with_context(named)?;
    let profile = clip.profile().with_context(named)?;
    let digests: Vec<Digest> = storage_info.layers.iter().map(|layer| layer.digest).collect();
    let layers = storage_info.layers.iter().zip(checkpoints.layers());
    let report = |(info, table): (&LayerInfo, &SpanTable)| {
        let spans = span_counts(table);
        LayerReport { info: info.clone(), access: Access::of(&spans), spans }
    };
    let layers = layers.map(report).collect();
    Ok(Inspection {
        file: named(),
        file_bytes: bytes.len() as u64,
        image_id: hex::encode(clip.header().image_id()),
        version: clip_format::header::VERSION_WRITTEN,
        sections: sections(clip.header()),
        layers,
        counts,
        inodes: index.inode_count(),
        profile: profile.map(|profile| ProfileReport::embedded(&profile, &digests, &checkpoints)),
        storage_info,
    })
}

/// The checkpoints of `clip`, every invariant checked.
pub fn open_checkpoints(clip: &ClipFile<'_>, info: &StorageInfo) -> Result<Checkpoints> {
    let raw = clip.checkpoints()?;
    Ok(Checkpoints::open(std::sync::Arc::new(raw), &info.layers, clip.windows()?.len() as u64)?)
}

fn sections(header: &Header) -> Vec<SectionReport> {
    let report = |name, section: &Section| SectionReport {
        name,
        position: section.position,
        stored_bytes: section.stored_len,
        raw_bytes: section.raw_len,
        blake3: hex::encode(section.blake3),
    };
    let mut sections = vec![
        report("index", &header.index),
        report("storage-info", &header.storage_info),
        report("checkpoints", &header.checkpoints),
        report("windows", &header.windows),
    ];
    sections.extend(header.profile.as_ref().map(|section| report("profile", section)));
    sections
}

fn print(inspection: &Inspection, out: &mut impl Write) -> Result<()> {
    let info = &inspection.storage_info;
    let stream: u64 = info.layers.iter().map(|layer| layer.stream_size).sum();
    let compressed: u64 = info.layers.iter().map(|layer| layer.compressed_size).sum();
    let platform = &info.platform;
    let variant = platform.variant.as_ref().map_or(String::new(), |variant| format!("/{variant}"));
    writeln!(out, "File       {}, {}, version {}", inspection.file, size(inspection.file_bytes), inspection.version)?;
    writeln!(out, "Image id   {}", inspection.image_id)?;
    writeln!(out, "Source     {}", safe(&source_text(&info.source)))?;
    writeln!(out, "Manifest   {}", info.manifest_digest)?;
    writeln!(out, "Platform   {}", safe(&format!("{}/{}{variant}", platform.os, platform.architecture)))?;
    writeln!(out, "Layers     {}, {} compressed, {} of tar", info.layers.len(), size(compressed), size(stream))?;
    print_counts(inspection, out)?;
    print_sections(inspection, out)?;
    print_layers(inspection, out)?;
    print_urls(info, out)?;
    if let Some(profile) = &inspection.profile {
        writeln!(out)?;
        profile.print(out)?;
    }
    print_config(info, out)
}

fn safe(text: &str) -> String {
    escaped(text.as_bytes())
}

fn source_text(source: &Source) -> String {
    match source {
        Source::Registry { registry, repository, reference } => {
            let separator = if reference.contains(':') { '@' } else { ':' };
            format!("{registry}/{repository}{separator}{reference}")
        }
        Source::Local { transport, path, reference } => {
            let reference = reference.as_ref().map_or(String::new(), |reference| format!(":{reference}"));
            format!("{}:{}{reference} (this machine's files)", transport.as_str(), String::from_utf8_lossy(path))
        }
    }
}

fn print_counts(inspection: &Inspection, out: &mut impl Write) -> Result<()> {
    let counts = &inspection.counts;
    writeln!(
        out,
        "Tree       {} files ({}), {} directories, {} symbolic links, {} special files, {} names, {} inodes with xattrs",
        counts.regular_files,
        size(counts.file_bytes),
        counts.directories,
        counts.symlinks,
        counts.special_files,
        counts.names,
        counts.inodes_with_xattrs
    )?;
    Ok(())
}

fn print_sections(inspection: &Inspection, out: &mut impl Write) -> Result<()> {
    let mut rows = vec![["section", "position", "stored", "raw", "BLAKE3"].map(str::to_owned).to_vec()];
    for section in &inspection.sections {
        let blake3 = section.blake3.chars().take(16).collect();
        rows.push(vec![
            section.name.to_owned(),
            section.position.to_string(),
            section.stored_bytes.to_string(),
            section.raw_bytes.to_string(),
            blake3,
        ]);
    }
    print_table(&rows, &[false, true, true, true, false], out)
}

fn print_layers(inspection: &Inspection, out: &mut impl Write) -> Result<()> {
    let titles = ["layer", "codec", "access", "compressed", "tar", "spans", "entries", "windows", "bytes", "digest", "media type"];
    let mut rows = vec![titles.map(str::to_owned).to_vec()];
    for (number, layer) in inspection.layers.iter().enumerate() {
        let (info, spans) = (&layer.info, &layer.spans);
        rows.push(vec![
            number.to_string(),
            serde_json::to_value(info.codec).ok().and_then(|codec| codec.as_str().map(str::to_owned)).unwrap_or_default(),
            layer.access.text(spans),
            info.compressed_size.to_string(),
            info.stream_size.to_string(),
            spans.spans.to_string(),
            spans.entries.to_string(),
            spans.windows.to_string(),
            spans.window_bytes.to_string(),
            info.digest.to_string(),
            safe(&info.media_type),
        ]);
    }
    print_table(&rows, &[true, false, false, true, true, true, true, true, true, false, false], out)
}

/// Without their queries, which may be signatures: `--json` has them whole.
fn print_urls(info: &StorageInfo, out: &mut impl Write) -> Result<()> {
    for (layer, url) in info.urls.iter().flat_map(|urls| urls.urls.iter().map(|url| (urls.layer, url))) {
        writeln!(out, "URL        layer {layer}, where its registry has it not: {}", safe(&url.to_string()))?;
    }
    Ok(())
}

fn print_table(rows: &[Vec<String>], right: &[bool], out: &mut impl Write) -> Result<()> {
    writeln!(out)?;
    for line in columns(rows, right) {
        writeln!(out, "{line}")?;
    }
    Ok(())
}

fn print_config(info: &StorageInfo, out: &mut impl Write) -> Result<()> {
    let config = &info.config;
    writeln!(out)?;
    let mut line = |name: &str, value: &str| if value.is_empty() { Ok(()) } else { writeln!(out, "{name:<11}{}", safe(value)) };
    line("Entrypoint", &words(&config.entrypoint))?;
    line("Cmd", &words(&config.cmd))?;
    line("User", &config.user)?;
    line("Workdir", &config.working_dir)?;
    line("Stop", &config.stop_signal)?;
    line("Ports", &config.exposed_ports.join(" "))?;
    line("Volumes", &config.volumes.join(" "))?;
    line("Created", &config.created)?;
    line("Author", &config.author)?;
    for variable in &config.env {
        line("Env", variable)?;
    }
    for (name, value) in &config.labels {
        line("Label", &format!("{name}={value}"))?;
    }
    Ok(())
}

/// Arguments as JSON has them, so that blanks in them show.
fn words(arguments: &[String]) -> String {
    if arguments.is_empty() { String::new() } else { serde_json::to_string(arguments).unwrap_or_default() }
}
