//! From a range of absent bytes to the requests that fetch it; against finding its spans alone.

use clip_bench::{args::Common, corpus::content::Draws, setup::Setup};
use clip_engine::inner_loops::plan;
use clip_format::units::StreamOffset;
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};

/// Compressed bytes of one request. Source: the engine's default.
const REQUEST_BYTES_MAX: u64 = 16 << 20;

fn requests(criterion: &mut Criterion) {
    let common = Common { corpus_mib: Some(96), ..Common::tiny() };
    let setup = Setup::new(&common, 0).expect("the corpus can be made");
    let table = setup.large_table();
    let mut group = criterion.benchmark_group("plan");
    for (name, len) in [("4 KiB", 4096), ("1 MiB", 1 << 20), ("32 MiB", 32 << 20)] {
        let all: usize = (0..table.stream_size() - len).step_by(1 << 20).map(|at| plan(table, &(at..at + len), REQUEST_BYTES_MAX)).sum();
        assert!(all > 0, "a read needs requests");
        eprintln!("{name}: {all} requests of one round");
        let mut draws = Draws::new(7);
        let mut start = || draws.below(table.stream_size() - len);
        group.bench_function(format!("requests of {name}"), |bencher| {
            bencher.iter_batched(&mut start, |at| plan(table, &(at..at + len), REQUEST_BYTES_MAX), BatchSize::SmallInput);
        });
        group.bench_function(format!("floor: first and last span of {name}"), |bencher| {
            let ends = |at: u64| (table.span_at(StreamOffset(at)), table.span_at(StreamOffset(at + len - 1)));
            bencher.iter_batched(&mut start, ends, BatchSize::SmallInput);
        });
    }
    group.finish();
}

criterion_group!(benches, requests);
criterion_main!(benches);
