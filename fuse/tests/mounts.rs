//! Real mounts over a source in memory: what the kernel makes of the file system. Needs root and /dev/fuse; says so and passes without.
#![allow(missing_docs, clippy::unwrap_used)]

mod place;
mod sample;

use std::{
    ffi::CString,
    fs::{self, File},
    io::{BufRead, BufReader, Read},
    ops::Range,
    os::unix::{
        fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt},
        process::CommandExt,
    },
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::channel,
    thread,
    time::{Duration, Instant},
};

use clip_engine::image::ReadDone;
use clip_format::{erofs::Index, units::LayerIndex};
use clip_fuse::{
    ByteSource, MountError, MountOptions, Mounted,
    mount::{Detach, mounts, umount},
    mount_source,
};
use place::{Place, can_mount};
use rustix::fs::SeekFrom;
use sample::{FILE_AT, FILE_LEN, MANY, SPARSE_LEN, SPARSE_PIECE, SPARSE_SECOND, Source, Supply};

fn options() -> MountOptions {
    MountOptions::new("/images/sample.clip".into())
}

fn mounted(place: &Place, source: &Source) -> Mounted {
    mount_source(source.clone(), &place.m(), &options()).unwrap()
}

/// The mount's line of /proc/self/mountinfo.
fn line(mountpoint: &Path) -> String {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let wanted = format!(" {} ", mountpoint.display());
    table.lines().find(|line| line.contains(&wanted)).unwrap_or_default().to_owned()
}

