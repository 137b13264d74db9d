//! Resume at a random checkpoint and verify the span, in memory; against plain inflate and BLAKE3 of the same bytes.

use clip_bench::{
    args::Common,
    corpus::{LARGE_LAYER, content::Draws},
    floor,
    setup::Setup,
};
use clip_engine::inflate::Until;
use clip_format::units::SpanIndex;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

fn resume(criterion: &mut Criterion) {
    let setup = Setup::new(&Common::tiny(), 0).expect("the tiny corpus can be made");
    let made = setup.made.as_ref().expect("an image made for the run");
    let (table, blob) = (setup.large_table(), &made.corpus.layers[LARGE_LAYER].blob);
    // The first span has no window, the last is short.
    let spans: Vec<SpanIndex> = (1..table.len().saturating_sub(1)).map(SpanIndex).filter(|&span| table.entry_of(span) == span).collect();
    let decode = |span: SpanIndex| {
        let range = table.compressed_range(span);
        let compressed = &blob[range.start as usize..range.end as usize];
        let stream = table.stream_range(span);
        let mut out = vec![0; (stream.end - stream.start) as usize];
        let (mut inflate, used) = floor::start(table, &setup.clip.windows, span, compressed).expect("an entry of the corpus");
        let step = inflate.step(&compressed[used..], &mut out, Until::Full).expect("a blob of the corpus");
        assert_eq!(step.produced, out.len());
        assert_eq!(blake3::hash(&out).as_bytes(), &table.span(span).digest);
        out
    };
    let mut work = blake3::Hasher::new();
    for &span in &spans {
        work.update(&decode(span));
    }
    eprintln!("work of one round over {} spans: {}", spans.len(), work.finalize());
    let bytes: u64 = spans.iter().map(|&span| table.stream_range(span)).map(|range| range.end - range.start).sum();
    let mut group = criterion.benchmark_group("resume");
    group.throughput(Throughput::Bytes(bytes / spans.len() as u64));
    let mut draws = Draws::new(7);
    group.bench_function("at a checkpoint, verified", |bencher| {
        bencher.iter_batched(|| spans[draws.below(spans.len() as u64) as usize], decode, BatchSize::SmallInput);
    });
    group.throughput(Throughput::Bytes(made.corpus.layers[LARGE_LAYER].stream_bytes));
    group.bench_function("floor: plain inflate of the layer", |bencher| {
        bencher.iter(|| floor::inflate(blob).expect("a blob of the corpus"))
    });
    group.finish();
}

criterion_group!(benches, resume);
criterion_main!(benches);
