//! The fault table: every way in which a registry fails, during an index, a read through a mount and a fill. No byte is wrong, nothing hangs
//! past its deadline, what passes in time costs nothing but time, what does not is one clear error, no connection and no busy loop is left,
//! and when the fault is gone the same mount works again. Against the scripted registry, and against docker-registry behind it.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod bench;
mod cell;
mod rows;
mod watch;

use std::{
    os::unix::fs::FileExt,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use clip_tests::{
    clip::Clip,
    faults::{Fault, Server},
    images::{Layout, Member, nasty::noise},
    machine::{Need, lacks},
    registry::Registry,
};
use serde_json::json;

use cell::{Behind, Cell, Operation, Outcome};
use rows::{BY_DEFAULT, ROWS, Row};

const NEEDS: &[Need] = &[Need::Root, Need::Fuse, Need::Tool("openssl"), Need::Tool("unshare")];
/// Cells that are tried side by side: nearly all of their time is waiting.
const WORKERS: usize = 32;
/// Files of the image, of [`FILE_BYTES`] that do not compress.
const FILES: usize = 6;
const FILE_BYTES: usize = 200_000;

/// The image that is read: one layer of 17 spans of 64 KiB or more.
pub struct Image {
    /// Its tag is `t`.
    pub layout: Layout,
    /// The layer's digest.
    pub layer: String,
    /// Name and contents.
    pub files: Vec<(String, Vec<u8>)>,
}

impl Image {
    fn new(file_bytes: usize) -> Self {
        let layout = Layout::scratch().unwrap();
        let files: Vec<_> = (0..FILES).map(|number| (format!("f{number}"), noise(number as u64 + 90, file_bytes))).collect();
        let members: Vec<_> = files.iter().map(|(name, data)| Member::file(name, data.clone())).collect();
        let layer = layout.gzip(&members).unwrap();
        let digest = layer.blob.digest.clone();
        layout.image("t", &[layer], json!({})).unwrap();
        Self { layout, layer: digest, files }
    }
}

/// Every row with every operation and both registries.
#[test]
fn faults_are_survived_or_told_and_never_leave_anything() {
    if lacks(NEEDS) {
        return;
    }
    let image = Image::new(FILE_BYTES);
    let (_registry, behinds) = behinds(&image);
    let only = std::env::var("FAULT").unwrap_or_default();
    let rows = || ROWS.iter().filter(|row| row.name.contains(&only));
    let kinds = |row: &'static Row| Operation::ALL.into_iter().map(move |operation| (row, operation));
    let mut cells: Vec<_> = behinds.into_iter().flat_map(|behind| rows().flat_map(kinds).map(move |cell| (behind, cell))).collect();
    // The longest first, so that none is waited for alone.
    cells.sort_by_key(|(_, (row, _))| std::cmp::Reverse(row.passing_max));
    let (next, tried, began) = (AtomicUsize::new(0), Mutex::new(Vec::new()), Instant::now());
    thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while let Some(&(behind, (row, operation))) = cells.get(next.fetch_add(1, Ordering::SeqCst)) {
                    let cell = Cell::try_it(&image, row, operation, behind);
                    tried.lock().unwrap().push(cell);
                }
            });
        }
    });
    let tried = tried.into_inner().unwrap();
    print_table(&tried);
    println!("{} cells in {:.1} s", tried.len(), began.elapsed().as_secs_f64());
    assert_eq!(tried.len(), cells.len());
    assert_no_problems(&tried);
}

