//! The commands as a user runs them, on the smallest images: the program's own file names, exit codes and messages.
#![allow(clippy::unwrap_used)]

mod image;

use std::{
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
    process::{Command, Stdio},
};

use image::{clip, failure, indexed, ok};
use serde_json::json;

/// An index says what it holds, checks itself, and lists names that cannot harm a terminal.
#[test]
fn inspect_ls_and_verify() {
    let dir = indexed();
    let inspection: serde_json::Value = serde_json::from_str(&ok(dir.path(), &["inspect", "--json", "a.clip"])).unwrap();
    assert_eq!(inspection["version"], 1);
    assert_eq!(inspection["counts"]["regular_files"], 3);
    assert_eq!(inspection["sections"][0]["position"], 512);
    let listing = ok(dir.path(), &["ls", "-l", "a.clip"]);
    assert!(listing.contains("new\\nline") && listing.contains("-rwsr-xr-x 2 ") && listing.contains("link -> etc/passwd"), "{listing}");
    assert_eq!(ok(dir.path(), &["ls", "-R0", "a.clip", "/etc"]), "/etc\0/etc/passwd\0");
    assert!(ok(dir.path(), &["verify", "--remote", "a.clip"]).contains("sound"));
    assert!(failure(dir.path(), &["ls", "a.clip", "/nope"], 1).contains("/nope: no such file"));
}

/// `cat` follows links, in the image only; a directory is an error.
#[test]
fn cat_follows_links() {
    let dir = indexed();
    assert_eq!(ok(dir.path(), &["cat", "a.clip", "link", "run"]), "root:x:0:0::/root:/bin/sh\nweb:x:33:44::/srv:/bin/sh\n#!/x");
    assert!(failure(dir.path(), &["cat", "a.clip", "/etc"], 1).contains("is a directory"));
}

/// `cat` reports a path that is not there, goes on to the next, and exits 1 at the end.
#[test]
fn cat_goes_on_after_a_missing_path() {
    let dir = indexed();
    let output = image::clip(dir.path(), &["cat", "a.clip", "nope", "run", "/etc", "run"]);
    assert_eq!(output.stdout, b"#!/x#!/x");
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("nope: no such file") && text.contains("/etc: is a directory"), "{text}");
}

/// An extraction that ends before its end, here because a directory that is not empty stands where a file belongs, says that the tree is partial.
#[test]
fn failed_extract_says_that_the_tree_is_partial() {
    let dir = indexed();
    std::fs::create_dir_all(dir.path().join("out/run")).unwrap();
    std::fs::write(dir.path().join("out/run/mine"), "").unwrap();
    let text = failure(dir.path(), &["extract", "--force", "a.clip", "out"], 1);
    assert!(text.starts_with("clip: out holds a partial tree: out/run"), "{text}");
}

/// An interrupted extraction says that the tree is partial, and its exit code names the signal.
#[test]
fn interrupted_extract_says_that_the_tree_is_partial() {
    let dir = indexed();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let store = format!("{}/image", silent.local_addr().unwrap());
    let mut command = Command::new(env!("CARGO_BIN_EXE_clip"));
    command.current_dir(dir.path()).env("CLIP_CACHE_DIR", dir.path().join("cache")).env("DOCKER_CONFIG", dir.path());
    let child = command.args(["extract", "--store-ref", &store, "a.clip", "out"]).stderr(Stdio::piped()).spawn().unwrap();
    // The registry takes the connection and says nothing: by now the tree has been begun.
    let _connection = silent.accept().unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "clip: interrupted: out holds a partial tree
"
    );
}

/// Modes, times, links and hard links come out as they went in; a directory with something in it is left alone.
#[test]
fn extract_gives_the_tree_back() {
    let dir = indexed();
    ok(dir.path(), &["extract", "a.clip", "out"]);
    let out = dir.path().join("out");
    let (run, run2) = (std::fs::metadata(out.join("run")).unwrap(), std::fs::metadata(out.join("run2")).unwrap());
    assert_eq!((run.ino(), run.nlink()), (run2.ino(), 2));
    assert_eq!(run.permissions().mode() & 0o7777, 0o4755);
    assert_eq!(run.mtime(), 1_000_000_000);
    assert_eq!(std::fs::metadata(out.join("etc")).unwrap().permissions().mode() & 0o7777, 0o750);
    assert_eq!(std::fs::read_link(out.join("link")).unwrap(), Path::new("etc/passwd"));
    assert_eq!(std::fs::read(out.join("new\nline")).unwrap(), b"n");
    assert!(failure(dir.path(), &["extract", "a.clip", "out"], 1).contains("--force"));
    std::fs::write(out.join("run"), "changed").unwrap();
    ok(dir.path(), &["extract", "--force", "a.clip", "out"]);
    assert_eq!(std::fs::read(out.join("run")).unwrap(), b"#!/x");
    ok(dir.path(), &["extract", "a.clip", "only", "/etc/passwd"]);
    assert!(dir.path().join("only/passwd").is_file());
}

