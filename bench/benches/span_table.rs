//! The span of a stream offset, which each read asks first; against a binary search of an array.

use clip_bench::{args::Common, corpus::content::Draws, setup::Setup};
use clip_format::units::{SpanIndex, StreamOffset};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};

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

criterion_group!(benches, offsets);
criterion_main!(benches);
