//! `clip-bench report`: saved runs as one HTML page, which needs nothing but itself.

mod plot;
mod text;

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use crate::report::{Bar, BarOf, Better, Counter, Figure, Report, Temperature, Unit};
use text::{escaped, human};

/// A saved run is at most so long. Source: chosen; `all` writes 200 KB.
const RUN_BYTES_MAX: u64 = 64 << 20;

/// `clip-bench report`
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Example:
  clip-bench all --save runs/node-7.json
  clip-bench all --save runs/node-7-slow.json --latency 20ms --bandwidth 100MB
  clip-bench report runs -o node-7.html      both runs side by side; open it in any browser")]
pub struct ReportArgs {
    /// Holds the JSON files of one or more runs (--save, or --json into a file)
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// The page to write
    #[arg(short, long, value_name = "FILE", default_value = "clip-bench.html")]
    pub output: PathBuf,
}

/// A run and what it is called: its file's name.
struct Run {
    name: String,
    report: Report,
}

/// A figure of one run.
#[derive(Clone, Copy)]
struct OfRun<'a> {
    run: &'a str,
    figure: &'a Figure,
}

/// Writes the page.
///
/// # Errors
/// When the directory holds no run, or the page cannot be written.
pub fn write(args: &ReportArgs) -> Result<()> {
    let runs = read_runs(&args.dir)?;
    let page = page(&runs);
    fs::write(&args.output, &page).with_context(|| format!("write {}", args.output.display()))?;
    eprintln!("{}: {} runs, {} bytes", args.output.display(), runs.len(), page.len());
    Ok(())
}

/// Every run in `dir`, by name.
fn read_runs(dir: &Path) -> Result<Vec<Run>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            paths.push(path);
        }
    }
    paths.sort();
    let mut runs = Vec::new();
    for path in paths {
        let len = fs::metadata(&path)?.len();
        ensure!(len <= RUN_BYTES_MAX, "{}: expected a saved run of at most {RUN_BYTES_MAX} bytes, found {len}", path.display());
        let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let report = serde_json::from_slice(&bytes);
        let report = report.with_context(|| format!("{}: expected a run that clip-bench --save wrote", path.display()))?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        runs.push(Run { name, report });
    }
    ensure!(!runs.is_empty(), "{} holds no .json; write one with: clip-bench all --save {0}/run.json", dir.display());
    Ok(runs)
}

/// What a group of figures is about: the first part of their names.
const SECTIONS: [(&str, &str, &str); 8] = [
    ("coldstart", "Cold start", "A command in a fresh container, with nothing of the image on the node."),
    ("index", "Indexing", "How fast clip index goes through an image, held against inflating the same layers and nothing else."),
    ("read", "Reading", "Bytes of files: cold, from the cache, from the kernel's page cache; through the library and through FUSE."),
    ("mount", "Mounting", "From the wish to mount to the first answer."),
    ("metadata", "Metadata", "Storms of stat, of names that do not exist, of open, read and close."),
    ("decode", "Decoding", "Resuming at checkpoints in the middle of a layer, in memory."),
    ("memory", "Memory", "What indexing and mounts hold."),
    ("size", "Size", "What the index of an image takes on disk."),
];

fn page(runs: &[Run]) -> String {
    let figures: Vec<OfRun<'_>> =
        runs.iter().flat_map(|run| run.report.figures.iter().map(|figure| OfRun { run: &run.name, figure })).collect();
    let mut body = head(runs);
    body += &board(&figures);
    for (prefix, title, lead) in SECTIONS {
        let of_section = |found: &&OfRun<'_>| found.figure.id.split('.').next() == Some(prefix);
        let of_section: Vec<OfRun<'_>> = figures.iter().filter(of_section).copied().collect();
        if !of_section.is_empty() {
            body += &section(prefix, title, lead, &of_section);
        }
    }
    body += &skipped(runs);
    body += &table(&figures, runs.len() > 1);
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, \
         initial-scale=1\">\n<meta name=\"color-scheme\" content=\"light dark\">\n<title>clip-bench</title>\n<style>\n{}</style>\n</head>\n\
         <body>\n<main>\n{body}</main>\n</body>\n</html>\n",
        include_str!("page/style.css")
    )
}

