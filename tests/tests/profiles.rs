//! Access profiles: what a run needed is recorded in order, and replayed before the next run needs it. And the fill of a whole image.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use clip_format::{
    clip_file::ClipFile,
    profile::Profile,
    units::{LayerIndex, SpanIndex},
};
use clip_tests::{
    clip::{Clip, Mount, text},
    faults::Server,
    images::{
        Layout, Member, debian, nasty,
        sample::{self, Sample},
    },
    machine::{Need, lacks},
    process::{Running, wait_until},
    served::Served,
    spans::Parts,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

const NEEDS: &[Need] = &[Need::Root, Need::Fuse];
const SOON: Duration = Duration::from_secs(20);

/// Spans as (layer, number).
type Spans = BTreeSet<(u16, u32)>;

/// The spans that hold these files, by the index and the span tables alone.
fn spans_of(file: &Path, paths: &[&str]) -> Spans {
    let parts = Parts::read(file).unwrap();
    let index = parts.tree().unwrap();
    let mut spans = Spans::new();
    for path in paths {
        let inode = index.resolve(path.as_bytes()).unwrap().unwrap();
        for extent in index.extents(&inode, 0..inode.size).map(Result::unwrap) {
            let Some((layer, start)) = extent.data else { continue };
            let stream = start.get()..start.get() + (extent.file.end - extent.file.start);
            spans.extend(overlapping(&parts, layer, &stream).map(|span| (layer.get(), span)));
        }
    }
    spans
}

fn overlapping<'a>(parts: &'a Parts, layer: LayerIndex, stream: &std::ops::Range<u64>) -> impl Iterator<Item = u32> + 'a {
    let (table, stream) = (parts.checkpoints.layer(layer), stream.clone());
    (0..table.len()).filter(move |span| {
        let range = table.stream_range(SpanIndex(*span));
        range.start < stream.end && range.end > stream.start
    })
}

/// The spans that a profile of this very index names, in order.
fn spans_in(profile: &Profile, file: &Path) -> Vec<(u16, u32)> {
    let parts = Parts::read(file).unwrap();
    let runs = profile.runs().iter();
    runs.flat_map(|run| overlapping(&parts, LayerIndex(run.layer), &run.stream).map(|span| (run.layer, span)).collect::<Vec<_>>()).collect()
}

fn read_profile(path: &Path) -> Profile {
    Profile::from_bytes(&std::fs::read(path).unwrap()).unwrap()
}

/// Reads these files to their ends, one after the other.
fn read_files(mount: &Mount<'_>, sample: &Sample, paths: &[&str]) {
    for path in paths {
        assert!(std::fs::read(mount.path(path)).unwrap() == sample.contents(path), "{path}");
    }
}

/// A profile of these files, recorded on a node of its own.
fn record(served: &Served, clip: &Clip, file: &Path, paths: &[&str]) -> PathBuf {
    let profile = served.clip.path(&format!("{}.profile", paths.len()));
    let mount = clip.mount(file, &["--record", text(&profile).unwrap()]).unwrap();
    read_files(&mount, &served.sample, paths);
    mount.umount().unwrap();
    clip.wait_for_servers().unwrap();
    profile
}

/// The report of the only mount, and the engine's counters, as `--stats` has them. The mount must have been made with it.
fn stats(clip: &Clip, file: &Path) -> (Value, Value) {
    let _ = std::fs::remove_file(file);
    let pid = Pid::from_raw(i32::try_from(clip.servers()[0]).unwrap()).unwrap();
    kill_process(pid, Signal::USR1).unwrap();
    wait_until("SIGUSR1 writes the statistics", SOON, || file.exists()).unwrap();
    let report: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    (report["mounts"][0].clone(), report["engine"].clone())
}

fn wait_finished(clip: &Clip, file: &Path, work: &str) -> (Value, Value) {
    wait_until(work, SOON, || stats(clip, file).0[work]["is_finished"] == true).unwrap();
    stats(clip, file)
}

fn blob_requests(server: &Server) -> usize {
    server.seen().iter().filter(|seen| seen.is_blob()).count()
}

