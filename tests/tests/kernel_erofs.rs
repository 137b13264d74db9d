//! The kernel's own EROFS, mounting the index section over decompressed layers, shows the tree that our mount shows.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::{
    ffi::CString,
    io::{Read, Write},
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use clip_tests::{
    clip::Clip,
    faults::Server,
    images::{Compression, Headers, Layout, TarWriter, debian, nasty},
    machine::{Need, lacks},
    oracle::{Exclusions, compare},
    spans::Parts,
};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::json;
use tempfile::TempDir;

const NEEDS: &[Need] = &[Need::Root, Need::Fuse, Need::FileSystem("erofs")];
/// The kernel reads metadata by whole pages; the largest page is 64 KiB (arm64).
const PAGE_MAX: usize = 64 << 10;

/// A kernel mount, taken down when dropped.
struct KernelMount(PathBuf);

impl Drop for KernelMount {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// Writes the index and every layer's stream as files, and mounts them with the kernel's EROFS. `None` when this kernel takes no files.
fn mount_with_kernel(clip: &Path, layout: &Layout, dir: &Path) -> Option<KernelMount> {
    let parts = Parts::read(clip).unwrap();
    let mut index = parts.index.clone();
    index.resize(index.len().next_multiple_of(PAGE_MAX), 0);
    let image = dir.join("index.erofs");
    std::fs::write(&image, index).unwrap();
    let mut options = Vec::new();
    for (number, info) in parts.storage_info.layers.iter().enumerate() {
        let blob = std::fs::read(layout.blob_path(&info.digest.to_string()).unwrap()).unwrap();
        let device = dir.join(format!("layer-{number}"));
        write_stream(&blob, &device);
        options.push(format!("device={}", device.display()));
    }
    let target = dir.join("kernel");
    std::fs::create_dir(&target).unwrap();
    // The system call itself: mount(8) would put the image on a loop device, and then the layers must be block devices too.
    let options = CString::new(options.join(",")).unwrap();
    match mount(&image, &target, "erofs", MountFlags::RDONLY, Some(options.as_c_str())) {
        Ok(()) => Some(KernelMount(target)),
        Err(rustix::io::Errno::NOTBLK) => {
            eprintln!("skipped: this kernel mounts EROFS from block devices only (6.12 or newer is needed)");
            None
        }
        Err(error) => panic!("the kernel refuses the index: {error}"),
    }
}

fn write_stream(blob: &[u8], path: &Path) {
    let mut file = std::fs::File::create(path).unwrap();
    let mut written = 0;
    let mut decoder: Box<dyn Read + '_> = match blob.starts_with(&[0x1f, 0x8b]) {
        true => Box::new(flate2::read::MultiGzDecoder::new(blob)),
        false => Box::new(blob),
    };
    let mut chunk = vec![0; 1 << 20];
    loop {
        let len = decoder.read(&mut chunk).unwrap();
        if len == 0 {
            break;
        }
        file.write_all(&chunk[..len]).unwrap();
        written += len;
    }
    file.set_len(written.next_multiple_of(PAGE_MAX) as u64).unwrap();
}

/// Bytes of a file, by its path in the image, that are compared beside the walk.
type Piece = (&'static str, Range<u64>);

fn assert_kernel_agrees(claim: &str, layout: &Layout, tag: &str, exclusions: &Exclusions, pieces: &[Piece]) {
    let scratch = TempDir::new().unwrap();
    let clip = Clip::new();
    let server = Server::start(layout).unwrap();
    let file = clip.index(&server.reference("image", tag), tag, &[]).unwrap();
    let Some(kernel) = mount_with_kernel(&file, layout, scratch.path()) else { return };
    let ours = clip.mount(&file, &[]).unwrap();
    compare(&kernel.0, ours.dir(), exclusions).unwrap().assert_same(claim);
    for (path, range) in pieces {
        let read = |root: &Path| {
            let mut bytes = vec![0xaa; usize::try_from(range.end - range.start).unwrap()];
            std::fs::File::open(root.join(path)).unwrap().read_exact_at(&mut bytes, range.start).unwrap();
            bytes
        };
        assert!(read(&kernel.0) == read(ours.dir()), "{claim}: {path}: {range:?} differs");
    }
}

/// The Debian image of three layers.
#[test]
fn kernel_shows_the_debian_image() {
    if lacks(NEEDS) || lacks(debian::NEEDS) {
        return;
    }
    assert_kernel_agrees("debian", debian::layout().unwrap(), debian::APP, &Exclusions::default(), &[]);
}

/// Every kind of entry, ten thousand names in a directory, changes in upper layers, all in one image; a plain layer among them.
#[test]
fn kernel_shows_every_kind_of_entry() {
    if lacks(NEEDS) {
        return;
    }
    let layout = Layout::scratch().unwrap();
    let layers = [nasty::every_kind(), nasty::large_directory(), nasty::lower(), nasty::upper(), nasty::top()];
    let blobs: Vec<_> = layers
        .iter()
        .enumerate()
        .map(|(number, members)| {
            let compression = if number == 1 { Compression::Plain } else { Compression::ZlibRs(6) };
            layout.layer(&TarWriter::stream(members, Headers::Pax), &compression).unwrap()
        })
        .collect();
    layout.image("kinds", &blobs, json!({})).unwrap();
    assert_kernel_agrees("every kind", &layout, "kinds", &Exclusions::default(), &[]);
}

/// Holes of sparse files are holes to the kernel too.
#[test]
fn kernel_shows_sparse_files() {
    if lacks(NEEDS) || lacks(&[Need::Tool("tar")]) {
        return;
    }
    let scratch = TempDir::new().unwrap();
    let make = r#"cd "$1" && mkdir in && cd in
        truncate -s 5G huge && head -c 131072 /dev/urandom | dd of=huge bs=131072 seek=40959 conv=notrunc iflag=fullblock status=none
        truncate -s 3M holes && printf x | dd of=holes bs=1M seek=1 conv=notrunc status=none
        truncate -s 1M nothing
        cd .. && tar -C in --sparse --format=posix --sparse-version=1.0 -cf sparse.tar ."#;
    clip_tests::process::shell(make, &[scratch.path().as_os_str()]).unwrap();
    let layout = Layout::create(&scratch.path().join("layout")).unwrap();
    let stream = std::fs::read(scratch.path().join("sparse.tar")).unwrap();
    let layer = layout.layer(&stream, &Compression::ZlibRs(6)).unwrap();
    layout.image("sparse", &[layer], json!({})).unwrap();
    // EROFS has no SEEK_DATA: the oracle would read all of the 5 GiB file, so its ends stand for it.
    let exclusions = Exclusions::default().without("huge", "5 GiB, compared at both ends");
    let size = 5 << 30;
    let ends = [("huge", 0..65_536), ("huge", size - 131_072 - 65_536..size)];
    assert_kernel_agrees("sparse", &layout, "sparse", &exclusions, &ends);
}
