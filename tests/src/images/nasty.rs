//! Synthetic layers: each list of members is one promise of the merge, or one thing that tars can hold.

use super::tar_writer::Member;

/// `security.capability` version 2 with cap_net_raw in the permitted set and the effective bit. Source: linux/capability.h, struct vfs_cap_data.
pub const CAP_NET_RAW: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Bytes that no compressor shrinks to nothing and no two seeds share.
#[must_use]
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Lines of words, as programs and documents are: compresses about 4 times.
#[must_use]
pub fn prose(seed: u64, len: usize) -> Vec<u8> {
    const WORDS: [&str; 16] = [
        "layer",
        "stream",
        "checkpoint",
        "window",
        "span",
        "shard",
        "index",
        "mount",
        "node",
        "import",
        "return",
        "def",
        "self",
        "None",
        "torch",
        "numpy",
    ];
    let mut bytes = Vec::with_capacity(len + 64);
    for (line, random) in noise(seed, len).chunks(8).enumerate() {
        for pick in random {
            bytes.extend_from_slice(WORDS[usize::from(pick % 16)].as_bytes());
            bytes.push(b' ');
        }
        bytes.extend_from_slice(format!("{line} {:02x}\n", random[0]).as_bytes());
        if bytes.len() >= len {
            break;
        }
    }
    bytes.truncate(len);
    bytes
}

/// Every kind of entry and attribute, with parents before children and link targets before links.
#[must_use]
pub fn every_kind() -> Vec<Member> {
    let mut members = vec![Member::dir("./").mode(0o700)];
    members.extend(names());
    members.extend(attributes());
    members.extend(links());
    members.extend(specials());
    members.extend(paths());
    // Once more: the last entry of a name counts. (umoci makes missing directories without restoring the time of the one above them.)
    members.push(Member::dir("./").mode(0o755).mtime(1_600_000_001, 5));
    members
}

fn names() -> Vec<Member> {
    vec![
        Member::dir("names"),
        Member::file("names/plain", prose(1, 5000)),
        Member::file("names/empty", ""),
        Member::file("names/one-block", noise(2, 512)),
        Member::file("names/one-more", noise(3, 513)),
        Member::file(format!("names/{}", "n".repeat(255)), "255 bytes"),
        Member::file(format!("names/{}", "é".repeat(127)), "254 bytes of two-byte letters"),
        Member::file(b"names/not-utf8-\xff\xfe\x80", "bytes"),
        Member::file("names/🦀 emoji", "crab"),
        Member::file("names/ leading and trailing ", "spaces"),
        Member::file("names/new\nline", "newline"),
        Member::file("names/tab\tand\\backslash\"quote'", "quotes"),
        Member::file("names/...", "three dots"),
        Member::file("names/-rf", "an option"),
        Member::file("names/.wh", "not a marker"),
    ]
}

fn attributes() -> Vec<Member> {
    let acl: [u8; 44] = [
        2, 0, 0, 0, // version
        1, 0, 6, 0, 255, 255, 255, 255, // user::rw-
        2, 0, 4, 0, 0xe8, 3, 0, 0, // user:1000:r--
        4, 0, 4, 0, 255, 255, 255, 255, // group::r--
        16, 0, 4, 0, 255, 255, 255, 255, // mask::r--
        32, 0, 4, 0, 255, 255, 255, 255, // other::r--
    ];
    vec![
        Member::dir("attributes").mode(0o1777),
        Member::file("attributes/suid", "s").mode(0o4755),
        Member::file("attributes/sgid", "s").mode(0o2755),
        Member::file("attributes/both", "s").mode(0o6711),
        Member::dir("attributes/sgid-dir").mode(0o2775).owner(0, 50),
        Member::file("attributes/no-mode", "0").mode(0),
        Member::file("attributes/private", "root only").mode(0o600),
        Member::file("attributes/id-70000", "id").owner(70_000, 70_001),
        Member::file("attributes/id-large", "id").owner(3_000_000_000, 4_000_000_000),
        Member::file("attributes/nanoseconds", "t").mtime(1_234_567_890, 123_456_789),
        Member::file("attributes/before-1970", "t").mtime(-1, 0),
        Member::file("attributes/long-before-1970", "t").mtime(-86_400 * 365, 500_000_000),
        Member::file("attributes/epoch", "t").mtime(0, 0),
        Member::file("attributes/after-2038", "t").mtime(4_102_444_800, 1),
        Member::file("attributes/capability", "c").xattr("security.capability", CAP_NET_RAW).mode(0o755),
        Member::file("attributes/user-xattrs", "x").xattr("user.one", "1").xattr("user.two", noise(9, 300)),
        Member::file("attributes/trusted-xattr", "x").xattr("trusted.note", "t"),
        Member::file("attributes/acl", "a").xattr("system.posix_acl_access", acl),
        Member::dir("attributes/dir-xattr").xattr("user.dir", "yes"),
    ]
}