fn head(runs: &[Run]) -> String {
    let mut html = "<h1>What clip costs, and what it could cost at least</h1>\n".to_owned();
    html += "<p class=\"lead\">Each figure stands beside a floor that was taken in the same run on the same bytes: the least that the work \
             itself costs. The ratio says how far clip is from it, whatever the machine.</p>\n<div class=\"runs\">\n";
    for Run { name, report } in runs {
        let (machine, image) = (&report.machine, &report.image);
        let optimised = if machine.optimised { "" } else { " <span class=\"badge bad\">built without optimisation</span>" };
        let mebibytes = |bytes: u64| human(bytes as f64 / f64::from(1 << 20), Unit::Mebibytes);
        let _ = writeln!(
            html,
            "<div class=\"card\"><b>{}</b>{optimised}<dl><dt>machine</dt><dd>{} cores, {}</dd><dt>kernel</dt><dd>Linux {}, load {:.1} at the \
             start</dd><dt>image</dt><dd>{}, {} files, {} in {} layers, {} compressed</dd><dt>command</dt><dd><code>clip-bench {}</code></dd></dl>\
             </div>",
            escaped(name),
            machine.cores,
            escaped(&machine.processor),
            escaped(&machine.kernel),
            machine.load,
            escaped(&image.title()),
            image.files,
            mebibytes(image.stream_bytes),
            image.layers,
            mebibytes(image.compressed_bytes),
            escaped(&report.command),
        );
    }
    let any = |prefix: &str| runs.iter().any(|run| run.report.figures.iter().any(|figure| figure.id.split('.').next() == Some(prefix)));
    html += "</div>\n<nav>";
    for (prefix, title, _) in SECTIONS.iter().filter(|(prefix, ..)| any(prefix)) {
        let _ = write!(html, "<a href=\"#{prefix}\">{title}</a>");
    }
    html + "<a href=\"#table\">All figures</a></nav>\n"
}

