use std::{sync::Arc, time::Duration};

use clip_engine::{BackgroundHandle, DiskIo, Image, ImageOptions};
use clip_format::{profile::Profile, units::LayerIndex};

use crate::sample::{BASE, Node, each_disk_io, read, wait_present};

const SECOND: LayerIndex = LayerIndex(1);
/// Reads of a run: layer, place, length. The third lies in spans that the first has needed.
const READS: [(LayerIndex, usize, usize); 4] =
    [(BASE, 2_000_000, 100_000), (SECOND, 10, 5), (BASE, 2_050_000, 10), (BASE, 500_000, 200_000)];

fn recording(node: &Node) -> ImageOptions {
    ImageOptions { record: true, ..node.options() }
}

fn run_workload(image: &Arc<Image>, node: &Node) {
    for (layer, at, len) in READS {
        assert!(read(image, layer, at, len).unwrap() == node.layers[usize::from(layer.get())].stream[at..at + len]);
    }
}

/// The spans that the reads need, in order, by the span tables alone.
fn expected(image: &Image) -> Vec<(u16, u64)> {
    let mut spans = Vec::new();
    for (layer, at, len) in READS {
        let table = image.checkpoints().layer(layer);
        let needed = (0..table.len()).map(|span| table.stream_range(clip_format::units::SpanIndex(span)));
        let needed = needed.filter(|range| range.start < (at + len) as u64 && range.end > at as u64);
        for start in needed.map(|range| range.start) {
            if !spans.contains(&(layer.get(), start)) {
                spans.push((layer.get(), start));
            }
        }
    }
    spans
}

/// The first bytes of the spans of a profile, in order.
fn recorded(profile: &Profile, image: &Image) -> Vec<(u16, u64)> {
    let mut spans = Vec::new();
    for run in profile.runs() {
        let table = image.checkpoints().layer(LayerIndex(run.layer));
        let starts = (0..table.len()).map(|span| table.stream_range(clip_format::units::SpanIndex(span)).start);
        spans.extend(starts.filter(|start| run.stream.contains(start)).map(|start| (run.layer, start)));
    }
    spans
}

fn wait(handle: &BackgroundHandle) {
    for _ in 0..2000 {
        if handle.progress().is_finished {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("never finished: {:?}", handle.progress());
}

/// Claim: a record lists each span that the readers needed once, in the order of first need, from a cold cache and from a warm one, and
/// what is read ahead is not in it; an image that is not recorded has none.
#[test]
fn a_record_is_what_readers_needed_cold_or_warm() {
    each_disk_io(|disk_io| {
        let node = Node::ordinary(disk_io);
        let engine = node.start();
        assert!(node.open(&engine).recorded().is_none());
        let cold = engine.open_image(&node.clip(), &recording(&node)).unwrap();
        run_workload(&cold, &node);
        let whole = [&node.layers[0], &node.layers[1]].map(|layer| layer.stream.len());
        let fill = node.open(&engine).fill(clip_engine::FillOptions::default());
        for (layer, len) in [(BASE, whole[0]), (SECOND, whole[1])] {
            wait_present(&node.open(&engine), layer, 0, len);
        }
        drop(fill);
        let profile = cold.recorded().unwrap().unwrap();
        assert_eq!(recorded(&profile, &cold), expected(&cold));
        assert_eq!(cold.recorded_spans(), expected(&cold).len() as u64);
        let warm = engine.open_image(&node.clip(), &recording(&node)).unwrap();
        assert!(!Arc::ptr_eq(&cold, &warm), "a recorded image is shared with nobody");
        for (layer, at, len) in READS {
            assert!(warm.present(layer, at as u64..(at + len) as u64).is_some());
        }
        assert_eq!(recorded(&warm.recorded().unwrap().unwrap(), &warm), expected(&warm));
    });
}

/// Claim: a replay on an empty cache brings what was recorded, and the workload then waits for nothing.
#[test]
fn a_replay_brings_what_was_recorded() {
    each_disk_io(|disk_io| {
        let (first, second) = (Node::ordinary(disk_io), Node::ordinary(DiskIo::Pool));
        let engine = first.start();
        let image = engine.open_image(&first.clip(), &recording(&first)).unwrap();
        run_workload(&image, &first);
        let profile = image.recorded().unwrap().unwrap();
        let engine = second.start();
        let image = second.open(&engine);
        let fit = image.useful_fit(&profile).unwrap();
        assert_eq!((fit.needed, fit.found), (2, 2));
        let replay = image.replay(&profile);
        wait(&replay);
        let needed = expected(&image).len() as u64;
        assert_eq!((replay.progress().spans, replay.progress().spans_done), (needed, needed));
        for (layer, at, len) in READS {
            wait_present(&image, layer, at, len);
        }
        let before = engine.stats();
        run_workload(&image, &second);
        let after = engine.stats();
        assert_eq!(after.spans_fetched, before.spans_fetched);
        assert_eq!(after.source_reads, before.source_reads);
        assert!(after.spans_fetched >= needed, "{after:?}");
    });
}