/// The user of the spec is looked up in the image's own passwd; the mount line names the mountpoint it was given.
#[test]
fn runtime_spec_reads_the_images_passwd() {
    let dir = indexed();
    let spec: serde_json::Value = serde_json::from_str(&ok(dir.path(), &["runtime-spec", "a.clip"])).unwrap();
    assert_eq!(spec["process"]["user"], json!({ "uid": 33, "gid": 44, "additionalGids": [] }));
    assert_eq!(spec["process"]["args"], json!(["/run"]));
    assert!(spec["process"]["env"].as_array().unwrap().contains(&json!("HOME=/srv")));
    let line = ok(dir.path(), &["runtime-spec", "a.clip", "--print-mount", "--mountpoint", "/mnt/x", "--bundle", "/b"]);
    assert_eq!(line, "mount -t overlay overlay -o lowerdir=/mnt/x,upperdir=/b/upper,workdir=/b/work /b/rootfs\n");
}

/// A failed index leaves nothing, not even a temporary name; an older output stays as it was.
#[test]
fn failed_index_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.clip"), "old").unwrap();
    failure(dir.path(), &["index", "oci:nowhere", "-o", "a.clip"], 1);
    failure(dir.path(), &["index", "oci:nowhere", "-o", "b.clip"], 1);
    assert_eq!(std::fs::read(dir.path().join("a.clip")).unwrap(), b"old");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

const INDEX: [&str; 4] = ["index", "--platform", "linux/amd64", "oci:image:latest"];

/// What `clip index` with `more` printed: standard output and standard error, neither of them a terminal.
fn index(dir: &Path, more: &[&str]) -> (String, String) {
    let output = clip(dir, &[&INDEX, more].concat());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    (String::from_utf8(output.stdout).unwrap(), said)
}

/// Without a terminal indexing says one line a layer and one for the whole; `--quiet` says nothing.
#[test]
fn index_says_a_line_a_layer() {
    let dir = indexed();
    let (printed, said) = index(dir.path(), &["-o", "b.clip"]);
    assert_eq!(printed, "");
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 2, "{said}");
    assert!(lines[0].starts_with("layer 1/1 ") && lines[0].contains(" 6 members, "), "{said}");
    assert!(lines[1].starts_with("b.clip: ") && lines[1].contains(" in 1 layers "), "{said}");
    assert!(!said.contains('\x1b'), "no terminal: {said}");
    assert_eq!(index(dir.path(), &["-o", "c.clip", "--quiet"]), (String::new(), String::new()));
    assert_eq!(std::fs::read(dir.path().join("b.clip")).unwrap(), std::fs::read(dir.path().join("c.clip")).unwrap());
}

/// The summary of `--json` is one document, and what it says is so.
#[test]
fn index_summary_is_true() {
    let dir = indexed();
    let (printed, said) = index(dir.path(), &["-o", "b.clip", "--quiet", "--json"]);
    assert_eq!(said, "");
    let summary: serde_json::Value = serde_json::from_str(&printed).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&std::fs::read(dir.path().join("image/index.json")).unwrap()).unwrap();
    assert_eq!(summary["manifest_digest"], manifest["manifests"][0]["digest"]);
    assert_eq!(summary["platform"], "linux/amd64");
    assert_eq!(summary["clip_bytes"], std::fs::metadata(dir.path().join("b.clip")).unwrap().len());
    // The root, etc, passwd, run with its second name, link, and the name with a newline.
    assert_eq!(summary["files"], 6);
    assert_eq!(summary["warnings"], json!([]));
    let [layer] = &summary["layers"].as_array().unwrap()[..] else { panic!("one layer: {printed}") };
    let blob = layer["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
    let blob = std::fs::read(dir.path().join("image/blobs/sha256").join(blob)).unwrap();
    let mut stream = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&blob[..]), &mut stream).unwrap();
    assert_eq!((&layer["compressed_size"], &layer["stream_size"]), (&json!(blob.len()), &json!(stream.len())));
    assert_eq!((&summary["compressed_bytes"], &summary["stream_bytes"]), (&json!(blob.len()), &json!(stream.len())));
    assert_eq!((&layer["members"], &layer["spans"], &layer["entries"]), (&json!(6), &json!(1), &json!(1)));
}

