//! `clip inspect`, `ls`, `cat`, `extract` and `verify` read a `.clip` without a mount, and say what the image really holds.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use clip_format::units::SpanIndex;
use clip_tests::{
    clip::{Clip, text},
    faults::{Fault, Server},
    images::{
        Compression, Headers, Layout, Member, TarWriter,
        debian::{self, umoci_tree},
        nasty,
        sample::{self, Sample},
    },
    machine::{Need, lacks},
    oracle::{Exclusions, compare, parents_not_named},
    served::Served,
    spans::{Parts, is_entry},
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// `clip extract` of the Debian image writes the tree that `umoci unpack` writes.
#[test]
fn extract_is_what_umoci_unpacks() {
    if lacks(debian::NEEDS) {
        return;
    }
    let layout = debian::layout().unwrap();
    let clip = Clip::new();
    let server = Server::start(layout).unwrap();
    let file = clip.index(&server.reference("debian", debian::APP), "debian", &[]).unwrap();
    let scratch = TempDir::new().unwrap();
    let expected = umoci_tree(layout, debian::APP, &scratch.path().join("bundle")).unwrap();
    let tree = clip.path("tree");
    clip.ok(&["extract", text(&file).unwrap(), text(&tree).unwrap()]).unwrap();
    compare(&expected, &tree, &Exclusions::default()).unwrap().assert_same("clip extract");
}

/// `clip extract` writes every kind of entry that umoci writes, devices, links and xattrs too.
#[test]
fn extract_writes_every_kind() {
    if lacks(&[Need::Root, Need::Tool("umoci")]) {
        return;
    }
    let layout = Layout::scratch().unwrap();
    let members = nasty::every_kind();
    let layer = layout.layer(&TarWriter::stream(&members, Headers::Pax), &Compression::Plain).unwrap();
    layout.image("kinds", &[layer], json!({})).unwrap();
    let clip = Clip::new();
    let file = clip.index(&layout.reference("kinds"), "kinds", &[]).unwrap();
    let expected = umoci_tree(&layout, "kinds", &layout.beside("bundle")).unwrap();
    let tree = clip.path("tree");
    clip.ok(&["extract", text(&file).unwrap(), text(&tree).unwrap()]).unwrap();
    let named = members.iter().map(Member::path).collect();
    let exclusions = Exclusions { unnamed_parents: parents_not_named(&named), ..Exclusions::default() };
    compare(&expected, &tree, &exclusions).unwrap().assert_same("clip extract of every kind");
}

/// Without windows most spans can only be reached by decoding from the layer's start: reads give the same bytes, and every span verifies.
#[test]
fn an_index_without_windows_is_read_through_chained_spans() {
    let sample = Sample::new().unwrap();
    let server = Server::start(&sample.layout).unwrap();
    let clip = Clip::new();
    let file = clip.index(&server.reference("sample", sample::TAG), "none", &["--windows", "none"]).unwrap();
    let parts = Parts::read(&file).unwrap();
    let table = &parts.checkpoints.layers()[0];
    let chained = (0..table.len()).filter(|span| !is_entry(&table.span(SpanIndex(*span)).start)).count();
    assert!(chained > 3, "{chained} chained spans of {}", table.len());
    // The last file of the layer first: nothing before it is cached then.
    for (path, contents) in sample.files.iter().rev() {
        let found = clip.ok(&["cat", text(&file).unwrap(), path]).unwrap().stdout;
        assert!(found == *contents, "{path}: {} bytes of {}", found.len(), contents.len());
    }
    clip.ok(&["verify", "--remote", text(&file).unwrap()]).unwrap();
    if lacks(&[Need::Root, Need::Fuse]) {
        return;
    }
    let fresh = Clip::new();
    let mount = fresh.mount(&file, &[]).unwrap();
    for (path, contents) in sample.files.iter().rev() {
        assert!(std::fs::read(mount.path(path)).unwrap() == *contents, "{path}, mounted");
    }
}

/// `clip cat` gives every file's bytes, follows links, and takes several paths.
#[test]
fn cat_gives_the_bytes() {
    let Served { sample, clip, file, .. } = &Served::new().unwrap();
    let file = text(file).unwrap();
    for (path, contents) in &sample.files {
        let found = clip.ok(&["cat", file, path]).unwrap().stdout;
        assert!(found == *contents, "{path}: {} bytes differ from the expected {}", found.len(), contents.len());
    }
    let both = clip.ok(&["cat", file, sample::SHORT, "/etc/table"]).unwrap().stdout;
    assert_eq!(both, [sample.contents(sample::SHORT), sample.contents("etc/table")].concat());
    let message = clip.fails(&["cat", file, "etc/no-such-file"]).unwrap();
    assert!(message.contains("etc/no-such-file"), "{message}");
    let message = clip.fails(&["cat", file, "etc"]).unwrap();
    assert!(message.to_lowercase().contains("directory"), "{message}");
}

/// `clip ls` lists what is there; `-l` shows mode, owner, size and link targets.
#[test]
fn ls_lists_names_and_attributes() {
    let layout = Layout::scratch().unwrap();
    let layer = layout.gzip(&nasty::every_kind()).unwrap();
    layout.image("kinds", &[layer], json!({})).unwrap();
    let clip = Clip::new();
    let file = clip.index(&layout.reference("kinds"), "kinds", &[]).unwrap();
    let file = text(&file).unwrap();
    let names = clip.ok(&["ls", "-0", file, "/names"]).unwrap().stdout;
    assert!(names.split(|byte| *byte == 0).any(|name| name.ends_with(b"not-utf8-\xff\xfe\x80")));
    assert!(names.split(|byte| *byte == 0).any(|name| name.ends_with(b"new\nline")));
    let long = clip.ok(&["ls", "-l", file, "/attributes"]).unwrap().text();
    let line = |name: &str| long.lines().find(|line| line.ends_with(name)).unwrap_or_else(|| panic!("no {name} in\n{long}")).to_owned();
    assert!(line("suid").starts_with("-rwsr-xr-x"), "{}", line("suid"));
    assert!(line("id-large").contains("3000000000") && line("id-large").contains("4000000000"), "{}", line("id-large"));
    let links = clip.ok(&["ls", "-l", file, "/links"]).unwrap().text();
    assert!(links.contains("dangling -> no/such/place"), "{links}");
    clip.fails(&["ls", file, "/no-such-directory"]).unwrap();
}

/// `clip inspect --json` names the layers in manifest order, the source, and the config.
#[test]
fn inspect_shows_layers_and_config() {
    let Served { sample, clip, file, .. } = &Served::new().unwrap();
    let shown: Value = serde_json::from_slice(&clip.ok(&["inspect", "--json", text(file).unwrap()]).unwrap().stdout).unwrap();
    let layers: Vec<&str> = shown["layers"].as_array().unwrap().iter().map(|layer| layer["digest"].as_str().unwrap()).collect();
    assert_eq!(layers, sample.layout.layer_digests(sample::TAG).unwrap());
    assert_eq!(shown["storage_info"]["config"]["working_dir"], "/etc");
    assert_eq!(shown["storage_info"]["config"]["cmd"], json!(["/bin/tool"]));
    assert_eq!(shown["storage_info"]["source"]["repository"], "test/sample");
    assert_eq!(shown["counts"]["regular_files"], sample.files.len());
    let plain = clip.ok(&["inspect", text(file).unwrap()]).unwrap().text();
    assert!(layers.iter().all(|digest| plain.contains(digest)), "{plain}");
}

/// `clip verify --remote` accepts a good registry and fails on one that serves other bytes, naming the layer.
#[test]
fn verify_checks_every_span() {
    let Served { sample, server, clip, file } = &Served::new().unwrap();
    let file = text(file).unwrap();
    clip.ok(&["verify", file]).unwrap();
    clip.ok(&["verify", "--remote", file]).unwrap();
    server.fault(Fault::WrongBytes);
    let other = Clip::new();
    let finished = other.run(&["verify", "--remote", "--read-timeout", "10s", file]).unwrap();
    assert!(!finished.status.success());
    let said = format!("{}{}", finished.text(), finished.stderr);
    assert!(sample.layout.layer_digests(sample::TAG).unwrap().iter().any(|digest| said.contains(digest.as_str())), "{said}");
}
