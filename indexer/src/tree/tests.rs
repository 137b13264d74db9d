#![allow(clippy::unwrap_used)]
use clip_format::{
    erofs::{Body, InodeSpec},
    units::LayerIndex,
};

use super::*;
use crate::tar_entry::{Entry, EntryKind};

fn entry(path: &str, kind: EntryKind) -> Entry {
    let permissions = if kind == EntryKind::Directory { 0o750 } else { 0o640 };
    Entry { offset: 0, path: path.into(), permissions, uid: 1, gid: 2, mtime_s: 77, mtime_ns: 0, xattrs: vec![], kind }
}

fn dir(path: &str) -> Entry {
    entry(path, EntryKind::Directory)
}

/// A file whose size tells which one it is.
fn file(path: &str, size: u64) -> Entry {
    entry(path, EntryKind::Regular { size, data: vec![] })
}

fn link(path: &str, target: &str) -> Entry {
    entry(path, EntryKind::Symlink(target.into()))
}

fn hard(path: &str, target: &str) -> Entry {
    entry(path, EntryKind::HardLink(target.into()))
}

fn merge(layers: Vec<Vec<Entry>>) -> Result<Vec<InodeSpec>, String> {
    let mut tree = Tree::new();
    for (place, entries) in layers.into_iter().enumerate() {
        tree.merge(LayerIndex(place as u16), entries).map_err(|error| format!("{}: {}, {}", error.place, error.expected, error.found))?;
    }
    Ok(tree.into_specs())
}

/// Every path with what it is: `d` and mode, file sizes, link targets.
fn listing(layers: Vec<Vec<Entry>>) -> Vec<String> {
    fn walk(specs: &[InodeSpec], place: usize, path: &str, lines: &mut Vec<String>) {
        let Body::Directory(names) = &specs[place].body else { return };
        for (name, child) in names {
            let path = format!("{path}/{}", String::from_utf8_lossy(name));
            let what = match &specs[*child].body {
                Body::Directory(_) => format!("d{:o}", specs[*child].permissions),
                Body::Regular { size, .. } => size.to_string(),
                Body::Symlink(target) => format!("-> {}", String::from_utf8_lossy(target)),
                other => format!("{other:?}"),
            };
            lines.push(format!("{path} {what}"));
            walk(specs, *child, &path, lines);
        }
    }
    let specs = merge(layers).unwrap();
    let mut lines = Vec::new();
    walk(&specs, 0, "", &mut lines);
    lines.sort();
    lines
}

/// The uppermost layer's file wins; a directory keeps its children and takes the new attributes.
#[test]
fn the_uppermost_wins() {
    let lower = vec![dir("d"), file("d/a", 1), file("d/b", 1)];
    let mut upper_dir = dir("d");
    upper_dir.permissions = 0o700;
    assert_eq!(listing(vec![lower, vec![file("d/a", 2), upper_dir]]), ["/d d700", "/d/a 2", "/d/b 1"]);
}

/// Whiteouts act on lower layers only, in every order within their layer, and are never seen.
#[test]
fn whiteouts_act_on_lower_layers_only() {
    let lower = || vec![dir("d"), file("d/old", 1), file("d/keep", 1), file("gone", 1), dir("tree"), file("tree/x", 1)];
    let upper = vec![file("d/.wh.old", 0), file("d/old", 2), file(".wh.gone", 0), file(".wh.tree", 0), file(".wh.never", 0)];
    let expected = ["/d d750", "/d/keep 1", "/d/old 2"];
    assert_eq!(listing(vec![lower(), upper.clone()]), expected);
    assert_eq!(listing(vec![lower(), upper.into_iter().rev().collect()]), expected);
}

/// An opaque marker empties a directory of lower names, the root too, wherever it stands among its siblings.
#[test]
fn opaque_directories_hide_what_is_below() {
    let lower = || vec![dir("d"), file("d/a", 1), dir("d/s"), file("d/s/b", 1), file("top", 1)];
    let upper = vec![dir("d"), file("d/new", 2), file("d/.wh..wh..opq", 0), file("d/s/c", 2)];
    let expected = ["/d d750", "/d/new 2", "/d/s d755", "/d/s/c 2", "/top 1"];
    assert_eq!(listing(vec![lower(), upper.clone()]), expected);
    assert_eq!(listing(vec![lower(), upper.into_iter().rev().collect()]), expected);
    assert_eq!(listing(vec![lower(), vec![file("mine", 2), file(".wh..wh..opq", 0)]]), ["/mine 2"]);
}

