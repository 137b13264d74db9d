//! One image: its layers side by side, merged in order as they finish, written as one `.clip`.

use std::{
    collections::BTreeMap,
    panic,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use clip_engine::{error::EngineError, registry::Client, source::BlobSource};
use clip_format::{
    checkpoints::{Span, SpanStart},
    clip_file::{ClipParts, with_profile},
    erofs::{Device, InodeSpec, write_image},
    profile::Profile,
    storage_info::StorageInfo,
    windows::WindowsWriter,
};
use crossbeam::channel::{Receiver, Sender, bounded};

use crate::{
    Indexed, LayerSummary, Summary,
    cpu_clock::thread_cpu,
    error::IndexError,
    layer::{Cancel, DecoderMemory, LayerCpu, LayerInput, LayerOutput, LayerSettings, Metadata, index_layer, set_window},
    options::IndexOptions,
    progress::Progress,
    repeats::Repeats,
    source::{self, ResolvedImage},
    tree::Tree,
};

/// How often one layer may be sent wrong before that is the image's own error. Source: judgement: more mirrors than anybody lists.
const TRIES_MAX: usize = 8;

/// What the layers came to, in manifest order.
struct Merged {
    tree: Tree,
    layers: Vec<LayerOutput>,
}

/// A finished layer, or why there is none.
type Finished = (usize, Result<LayerOutput, IndexError>);

/// Indexes the image that `options` names.
///
/// # Errors
/// Every kind.
pub(crate) fn index(options: &IndexOptions, progress: &dyn Progress) -> Result<Indexed, IndexError> {
    let (started, cpu_before) = (Instant::now(), thread_cpu());
    options.check()?;
    let client = Client::new(options.client.clone())?;
    let image = {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| EngineError::io("start a runtime for", "the manifest", error))?;
        source::resolve(options, &client, &runtime)?
    };
    let listed: Vec<_> = image.layers.iter().map(|layer| (layer.digest, layer.blob.size())).collect();
    if let Some(profile) = &options.profile {
        let digests: Vec<_> = listed.iter().map(|(digest, _)| *digest).collect();
        profile.useful_fit(&image.manifest_digest, &digests)?;
    }
    progress.layers(&listed);
    let merged = index_layers(&image, options, &client, progress)?;
    let cpu = summed(&merged);
    let mut indexed = written(image, merged, options.profile.as_ref())?;
    indexed.summary.cpu_seconds = (cpu.all + thread_cpu().saturating_sub(cpu_before)).as_secs_f64();
    indexed.summary.windows_cpu_seconds = cpu.windows.as_secs_f64();
    indexed.summary.reference = options.image.to_string();
    indexed.summary.seconds = started.elapsed().as_secs_f64();
    for warning in &indexed.summary.warnings {
        tracing::warn!("{warning}");
    }
    Ok(indexed)
}

/// All layers, `jobs` at a time, the largest first; merged in manifest order as soon as they can be.
fn index_layers(image: &ResolvedImage, options: &IndexOptions, client: &Client, progress: &dyn Progress) -> Result<Merged, IndexError> {
    let (cancel, decoders, metadata) = (&Cancel::new(), &DecoderMemory::default(), &Metadata::default());
    let (span_bytes, windows, diff_ids) = (options.span_bytes, options.windows, options.diff_ids);
    let settings = LayerSettings { span_bytes, windows, diff_ids, client, decoders, metadata, cancel, progress };
    let repeats = Repeats::new(&image.layers);
    let mut order: Vec<&LayerInput> = repeats.firsts(&image.layers).collect();
    order.sort_by_key(|layer| std::cmp::Reverse(layer.blob.size()));
    let jobs = options.jobs.clamp(1, order.len().max(1));
    let (sender, finished) = bounded(jobs);
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs)
            .map(|_| {
                let (sender, order, next, settings) = (sender.clone(), &order, &next, &settings);
                scope.spawn(move || work(order, next, settings, &sender))
            })
            .collect();
        drop(sender);
        let merged = merge_in_order(image, &repeats, &finished, &settings);
        for worker in workers {
            worker.join().unwrap_or_else(|panic| panic::resume_unwind(panic));
        }
        merged
    })
}

