//! Lookup of a path in the EROFS index, against a hash map of the same paths.

use std::collections::HashMap;

use clip_bench::{args::Common, corpus::content::Draws, setup::Setup};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};

fn lookup(criterion: &mut Criterion) {
    let setup = Setup::new(&Common::tiny(), 0).expect("the tiny corpus can be made");
    let index = &setup.clip.index;
    let paths: Vec<&[u8]> = setup.clip.files.iter().map(|file| &file.path[..]).collect();
    let resolve = |path: &[u8]| index.resolve(path).expect("a sound index").expect("a path of the corpus");
    let mut work = blake3::Hasher::new();
    for path in &paths {
        work.update(format!("{:?}", resolve(path)).as_bytes());
    }
    eprintln!("work of one round over {} paths: {}", paths.len(), work.finalize());
    let map: HashMap<&[u8], u64> = paths.iter().map(|path| (*path, resolve(path).nid.get())).collect();
    let mut draws = Draws::new(7);
    let mut group = criterion.benchmark_group("index");
    let mut path = || paths[draws.below(paths.len() as u64) as usize];
    group.bench_function("path of four names to inode", |bencher| bencher.iter_batched(&mut path, resolve, BatchSize::SmallInput));
    group.bench_function("floor: hash map of whole paths", |bencher| {
        bencher.iter_batched(&mut path, |path| map[path], BatchSize::SmallInput)
    });
    group.finish();
}

criterion_group!(benches, lookup);
criterion_main!(benches);