fn soon(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Everything of the image is there as the image says it.
#[test]
fn walk_and_read() {
    if !can_mount() {
        return;
    }
    let (place, source) = (Place::new(), sample::source(true));
    let _mounted = mounted(&place, &source);
    let m = place.m();
    assert_eq!(fs::metadata(&m).unwrap().ino(), 1);
    let file = fs::read(m.join("file")).unwrap();
    assert!(file == source.bytes(LayerIndex(0), FILE_AT as u64..(FILE_AT + FILE_LEN) as u64));
    let meta = fs::metadata(m.join("file")).unwrap();
    assert_eq!((meta.nlink(), meta.blocks(), meta.blksize()), (2, (FILE_LEN as u64).div_ceil(512), 4096));
    assert_eq!(meta.ino(), fs::metadata(m.join("hard")).unwrap().ino());
    assert_eq!((meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.atime()), (1_700_000_000, 123_456_789, 1_700_000_000, 1_700_000_000));
    let old = fs::metadata(m.join("old")).unwrap();
    assert_eq!((old.mtime(), old.mtime_nsec()), (-5, 250_000_000));
    let owned = fs::metadata(m.join("owned")).unwrap();
    assert_eq!((owned.uid(), owned.gid()), (100_000, 200_000));
    assert_eq!(fs::read_link(m.join("link")).unwrap(), Path::new("file"));
    assert_eq!(fs::read_link(m.join("far")).unwrap().as_os_str().len(), 3000);
    let null = fs::metadata(m.join("dir/null")).unwrap();
    assert!(null.file_type().is_char_device());
    assert_eq!(null.rdev(), rustix::fs::makedev(1, 3));
    assert_eq!(fs::metadata(m.join("dir/disk")).unwrap().rdev(), rustix::fs::makedev(259, 70_000));
    assert!(fs::metadata(m.join("dir/fifo")).unwrap().file_type().is_fifo());
    assert!(fs::metadata(m.join("dir/socket")).unwrap().file_type().is_socket());
    for _ in 0..2 {
        assert_eq!(fs::metadata(m.join("none")).unwrap_err().kind(), std::io::ErrorKind::NotFound);
    }
    assert_eq!(fs::read_dir(m.join("many")).unwrap().count(), MANY);
    assert_eq!(fs::write(m.join("new"), "x").unwrap_err().kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    let statfs = rustix::fs::statvfs(&m).unwrap();
    assert_eq!((statfs.f_bfree, statfs.f_bavail, statfs.f_namemax, statfs.f_bsize), (0, 0, 255, 4096));
    assert!(statfs.f_blocks * 4096 > FILE_LEN as u64 && statfs.f_files > 15);
}

/// Sparse files read as zeros between their pieces, and lseek knows the holes.
#[test]
fn sparse_files() {
    if !can_mount() {
        return;
    }
    let (place, source) = (Place::new(), sample::source(false));
    source.supply(1, Supply::Fetched);
    let _mounted = mounted(&place, &source);
    let sparse = File::open(place.m().join("sparse")).unwrap();
    assert_eq!(rustix::fs::seek(&sparse, SeekFrom::Hole(0)), Ok(SPARSE_PIECE));
    assert_eq!(rustix::fs::seek(&sparse, SeekFrom::Data(SPARSE_PIECE)), Ok(SPARSE_SECOND));
    assert_eq!(fs::metadata(place.m().join("sparse")).unwrap().blocks(), 2 * SPARSE_PIECE / 512);
    let mut bytes = vec![1; SPARSE_LEN as usize];
    sparse.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == sample::sparse_bytes(&source));
}

/// Extended attributes come through; an image without any answers that it knows none.
#[test]
fn xattrs() {
    if !can_mount() {
        return;
    }
    for there in [true, false] {
        let (place, source) = (Place::new(), sample::source(there));
        let _mounted = mounted(&place, &source);
        let marked = place.m().join("marked");
        let mut value = [0; 100];
        let got = rustix::fs::getxattr(&marked, "user.comment", &mut value);
        let mut names = [0; 100];
        let listed = rustix::fs::listxattr(&marked, &mut names);
        if there {
            assert_eq!(&value[..got.unwrap()], b"hello");
            assert_eq!(rustix::fs::getxattr(&marked, "user.comment", &mut [0; 2][..]), Err(rustix::io::Errno::RANGE));
            assert_eq!(rustix::fs::getxattr(&marked, "user.none", &mut value), Err(rustix::io::Errno::NODATA));
            assert_eq!(rustix::fs::getxattr(&marked, "security.capability", &mut value).unwrap(), sample::CAPABILITY.len());
            let names = &names[..listed.unwrap()];
            assert_eq!(names.iter().filter(|byte| **byte == 0).count(), 2);
        } else {
            assert_eq!(got, Err(rustix::io::Errno::OPNOTSUPP));
            assert!(matches!(listed, Ok(0) | Err(rustix::io::Errno::OPNOTSUPP)), "{listed:?}");
        }
    }
}

/// The mount's type, name and flags are what was asked for, and set-user-id programs work exactly when they may.
#[test]
fn flags_and_setuid() {
    if !can_mount() {
        return;
    }
    let run = |m: &Path| Command::new(m.join("id")).arg("-u").uid(1000).gid(1000).output();
    let source = sample::source(true);
    let place = Place::new();
    let by_default = mounted(&place, &source);
    let shown = line(&place.m());
    assert!(shown.contains(" - fuse.clip /images/sample.clip ro,"), "{shown}");
    assert!(shown.contains("allow_other") && shown.contains("default_permissions"), "{shown}");
    assert!(!shown.contains("nosuid") && !shown.contains("nodev") && !shown.contains("noexec"), "{shown}");
    assert_eq!(run(&place.m()).unwrap().stdout, b"0\n");
    drop(by_default);

    let place = Place::new();
    let mut options = options();
    options.apply("nosuid,nodev,fsname=a b").unwrap();
    let _mounted = mount_source(source.clone(), &place.m(), &options).unwrap();
    let shown = line(&place.m());
    assert!(shown.contains("ro,nosuid,nodev") && shown.contains(r" - fuse.clip a\040b ro,"), "{shown}");
    assert_eq!(run(&place.m()).unwrap().stdout, b"1000\n");

    let place = Place::new();
    options.apply("noexec").unwrap();
    let _mounted = mount_source(source, &place.m(), &options).unwrap();
    assert_eq!(run(&place.m()).unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
}

/// User 1000 reads what modes and POSIX ACLs allow, and not what they don't.
#[test]
fn permissions_are_checked() {
    if !can_mount() {
        return;
    }
    let (place, source) = (Place::new(), sample::source(true));
    let _mounted = mounted(&place, &source);
    let read_as = |uid, name: &str| Command::new("cat").arg(place.m().join(name)).uid(uid).gid(uid).output().unwrap().status.success();
    assert!(read_as(1000, "file"));
    assert!(!read_as(1000, "secret"));
    // The image's ACL lets 1000 read this one, and nobody else.
    assert!(read_as(1000, "shared"));
    assert!(!read_as(1001, "shared"));
    assert_eq!(fs::read(place.m().join("secret")).unwrap().len(), 100);
}

/// The device reads ahead as told.
#[test]
fn read_ahead() {
    if !can_mount() {
        return;
    }
    let (place, source) = (Place::new(), sample::source(true));
    let mut options = options();
    options.read_ahead_kb = 768;
    let _mounted = mount_source(source, &place.m(), &options).unwrap();
    let dev = fs::metadata(place.m()).unwrap().dev();
    let path = format!("/sys/class/bdi/{}:{}/read_ahead_kb", rustix::fs::major(dev), rustix::fs::minor(dev));
    assert_eq!(fs::read_to_string(path).unwrap().trim(), "768");
}

/// While a read waits for its bytes, everything else goes on; then it gets them.
#[test]
fn parked_reads_block_nothing() {
    if !can_mount() {
        return;
    }
    let (place, source) = (Place::new(), sample::source(true));
    source.supply(1, Supply::Held);
    let _mounted = mounted(&place, &source);
    let m = place.m();
    let readers: Vec<_> = (0..8)
        .map(|_| {
            let path = m.join("slow");
            thread::spawn(move || fs::read(path).unwrap())
        })
        .collect();
    soon("a read waits", || source.held() > 0);
    assert_eq!(fs::read(m.join("file")).unwrap().len(), FILE_LEN);
    assert_eq!(fs::read_dir(m.join("many")).unwrap().count(), MANY);
    let wanted = source.bytes(LayerIndex(1), 1024..1024 + sample::SLOW_LEN as u64);
    let mut waiting = readers;
    soon("all readers are answered", || {
        source.release();
        let (done, still): (Vec<_>, Vec<_>) = std::mem::take(&mut waiting).into_iter().partition(|reader| reader.is_finished());
        done.into_iter().for_each(|reader| assert!(reader.join().unwrap() == wanted));
        waiting = still;
        waiting.is_empty()
    });
}

/// Many readers of random ranges, all of them fetched, see the right bytes.
#[test]
fn random_readers() {
    if !can_mount() {
        return;
    }
    let (place, source) = (Place::new(), sample::source(true));
    source.supply(0, Supply::Fetched);
    let _mounted = mounted(&place, &source);
    thread::scope(|scope| {
        for seed in 1..=8_u64 {
            let (path, source) = (place.m().join("file"), &source);
            scope.spawn(move || {
                let file = File::open(path).unwrap();
                let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                for _ in 0..50 {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let offset = (state >> 33) % FILE_LEN as u64;
                    let len = ((state >> 20) % 300_000).min(FILE_LEN as u64 - offset);
                    let mut bytes = vec![0; len as usize];
                    file.read_exact_at(&mut bytes, offset).unwrap();
                    let start = FILE_AT as u64 + offset;
                    assert!(bytes == source.bytes(LayerIndex(0), start..start + len), "seed {seed}, {offset}+{len}");
                    rustix::fs::fadvise(&file, offset, std::num::NonZero::new(len), rustix::fs::Advice::DontNeed).unwrap();
                }
            });
        }
    });
}

/// A layer served out of the map of a file, as the engine serves its cache.
struct Mapped {
    source: Source,
    map: memmap2::Mmap,
}

impl ByteSource for Mapped {
    type Stream = ();

    fn index(&self) -> &Index {
        self.source.index()
    }

    fn present(&self, _: LayerIndex, range: Range<u64>) -> Option<&[u8]> {
        Some(&self.map[range.start as usize..range.end as usize])
    }

    fn read(&self, layer: LayerIndex, range: Range<u64>, done: ReadDone) {
        self.source.read(layer, range, done);
    }

    fn note_read(&self, (): &(), _: LayerIndex, _: Range<u64>, _: u64) {}
}

/// A cache file that somebody cuts under a mount is an error of the read: no signal, no hang, and the mount lives on.
#[test]
fn cut_cache_files() {
    if !can_mount() {
        return;
    }
    let (place, source) = (Place::new(), sample::source(true));
    let layer = place.0.join("stream");
    fs::write(&layer, &source.0.layers[0]).unwrap();
    let file = File::options().read(true).write(true).open(&layer).unwrap();
    // SAFETY: the slices are never touched here, only given to writev(2), which answers EFAULT for pages that are gone.
    let map = unsafe { memmap2::Mmap::map(&file) }.unwrap();
    let _mounted = mount_source(Mapped { source: source.clone(), map }, &place.m(), &options()).unwrap();
    let read = File::open(place.m().join("file")).unwrap();
    let mut page = [0; 4096];
    read.read_exact_at(&mut page, 0).unwrap();
    file.set_len(1_000_000).unwrap();
    let error = read.read_exact_at(&mut page, 2_000_000).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()), "{error}");
    read.read_exact_at(&mut page, 900_000).unwrap();
    assert!(page == source.bytes(LayerIndex(0), 900_512..904_608));
    file.set_len(source.0.layers[0].len() as u64).unwrap();
}

