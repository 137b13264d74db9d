//! Resume at a random checkpoint and verify the span, in memory; against plain inflate and BLAKE3 of the same bytes.

use clip_bench::{
    args::Common,
    corpus::{LARGE_LAYER, content::Draws},
    floor,
    setup::Setup,
};
use clip_engine::inner_loops::resume;
use clip_format::{storage_info::Codec, units::SpanIndex};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

fn checkpoints(criterion: &mut Criterion) {
    let setup = Setup::new(&Common { corpus_mib: Some(64), ..Common::tiny() }, 0).expect("the corpus can be made");
    let made = setup.made.as_ref().expect("an image made for the run");
    let (table, blob) = (setup.large_table(), &made.corpus.layers[LARGE_LAYER].blob);
    // The first span has no window, the last is short.
    let spans: Vec<SpanIndex> = (1..table.len().saturating_sub(1)).map(SpanIndex).filter(|&span| table.entry_of(span) == span).collect();
    let decode = |span: SpanIndex| {
        let range = table.compressed_range(span);
        let compressed = &blob[range.start as usize..range.end as usize];
        let mut out = Vec::new();
        resume(table, &setup.clip.windows, span, compressed, &mut out).expect("a span of the corpus");
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
    group.bench_function("floor: plain inflate and BLAKE3 of the layer", |bencher| {
        bencher.iter(|| {
            let mut hasher = blake3::Hasher::new();
            let hash = |bytes: &[u8]| {
                hasher.update(bytes);
                Ok(())
            };
            floor::decode(Codec::Gzip, blob, hash).expect("a blob of the corpus");
            hasher.finalize()
        });
    });
    group.finish();
}

criterion_group!(benches, checkpoints);
criterion_main!(benches);
