//! The program in its tiny size, so that no subcommand can rot: the hashes of the work are checked by the program itself.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, path::Path, process::Command};

use serde_json::Value;

/// What clip-bench prints as JSON.
fn run(arguments: &[&str]) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_clip-bench"));
    let output = command.args(["--tiny", "--json"]).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn figures(report: &Value) -> &[Value] {
    report["figures"].as_array().unwrap()
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap()
}

/// The hash of the work by the figure's name.
fn works(report: &Value) -> BTreeMap<String, String> {
    figures(report).iter().map(|figure| (text(figure, "id").to_owned(), text(figure, "work").to_owned())).collect()
}

/// The work that is the same whoever reads: what stands at `read.PART.`, through the library and through FUSE.
fn assert_same_work_both_ways(report: &Value) {
    for (id, work) in works(report) {
        if let Some(other) = works(report).get(&id.replace(".library.", ".fuse.")) {
            assert_eq!(&work, other, "{id} gave other bytes through FUSE");
        }
    }
}

fn assert_sound(report: &Value) {
    for figure in figures(report) {
        let spread = ["min", "median", "max"].map(|name| figure["spread"][name].as_f64().unwrap());
        // What one thing costs more than another may be less than nothing.
        assert!(spread.is_sorted() && (spread[0] >= 0.0 || text(figure, "id").ends_with(".more")), "{figure}");
        for curve in figure["distributions"].as_array().unwrap() {
            let points: Vec<f64> = curve["points"].as_array().unwrap().iter().map(|point| point[1].as_f64().unwrap()).collect();
            assert!(points.is_sorted(), "{curve}");
        }
    }
}

/// Opening and closing tags of `page` in pairs; elements that have no end excepted.
fn assert_well_formed(page: &str) {
    const EMPTY: [&str; 7] = ["meta", "!DOCTYPE", "line", "rect", "circle", "polyline", "br"];
    let mut open: Vec<&str> = Vec::new();
    let body = page.split_once("</style>").unwrap();
    for tag in [body.0.split_once("<style>").unwrap().0, body.1].iter().flat_map(|part| part.split('<').skip(1)) {
        let tag = tag.split_once('>').unwrap_or_else(|| panic!("a tag without an end: {tag:.60}")).0;
        let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap();
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "a wrong end before {tag}");
        } else if !EMPTY.contains(&name) {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "without an end: {open:?}");
}

fn report(dir: &Path) -> std::process::Output {
    let page = dir.join("page.html");
    Command::new(env!("CARGO_BIN_EXE_clip-bench")).arg("report").arg(dir).arg("-o").arg(page).output().unwrap()
}

/// Claim: `all` runs every subcommand, the same seed does the same work, through the library and through FUSE, and the page of both runs
/// holds every figure, is well-formed and takes nothing from outside.
#[test]
fn all_is_everything_repeats_and_makes_a_page() {
    let dir = tempfile::tempdir().unwrap();
    let saved = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let one = run(&["all", "--runs", "1", "--save", &saved("one.json")]);
    let two = run(&["read", "--runs", "1", "--save", &saved("two <b>.json")]);
    let reads: BTreeMap<_, _> = works(&one).into_iter().filter(|(id, _)| id.starts_with("read.") && !id.starts_with("read.zstd")).collect();
    assert_eq!(reads, works(&two));
    for codec in ["zstd", "zstd-frames"] {
        // The same file out of other layers.
        assert_eq!(works(&one)[&format!("read.{codec}.sequential.library.cold")], reads["read.sequential.library.cold"]);
        assert!(works(&one).contains_key(&format!("index.{codec}.large.registry.library")), "{codec} is not indexed");
    }
    assert!(works(&one).contains_key("decode.zstd-frames.resume") && !works(&one).contains_key("decode.zstd.resume"));
    assert_sound(&one);
    assert_same_work_both_ways(&one);
    for name in ["index.", "size.", "decode.", "read.", "memory."] {
        assert!(works(&one).keys().any(|id| id.starts_with(name)), "no {name}");
    }
    let output = report(dir.path());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let page = std::fs::read_to_string(dir.path().join("page.html")).unwrap();
    assert_well_formed(&page);
    assert!(works(&one).keys().all(|id| page.contains(id.as_str())), "a figure is missing");
    for outside in ["http://", "https://", "<script", "@import", "url(", "NaN"] {
        assert!(!page.contains(outside), "the page holds {outside}");
    }
    assert!(page.contains("two &lt;b&gt;") && !page.contains("two <b>"));
}

