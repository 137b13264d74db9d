//! `clip index`

use std::{
    io::{IsTerminal as _, Write},
    sync::{Mutex, OnceLock, PoisonError},
    time::Instant,
};

use anyhow::{Context, Result};
use clip_format::{digest::Digest, units::LayerIndex};
use clip_indexer::{DiffIds, ImageRef, IndexOptions, LayerEvent, Progress, Summary, Windows, index_image, progress::NoProgress};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::{
    args::{IndexArgs, WindowsArg},
    exit::{Outcome, UsageError},
    interrupt,
    output::{Output, print_json},
    profile_input,
    resolve::{client_config, login},
    values::size,
};

/// The `.clip` is written, whole; on failure or interruption the output is untouched.
pub fn run(args: &IndexArgs) -> Result<Outcome> {
    let options = to_options(args)?;
    interrupt::watch()?;
    let output = output(args)?;
    let indexed = if args.quiet {
        index_image(&options, &NoProgress)
    } else if std::io::stderr().is_terminal() {
        let bars = Bars::default();
        let indexed = index_image(&options, &bars);
        bars.finish();
        indexed
    } else {
        index_image(&options, &Lines::default())
    };
    let indexed = indexed.with_context(|| format!("cannot index {}", args.image))?;
    {
        let _whole = output.is_file().then(interrupt::hold);
        output.write(&indexed.clip)?;
    }
    if !args.quiet {
        writeln!(std::io::stderr(), "{}", summary_text(args, &indexed.summary))?;
    }
    if args.json {
        print_json(&indexed.summary)?;
    }
    Ok(Outcome::Good)
}

fn to_options(args: &IndexArgs) -> Result<IndexOptions> {
    let mut options = IndexOptions::new(args.image.clone());
    options.platform.clone_from(&args.platform);
    options.span_bytes = args.span_size.unwrap_or(options.span_bytes);
    options.windows = match args.windows {
        WindowsArg::Sparse => Windows::Sparse,
        WindowsArg::None => Windows::None,
    };
    options.diff_ids = if args.skip_diff_id_check { DiffIds::Trusted } else { DiffIds::Checked };
    options.store_ref.clone_from(&args.store_ref);
    options.profile = args.profile.as_deref().map(profile_input::read_profile).transpose()?;
    options.jobs = args.jobs.unwrap_or(options.jobs);
    options.client = client_config(&args.client, args.read_timeout)?;
    options.client.login = login(&args.client, || Ok(registry_of(args)))?;
    Ok(options)
}

/// Whom `--creds` are for: the registry of the image, else the one that its layers will be read from.
fn registry_of(args: &IndexArgs) -> Option<String> {
    match &args.image {
        ImageRef::Registry(reference) => Some(reference.registry.clone()),
        ImageRef::Local { .. } => args.store_ref.as_ref().map(|reference| reference.registry.clone()),
    }
}

/// Where the `.clip` goes, and that it can.
fn output(args: &IndexArgs) -> Result<Output> {
    let output = Output::find(&args.output)?;
    if output == Output::Stdout && args.json {
        return Err(UsageError("--json: standard output is for the .clip; give another --output".to_owned()).into());
    }
    Ok(output)
}

fn summary_text(args: &IndexArgs, summary: &Summary) -> String {
    let rate = summary.stream_bytes as f64 / summary.seconds.max(1e-9) / f64::from(1 << 20);
    format!(
        "{}: {} for {} files in {} layers ({} of tar, {} compressed), {:.1} s, {rate:.0} MiB/s",
        if args.output.as_os_str() == "-" { "standard output".into() } else { args.output.to_string_lossy() },
        size(summary.clip_bytes),
        summary.files,
        summary.layers.len(),
        size(summary.stream_bytes),
        size(summary.compressed_bytes),
        summary.seconds
    )
}

fn short(digest: &Digest) -> String {
    digest.to_hex().chars().take(12).collect()
}

/// One line a layer when it is done, for logs.
#[derive(Default)]
struct Lines {
    layers: OnceLock<Vec<(Digest, u64)>>,
    started: Mutex<Vec<(LayerIndex, Instant)>>,
}

impl Progress for Lines {
    fn layers(&self, layers: &[(Digest, u64)]) {
        let _ = self.layers.set(layers.to_vec());
    }

    fn layer(&self, layer: LayerIndex, event: LayerEvent) {
        let mut started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            LayerEvent::Started => started.push((layer, Instant::now())),
            LayerEvent::Advanced { .. } => {}
            LayerEvent::Finished { members, stream } => {
                let seconds = started.iter().find(|(other, _)| *other == layer).map_or(0.0, |(_, at)| at.elapsed().as_secs_f64());
                let layers = self.layers.get().map_or(&[][..], Vec::as_slice);
                let Some((digest, compressed)) = layers.get(usize::from(layer.get())) else { return };
                let (number, count) = (layer.get() + 1, layers.len());
                let _ = writeln!(
                    std::io::stderr(),
                    "layer {number}/{count} {}: {} compressed, {} of tar, {members} members, {seconds:.1} s",
                    short(digest),
                    size(*compressed),
                    size(stream)
                );
            }
        }
    }
}

/// One bar a layer, on a terminal.
struct Bars {
    all: MultiProgress,
    bars: OnceLock<Vec<ProgressBar>>,
}

impl Default for Bars {
    fn default() -> Self {
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(8));
        crate::log::keep_above(&all);
        Self { all, bars: OnceLock::new() }
    }
}

impl Bars {
    fn finish(&self) {
        for bar in self.bars.get().into_iter().flatten().filter(|bar| !bar.is_finished()) {
            bar.abandon();
        }
    }
}

impl Progress for Bars {
    fn layers(&self, layers: &[(Digest, u64)]) {
        let style = ProgressStyle::with_template("{prefix} {wide_bar} {bytes:>10}/{total_bytes:<10} {binary_bytes_per_sec:>12} {msg}");
        let bars = layers.iter().map(|(digest, compressed)| {
            let bar = self.all.add(ProgressBar::new(*compressed).with_prefix(short(digest)));
            if let Ok(style) = &style {
                bar.set_style(style.clone());
            }
            bar
        });
        let _ = self.bars.set(bars.collect());
    }

    fn layer(&self, layer: LayerIndex, event: LayerEvent) {
        let Some(bar) = self.bars.get().and_then(|bars| bars.get(usize::from(layer.get()))) else { return };
        match event {
            LayerEvent::Started => bar.reset(),
            LayerEvent::Advanced { compressed, .. } => bar.set_position(compressed),
            LayerEvent::Finished { members, .. } => bar.finish_with_message(format!("{members} members")),
        }
    }
}