/// Names that storage drivers left over are ignored and counted; a whiteout of the directory itself is refused.
#[test]
fn odd_markers() {
    assert_eq!(listing(vec![vec![file("a", 1)], vec![file(".wh..wh.plnk/1", 1), file(".wh..wh.aufs", 1), dir(".wh..wh.orph")]]), ["/a 1"]);
    for name in ["d/.wh.", "d/.wh..", "d/.wh..."] {
        assert!(merge(vec![vec![dir("d")], vec![file(name, 0)]]).unwrap_err().contains("whiteout"), "{name}");
    }
}

/// A file over a directory removes the subtree, a directory over a file stands empty; within a layer the later one wins.
#[test]
fn kinds_replace_each_other() {
    let lower = vec![dir("a"), file("a/x", 1), file("b", 1)];
    assert_eq!(listing(vec![lower, vec![file("a", 2), dir("b"), file("b/y", 2)]]), ["/a 2", "/b d750", "/b/y 2"]);
    assert_eq!(listing(vec![vec![file("f", 1), file("f", 2), dir("g"), file("g/x", 1), link("g", "f")]]), ["/f 2", "/g -> f"]);
}

/// Missing parents are made: 0755, root, mtime 0; the root's own entry gives its attributes.
#[test]
fn missing_parents_and_the_root() {
    let specs = merge(vec![vec![file("a/b/c", 1)]]).unwrap();
    for spec in specs.iter().filter(|spec| matches!(spec.body, Body::Directory(_))) {
        assert_eq!((spec.permissions, spec.uid, spec.mtime_s), (0o755, 0, 0));
    }
    let specs = merge(vec![vec![dir("./"), file("a", 1)]]).unwrap();
    assert_eq!((specs[0].permissions, specs[0].uid, specs[0].mtime_s), (0o750, 1, 77));
    assert!(merge(vec![vec![file("/", 1)]]).unwrap_err().contains("the root"));
}

/// `..` and absolute names are confined to the root.
#[test]
fn names_cannot_leave_the_root() {
    assert_eq!(listing(vec![vec![file("../../etc/a", 1), file("/b", 2), file("x/../../c", 3)]]), ["/b 2", "/c 3", "/etc d755", "/etc/a 1"]);
}

/// Symbolic links in the parents are followed inside the root, a last one is replaced; what they name is made where it is missing.
#[test]
fn parents_follow_symbolic_links() {
    let lower = || vec![dir("usr"), dir("usr/lib"), link("lib", "usr/lib"), link("abs", "/usr/../usr/lib"), link("out", "../../../usr")];
    let upper = vec![file("lib/a", 1), file("abs/b", 2), file("out/c", 3)];
    let tree = listing(vec![lower(), upper]);
    for expected in ["/usr/lib/a 1", "/usr/lib/b 2", "/usr/c 3", "/lib -> usr/lib"] {
        assert!(tree.iter().any(|line| line == expected), "{expected} in {tree:?}");
    }
    assert_eq!(listing(vec![vec![link("l", "new/dir"), file("l/f", 1)]]), ["/l -> new/dir", "/new d755", "/new/dir d755", "/new/dir/f 1"]);
    assert_eq!(listing(vec![vec![link("l", "x")], vec![file("l", 2)]]), ["/l 2"]);
    assert!(merge(vec![vec![link("a", "b"), link("b", "a"), file("a/x", 1)]]).unwrap_err().contains("loop"));
    assert!(merge(vec![vec![file("f", 1), file("f/x", 1)]]).unwrap_err().contains("no directory"));
}

/// Claim: 255 links lead on, and 4,096 names in their targets; what needs more is refused, in a whiteout too, and so is an image whose
/// paths need too many in all. A target may be long that is not followed.
#[test]
fn following_links_has_a_bound() {
    let chain = |links: usize| (0..links).map(|number| link(&number.to_string(), &(number + 1).to_string()));
    let through = |links: usize| chain(links).chain([dir(&links.to_string()), file("0/x", 1)]).collect::<Vec<_>>();
    assert!(merge(vec![through(255)]).is_ok());
    assert!(merge(vec![through(256)]).unwrap_err().contains("255 symbolic links"));
    // 2,047 names and one more.
    let long = link("long", &format!("{}d", "./".repeat(2047)));
    let lower = |target: &str| vec![dir("d"), long.clone(), link("twice", target)];
    assert!(merge(vec![lower("long/../long"), vec![file("long/x", 1)]]).is_ok());
    for upper in ["twice/x", "twice/.wh.x"] {
        assert!(merge(vec![lower("long/../long"), vec![file(upper, 1)]]).unwrap_err().contains("4096 names"), "{upper}");
    }
    let mut tree = Tree::new();
    tree.merge(LayerIndex(0), lower("d")).unwrap();
    tree.link_parts.set(path::IMAGE_LINK_PARTS_MAX - 2);
    let mut add = |path: &str| tree.merge(LayerIndex(1), vec![file(path, 1)]);
    assert!(add("d/x").is_ok() && add("twice/y").is_ok() && add("twice/z").is_ok() && add("twice").is_ok());
    assert!(add("long/x").unwrap_err().expected.contains("few symbolic links"));
}

