//! Two images that share a layer share its cached bytes: what one has fetched, the other never fetches again.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use clip_tests::{
    clip::Clip,
    faults::Server,
    images::{Layout, Member, nasty},
    machine::{Need, lacks},
    spans::Parts,
};
use serde_json::json;

/// After every file of the first image has been read, the second one's base costs no request, though it was indexed apart and comes
/// from another repository.
#[test]
fn a_shared_base_is_fetched_once() {
    if lacks(&[Need::Root, Need::Fuse]) {
        return;
    }
    let layout = Layout::scratch().unwrap();
    let base = [Member::file("base/one", nasty::prose(1, 3 << 20)), Member::file("base/two", nasty::noise(2, 1 << 20))];
    let base = layout.gzip(&base).unwrap();
    for name in ["first", "second"] {
        let own = [Member::file(format!("own/{name}"), nasty::prose(name.len() as u64, 100_000))];
        let own = layout.gzip(&own).unwrap();
        layout.image(name, &[base.clone(), own], json!({})).unwrap();
    }
    let server = Server::start(&layout).unwrap();
    let clip = Clip::new();
    let first = clip.index(&server.reference("team-a", "first"), "first", &[]).unwrap();
    let second = clip.index(&server.reference("team-b", "second"), "second", &[]).unwrap();
    let digests = [&first, &second].map(|file| Parts::read(file).unwrap().storage_info.layers[0].digest.to_string());
    assert_eq!(digests[0], digests[1]);
    assert_eq!(digests[0], base.blob.digest);

    server.forget();
    let mount = clip.mount(&first, &[]).unwrap();
    let expected = std::fs::read(mount.path("base/one")).unwrap();
    assert!(expected == nasty::prose(1, 3 << 20));
    std::fs::read(mount.path("base/two")).unwrap();
    assert!(!server.seen_of(&base.blob.digest).is_empty(), "the first image fetches the base");

    // While the first is mounted, and after it is gone and another owner serves the same cache.
    for umounted_before in [false, true] {
        server.forget();
        let mount = clip.mount(&second, &[]).unwrap();
        assert!(std::fs::read(mount.path("base/one")).unwrap() == expected);
        std::fs::read(mount.path("base/two")).unwrap();
        std::fs::read(mount.path("own/second")).unwrap();
        let seen = server.seen_of(&base.blob.digest);
        assert_eq!(seen, [], "the base is fetched again (first umounted: {umounted_before})");
        mount.umount().unwrap();
        if !umounted_before {
            for dir in std::fs::read_dir(clip.path("")).unwrap() {
                let dir = dir.unwrap().path();
                if clip_tests::clip::is_mounted(&dir) {
                    clip.umount(&dir).unwrap();
                }
            }
            clip.wait_for_servers().unwrap();
        }
    }
}