/// What the layers took, all together.
fn summed(merged: &Merged) -> LayerCpu {
    let of = |part: fn(&LayerCpu) -> Duration| merged.layers.iter().map(|layer| part(&layer.cpu)).sum();
    LayerCpu { all: of(|cpu| cpu.all), windows: of(|cpu| cpu.windows) }
}

fn work(order: &[&LayerInput], next: &AtomicUsize, settings: &LayerSettings<'_>, sender: &Sender<Finished>) {
    while !settings.cancel.is_stopped() {
        let Some(input) = order.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
        let place = usize::from(input.index.get());
        let result = match index_right(input, settings) {
            Ok(Some(output)) => Ok(output),
            Ok(None) => return,
            Err(error) => Err(error),
        };
        if result.is_err() {
            settings.cancel.stop();
        }
        if sender.send((place, result)).is_err() {
            return;
        }
    }
}

/// As [`index_layer`]; a layer whose bytes are wrong is fetched once more over new connections, for that may have been their fault, and then
/// from each host that has not sent it yet. One that has its digest is bad in itself, and final.
fn index_right(input: &LayerInput, settings: &LayerSettings<'_>) -> Result<Option<LayerOutput>, IndexError> {
    let mut tried = 0;
    loop {
        let cancel = settings.cancel.within();
        let result = index_layer(input, &LayerSettings { cancel: &cancel, ..*settings });
        let Err(error @ IndexError::Layer { .. }) = &result else { return result };
        if cancel.is_right() {
            return result;
        }
        cancel.distrust_hosts();
        tried += 1;
        let is_local = matches!(input.blob, BlobSource::File { .. });
        let may_help = tried == 1 || (tried < TRIES_MAX && input.blob.has_untried_host(settings.client));
        if is_local || !may_help || settings.cancel.is_stopped() {
            return result;
        }
        tracing::warn!(%error, "wrong bytes came; the layer is fetched once more");
    }
}

/// Takes layers as they finish. The error of the lowest layer that failed is the one that counts, so that it does not depend on timing
/// more than it must.
fn merge_in_order(
    image: &ResolvedImage,
    repeats: &Repeats,
    finished: &Receiver<Finished>,
    settings: &LayerSettings<'_>,
) -> Result<Merged, IndexError> {
    let mut merged = Merged { tree: Tree::new(), layers: Vec::with_capacity(image.layers.len()) };
    let mut waiting: BTreeMap<usize, LayerOutput> = BTreeMap::new();
    let mut failed: Option<(usize, IndexError)> = None;
    for (place, result) in finished {
        match result {
            Ok(output) => {
                waiting.insert(place, output);
            }
            Err(error) if failed.as_ref().is_none_or(|(earlier, _)| place < *earlier) => failed = Some((place, error)),
            Err(_) => {}
        }
        while failed.is_none()
            && let Some(input) = image.layers.get(merged.layers.len())
            && let Some(output) = repeats.take(&mut waiting, input, settings.progress)
        {
            let place = merged.layers.len();
            let is_again = repeats.first(place) < place;
            let counted = if is_again { settings.metadata.add(output.metadata_bytes) } else { Ok(()) };
            if let Err(error) = counted.and_then(|()| merge_layer(&mut merged, output)) {
                settings.cancel.stop();
                failed = Some((place, error));
            }
        }
    }
    match failed {
        Some((_, error)) => Err(error),
        None => Ok(merged),
    }
}