/// How near each figure that has a bar is to it.
fn board(figures: &[OfRun<'_>]) -> String {
    let barred: Vec<_> = figures.iter().filter_map(|found| Some((found, found.figure.bar?))).collect();
    if barred.is_empty() {
        return String::new();
    }
    let met = barred.iter().filter(|(_, bar)| bar.met).count();
    let mut html = format!(
        "<h2 id=\"bars\">The bars</h2>\n<div class=\"card\"><p class=\"tally\"><b>{met} of {}</b> bars are met</p>\n<div class=\"board\">\
         <div class=\"row scale\"><span></span><div class=\"track\"><span>half as good</span><span>the bar</span><span>twice as \
         good</span></div><span></span></div>\n",
        barred.len()
    );
    for (OfRun { run, figure }, bar) in barred {
        let value = held(figure, bar);
        let score = match figure.better {
            Better::More => value / bar.limit,
            Better::Less => bar.limit / value,
        };
        let named = if figures.iter().any(|other| other.run != *run && other.figure.id == figure.id) {
            format!(" <span class=\"chip\">{}</span>", escaped(run))
        } else {
            String::new()
        };
        let _ = writeln!(
            html,
            "<div class=\"row\"><a href=\"#{id}\"><code>{id}</code>{named}</a><div class=\"track\">{}</div>{}</div>",
            plot::score(score),
            badge(figure, bar),
            id = escaped(&figure.id),
        );
    }
    html + "</div></div>\n"
}

/// What of `figure` is held against `bar`.
fn held(figure: &Figure, bar: Bar) -> f64 {
    match bar.of {
        BarOf::Ratio => figure.ratio.unwrap_or(f64::NAN),
        BarOf::Value => figure.spread.median,
    }
}

fn badge(figure: &Figure, bar: Bar) -> String {
    let sign = if figure.better == Better::More { "\u{2265}" } else { "\u{2264}" };
    let (class, mark) = if bar.met { ("good", "\u{2713}") } else { ("bad", "\u{2717}") };
    let limit = match bar.of {
        BarOf::Ratio => format!("{:.2} {sign} {}", held(figure, bar), text::trimmed(bar.limit)),
        BarOf::Value => format!("{} {sign} {}", human(figure.spread.median, figure.unit), human(bar.limit, figure.unit)),
    };
    let limit = if bar.met { limit } else { limit.replace(sign, if figure.better == Better::More { "&lt;" } else { "&gt;" }) };
    format!("<span class=\"badge {class}\">{mark} {limit}</span>")
}

fn section(prefix: &str, title: &str, lead: &str, figures: &[OfRun<'_>]) -> String {
    let mut html = format!("<h2 id=\"{prefix}\">{title}</h2>\n<p class=\"lead\">{lead}</p>\n");
    html += "<div class=\"key\"><span><i class=\"k-clip\"></i>clip: least, median, most of the runs</span><span><i class=\"k-floor\"></i>the \
             floor</span><span><i class=\"k-bar\"></i>the bar</span></div>\n";
    let mut done: Vec<&str> = Vec::new();
    for OfRun { figure, .. } in figures {
        if !done.contains(&figure.id.as_str()) && !is_beside(figure, figures) {
            done.push(&figure.id);
            let same: Vec<OfRun<'_>> = figures.iter().filter(|other| other.figure.id == figure.id).copied().collect();
            let beside = figures.iter().filter(|other| is_beside(other.figure, &same)).copied().collect::<Vec<_>>();
            html += &card(&same, &beside);
        }
    }
    html + &curves(figures)
}

/// Whether `figure` says more about one of `figures`, and has no bar of its own: `X.cpu` about `X`.
fn is_beside(figure: &Figure, figures: &[OfRun<'_>]) -> bool {
    let about = |other: &OfRun<'_>| figure.id.strip_prefix(&other.figure.id).is_some_and(|rest| rest.starts_with('.'));
    figure.bar.is_none() && figures.iter().any(about)
}

/// One figure, of each run that has it, and what says more about it.
fn card(figures: &[OfRun<'_>], beside: &[OfRun<'_>]) -> String {
    let Some(OfRun { figure: first, .. }) = figures.first() else { return String::new() };
    let state = match first.temperature {
        Temperature::None => String::new(),
        state => format!(" <span class=\"chip\">{}</span>", &state.as_str()[2..]),
    };
    let mut html = format!(
        "<div class=\"card figure\" id=\"{id}\"><div><div class=\"what\">{}{state}</div><code>{id}</code></div><div class=\"plots\">\n",
        escaped(&first.what),
        id = escaped(&first.id),
    );
    let scale = plot::Scale::of(figures.iter().map(|found| found.figure));
    for OfRun { run, figure } in figures {
        let name = if figures.len() > 1 { format!("<span class=\"name\">{}</span>", escaped(run)) } else { String::new() };
        let spread = if figure.spread.runs > 1 {
            format!(
                "<span class=\"spread\">{} \u{2013} {}</span>",
                human(figure.spread.min, figure.unit),
                human(figure.spread.max, figure.unit)
            )
        } else {
            String::new()
        };
        let ratio = figure.ratio.map_or_else(String::new, |ratio| {
            let word = if figure.better == Better::More { "of the floor" } else { "\u{d7} the floor" };
            format!("<span class=\"ratio\">{} {word}</span>", text::ratio(ratio))
        });
        let badge = figure.bar.map_or_else(String::new, |bar| badge(figure, bar));
        let _ = writeln!(
            html,
            "<div class=\"run\"><div class=\"values\">{name}<span class=\"median\">{}</span>{spread}{ratio}{badge}</div>{}</div>",
            human(figure.spread.median, figure.unit),
            plot::range(figure, scale),
        );
    }
    html += "</div>";
    html += &small_print(figures, beside);
    html + "</div>\n"
}

/// What stands below a figure: its floor in words, what was counted beside it, and figures that say more about it.
fn small_print(figures: &[OfRun<'_>], beside: &[OfRun<'_>]) -> String {
    let mut html = String::new();
    if let Some(floor) = figures.first().and_then(|found| found.figure.floor.as_ref()) {
        let _ = write!(html, "<div>floor: {}</div>", escaped(&floor.what));
    }
    for OfRun { run, figure } in figures {
        let mut parts: Vec<String> = Vec::new();
        if let Some(floor) = &figure.floor {
            parts.push(format!("floor {}", human(floor.spread.median, figure.unit)));
        }
        let counter = |counter: &Counter| format!("{} {}", escaped(&counter.name), human(counter.spread.median, counter.unit));
        parts.extend(figure.counters.iter().map(counter));
        for OfRun { figure: more, .. } in beside.iter().filter(|more| more.run == *run && more.figure.id.starts_with(&figure.id)) {
            let ratio = more.ratio.map_or_else(String::new, |ratio| format!(", {} \u{d7} its floor", text::ratio(ratio)));
            parts.push(format!("{} {}{ratio}", escaped(&more.what), human(more.spread.median, more.unit)));
        }
        if !parts.is_empty() {
            let name = if figures.len() > 1 { format!("{}: ", escaped(run)) } else { String::new() };
            let _ = write!(html, "<div>{name}<span>{}</span></div>", parts.join("</span><span>"));
        }
    }
    if html.is_empty() { html } else { format!("<div class=\"floor-says\">{html}</div>") }
}

/// The single operations behind the figures of a section.
fn curves(figures: &[OfRun<'_>]) -> String {
    let mut html = String::new();
    for OfRun { run, figure } in figures.iter().filter(|found| found.figure.distributions.iter().any(|curve| curve.points.len() > 1)) {
        let of_run = if figures.iter().any(|other| other.run != *run && other.figure.id == figure.id) {
            format!(" <span class=\"chip\">{}</span>", escaped(run))
        } else {
            String::new()
        };
        let state = figure.temperature.as_str();
        let _ = writeln!(html, "<div class=\"card\"><h3>{}{state}{of_run}</h3>{}</div>", escaped(&figure.what), plot::curves(figure));
    }
    if html.is_empty() {
        html
    } else {
        format!(
            "<p class=\"note\">How single operations were spread: the part of them, upwards, that took no longer than \
                                                the time to the right.</p>\n<div class=\"curves\">{html}</div>\n"
        )
    }
}

fn skipped(runs: &[Run]) -> String {
    let several = runs.len() > 1;
    let mut items = String::new();
    for run in runs {
        for reason in &run.report.skipped {
            let name = if several { format!("{}: ", escaped(&run.name)) } else { String::new() };
            let _ = writeln!(items, "<li>{name}{}</li>", escaped(reason));
        }
    }
    if items.is_empty() { items } else { format!("<h2>Not measured</h2>\n<ul class=\"skipped\">\n{items}</ul>\n") }
}

fn table(figures: &[OfRun<'_>], several: bool) -> String {
    let run_head = if several { "<th>run</th>" } else { "" };
    let mut html = format!(
        "<h2 id=\"table\">All figures</h2>\n<div class=\"card\"><details><summary>{} figures as a table, with the hash of the work behind each\
         </summary><div class=\"scroll\"><table>\n<tr>{run_head}<th>figure</th><th>least</th><th>median</th><th>most</th><th>runs</th><th>floor</th>\
         <th>ratio</th><th>bar</th><th>work</th></tr>\n",
        figures.len()
    );
    for OfRun { run, figure } in figures {
        let Figure { spread, unit, .. } = figure;
        let run = if several { format!("<td>{}</td>", escaped(run)) } else { String::new() };
        let number = |value: f64| format!("<td class=\"number\">{}</td>", human(value, *unit));
        let floor = figure.floor.as_ref().map_or_else(|| "<td></td>".to_owned(), |floor| number(floor.spread.median));
        let ratio = figure.ratio.map_or_else(String::new, text::ratio);
        let bar = figure.bar.map_or_else(String::new, |bar| badge(figure, bar));
        let _ = writeln!(
            html,
            "<tr>{run}<td><code>{}</code></td>{}{}{}<td class=\"number\">{}</td>{floor}<td class=\"number\">{ratio}</td><td>{bar}</td><td><code>{}\
             </code></td></tr>",
            escaped(&figure.id),
            number(spread.min),
            number(spread.median),
            number(spread.max),
            spread.runs,
            escaped(&figure.work),
        );
    }
    html + "</table></div></details></div>\n"
}