/// A record lists exactly the spans of the files that were read, in the order of the reads, and is the same from a cold and a warm node.
#[test]
fn a_record_lists_the_spans_that_were_read() {
    if lacks(NEEDS) {
        return;
    }
    let served = Served::new().unwrap();
    let paths = [sample::SHORT, sample::PROSE];
    let recorded: Vec<Vec<(u16, u32)>> = (0..2)
        .map(|_| {
            let profile = read_profile(&record(&served, &served.clip, &served.file, &paths));
            let spans = spans_in(&profile, &served.file);
            assert_eq!(spans.iter().copied().collect::<Spans>(), spans_of(&served.file, &paths));
            assert_eq!(spans.len(), spans_of(&served.file, &paths).len(), "no span twice");
            spans
        })
        .collect();
    assert_eq!(recorded[0][0].0, 1, "the file of the second layer was read first");
    // The kernel's read-ahead asks from several threads: within one file neighbours may change places.
    assert_eq!(recorded[0][0], recorded[1][0]);
    let mut reversed = paths;
    reversed.reverse();
    let profile = read_profile(&record(&served, &served.clip, &served.file, &reversed));
    assert_eq!(spans_in(&profile, &served.file)[0].0, 0);
}

/// A replay on an empty cache fetches the spans of the profile and nothing else; the workload then asks the registry for nothing. The
/// mount does not wait for it.
#[test]
fn a_replay_fetches_what_the_workload_needs_and_no_more() {
    if lacks(NEEDS) {
        return;
    }
    let served = Served::new().unwrap();
    let paths = [sample::PROSE, "etc/table"];
    let profile = record(&served, &served.clip, &served.file, &paths);
    let node = Clip::new();
    let report = node.path("stats.json");
    let mount = node.mount(&served.file, &["--profile", text(&profile).unwrap(), "--stats", text(&report).unwrap()]).unwrap();
    let (mounted, engine) = wait_finished(&node, &report, "replay");
    let needed = spans_of(&served.file, &paths).len();
    assert_eq!(mounted["replay"]["spans"], needed);
    assert_eq!(mounted["replay"]["spans_done"], needed);
    wait_until("what was fetched is kept", SOON, || stats(&node, &report).1["spans_fetched"] == needed).unwrap();
    assert_eq!(engine["reads_waited"], 0);
    served.server.forget();
    read_files(&mount, &served.sample, &paths);
    assert_eq!(blob_requests(&served.server), 0, "the workload waited for nothing");
    assert!(node.log().contains("2 of the 2 layers"), "{}", node.log());
    read_files(&mount, &served.sample, &[sample::NOISE]);
    assert!(blob_requests(&served.server) > 0, "what was not recorded was not fetched");
}

/// A profile of which no layer is the image's refuses the mount and the index, naming both images; a file that is no profile does too;
/// and nothing is left mounted or written.
#[test]
fn a_foreign_profile_is_refused() {
    if lacks(NEEDS) {
        return;
    }
    let served = Served::new().unwrap();
    let profile = record(&served, &served.clip, &served.file, &[sample::SHORT]);
    let profile = text(&profile).unwrap();
    let layout = Layout::scratch().unwrap();
    let other = layout.gzip(&[Member::file("a", nasty::prose(7, 9000))]);
    layout.image("other", &[other.unwrap()], json!({})).unwrap();
    let clip = Clip::new();
    let file = clip.index(&layout.reference("other"), "other", &[]).unwrap();
    let dir = clip.path("mnt");
    std::fs::create_dir(&dir).unwrap();
    let said = clip.fails(&["mount", "--profile", profile, text(&file).unwrap(), text(&dir).unwrap()]).unwrap();
    for manifest in [&served.file, &file].map(|file| Parts::read(file).unwrap().storage_info.manifest_digest.to_string()) {
        assert!(said.contains(&manifest) && said.contains("another image"), "{said}");
    }
    assert!(!clip_tests::clip::is_mounted(&dir));
    let output = clip.path("new.clip");
    let said = clip.fails(&["index", &layout.reference("other"), "-o", text(&output).unwrap(), "--profile", profile]).unwrap();
    assert!(said.contains("another image") && !output.exists(), "{said}");
    let said = clip.fails(&["mount", "--profile", text(&file).unwrap(), text(&file).unwrap(), text(&dir).unwrap()]).unwrap();
    assert!(said.contains("not an access profile"), "{said}");
}

