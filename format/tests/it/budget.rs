//! Size budgets and scale.

use std::{sync::Arc, time::Instant};

use clip_format::erofs::{Index, check::check};

use crate::trees::{Tree, clip, extent, regular};

/// A tree with the look of a distribution: `files` files in directories of about 20, sizes and names of a plausible entropy.
fn distribution(files: u64, stream_bytes: u64) -> Tree {
    let mut tree = Tree::new(&[stream_bytes]);
    let usr = tree.directory(0, b"usr");
    let words = ["lib", "python", "share", "perl", "locale", "core", "util", "config", "base", "test", "doc", "net", "crypto", "zone"];
    let mut state = 12345u64;
    let mut next = move |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut stream = 512;
    let mut dir = usr;
    for number in 0..files {
        if number % 20 == 0 {
            let name = format!("{}{}", words[next(14) as usize], number / 20);
            dir = tree.directory(usr, name.as_bytes());
            stream += 512;
        }
        let name = format!("{}-{}{}.so", words[next(14) as usize], words[next(14) as usize], number % 20);
        let size = (next(64) * next(64) * next(16)).min(stream_bytes.saturating_sub(stream + 512)).max(1);
        tree.add(dir, name.as_bytes(), regular(size, vec![extent(0, size, 0, stream)]));
        stream += size.next_multiple_of(512) + 512;
    }
    tree
}

#[test]
fn an_alpine_like_image_of_527_files_takes_under_20_kb() {
    let tree = distribution(500, 8 << 20);
    assert_eq!(tree.inodes.len(), 527);
    let len = clip(&tree, 1000).len();
    println!("{} inodes, 8 MiB: {len} bytes", tree.inodes.len());
    assert!(len < 20_000, "{len} bytes");
}

#[test]
fn a_debian_like_image_of_7500_files_takes_under_280_kb() {
    let tree = distribution(7500, 170 << 20);
    let len = clip(&tree, 900).len();
    println!("{} inodes, 170 MiB: {len} bytes", tree.inodes.len());
    assert!(len < 280_000, "{len} bytes");
}

#[test]
fn time_to_write_grows_with_the_tree_and_lookup_does_not() {
    let tree = distribution(100_000, 1 << 40);
    let start = Instant::now();
    let image = tree.image();
    let wrote = start.elapsed();
    let index = Index::open(Arc::new(image)).unwrap();
    let start = Instant::now();
    let counts = check(&index).unwrap();
    println!("{} files: wrote in {wrote:?}, checked in {:?}, {} bytes", counts.regular_files, start.elapsed(), index.image_len());
    assert_eq!(counts.regular_files, 100_000);
}
