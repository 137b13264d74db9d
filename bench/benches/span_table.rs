//! The span of a stream offset and the states of spans, which each read asks first; against a binary search of an array, and a load of bytes.

use std::sync::atomic::{AtomicU8, Ordering};

use clip_bench::{args::Common, corpus::content::Draws, setup::Setup};
use clip_engine::inner_loops::PresentSpans;
use clip_format::units::{SpanIndex, StreamOffset};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};

/// Spans of a layer of 5 GB.
const SPANS: u32 = 5000;
/// Spans of a read of 1 MiB that begins anywhere.
const ASKED: u32 = 2;

fn offsets(criterion: &mut Criterion) {
    let setup = Setup::new(&Common { corpus_mib: Some(64), ..Common::tiny() }, 0).expect("the corpus can be made");
    let table = setup.large_table();
    let starts: Vec<u64> = (0..table.len()).map(|span| table.stream_range(SpanIndex(span)).start).collect();
    let find = |offset: u64| {
        let span = table.span_at(StreamOffset(offset)).expect("inside the stream");
        table.compressed_range(table.entry_of(span))
    };
    let mut work = blake3::Hasher::new();
    for &start in &starts {
        work.update(format!("{:?}", find(start)).as_bytes());
    }
    eprintln!("work of one round over {} spans: {}", starts.len(), work.finalize());
    let mut draws = Draws::new(7);
    let mut offset = || draws.below(table.stream_size());
    let mut group = criterion.benchmark_group("span table");
    group.bench_function("offset to span to compressed range", |bencher| bencher.iter_batched(&mut offset, find, BatchSize::SmallInput));
    group.bench_function("floor: binary search of an array", |bencher| {
        bencher.iter_batched(&mut offset, |offset| starts.partition_point(|&start| start <= offset), BatchSize::SmallInput);
    });
    group.finish();
}

fn states(criterion: &mut Criterion) {
    let (spans, floor): (_, Vec<AtomicU8>) = (PresentSpans::new(SPANS), (0..SPANS).map(|_| AtomicU8::new(2)).collect());
    assert!((0..=SPANS - ASKED).all(|first| spans.are_present(first..first + ASKED)), "all spans are present");
    let mut draws = Draws::new(7);
    let mut first = || draws.below(u64::from(SPANS - ASKED)) as u32;
    let mut group = criterion.benchmark_group("span states");
    group.bench_function("two spans present", |bencher| {
        bencher.iter_batched(&mut first, |first| spans.are_present(first..first + ASKED), BatchSize::SmallInput);
    });
    group.bench_function("floor: load of two bytes", |bencher| {
        let load = |first: u32| (first..first + ASKED).all(|span| floor[span as usize].load(Ordering::Acquire) == 2);
        bencher.iter_batched(&mut first, load, BatchSize::SmallInput);
    });
    group.finish();
}

criterion_group!(benches, offsets, states);
criterion_main!(benches);