/// Forty readers of a registry that is down wait as long as one does, and ask hardly more often: whoever waits for a connection, or for a span
/// that another reader asked for, does not begin to count anew.
#[test]
fn many_readers_of_a_dead_registry_wait_no_longer_than_one() {
    if lacks(NEEDS) {
        return;
    }
    let image = Image::new(FILE_BYTES);
    let server = Server::start(&image.layout).unwrap();
    let clip = Clip::new();
    let file = clip.index(&server.reference("many", "t"), "many", &["--span-size", "64KiB"]).unwrap();
    let mount = clip.mount(&file, &["--read-timeout", "4s"]).unwrap();
    server.forget();
    server.fault(Fault::Status(503));
    let began = Instant::now();
    let read = |number: usize| {
        let file = std::fs::File::open(mount.path(format!("f{}", number % FILES))).unwrap();
        let error = file.read_exact_at(&mut [0; 4096], (number / FILES) as u64 * 28_672).expect_err("a dead registry");
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
        began.elapsed()
    };
    let times: Vec<Duration> = thread::scope(|scope| {
        let readers: Vec<_> = (0..40).map(|number| scope.spawn(move || read(number))).collect();
        readers.into_iter().map(|reader| reader.join().unwrap()).collect()
    });
    let (requests, lines) = (server.seen().len(), clip.log().lines().filter(|line| line.contains("a fetch failed")).count());
    println!("40 readers: {:?} to {:?}, {requests} requests, {lines} lines", times.iter().min(), times.iter().max());
    assert!(times.iter().all(|time| *time < Duration::from_secs(7)), "{times:?}");
    assert!(requests <= 120, "{requests} requests");
    assert!(lines <= 4, "{lines} lines:\n{}", clip.log());
}

/// The default deadlines, with real outages in the middle of a body: 2 and 6 s are survived, a minute ends in an error within 30 s, and is
/// survived with a longer --read-timeout.
#[test]
#[ignore = "takes a minute; run by hand: cargo test -p clip-tests --test fault_table -- --ignored --nocapture"]
fn outages_with_the_default_deadlines() {
    if lacks(NEEDS) {
        return;
    }
    let image = Image::new(2_000_000);
    let (_registry, behinds) = behinds(&image);
    let cells: Mutex<Vec<Cell>> = Mutex::default();
    thread::scope(|scope| {
        let kinds = BY_DEFAULT.iter().flat_map(|row| Operation::ALL.map(|operation| (row, operation)));
        for (behind, (row, operation)) in behinds.iter().flat_map(|behind| kinds.clone().map(move |kind| (*behind, kind))) {
            let (image, cells) = (&image, &cells);
            scope.spawn(move || {
                let cell = Cell::try_it(image, row, operation, behind);
                cells.lock().unwrap().push(cell);
            });
        }
    });
    let tried = cells.into_inner().unwrap();
    print_table(&tried);
    assert_no_problems(&tried);
}

/// The scripted registry, and docker-registry with `image` where there is one.
fn behinds(image: &Image) -> (Option<Registry>, Vec<Behind>) {
    let registry = (!lacks(&[Need::Tool("docker-registry"), Need::Tool("skopeo")])).then(|| Registry::start().unwrap());
    if let Some(registry) = &registry {
        registry.push(image.layout.dir(), "t", "test/table").unwrap();
    }
    let behind = registry.as_ref().map(|registry| Behind::Registry(registry.port()));
    (registry, [Some(Behind::Layout), behind].into_iter().flatten().collect())
}

fn assert_no_problems(cells: &[Cell]) {
    let problems: Vec<String> = cells.iter().flat_map(Cell::problems).collect();
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
}

/// One line a fault and operation: what was seen (of a fill that was given up: how many spans it brought), seconds, requests, milliseconds of
/// processor, connections kept by the mount for later, connections left after it.
fn print_table(cells: &[Cell]) {
    let shown = |outcome: &Option<Outcome>| outcome.as_ref().map_or_else(|| format!("{:36}", "-"), Outcome::text);
    println!(
        "{:34} {:6} {:9} | {:36} | {:36}",
        "fault", "during", "registry", "it passes: time requests cpu kept left", "it lasts: time requests cpu kept left"
    );
    let mut lines: Vec<_> = cells.iter().collect();
    lines.sort_by_key(|cell| (cell.row.place(), cell.operation, cell.behind));
    for cell in lines {
        let (passing, lasting) = (shown(&cell.passing), shown(&cell.lasting));
        println!("{:34} {:6} {:9} | {passing} | {lasting}", cell.row.name, cell.operation.name(), cell.behind.name());
    }
}