/// A failed fetch is EIO, waited for once though the kernel asks twice, and the next try may succeed.
#[test]
fn failures_are_eio_once() {
    if !can_mount() {
        return;
    }
    let (place, source) = (Place::new(), sample::source(true));
    source.supply(1, Supply::Failing);
    let _mounted = mounted(&place, &source);
    let slow = File::open(place.m().join("slow")).unwrap();
    let mut page = [0; 4096];
    let error = slow.read_exact_at(&mut page, 0).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
    assert_eq!(source.reads(), 1);
    source.supply(1, Supply::Present);
    thread::sleep(Duration::from_millis(600));
    slow.read_exact_at(&mut page, 0).unwrap();
    assert!(page == source.bytes(LayerIndex(1), 1024..1024 + 4096));
}

/// A busy mount names its users; detached lazily it is gone from the tree, and open files read on until they are closed.
#[test]
fn busy_then_lazy() {
    if !can_mount() {
        return;
    }
    let (place, source) = (Place::new(), sample::source(true));
    let mounted = mounted(&place, &source);
    let mut open = File::open(place.m().join("file")).unwrap();
    let (send, ended) = channel();
    mounted.on_end(Box::new(move || send.send(()).unwrap()));
    match umount(&place.m(), Detach::IfIdle).unwrap_err() {
        MountError::Busy { users, .. } => assert!(users.contains(&format!("(pid {})", std::process::id())), "{users}"),
        error => panic!("{error}"),
    }
    umount(&place.m(), Detach::Lazily).unwrap();
    assert!(line(&place.m()).is_empty());
    assert!(!mounted.is_ended());
    let mut bytes = Vec::new();
    open.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len(), FILE_LEN);
    drop(open);
    mounted.wait();
    ended.recv_timeout(Duration::from_secs(10)).unwrap();
    let (send, ended) = channel();
    mounted.on_end(Box::new(move || send.send(()).unwrap()));
    ended.recv_timeout(Duration::from_secs(10)).unwrap();
    assert!(matches!(umount(&place.m(), Detach::IfIdle), Err(MountError::Mountpoint { .. })));
}

