//! What commands say of what they cannot use: the place, what was expected, what was found, and advice where it helps.
#![allow(clippy::unwrap_used)]

mod image;

use std::path::{Path, PathBuf};

use image::{failure, indexed};

/// The layer of the layout `image` in `dir`: the blob that is gzip.
fn layer(dir: &Path) -> PathBuf {
    let blobs = std::fs::read_dir(dir.join("image/blobs/sha256")).unwrap().map(|blob| blob.unwrap().path());
    blobs.into_iter().find(|blob| std::fs::read(blob).unwrap().starts_with(&[0x1f, 0x8b])).unwrap()
}

/// Claim: a layer that was cut off where it lies is told with both lengths, by what reads it as by what indexes it.
#[test]
fn a_cut_layer_is_told_with_its_length() {
    let dir = indexed();
    let layer = layer(dir.path());
    let whole = std::fs::read(&layer).unwrap();
    std::fs::write(&layer, &whole[..17]).unwrap();
    for command in [&["cat", "a.clip", "/etc/passwd"][..], &["index", "--platform", "linux/amd64", "oci:image", "-o", "b.clip"]] {
        let text = failure(dir.path(), command, 1);
        assert!(text.contains(&format!("of {} bytes, found one of 17 bytes", whole.len())), "{text}");
        assert!(!text.contains("clip doctor"), "{text}");
    }
}

/// Claim: an archive that was cut off is told as that, within a member with its name.
#[test]
fn a_cut_archive_is_told() {
    let dir = indexed();
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_dir_all(".", dir.path().join("image")).unwrap();
    let tar = tar.into_inner().unwrap();
    let data = tar.windows(8).rposition(|bytes| bytes == b"\"latest\"" || bytes == b"{\"image").unwrap();
    for (len, expected) in [(data, "cut.tar: expected a tar whose member"), (512 + 100, "cut.tar: expected a whole tar")] {
        std::fs::write(dir.path().join("cut.tar"), &tar[..len]).unwrap();
        let text = failure(dir.path(), &["index", "oci-archive:cut.tar", "-o", "b.clip"], 1);
        assert!(text.contains(expected) && text.contains(&format!("ends early, at byte {len}")), "{text}");
    }
}

/// Claim: what was typed wrongly is told at once: a level, a time beyond another, a file of credentials that is none; none of it quotes a
/// secret.
#[test]
fn what_is_typed_wrongly_is_told_at_once() {
    let dir = indexed();
    for (arguments, code, expected) in [
        (&["--log-level", "warning", "ls", "a.clip"][..], 2, "expected off, error, warn, info, debug, trace"),
        (&["cat", "--tls-timeout", "1h", "a.clip", "/run"], 2, "--tls-timeout 1h: a read gives up after 30s"),
        (&["mount", "-o", "log-level=warning", "a.clip", "image"], 2, "found \"warning\""),
        (&["mount", "a.clip", "a.clip"], 1, "expected a directory"),
    ] {
        let text = failure(dir.path(), arguments, code);
        assert!(text.contains(expected) && !text.contains("clip doctor"), "{arguments:?}: {text}");
    }
    std::fs::write(dir.path().join("auth.json"), r#"{"auths": {"h": {"auth": "s3cret" }}"#).unwrap();
    let text = failure(dir.path(), &["cat", "--authfile", "auth.json", "a.clip", "/run"], 1);
    assert!(text.contains("--authfile") && text.contains("line 1") && !text.contains("s3cret"), "{text}");
}
