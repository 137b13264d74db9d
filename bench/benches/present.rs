//! A read of present bytes: plan, span states and the look at the cache file; against the one system call that is in it.

use std::sync::Arc;

use clip_bench::{args::Common, corpus::content::Draws, setup::Setup};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};

fn present(criterion: &mut Criterion) {
    let setup = Setup::new(&Common::tiny(), 0).expect("the tiny corpus can be made");
    let cache = setup.fresh_dir().expect("a directory for the cache");
    let large = &setup.clip.large;
    let mut bytes = vec![0; large.len as usize];
    let read = |bytes: &mut [u8]| {
        let (engine, image) = setup.open(cache.path()).expect("the corpus opens");
        image.read_exact_at(large.layer, large.stream, bytes).expect("the registry answers");
        (engine, image)
    };
    // Twice: the first engine leaves when all is on disk, the second finds it there.
    drop(read(&mut bytes));
    let (_engine, image) = read(&mut bytes);
    eprintln!("work: {}", blake3::hash(&bytes));
    let mut draws = Draws::new(7);
    let mut group = criterion.benchmark_group("present");
    for (name, len) in [("4 KiB in one span", 4096), ("1 MiB in two", 1 << 20)] {
        let mut at = || large.stream + draws.below(large.len - len);
        let image = Arc::clone(&image);
        group.bench_function(name, |bencher| {
            let look = |at: u64| image.present(large.layer, at..at + len).map(<[u8]>::len).expect("all spans are present");
            bencher.iter_batched(&mut at, look, BatchSize::SmallInput);
        });
    }
    let file = std::fs::File::open(setup.clip.path.as_path()).expect("the index is there");
    group.bench_function("floor: fstat of a file", |bencher| bencher.iter(|| file.metadata().expect("an open file").len()));
    group.finish();
}

criterion_group!(benches, present);
criterion_main!(benches);
