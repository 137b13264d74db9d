//! The same image and options give the same bytes of `.clip`.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use clip_tests::{
    clip::Clip,
    faults::Server,
    images::{
        Compression,
        sample::{self, Sample},
    },
};

/// Twice from a registry, with one job and with four, and slowly: one `.clip`.
#[test]
fn indexing_twice_gives_the_same_bytes() {
    for compression in [
        Compression::ZlibRs(6),
        Compression::Members(700_000),
        Compression::SyncFlushed(300_000),
        Compression::Plain,
        Compression::Frames(300_000),
        Compression::Frames(100 << 20),
    ] {
        let sample = Sample::compressed(&compression).unwrap();
        let server = Server::start(&sample.layout).unwrap();
        let reference = server.reference("sample", sample::TAG);
        let clip = Clip::new();
        let one = clip.index(&reference, "one", &["-j", "1"]).unwrap();
        let four = clip.index(&reference, "four", &["-j", "4"]).unwrap();
        server.script(|number, seen| match seen.is_blob() && number % 2 == 0 {
            true => clip_tests::faults::Fault::Late(std::time::Duration::from_millis(80)),
            false => clip_tests::faults::Fault::None,
        });
        let late = clip.index(&reference, "late", &["-j", "4"]).unwrap();
        let bytes = std::fs::read(one).unwrap();
        assert!(bytes == std::fs::read(four).unwrap(), "{compression:?}: -j changes the bytes");
        assert!(bytes == std::fs::read(late).unwrap(), "{compression:?}: the order of arrival changes the bytes");
    }
}