/// An idle mount goes at once; a mapped file and a mount inside keep it busy, by name.
#[test]
fn who_keeps_it_busy() {
    if !can_mount() {
        return;
    }
    let (place, source) = (Place::new(), sample::source(true));
    let mounted = mounted(&place, &source);
    rustix::mount::mount("none", place.m().join("dir/inner"), "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
    let error = umount(&place.m(), Detach::IfIdle).unwrap_err().to_string();
    assert!(error.contains(&format!("a mount at {}", place.m().join("dir/inner").display())), "{error}");
    rustix::mount::unmount(place.m().join("dir/inner"), rustix::mount::UnmountFlags::empty()).unwrap();
    let mut child = Command::new("sleep").arg("60").current_dir(place.m().join("dir")).spawn().unwrap();
    let error = umount(&place.m(), Detach::IfIdle).unwrap_err().to_string();
    assert!(error.contains(&format!("sleep (pid {})", child.id())), "{error}");
    child.kill().unwrap();
    child.wait().unwrap();
    umount(&place.m(), Detach::IfIdle).unwrap();
    mounted.wait();
}

/// A mount that another one covers is not detached by mistake.
#[test]
fn covered_mounts() {
    if !can_mount() {
        return;
    }
    let (place, source) = (Place::new(), sample::source(true));
    let mounted = mounted(&place, &source);
    rustix::mount::mount("none", place.m(), "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
    assert!(mounted.detach().unwrap_err().to_string().contains("covers"));
    assert!(matches!(umount(&place.m(), Detach::Lazily), Err(MountError::Mountpoint { found, .. }) if found.contains("tmpfs")));
    rustix::mount::unmount(place.m(), rustix::mount::UnmountFlags::empty()).unwrap();
    mounted.detach().unwrap();
    mounted.wait();
}

/// Dropping the handle detaches; aborting ends even reads that wait.
#[test]
fn drop_and_abort() {
    if !can_mount() {
        return;
    }
    let (place, source) = (Place::new(), sample::source(true));
    drop(mounted(&place, &source));
    assert!(line(&place.m()).is_empty());

    source.supply(1, Supply::Held);
    let mounted = mounted(&place, &source);
    let path = place.m().join("slow");
    let reader = thread::spawn(move || fs::read(path));
    soon("a read waits", || source.held() > 0);
    mounted.detach().unwrap();
    mounted.detach().unwrap();
    assert!(line(&place.m()).is_empty());
    mounted.abort().unwrap();
    assert!(reader.join().unwrap().is_err());
    mounted.wait();
    source.release();
}

/// What cannot be a mountpoint is refused with what to do.
#[test]
fn bad_mountpoints() {
    if !can_mount() {
        return;
    }
    let (place, source) = (Place::new(), sample::source(true));
    let refused = |path: &Path| match mount_source(source.clone(), path, &options()).unwrap_err() {
        MountError::Mountpoint { found, .. } => found,
        error => panic!("{error}"),
    };
    assert!(refused(&place.0.join("none")).contains("mkdir"));
    fs::write(place.0.join("file"), "").unwrap();
    assert_eq!(refused(&place.0.join("file")), "a file");
    let _mounted = mounted(&place, &source);
    assert!(refused(&place.m()).contains("clip umount"), "{}", refused(&place.m()));
    assert!(matches!(umount(Path::new("/proc"), Detach::IfIdle), Err(MountError::Mountpoint { found, .. }) if found.contains("proc")));
    assert!(matches!(umount(&place.0, Detach::IfIdle), Err(MountError::Mountpoint { .. })));
}

/// An overlay over the mount is a writable copy of it, and keeps working after a lazy umount of what is below.
#[test]
fn overlay_on_top() {
    if !can_mount() {
        return;
    }
    let (place, source) = (Place::new(), sample::source(true));
    let mounted = mounted(&place, &source);
    for dir in ["scratch", "top"] {
        fs::create_dir(place.0.join(dir)).unwrap();
    }
    // An overlay cannot be the upper layer of another, which is what a container's own /tmp is.
    rustix::mount::mount("none", place.0.join("scratch"), "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
    for dir in ["scratch/upper", "scratch/work"] {
        fs::create_dir(place.0.join(dir)).unwrap();
    }
    let at = |name: &str| place.0.join(name).display().to_string();
    let data = format!("lowerdir={},upperdir={},workdir={}", at("m"), at("scratch/upper"), at("scratch/work"));
    let top = place.0.join("top");
    let data = CString::new(data).unwrap();
    rustix::mount::mount("overlay", &top, "overlay", rustix::mount::MountFlags::empty(), data.as_c_str()).unwrap();
    assert_eq!(fs::read(top.join("file")).unwrap().len(), FILE_LEN);
    fs::write(top.join("file"), "changed").unwrap();
    fs::remove_file(top.join("empty")).unwrap();
    fs::set_permissions(top.join("marked"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(fs::read(top.join("file")).unwrap(), b"changed");
    assert_eq!(fs::read(top.join("hard")).unwrap().len(), FILE_LEN);
    assert_eq!(fs::read_dir(top.join("many")).unwrap().count(), MANY);
    assert!(!top.join("empty").exists() && place.m().join("empty").exists());
    umount(&place.m(), Detach::Lazily).unwrap();
    assert_eq!(fs::read(top.join("slow")).unwrap().len(), sample::SLOW_LEN);
    assert!(!mounted.is_ended());
    for mount in ["top", "scratch"] {
        rustix::mount::unmount(place.0.join(mount), rustix::mount::UnmountFlags::empty()).unwrap();
    }
    mounted.wait();
}

const CHILD: &str = "CLIP_FUSE_TEST_CHILD";

/// No test of its own: with the variable set it is the server that other tests start as a process and end as they like.
#[test]
fn child_serves() {
    let Some(mountpoint) = std::env::var_os(CHILD) else { return };
    let mountpoint = Path::new(&mountpoint);
    let mounted = match mount_source(sample::source(true), mountpoint, &options()) {
        Ok(mounted) => mounted,
        Err(error) => return println!("failed: {error}"),
    };
    let shown = line(mountpoint);
    println!("mounted: {} {shown}", fs::read(mountpoint.join("file")).unwrap().len());
    let mut end = String::new();
    std::io::stdin().read_line(&mut end).unwrap();
    println!("umount: {:?}", umount(mountpoint, Detach::IfIdle));
    mounted.wait();
}

/// A server in a process of its own, as `uid`, and what it says once it is ready.
fn serve_in_child(mountpoint: &Path, uid: u32) -> (Child, BufReader<std::process::ChildStdout>, String) {
    let program = std::env::current_exe().unwrap();
    let mut command = Command::new(if uid == 0 { program.as_os_str() } else { "unshare".as_ref() });
    if uid != 0 {
        // A mount namespace of its own, where every user may open /dev/fuse as udev has it elsewhere.
        let node = mountpoint.with_file_name("fuse");
        let script = "mknod \"$1\" c 10 229 && chmod 666 \"$1\" && mount --bind \"$1\" /dev/fuse && shift &&
            exec setpriv --reuid \"$1\" --regid \"$1\" --clear-groups -- \"${@:2}\"";
        command.args(["--mount", "--", "bash", "-c", script, "bash"]).arg(node).arg(uid.to_string()).arg(&program);
    }
    let mut child = command
        .args(["child_serves", "--exact", "--nocapture"])
        .env(CHILD, mountpoint)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut said = String::new();
    while !said.contains("mounted: ") && !said.contains("failed: ") {
        said.clear();
        assert_ne!(output.read_line(&mut said).unwrap(), 0, "the server ended");
    }
    (child, output, said)
}

/// A mount whose server was killed is known to be dead, though stat(2) on it still succeeds, and a new mount takes its place.
#[test]
fn dead_mounts_are_cleared() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let dead = || mounts().unwrap().into_iter().find(|entry| entry.mountpoint == place.m()).map(|entry| entry.dead);
    for _ in 0..2 {
        let (mut child, _output, said) = serve_in_child(&place.m(), 0);
        assert!(said.contains("mounted: "), "{said}");
        assert_eq!(dead(), Some(false));
        child.kill().unwrap();
        child.wait().unwrap();
        soon("the mount is dead", || dead() == Some(true));
    }
    let mounted = mounted(&place, &sample::source(true));
    assert_eq!(fs::read(place.m().join("file")).unwrap().len(), FILE_LEN);
    assert_eq!(mounts().unwrap().iter().filter(|entry| entry.mountpoint == place.m()).count(), 1);
    drop(mounted);
    let (mut child, _output, _) = serve_in_child(&place.m(), 0);
    child.kill().unwrap();
    child.wait().unwrap();
    umount(&place.m(), Detach::IfIdle).unwrap();
    assert_eq!(dead(), None);
}

/// A mount whose server hangs is neither dead nor in the way of an umount.
#[test]
fn hung_mounts_can_be_left() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let (mut child, _output, said) = serve_in_child(&place.m(), 0);
    assert!(said.contains("mounted: "), "{said}");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    let start = Instant::now();
    let entry = mounts().unwrap().into_iter().find(|entry| entry.mountpoint == place.m()).unwrap();
    assert!(!entry.dead);
    umount(&place.m(), Detach::Lazily).unwrap();
    assert!(start.elapsed() < Duration::from_secs(10));
    child.kill().unwrap();
    child.wait().unwrap();
}

/// User 1000 mounts through fusermount3, reads, and unmounts; what only root may have is off.
#[test]
fn users_mount_through_fusermount3() {
    if !can_mount() || Command::new("fusermount3").arg("-V").output().is_err() {
        return;
    }
    let place = Place::new();
    std::os::unix::fs::chown(place.m(), Some(1000), Some(1000)).unwrap();
    let (mut child, mut output, said) = serve_in_child(&place.m(), 1000);
    assert!(said.contains(&format!("mounted: {FILE_LEN} ")), "{said}");
    assert!(said.contains("fuse.clip /images/sample.clip ro,") && said.contains("nosuid,nodev"), "{said}");
    assert!(said.contains("default_permissions") && !said.contains("allow_other"), "{said}");
    drop(child.stdin.take());
    let mut said = String::new();
    output.read_to_string(&mut said).unwrap();
    assert!(said.contains("umount: Ok(())"), "{said}");
    child.wait().unwrap();

    let root_only = Place::new();
    let (mut child, _output, said) = serve_in_child(&root_only.m(), 1000);
    assert!(said.contains("failed: ") && said.contains("the user's own"), "{said}");
    child.wait().unwrap();
}