fn links() -> Vec<Member> {
    vec![
        Member::dir("links"),
        Member::file("links/target", prose(4, 3000)),
        Member::hard_link("links/hard-1", "links/target"),
        Member::hard_link("links/hard-2", "links/hard-1"),
        Member::hard_link("links/hard-dotted", "./links/target"),
        Member::symlink("links/relative", "target"),
        Member::symlink("links/dangling", "no/such/place"),
        Member::symlink("links/absolute", "/links/target"),
        Member::symlink("links/outside", "../../../../etc/passwd"),
        Member::symlink("links/loop", "loop"),
        Member::symlink("links/long", vec![b'l'; 3000]),
        Member::symlink("links/inline-edge", vec![b'e'; 448]),
        Member::symlink(b"links/bytes", b"\xff\xfe"),
        Member::hard_link("links/hard-to-symlink", "links/dangling"),
        Member::dir("links/real-dir"),
        Member::symlink("links/to-dir", "real-dir"),
        Member::file("links/to-dir/through", "through a symlinked parent"),
    ]
}

fn specials() -> Vec<Member> {
    vec![
        Member::dir("dev").mtime(1_650_000_000, 7),
        Member::char_device("dev/null", 1, 3),
        Member::char_device("dev/large", 511, 262_143),
        Member::block_device("dev/loop200", 7, 200),
        Member::fifo("dev/fifo").mode(0o620).owner(0, 5),
        Member::hard_link("dev/null-too", "dev/null"),
    ]
}

fn paths() -> Vec<Member> {
    let deep = (0..60).map(|level| format!("level-{level:02}-{}", "d".repeat(30))).collect::<Vec<_>>().join("/");
    vec![
        Member::file(deep, "sixty levels down"),
        Member::file("missing/parents/of/file", "nobody named my parents"),
        Member::file("/absolute", "written as /absolute"),
        Member::file("../escape", "written as ../escape"),
        Member::file("names/../../../escape-2", "written as names/../../../escape-2"),
        Member::file("./dotted/./file", "dots on the way"),
    ]
}

/// A directory of ten thousand names.
#[must_use]
pub fn large_directory() -> Vec<Member> {
    let mut members = vec![Member::dir("many")];
    members.extend((0..10_000).map(|number| Member::file(format!("many/{number:05}-{}", "x".repeat(number % 40)), format!("{number}"))));
    members
}

/// What the layers above change.
#[must_use]
pub fn lower() -> Vec<Member> {
    vec![
        Member::dir("a"),
        Member::file("a/kept", "kept"),
        Member::file("a/replaced", "old"),
        Member::file("a/deleted", "deleted-secret"),
        Member::file("a/deleted-and-back", "old"),
        Member::dir("a/dir-deleted"),
        Member::file("a/dir-deleted/child", "deleted-secret"),
        Member::dir("a/dir-deleted-and-back"),
        Member::file("a/dir-deleted-and-back/old-child", "deleted-secret"),
        Member::dir("opaque"),
        Member::file("opaque/old", "deleted-secret"),
        Member::dir("opaque/old-dir"),
        Member::file("opaque/old-dir/child", "deleted-secret"),
        Member::dir("opaque/shared"),
        Member::file("opaque/shared/old", "deleted-secret"),
        Member::dir("kinds"),
        Member::file("kinds/file-to-dir", "was a file"),
        Member::dir("kinds/dir-to-file"),
        Member::file("kinds/dir-to-file/child", "deleted-secret"),
        Member::dir("kinds/dir-to-symlink"),
        Member::file("kinds/dir-to-symlink/child", "deleted-secret"),
        Member::file("kinds/file-to-symlink", "was a file"),
        Member::symlink("kinds/symlink-to-file", "elsewhere"),
        Member::fifo("kinds/fifo-to-file"),
        Member::dir("kinds/dir-over-dir").mode(0o700).owner(1, 1).xattr("user.old", "1"),
        Member::file("kinds/dir-over-dir/child", "stays"),
        Member::dir("hard"),
        Member::file("hard/one", "three names"),
        Member::hard_link("hard/two", "hard/one"),
        Member::hard_link("hard/three", "hard/one"),
        Member::file("hard/alone", "a name below, a name above"),
        Member::symlink("hard/symlink", "one"),
    ]
}