fn merge_layer(merged: &mut Merged, mut output: LayerOutput) -> Result<(), IndexError> {
    let index = clip_format::units::LayerIndex(merged.layers.len() as u16);
    let entries = std::mem::take(&mut output.entries);
    let layer = output.info.digest;
    merged.tree.merge(index, entries).map_err(|error| IndexError::Layer {
        layer,
        place: error.place,
        expected: error.expected,
        found: error.found,
    })?;
    merged.layers.push(output);
    Ok(())
}

fn written(image: ResolvedImage, merged: Merged, profile: Option<&Profile>) -> Result<Indexed, IndexError> {
    let mut warnings = image.warnings;
    warnings.extend(merged.layers.iter().flat_map(|layer| layer.warnings.iter().cloned()));
    warnings.extend(merged.tree.warnings());
    let specs: Vec<InodeSpec> = merged.tree.into_specs();
    let devices: Vec<Device> = merged.layers.iter().map(device).collect();
    let index = write_image(&specs, 0, &devices)?;
    let files = specs.len() as u64;
    drop(specs);
    let (mut infos, mut spans, mut counts) = (Vec::new(), Vec::<Vec<Span>>::new(), Vec::new());
    let mut windows = WindowsWriter::default();
    let repeats = Repeats::new(&image.layers);
    for (place, layer) in merged.layers.into_iter().enumerate() {
        spans.push(match repeats.first(place) {
            // The windows are there already.
            first if first < place => spans[first].clone(),
            _ => with_windows(layer.spans, layer.frames, &mut windows)?,
        });
        infos.push(layer.info);
        counts.push(layer.members);
    }
    let windows = windows.into_bytes();
    let storage_info = StorageInfo {
        source: image.source,
        manifest_digest: image.manifest_digest,
        platform: image.platform,
        config: image.config,
        layers: infos,
        urls: image.urls,
    };
    let clip = ClipParts { index: &index, storage_info: &storage_info, spans: &spans, windows: &windows }.to_bytes()?;
    let clip = match profile {
        Some(profile) => with_profile(&clip, profile)?,
        None => clip,
    };
    let platform = &storage_info.platform;
    let variant = platform.variant.as_ref().map(|variant| format!("/{variant}")).unwrap_or_default();
    let summary = Summary {
        reference: String::new(),
        manifest_digest: storage_info.manifest_digest.to_string(),
        platform: format!("{}/{}{variant}", platform.os, platform.architecture),
        files,
        clip_bytes: clip.len() as u64,
        index_bytes: index.len() as u64,
        windows_bytes: windows.len() as u64,
        stream_bytes: storage_info.layers.iter().map(|layer| layer.stream_size).sum(),
        compressed_bytes: storage_info.layers.iter().map(|layer| layer.compressed_size).sum(),
        layers: layer_summaries(&storage_info, &spans, &counts),
        seconds: 0.0,
        cpu_seconds: 0.0,
        windows_cpu_seconds: 0.0,
        warnings,
    };
    Ok(Indexed { clip, summary })
}

fn device(layer: &LayerOutput) -> Device {
    let mut tag = [0; 64];
    let hex = layer.info.digest.to_hex();
    let shown = hex.len().min(tag.len());
    tag[..shown].copy_from_slice(&hex.as_bytes()[..shown]);
    Device { stream_size: layer.info.stream_size, tag }
}

fn with_windows(mut spans: Vec<Span>, frames: Vec<(usize, Vec<u8>)>, windows: &mut WindowsWriter) -> Result<Vec<Span>, IndexError> {
    for (span, frame) in frames {
        set_window(&mut spans[span], windows.append_frame(&frame)?);
    }
    Ok(spans)
}

fn layer_summaries(info: &StorageInfo, spans: &[Vec<Span>], members: &[u64]) -> Vec<LayerSummary> {
    let layers = info.layers.iter().zip(spans).zip(members);
    layers
        .map(|((info, spans), members)| LayerSummary {
            info: info.clone(),
            spans: spans.len() as u64,
            entries: spans.iter().filter(|span| span.start != SpanStart::Chained).count() as u64,
            members: *members,
        })
        .collect()
}
