//! Any bytes as an access profile, and as the body of one.
#![no_main]

use clip_format::{
    digest::Digest,
    profile::{Counts, Profile},
};
use libfuzzer_sys::fuzz_target;

/// Where the head's checksum stands, and where the head ends.
const CHECKSUM: std::ops::Range<usize> = 72..104;

fuzz_target!(|bytes: &[u8]| {
    // A checksum that fits, so that what stands behind the check is reached too.
    let mut file = bytes.to_vec();
    if file.len() >= CHECKSUM.end && file[0] == 0x89 {
        let checksum = *blake3::hash(&file[..CHECKSUM.start]).as_bytes();
        file[CHECKSUM].copy_from_slice(&checksum);
    }
    if let Ok(profile) = Profile::from_bytes(&file) {
        check(&profile);
    }
    // As a body: the fuzzer cannot mend what zstd and a checksum over the body refuse.
    let Some((counts, body)) = bytes.split_first_chunk::<4>() else { return };
    let counts = Counts { layers: u16::from_le_bytes([counts[0], counts[1]]), runs: u16::from_le_bytes([counts[2], counts[3]]).into() };
    if let Ok(profile) = Profile::from_body(body, counts) {
        check(&profile);
    }
});

fn check(profile: &Profile) {
    let mut bytes = vec![0_u64; profile.layers().len()];
    for run in profile.runs() {
        let layer = usize::from(run.layer);
        assert!(run.stream.start < run.stream.end && run.stream.end <= profile.layers()[layer].stream_size);
        bytes[layer] += run.bytes();
    }
    for (layer, bytes) in profile.layers().iter().zip(bytes) {
        assert!(bytes <= layer.stream_size, "no byte is named twice");
    }
    let digests: Vec<Digest> = profile.layers().iter().map(|layer| layer.digest).collect();
    let fit = profile.fit(&digests);
    assert_eq!(fit.needed, fit.found);
    let written = profile.to_bytes().expect("what was read can be written");
    let again = Profile::from_bytes(&written).expect("what was written can be read");
    assert!(again == *profile, "one profile has one meaning");
}