/// Claim: another seed is other work; a part is measured alone; the shaper stands before the registry and changes no byte.
#[test]
fn seeds_parts_and_shapes() {
    let part = ["read", "--what", "random,sequential", "--via", "library", "--runs", "1"];
    let (plain, other) = (run(&part), run(&[&part[..], &["--seed", "2"]].concat()));
    let shaped = run(&[&part[..], &["--latency", "30ms", "--bandwidth", "50MB", "--starve", "1:20MB"]].concat());
    assert_sound(&plain);
    assert!(works(&plain).keys().all(|id| id.starts_with("read.random.library") || id.starts_with("read.sequential.library")));
    assert_eq!(works(&plain), works(&shaped));
    assert_ne!(works(&plain)["read.sequential.library.cold"], works(&other)["read.sequential.library.cold"]);
    let p50 = figures(&shaped).iter().find(|figure| text(figure, "id") == "read.random.library.p50").unwrap();
    assert!(p50["spread"]["median"].as_f64().unwrap() >= 30_000.0, "a read faster than the shaper's latency: {p50}");
}

/// Claim: a trace is replayed, one that names a file that is not there is refused with its line, and so is a directory without runs.
#[test]
fn traces_are_replayed_and_mistakes_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("small.trace");
    std::fs::write(&trace, "# two reads\n/data/large.bin 100 4096\ndata/large.bin 2000000 10\n").unwrap();
    let replayed = run(&["read", "--what", "trace", "--trace", trace.to_str().unwrap(), "--runs", "1"]);
    assert!(figures(&replayed).iter().all(|figure| text(figure, "what").contains("2 reads of 1 files")), "{replayed}");
    assert_same_work_both_ways(&replayed);
    std::fs::write(&trace, "data/large.bin 0 1\nno/such/file 0 1\n").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_clip-bench"));
    let output = command.args(["read", "--tiny", "--what", "trace", "--trace"]).arg(&trace).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("line 2") && said.contains("no/such/file"), "{said}");
    let output = report(dir.path());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("--save"), "{said}");
}

/// Claim: a `.clip` of somebody else is measured from where it says its layers are, and what needs a made image says that it was left out.
#[test]
fn a_given_clip_is_measured() {
    use clip_bench::{args::Common, corpus::TAG_ALL, setup::Setup};
    let setup = Setup::new(&Common::tiny(), 0).unwrap();
    let made = setup.made.as_ref().unwrap();
    let clip = setup.clip.path.to_str().unwrap();
    let local = setup.fresh_dir().unwrap();
    let local_clip = local.path().join("local.clip");
    let indexed = clip_bench::setup::index(&made.corpus.local_reference(TAG_ALL)).unwrap();
    clip_indexer::write_clip(&local_clip, &indexed.clip).unwrap();
    let part = ["--what", "random,sequential,readers", "--via", "library", "--runs", "1", "--clip"];
    let from_registry = run(&[&["read"], &part[..], &[clip]].concat());
    let from_layout = run(&[&["read"], &part[..], &[local_clip.to_str().unwrap()]].concat());
    let shaped = run(&[&["read"], &part[..], &[clip, "--latency", "5ms"]].concat());
    assert_sound(&from_registry);
    assert_eq!(works(&from_registry), works(&from_layout));
    assert_eq!(works(&from_registry), works(&shaped));
}