/// A profile serves another image for the layers that both have, also where that one's spans are others.
#[test]
fn a_profile_is_used_for_the_layers_that_are_the_same() {
    if lacks(NEEDS) {
        return;
    }
    let layout = Layout::scratch().unwrap();
    let layer = |members: &[Member]| layout.gzip(members).unwrap();
    let base = layer(&[Member::file("base/one", nasty::prose(1, 5 << 20)), Member::file("base/two", nasty::noise(2, 3 << 20))]);
    for (name, seed) in [("first", 3), ("second", 4)] {
        let own = layer(&[Member::file("own", nasty::prose(seed, 300_000))]);
        layout.image(name, &[base.clone(), own], json!({})).unwrap();
    }
    let server = Server::start(&layout).unwrap();
    let clip = Clip::new();
    let first = clip.index(&server.reference("a", "first"), "first", &[]).unwrap();
    let second = clip.index(&server.reference("b", "second"), "second", &["--span-size", "256KiB"]).unwrap();
    let profile = clip.path("first.profile");
    let mount = clip.mount(&first, &["--record", text(&profile).unwrap()]).unwrap();
    std::fs::read(mount.path("base/two")).unwrap();
    std::fs::read(mount.path("own")).unwrap();
    mount.umount().unwrap();
    clip.wait_for_servers().unwrap();

    let node = Clip::new();
    let report = node.path("stats.json");
    let mount = node.mount(&second, &["--profile", text(&profile).unwrap(), "--stats", text(&report).unwrap()]).unwrap();
    let (mounted, _) = wait_finished(&node, &report, "replay");
    // The recorded spans are coarser: what they cover in the other index is at least the file.
    let least = spans_of(&second, &["base/two"]).len() as u64;
    let all = u64::from(Parts::read(&second).unwrap().checkpoints.layer(LayerIndex(0)).len());
    let spans = mounted["replay"]["spans"].as_u64().unwrap();
    assert!(spans >= least && spans < all, "{least} <= {spans} < {all}");
    server.forget();
    assert!(std::fs::read(mount.path("base/two")).unwrap() == nasty::noise(2, 3 << 20));
    assert_eq!(blob_requests(&server), 0);
    assert!(node.log().contains("1 of the 2 layers"), "{}", node.log());
    std::fs::read(mount.path("own")).unwrap();
    assert!(blob_requests(&server) > 0, "the layer that is another's was not fetched");
}

/// A profile embedded by `clip index --profile` is replayed by a plain mount and not with `--no-profile`; the `.clip` is the same bytes
/// each time and, without a profile, those it always had; `inspect` shows it, `verify` checks it.
#[test]
fn an_embedded_profile_is_replayed() {
    if lacks(NEEDS) {
        return;
    }
    let served = Served::new().unwrap();
    let paths = [sample::NOISE];
    let profile = record(&served, &served.clip, &served.file, &paths);
    let reference = served.server.reference("sample", sample::TAG);
    let index = |name: &str| served.clip.index(&reference, name, &["--profile", text(&profile).unwrap()]).unwrap();
    let (file, again) = (index("with"), index("again"));
    assert!(std::fs::read(&file).unwrap() == std::fs::read(&again).unwrap(), "same image, same profile, same bytes");
    let bytes = std::fs::read(&file).unwrap();
    assert_eq!(ClipFile::parse(&bytes).unwrap().profile().unwrap().unwrap(), read_profile(&profile));
    let without = std::fs::read(&served.file).unwrap();
    assert!(bytes[512..].starts_with(&without[512..]), "the other sections are as they were");
    for (more, replayed) in [(&["--no-profile"][..], false), (&[], true)] {
        let node = Clip::new();
        let report = node.path("stats.json");
        served.server.forget();
        let mount = node.mount(&file, &[&["--stats", text(&report).unwrap()], more].concat()).unwrap();
        if replayed {
            let (mounted, _) = wait_finished(&node, &report, "replay");
            assert_eq!(mounted["replay"]["spans"], spans_of(&file, &paths).len());
            assert!(blob_requests(&served.server) > 0);
            served.server.forget();
        } else {
            assert_eq!(stats(&node, &report).0["replay"], Value::Null);
            assert_eq!(blob_requests(&served.server), 0);
        }
        read_files(&mount, &served.sample, &paths);
        assert_eq!(blob_requests(&served.server) == 0, replayed);
    }
    let needed = spans_of(&file, &paths).len();
    let inspected: Value = serde_json::from_str(&served.clip.ok(&["inspect", "--json", text(&file).unwrap()]).unwrap().text()).unwrap();
    assert_eq!(inspected["profile"]["layers"][0]["spans"], needed);
    assert_eq!(inspected["sections"].as_array().unwrap().len(), 5);
    for shown in [&file, &profile] {
        let said = served.clip.ok(&["inspect", text(shown).unwrap()]).unwrap().text();
        assert!(said.contains("Profile    ") && said.contains("1 of 2 layers"), "{said}");
    }
    served.clip.ok(&["verify", text(&file).unwrap()]).unwrap();
}