/// A whiteout through a symbolic link acts behind it, unless its layer puts a directory in the link's place.
#[test]
fn whiteouts_through_symbolic_links() {
    let lower = || vec![dir("real"), file("real/x", 1), link("l", "real")];
    assert_eq!(listing(vec![lower(), vec![file("l/.wh.x", 0)]]), ["/l -> real", "/real d750"]);
    let replaced = vec![dir("l"), file("l/.wh..wh..opq", 0), file("l/n", 2)];
    assert_eq!(listing(vec![lower(), replaced]), ["/l d750", "/l/n 2", "/real d750", "/real/x 1"]);
}

/// Hard links are one inode: to lower layers, to later members, in chains, to symbolic links, through linked parents.
#[test]
fn hard_links_share_an_inode() {
    let lower = vec![dir("d"), file("d/f", 5), link("s", "d/f"), link("ld", "d")];
    let upper =
        vec![hard("one", "later"), hard("two", "one"), hard("low", "/d/f"), hard("sym", "s"), hard("via", "ld/f"), file("later", 9)];
    let specs = merge(vec![lower, upper]).unwrap();
    let Body::Directory(names) = &specs[0].body else { panic!("a root") };
    let place = |name: &str| names.iter().find(|(found, _)| found == name.as_bytes()).unwrap().1;
    assert_eq!((place("one"), place("two")), (place("later"), place("later")));
    assert_eq!(place("low"), place("via"));
    assert_eq!(place("sym"), place("s"));
    assert!(matches!(specs[place("low")].body, Body::Regular { size: 5, .. }));
}

/// A hard link to nothing, to a directory or only to other links is refused by name; one whose target its own layer whites out is not.
#[test]
fn hard_links_without_a_file() {
    for bad in [vec![hard("a", "none")], vec![dir("d"), hard("a", "d")], vec![hard("a", "b"), hard("b", "a")], vec![hard("a", "a")]] {
        let error = merge(vec![bad]).unwrap_err();
        assert!(error.contains("hard link's target") && error.contains("member \"a\""), "{error}");
    }
    let moved = vec![file(".wh.old", 0), hard("new", "old")];
    assert_eq!(listing(vec![vec![file("old", 4)], moved]), ["/new 4"]);
    let deep = vec![file(".wh.d", 0), hard("new", "d/s/old"), dir("d"), hard("kept", "file"), file(".wh.file", 0), dir("file")];
    let lower = vec![dir("d"), dir("d/s"), file("d/s/old", 4), file("file", 5)];
    assert_eq!(
        listing(vec![lower, deep]),
        ["/d d750", "/file d750", "/kept 5", "/new 4"],
        "below a removed directory, and under a new one"
    );
    let replaced = vec![hard("a", "none"), file("a", 3)];
    assert_eq!(listing(vec![replaced]), ["/a 3"], "a later member takes the name");
}

/// Namespaces that EROFS lacks are dropped and counted; the others are kept.
#[test]
fn unknown_xattr_namespaces_are_counted() {
    let mut one = file("f", 1);
    let names = ["com.apple.x", "user.a", "security.capability", "system.posix_acl_access", "system.other", "trusted.t", "user."];
    one.xattrs = names.iter().map(|name| (name.as_bytes().to_vec(), b"v".to_vec())).collect();
    let mut tree = Tree::new();
    tree.merge(LayerIndex(0), vec![one]).unwrap();
    assert_eq!(tree.warnings().len(), 3);
    let specs = tree.into_specs();
    let kept: Vec<_> = specs[1].xattrs.iter().map(|(name, _)| String::from_utf8_lossy(name).into_owned()).collect();
    assert_eq!(kept, ["user.a", "security.capability", "system.posix_acl_access", "trusted.t"]);
}

/// What is no longer reached takes no inode.
#[test]
fn removed_inodes_are_not_written() {
    let specs = merge(vec![vec![dir("d"), file("d/a", 1), file("b", 1)], vec![file(".wh.d", 0), file("b", 2)]]).unwrap();
    assert_eq!(specs.len(), 2);
}

/// Claim: a name that no directory can hold is refused where it stands; one as long as may be is taken.
#[test]
fn a_name_over_255_bytes_is_refused() {
    let longest = "n".repeat(255);
    assert_eq!(listing(vec![vec![file(&longest, 1)]]), [format!("/{longest} 1")]);
    for path in [format!("{longest}n"), format!("{longest}n/a")] {
        let error = merge(vec![vec![file(&path, 1)]]).unwrap_err();
        assert!(error.contains("at most 255 bytes, one of 256"), "{error}");
    }
}