/// Changes to [`lower`], markers first, so that an unpacker that applies members one by one gets it right.
#[must_use]
pub fn upper() -> Vec<Member> {
    vec![
        Member::whiteout("a", "deleted"),
        Member::whiteout("a", "deleted-and-back"),
        Member::whiteout("a", "dir-deleted"),
        Member::whiteout("a", "dir-deleted-and-back"),
        Member::whiteout("a", "never-was"),
        Member::opaque("opaque"),
        Member::whiteout("hard", "two"),
        Member::file("a/replaced", "new, and longer"),
        Member::file("a/deleted-and-back", "new"),
        Member::dir("a/dir-deleted-and-back"),
        Member::file("a/dir-deleted-and-back/new-child", "new"),
        Member::dir("opaque").mode(0o711),
        Member::file("opaque/new", "new"),
        Member::dir("opaque/shared"),
        Member::file("opaque/shared/new", "new"),
        Member::dir("kinds/file-to-dir"),
        Member::file("kinds/file-to-dir/child", "in a directory"),
        Member::file("kinds/dir-to-file", "is a file"),
        Member::symlink("kinds/dir-to-symlink", "dir-over-dir"),
        Member::symlink("kinds/file-to-symlink", "dir-over-dir/child"),
        Member::file("kinds/symlink-to-file", "is a file"),
        Member::file("kinds/fifo-to-file", "is a file"),
        Member::dir("kinds/dir-over-dir").mode(0o751).owner(2, 3),
        Member::hard_link("hard/from-above", "hard/alone"),
        Member::hard_link("hard/symlink-too", "hard/symlink"),
        Member::file("hard/three", "its own file now"),
        Member::file("first", "target of a link"),
        Member::hard_link("link-to-first", "first"),
    ]
}

/// A third layer: what is deleted above was brought back in the middle.
#[must_use]
pub fn top() -> Vec<Member> {
    vec![
        Member::whiteout("a", "deleted-and-back"),
        Member::whiteout("", "first"),
        Member::opaque("kinds/dir-over-dir"),
        Member::file("kinds/dir-over-dir/child", "again"),
        Member::file("a/deleted", "back from the dead"),
        Member::file("opaque/old", "back from the dead"),
    ]
}

/// An opaque marker at the root, and what the image is from then on.
#[must_use]
pub fn opaque_root() -> Vec<Member> {
    vec![Member::opaque(""), Member::dir("fresh"), Member::file("fresh/file", "all there is")]
}

/// The same members in orders that tars may have: an unpacker must not care.
#[must_use]
pub fn orders(members: &[Member]) -> Vec<(&'static str, Vec<Member>)> {
    let (markers, others): (Vec<Member>, Vec<Member>) = members.iter().cloned().partition(Member::is_marker);
    let markers_last = others.iter().chain(&markers).cloned().collect();
    let mut woven = Vec::new();
    let mut rest = markers.iter().cloned();
    for (place, member) in others.iter().enumerate() {
        woven.push(member.clone());
        if place % 2 == 1 {
            woven.extend(rest.next());
        }
    }
    woven.extend(rest);
    // A child before the directory that replaces a lower file is an error to every unpacker, so that pair keeps its order.
    let (pair, free): (Vec<&Member>, Vec<&Member>) = members.iter().partition(|member| member.path().starts_with("kinds/file-to-dir"));
    let reversed = free.into_iter().rev().chain(pair).cloned().collect();
    vec![("markers first", members.to_vec()), ("markers last", markers_last), ("woven", woven), ("reversed", reversed)]
}