/// `--fill now` brings every span without a reader, and `--fill after` does once nobody waits; then everything can be read with the
/// registry gone.
#[test]
fn a_filled_image_needs_no_registry() {
    if lacks(NEEDS) {
        return;
    }
    for when in ["now", "after"] {
        let mut served = Served::new().unwrap();
        let report = served.clip.path("stats.json");
        let mount = served.clip.mount(&served.file, &["--fill", when, "--stats", text(&report).unwrap()]).unwrap();
        let (mounted, _) = wait_finished(&served.clip, &report, "fill");
        let parts = Parts::read(&served.file).unwrap();
        let spans: u32 = parts.checkpoints.layers().iter().map(clip_format::checkpoints::SpanTable::len).sum();
        assert_eq!(mounted["fill"]["spans_done"], spans, "{when}");
        wait_until("every span is there", SOON, || stats(&served.clip, &report).1["spans_fetched"] == spans).unwrap();
        served.server.die();
        served.assert_all_right(mount.dir());
    }
}

/// `--fill-rate` holds the fill back, and the umount ends it: the process leaves at once and asks for nothing more.
#[test]
fn a_fill_keeps_to_its_rate_and_ends_with_its_mount() {
    if lacks(NEEDS) {
        return;
    }
    let served = Served::new().unwrap();
    let report = served.clip.path("stats.json");
    served.server.forget();
    let options = ["--fill", "now", "--fill-rate", "64KiB", "--stats", text(&report).unwrap()];
    let mount = served.clip.mount(&served.file, &options).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let blobs: u64 = served
        .sample
        .layout
        .layer_digests(sample::TAG)
        .unwrap()
        .iter()
        .map(|digest| std::fs::metadata(served.sample.layout.blob_path(digest).unwrap()).unwrap().len())
        .sum();
    let fetched: u64 = served.server.seen().iter().filter(|seen| seen.is_blob()).map(|seen| seen.served).sum();
    // Far below it in a second, far above what one request may overshoot: no timing of a slow machine decides this.
    assert!(fetched < blobs / 2, "{fetched} of {blobs} bytes in a second at 64 KiB/s");
    assert_eq!(stats(&served.clip, &report).0["fill"]["is_finished"], false);
    let started = Instant::now();
    mount.umount().unwrap();
    served.clip.wait_for_servers().unwrap();
    assert!(started.elapsed() < Duration::from_secs(10), "the fill kept the process");
}

/// Options that contradict each other are errors of the command line; all of them are mount(8) options too.
#[test]
fn options_that_make_no_sense_are_refused() {
    let clip = Clip::new();
    std::fs::write(clip.path("a.clip"), b"").unwrap();
    let (file, dir) = (clip.path("a.clip"), clip.path(""));
    for options in [
        &["--fill-rate", "1M"][..],
        &["--profile", "a", "--no-profile"],
        &["--fill", "sometimes"],
        &["--fill", "now", "--fill-rate", "0"],
        &["-o", "fill-rate=1M"],
    ] {
        let finished = clip.run(&[&["mount", text(&file).unwrap(), text(&dir).unwrap()], options].concat()).unwrap();
        assert_eq!(finished.status.code(), Some(2), "{options:?}: {}", finished.stderr);
    }
}