/// What clip-bench says on standard error when it fails.
fn fails(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_clip-bench")).arg("--tiny").args(arguments).output().unwrap();
    assert!(!output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Claim: where nothing could be measured the status says so, with the reason; a program, a tree or a profile that is not there is
/// refused before an image is made, and so are two images.
#[test]
fn what_cannot_be_measured_is_a_failure() {
    use clip_bench::{args::Common, setup::Setup};
    let setup = Setup::new(&Common::tiny(), 0).unwrap();
    let clip = setup.clip.path.to_str().unwrap();
    for part in ["index", "memory"] {
        let said = fails(&[part, "--clip", clip]);
        assert!(said.contains("nothing was measured") && said.contains("leave out --clip"), "{said}");
    }
    for (arguments, word) in [
        (&["size", "--clip-program", "/nonexistent/clip"][..], "/nonexistent/clip"),
        (&["size", "--clip-program", clip], "not a program"),
        (&["coldstart", "--unpacked", "/nonexistent/tree"], "/nonexistent/tree"),
        (&["coldstart", "--profile", "/nonexistent/profile"], "/nonexistent/profile"),
        (&["coldstart", "--oci", "/nonexistent/layout"], "no command"),
        (&["coldstart", "--oci", "/nonexistent/layout", "--", "true"], "/nonexistent/layout"),
        (&["coldstart", "--oci", "/nonexistent/layout", "--clip", clip, "--", "true"], "cannot be used with"),
    ] {
        let said = fails(arguments);
        assert!(said.contains(word), "{arguments:?}: {said}");
    }
}

/// Claim: the image that is named, in a layout or in a registry, is the one that is measured and shown, and no other is made.
#[test]
fn a_named_image_is_the_one_that_is_shown() {
    use clip_bench::{
        args::Common,
        corpus::TAG_ALL,
        setup::{Setup, Subject},
    };
    let common = Common::tiny();
    let setup = Setup::new(&common, 0).unwrap();
    let made = setup.made.as_ref().unwrap();
    let (layout, reference) = (made.corpus.local_reference(TAG_ALL), made.registry.reference(TAG_ALL));
    for (subject, name) in [(Subject::Layout(&layout), &layout), (Subject::Reference(&reference), &reference)] {
        let named = Setup::of(&common, subject).unwrap();
        assert!(named.made.is_none() && named.registry.is_some() == matches!(subject, Subject::Layout(_)));
        let (shown, expected) = (named.summary(), setup.summary());
        assert_eq!((&shown.name, shown.digest, shown.files), (name, expected.digest, expected.files));
        assert_eq!((shown.stream_bytes, shown.layers), (expected.stream_bytes, expected.layers));
    }
}

/// Claim: a layer in one zstd frame is read in order and nothing else, one in many frames in every way, each beside libzstd.
#[test]
fn zstd_layers_are_measured_beside_libzstd() {
    let frames = run(&["read", "--codec", "zstd-frames", "--via", "library", "--runs", "1"]);
    let floor =
        |id: &str| figures(&frames).iter().find(|figure| text(figure, "id") == id).map(|figure| figure["floor"]["what"].to_string());
    assert!(floor("read.zstd-frames.sequential.library.cold").unwrap().contains("libzstd decodes"), "{frames}");
    assert!(floor("read.zstd-frames.random.library.p50").is_some() && text(&frames["image"], "name").ends_with("in zstd-frames"));
    let one = run(&["read", "--codec", "zstd", "--via", "library", "--runs", "1"]);
    let skipped = one["skipped"].to_string();
    assert!(skipped.contains("zstd: read Random") && !works(&one).keys().any(|id| id.contains("random")), "{skipped}");
    assert_eq!(works(&one)["read.zstd.sequential.library.cold"], works(&frames)["read.zstd-frames.sequential.library.cold"]);
}

/// Claim: the table is that of docs/performance.md, whose rows a test of its own holds against the page.
#[test]
fn markdown_is_the_table_of_the_page() {
    let output = Command::new(env!("CARGO_BIN_EXE_clip-bench")).args(["--tiny", "--markdown", "size"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("\n| figure | median (min .. max) | floor | ratio | bar |\n|---|---|---|---|---|\n| `size.clip` the .clip | "),
        "{text}"
    );
    assert!(text.contains("(sha256:") && text.contains("\nThe floors:\n"), "{text}");
}
