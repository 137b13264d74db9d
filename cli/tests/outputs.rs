//! What commands write, and where: files, links, devices, standard output.
#![allow(clippy::unwrap_used)]

mod image;

use std::{
    fs::{File, Permissions},
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _, symlink},
    path::Path,
    process::{Command, Output},
};

use image::{failure, header, indexed, indexed_with, ok};

fn index(dir: &Path, output: &str) {
    ok(dir, &["index", "--platform", "linux/amd64", "--quiet", "oci:image:latest", "-o", output]);
}

/// The program with standard output at `stdout`.
fn clip_to(dir: &Path, arguments: &[&str], stdout: File) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_clip"));
    command.current_dir(dir).args(arguments).env("CLIP_CACHE_DIR", dir.join("cache")).env("TMPDIR", dir).env_remove("CLIP_LOG");
    command.stdout(stdout).output().unwrap()
}

/// Claim: the .clip goes where its name leads: to standard output, through a link, into a device, and a file keeps its mode; nothing but a
/// file is ever replaced.
#[test]
fn an_index_goes_where_its_name_leads() {
    let dir = indexed();
    let at = |name: &str| dir.path().join(name);
    let expected = std::fs::read(at("a.clip")).unwrap();
    for name in ["-", "/dev/stdout"] {
        let arguments = ["index", "--platform", "linux/amd64", "--quiet", "oci:image:latest", "-o", name];
        let output = clip_to(dir.path(), &arguments, File::create(at("out")).unwrap());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(std::fs::read(at("out")).unwrap() == expected, "{name}");
    }
    assert!(!at("-").exists());
    failure(dir.path(), &["index", "--json", "oci:image:latest", "-o", "-"], 2);
    std::fs::write(at("old.clip"), "").unwrap();
    std::fs::set_permissions(at("old.clip"), Permissions::from_mode(0o640)).unwrap();
    symlink("old.clip", at("link")).unwrap();
    symlink("/dev/null", at("null")).unwrap();
    index(dir.path(), "link");
    index(dir.path(), "null");
    assert!(std::fs::read(at("old.clip")).unwrap() == expected && at("link").is_symlink() && at("null").is_symlink());
    assert_eq!(std::fs::metadata(at("old.clip")).unwrap().permissions().mode() & 0o777, 0o640);
    assert!(std::fs::metadata("/dev/null").unwrap().file_type().is_char_device());
    let text = failure(dir.path(), &["index", "oci:image:latest", "-o", "image"], 1);
    assert!(text.contains("a directory"), "{text}");
}

/// Claim: an output that cannot be written is named.
#[test]
fn a_full_standard_output_is_named() {
    let dir = indexed();
    for arguments in [&["ls", "a.clip"][..], &["cat", "a.clip", "/etc/passwd"], &["inspect", "a.clip"], &["verify", "--json", "a.clip"]] {
        let output = clip_to(dir.path(), arguments, File::options().write(true).open("/dev/full").unwrap());
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && text.contains("standard output: No space left"), "{arguments:?}: {text}");
    }
}

/// Claim: a slash behind a name asks for a directory, or for a link to one.
#[test]
fn a_slash_asks_for_a_directory() {
    let dir = indexed();
    for path in ["/etc/passwd/", "/link/"] {
        let text = failure(dir.path(), &["ls", "a.clip", path], 1);
        assert!(text.contains("not a directory"), "{text}");
    }
    assert_eq!(ok(dir.path(), &["ls", "a.clip", "/etc/"]), ok(dir.path(), &["ls", "a.clip", "/etc"]));
    assert_eq!(ok(dir.path(), &["ls", "a.clip", "/link"]), "/link\n");
}

/// Claim: links that lead to themselves by a name with a slash behind it end in an error, as others do.
#[test]
fn links_with_a_slash_behind_end() {
    let dir = indexed_with(|tar| {
        for (name, target) in [("l", "l/"), ("a", "b/"), ("b", "a/")] {
            let mut link = header(tar::EntryType::Symlink, 0o777, 0);
            link.set_link_name_literal(target).unwrap();
            tar.append_data(&mut link, name, std::io::empty()).unwrap();
        }
    });
    let listing = ok(dir.path(), &["ls", "-l", "a.clip"]);
    assert!(listing.contains("l -> l/\n"), "{listing}");
    for arguments in [["cat", "a.clip", "/l"], ["ls", "a.clip", "/l/"], ["ls", "a.clip", "/a/"], ["cat", "a.clip", "/b/"]] {
        let text = failure(dir.path(), &arguments, 1);
        assert!(text.contains("symbolic links"), "{text}");
    }
}
