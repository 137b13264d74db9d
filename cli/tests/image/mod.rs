//! The smallest image with something of everything, indexed by the program itself, and ways to run the program.
#![allow(dead_code)]

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Output},
};

use flate2::{Compression, write::GzEncoder};
use serde_json::json;
use sha2::{Digest as _, Sha256};

/// A command with a cache of its own and nothing of the caller's settings.
pub fn clip(dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_clip"));
    command.current_dir(dir).args(arguments).env("CLIP_CACHE_DIR", dir.join("cache")).env("TMPDIR", dir);
    command.env_remove("CLIP_LOG").env("DOCKER_CONFIG", dir).output().unwrap()
}

/// What a command that succeeds prints.
pub fn ok(dir: &Path, arguments: &[&str]) -> String {
    let output = clip(dir, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What a command that fails with `code` says.
pub fn failure(dir: &Path, arguments: &[&str], code: i32) -> String {
    let output = clip(dir, arguments);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
    text
}

fn blob(layout: &Path, bytes: &[u8]) -> (String, usize) {
    let hex = hex::encode(Sha256::digest(bytes));
    let blobs = layout.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::write(blobs.join(&hex), bytes).unwrap();
    (format!("sha256:{hex}"), bytes.len())
}

/// An OCI layout `image` in `dir` with one gzip layer that holds what `fill` writes.
fn layout(dir: &Path, fill: impl FnOnce(&mut tar::Builder<Vec<u8>>)) {
    let mut tar = tar::Builder::new(Vec::new());
    fill(&mut tar);
    let stream = tar.into_inner().unwrap();
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(&stream).unwrap();
    let layout = dir.join("image");
    let (layer, layer_len) = blob(&layout, &gzip.finish().unwrap());
    let diff_id = format!("sha256:{}", hex::encode(Sha256::digest(&stream)));
    let config = json!({ "architecture": "amd64", "os": "linux", "config": { "User": "web", "Cmd": ["/run"] },
        "rootfs": { "type": "layers", "diff_ids": [diff_id] } });
    let (config, config_len) = blob(&layout, config.to_string().as_bytes());
    let manifest = json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_len },
        "layers": [{ "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": layer, "size": layer_len }] });
    let (manifest, manifest_len) = blob(&layout, manifest.to_string().as_bytes());
    let index = json!({ "schemaVersion": 2, "manifests": [{ "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": manifest, "size": manifest_len, "annotations": { "org.opencontainers.image.ref.name": "latest" } }] });
    std::fs::write(layout.join("index.json"), index.to_string()).unwrap();
    std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

pub fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(1_000_000_000);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// A passwd file, a set-user-id program with a second name, a link and a name with a newline.
fn sample(tar: &mut tar::Builder<Vec<u8>>) {
    use tar::EntryType::{Directory, Link, Regular, Symlink};
    let passwd = b"root:x:0:0::/root:/bin/sh\nweb:x:33:44::/srv:/bin/sh\n";
    tar.append_data(&mut header(Directory, 0o750, 0), "etc", std::io::empty()).unwrap();
    tar.append_data(&mut header(Regular, 0o644, passwd.len() as u64), "etc/passwd", &passwd[..]).unwrap();
    tar.append_data(&mut header(Regular, 0o4755, 4), "run", &b"#!/x"[..]).unwrap();
    tar.append_link(&mut header(Link, 0o4755, 0), "run2", "run").unwrap();
    tar.append_link(&mut header(Symlink, 0o777, 0), "link", "etc/passwd").unwrap();
    tar.append_data(&mut header(Regular, 0o600, 1), "new\nline", &b"n"[..]).unwrap();
}

/// A directory with `a.clip`.
pub fn indexed() -> tempfile::TempDir {
    indexed_with(sample)
}

/// A directory with `a.clip`, of an image that holds what `fill` writes.
pub fn indexed_with(fill: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    layout(dir.path(), fill);
    ok(dir.path(), &["index", "--platform", "linux/amd64", "--quiet", "oci:image:latest", "-o", "a.clip"]);
    dir
}