/// A profile is whole in its file while the run goes on, after the owner was told to stop, and nothing stands beside it.
#[test]
fn a_stopped_owner_leaves_a_whole_profile() {
    if lacks(NEEDS) {
        return;
    }
    let served = Served::new().unwrap();
    let dir = served.new_dir("profiles").unwrap();
    let profile = dir.join("a.profile");
    let mount = served.clip.mount(&served.file, &["--record", text(&profile).unwrap()]).unwrap();
    read_files(&mount, &served.sample, &[sample::SHORT]);
    kill_process(served.owner().unwrap(), Signal::TERM).unwrap();
    served.clip.wait_for_servers().unwrap();
    let spans = spans_in(&read_profile(&profile), &served.file);
    assert_eq!(spans.into_iter().collect::<Spans>(), spans_of(&served.file, &[sample::SHORT]));
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
    drop(mount);
}

/// `clip record` runs a command in the image as the image's user, gives its exit code, hands signals on, leaves nothing mounted or
/// running, and writes a profile whose replay spares the same run every request. A failure to start leaves the output untouched.
#[test]
fn clip_record_runs_a_command_and_writes_its_profile() {
    if lacks(NEEDS) || lacks(debian::NEEDS) || lacks(&[Need::FileSystem("overlay")]) {
        return;
    }
    let server = Server::start(debian::layout().unwrap()).unwrap();
    let clip = Clip::new();
    let file = clip.index(&server.reference("debian", debian::APP), "debian", &[]).unwrap();
    let (name, profile) = (text(&file).unwrap().to_owned(), clip.path("debian.profile"));
    let script =
        "id -un; pwd; echo $GREETING; echo new > /tmp/new; cat /usr/bin/python3.11 > /dev/null; test -e /proc/self/exe; sleep 99 & exit 7";
    let finished = clip.run(&["record", &name, "--", "/bin/sh", "-c", script]).unwrap();
    assert_eq!((finished.status.code(), finished.text().as_str()), (Some(7), "app\n/opt\nhi\n"), "{}", finished.stderr);
    assert!(finished.stderr.contains("debian.profile: "), "{}", finished.stderr);
    clip.wait_for_servers().unwrap();
    let spans: Spans = spans_in(&read_profile(&profile), &file).into_iter().collect();
    assert!(spans.is_superset(&spans_of(&file, &["usr/bin/python3.11"])));
    let before = std::fs::read(&profile).unwrap();
    for (command, code) in [("/no/such/program", 127), ("/opt", 126)] {
        assert_eq!(clip.run(&["record", &name, "--", command]).unwrap().status.code(), Some(code), "{command}");
    }
    assert!(std::fs::read(&profile).unwrap() == before);
    assert!(!std::fs::read_to_string("/proc/self/mounts").unwrap().contains("clip-record-"), "something is left mounted");

    let mut command =
        clip.command(&["record", &name, "--", "/bin/sh", "-c", "trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done"]);
    let mut running = Running::start(command.stdout(Stdio::piped())).unwrap();
    let mut ready = [0; 6];
    std::io::Read::read_exact(running.0.stdout.as_mut().unwrap(), &mut ready).unwrap();
    kill_process(Pid::from_raw(i32::try_from(running.0.id()).unwrap()).unwrap(), Signal::TERM).unwrap();
    assert_eq!(running.wait(SOON).unwrap().code(), Some(9));

    std::fs::write(&profile, before).unwrap();
    let node = Clip::new();
    let report = node.path("stats.json");
    let mount = node.mount(&file, &["--profile", text(&profile).unwrap(), "--stats", text(&report).unwrap()]).unwrap();
    wait_finished(&node, &report, "replay");
    server.forget();
    std::fs::read(mount.path("usr/bin/python3.11")).unwrap();
    assert_eq!(blob_requests(&server), 0);
}
