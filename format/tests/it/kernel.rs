//! The kernel reads the image as we do.

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{FileExt, FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use clip_format::erofs::{Body, FileExtent, InodeSpec};
use rustix::mount::{MountFlags, UnmountFlags};

use crate::trees::{STREAMS, Tree, every_kind, index};

/// A mount that ends with its owner.
struct Mount(PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
    }
}

fn layer_byte(layer: usize, offset: u64) -> u8 {
    (offset.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8 ^ (layer as u8) ^ 0x5a
}

fn mount(tree: &Tree, dir: &Path) -> Result<Mount, std::io::Error> {
    let image = dir.join("index.erofs");
    fs::write(&image, tree.image())?;
    let mut options = Vec::new();
    for (layer, device) in tree.devices.iter().enumerate() {
        let path = dir.join(format!("layer{layer}"));
        let len = device.stream_size.next_multiple_of(4096);
        fs::write(&path, (0..len).map(|offset| layer_byte(layer, offset)).collect::<Vec<u8>>())?;
        options.push(format!("device={}", path.display()));
    }
    let target = dir.join("mount");
    fs::create_dir(&target)?;
    let options = std::ffi::CString::new(options.join(",")).unwrap();
    rustix::mount::mount(&image, &target, "erofs", MountFlags::RDONLY, Some(options.as_c_str()))?;
    Ok(Mount(target))
}

fn compare_content(path: &Path, size: u64, extents: &[FileExtent]) {
    let file = File::open(path).unwrap();
    let mut probes = vec![(0, size.min(1 << 20)), (size.saturating_sub(5000), size.min(5000)), (size / 2, (size / 2).min(3000))];
    for extent in extents {
        probes.push((extent.file_offset.saturating_sub(700), 1400.min(size - extent.file_offset.saturating_sub(700))));
        let end = extent.file_offset + extent.len;
        probes.push((end.saturating_sub(700), 1400.min(size - end.saturating_sub(700))));
    }
    for (start, len) in probes {
        let mut wanted = vec![0; len as usize];
        for extent in extents {
            let first = extent.file_offset.max(start);
            for at in first..(extent.file_offset + extent.len).min(start + len) {
                let stream = extent.stream.get() + (at - extent.file_offset);
                wanted[(at - start) as usize] = layer_byte(usize::from(extent.layer.get()), stream);
            }
        }
        let mut found = vec![0; len as usize];
        file.read_exact_at(&mut found, start).unwrap();
        assert!(found == wanted, "{path:?} at {start}, {len} bytes");
    }
}

fn xattrs(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut names = vec![0; 1 << 16];
    let len = rustix::fs::llistxattr(path, &mut names).unwrap();
    let mut found: Vec<_> = names[..len]
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0; 1 << 16];
            let len = rustix::fs::lgetxattr(path, std::ffi::OsStr::from_bytes(name), &mut value).unwrap();
            (name.to_vec(), value[..len].to_vec())
        })
        .collect();
    found.sort();
    found
}

fn compare(path: &Path, spec: &InodeSpec, nid: u64, nlink: u32) {
    let found = fs::symlink_metadata(path).unwrap();
    let kind = found.file_type();
    assert_eq!(found.mode() & 0o7777, spec.permissions & 0o7777, "{path:?}");
    assert_eq!((found.uid(), found.gid()), (spec.uid, spec.gid), "{path:?}");
    assert_eq!((found.mtime(), found.mtime_nsec()), (spec.mtime_s, i64::from(spec.mtime_ns)), "{path:?}");
    assert_eq!((found.ino(), found.nlink()), (nid, u64::from(nlink)), "{path:?}");
    let rdev = |major, minor| rustix::fs::makedev(major, minor);
    match &spec.body {
        Body::Directory(names) => {
            assert!(kind.is_dir(), "{path:?}");
            let mut wanted: Vec<_> = names.iter().map(|entry| entry.0.clone()).collect();
            wanted.sort();
            let mut listed: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_vec()).collect();
            listed.sort();
            assert_eq!(listed, wanted, "{path:?}");
        }
        Body::Regular { size, extents } => {
            assert!(kind.is_file(), "{path:?}");
            assert_eq!(found.len(), *size, "{path:?}");
            compare_content(path, *size, extents);
        }
        Body::Symlink(target) => assert_eq!(fs::read_link(path).unwrap().into_os_string().into_vec(), *target, "{path:?}"),
        Body::CharDevice(major, minor) => {
            assert_eq!((kind.is_char_device(), found.rdev()), (true, rdev(*major, *minor)), "{path:?}");
        }
        Body::BlockDevice(major, minor) => {
            assert_eq!((kind.is_block_device(), found.rdev()), (true, rdev(*major, *minor)), "{path:?}");
        }
        Body::Fifo => assert!(kind.is_fifo(), "{path:?}"),
        Body::Socket => assert!(kind.is_socket(), "{path:?}"),
    }
    let mut wanted = spec.xattrs.clone();
    wanted.sort();
    assert_eq!(xattrs(path), wanted, "{path:?}");
}

#[test]
fn the_kernel_mounts_the_image_and_shows_every_attribute_and_byte() {
    let tree = every_kind();
    assert_eq!(tree.devices.len(), STREAMS.len());
    let dir = tempfile::tempdir().unwrap();
    let mount = match mount(&tree, dir.path()) {
        Ok(mount) => mount,
        Err(error) => {
            eprintln!("skipped: this machine does not mount a file-backed EROFS image ({error}); needs root and Linux 6.12");
            return;
        }
    };
    let index = index(tree.image());
    for (path, place) in tree.paths() {
        let inode = index.resolve(&path).unwrap().unwrap();
        let full = mount.0.join(std::ffi::OsStr::from_bytes(path.strip_prefix(b"/").unwrap_or(&path)));
        compare(&full, &tree.inodes[place], inode.nid.get(), inode.nlink);
        assert!(fs::symlink_metadata(full.join("absent")).is_err());
    }
    let mut file = File::open(mount.0.join("files/sparse")).unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut all = Vec::new();
    file.read_to_end(&mut all).unwrap();
    assert_eq!(all.len(), 5000);
}