/// An output directory that is missing is named before the image is asked for.
#[test]
fn index_into_a_missing_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let text = failure(dir.path(), &["index", "oci:nowhere", "-o", "missing/a.clip"], 1);
    assert!(text.contains("output directory missing: ") && !text.contains("nowhere"), "{text}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// SIGINT while a registry keeps indexing waiting: exit status 130, and no file of any name.
#[test]
fn interrupted_index_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let registry = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let image = format!("{}/a:b", registry.local_addr().unwrap());
    let mut command = Command::new(env!("CARGO_BIN_EXE_clip"));
    command.current_dir(dir.path()).args(["index", &image, "-o", "a.clip"]).env("TMPDIR", dir.path()).env("DOCKER_CONFIG", dir.path());
    let mut child = command.stderr(std::process::Stdio::null()).spawn().unwrap();
    let connection = registry.accept().unwrap();
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    drop(connection);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// A damaged `.clip` is named by every command, with what was expected and found, and never panics.
#[test]
fn damaged_clip_is_named() {
    let dir = indexed();
    let whole = std::fs::read(dir.path().join("a.clip")).unwrap();
    for place in (0..whole.len()).step_by(97) {
        let mut bytes = whole.clone();
        bytes[place] ^= 0x20;
        std::fs::write(dir.path().join("bad.clip"), &bytes).unwrap();
        let text = failure(dir.path(), &["verify", "bad.clip"], 1);
        assert!(text.starts_with("clip: bad.clip: is damaged: "), "byte {place}: {text}");
    }
    std::fs::write(dir.path().join("bad.clip"), b"").unwrap();
    for command in ["inspect", "ls", "verify"] {
        assert!(failure(dir.path(), &[command, "bad.clip"], 1).contains("bad.clip"));
    }
}

/// Exit codes are the documented ones, and a missing file is one line without repetition.
#[test]
fn exit_codes() {
    let dir = tempfile::tempdir().unwrap();
    failure(dir.path(), &["frobnicate"], 2);
    failure(dir.path(), &["index", "--span-size", "1", "x", "-o", "y"], 2);
    failure(dir.path(), &["mount.clip", "/nope.clip", "/", "-o", "ro"], 32);
    failure(dir.path(), &["mount.clip", "/nope.clip"], 1);
    std::fs::write(dir.path().join("any"), "").unwrap();
    for list in ["rw", "frobnicate", "shards=0"] {
        failure(dir.path(), &["mount", "-o", list, "any", "."], 2);
        failure(dir.path(), &["mount.clip", "any", ".", "-o", &format!("{list},suid")], if list == "rw" { 32 } else { 1 });
    }
    assert!(failure(dir.path(), &["mount.clip", "any", ".", "-o", "foreground"], 1).contains("clip mount --foreground"));
    failure(dir.path(), &["mount", "-o", "foreground,log-file=x", "any", "."], 2);
    failure(dir.path(), &["mount", "-o", "foreground,log-level=debug", "any", "."], 2);
    let text = failure(dir.path(), &["inspect", "nope.clip"], 1);
    assert_eq!(text.trim_end(), "clip: nope.clip: cannot be read: No such file or directory (os error 2)");
    for command in ["index", "mount", "umount", "inspect", "ls", "cat", "extract", "verify", "runtime-spec", "doctor", "demo"] {
        assert!(ok(dir.path(), &[command, "--help"]).contains("Usage"), "{command}");
    }
}

/// A reader that closes our output early is no error worth words.
#[test]
fn closed_pipe_is_quiet() {
    let dir = indexed();
    let script = format!("{} ls -R a.clip | true; exit ${{PIPESTATUS[0]}}", env!("CARGO_BIN_EXE_clip"));
    let output = Command::new("bash").current_dir(dir.path()).args(["-c", &script]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

/// Claim: a .clip that was cut off is refused also where its image is in the cache already.
#[test]
fn a_cut_clip_is_refused_on_a_warm_node() {
    let dir = indexed();
    let whole = std::fs::read(dir.path().join("a.clip")).unwrap();
    ok(dir.path(), &["cat", "a.clip", "/etc/passwd"]);
    for (name, bytes) in [("cut.clip", &whole[..whole.len() - 1]), ("long.clip", &[&whole[..], b"x"].concat()[..])] {
        std::fs::write(dir.path().join(name), bytes).unwrap();
        for command in [&["cat", name, "/etc/passwd"][..], &["extract", name, "out"], &["inspect", name]] {
            let text = failure(dir.path(), command, 1);
            assert!(text.contains(if name == "cut.clip" { "more bytes" } else { "file length" }), "{command:?}: {text}");
        }
    }
}

/// Claim: a fifo named where a file belongs is refused at once, by name, and not waited for.
#[test]
fn a_fifo_is_no_file() {
    let dir = indexed();
    let fifo = dir.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
    std::fs::create_dir(dir.path().join("m")).unwrap();
    for command in [
        &["inspect", "fifo"][..],
        &["ls", "fifo"],
        &["cat", "fifo", "/run"],
        &["verify", "fifo"],
        &["extract", "fifo", "out"],
        &["mount", "fifo", "m"],
        &["mount", "--foreground", "fifo", "m"],
        &["mount", "--store-ref", "h.example/i:t", "fifo", "m"],
        &["mount", "--profile", "fifo", "a.clip", "m"],
        &["mount", "--foreground", "--profile", "fifo", "a.clip", "m"],
        &["cat", "--authfile", "fifo", "a.clip", "/run"],
        &["cat", "--ca", "fifo", "a.clip", "/run"],
        &["index", "--ca", "fifo", "h.example/i:t", "-o", "b.clip"],
        &["index", "--profile", "fifo", "oci:image:latest", "-o", "b.clip"],
    ] {
        let text = failure(dir.path(), command, 1);
        assert!(text.contains("fifo: ") && text.contains("expected a regular file, found a FIFO"), "{command:?}: {text}");
    }
}
