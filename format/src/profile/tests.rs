#![allow(clippy::unwrap_used)]

use super::*;
use crate::error::ErrorKind;

fn layer(number: u8, stream_size: u64) -> ProfileLayer {
    ProfileLayer { digest: Digest::Sha256([number; 32]), stream_size, spans_digest: [number ^ 0xff; 32] }
}

fn run(layer: u16, stream: Range<u64>, ms: u32) -> Run {
    Run { layer, stream, ms }
}

/// Two layers of two digests, runs back and forth.
fn sample() -> Profile {
    let long = ProfileLayer { digest: Digest::Sha512([9; 64]), ..layer(2, 1 << 41) };
    let runs = vec![
        run(0, 5_000_000..6_000_000, 0),
        run(0, 0..1_000_001, 0),
        run(1, (1 << 41) - 1..1 << 41, 7),
        run(1, 0..1, 90),
        run(0, 1_000_001..2_000_000, 1_000_000),
    ];
    Profile::new(Digest::Sha256([7; 32]), vec![layer(1, 6_000_000), long, layer(3, 0)], runs).unwrap()
}

/// `bytes` with checksums that fit whatever was done to head and body.
fn mended(profile: &Profile, change: impl FnOnce(&mut RawProfile)) -> Vec<u8> {
    let bytes = profile.to_bytes().unwrap();
    let mut head: RawProfile = *record_at(&bytes, "head", 0).unwrap();
    change(&mut head);
    head.blake3 = head.checksum();
    [head.as_bytes(), &bytes[HEAD_LEN..]].concat()
}

/// Claim: what is written is read, the same profile always gives the same bytes, and an empty one is one too.
#[test]
fn what_is_written_is_read() {
    let empty = Profile::new(Digest::Sha512([1; 64]), vec![], vec![]).unwrap();
    for profile in [sample(), empty] {
        let bytes = profile.to_bytes().unwrap();
        assert_eq!(Profile::from_bytes(&bytes).unwrap(), profile);
        assert_eq!(profile.to_bytes().unwrap(), bytes);
    }
}

/// Claim: no change of a byte and no cut gives another meaning.
#[test]
fn a_damaged_profile_is_an_error() {
    let bytes = sample().to_bytes().unwrap();
    for position in 0..bytes.len() {
        assert!(Profile::from_bytes(&bytes[..position]).is_err(), "{position} bytes");
        for mask in [0xff, 0x01] {
            let mut damaged = bytes.clone();
            damaged[position] ^= mask;
            if let Ok(found) = Profile::from_bytes(&damaged) {
                assert_eq!(found, sample(), "byte {position}");
            }
        }
    }
    assert!(Profile::from_bytes(&[&bytes[..], b"x"].concat()).is_err());
}

/// Claim: another version, flag or kind of file is named; so is a `.clip` given as a profile.
#[test]
fn unknown_versions_and_files_are_named() {
    let version = Profile::from_bytes(&mended(&sample(), |head| head.version = U16::new(2))).unwrap_err();
    assert_eq!(version.kind(), ErrorKind::Unsupported);
    assert!(version.to_string().starts_with("profile version: this version of clip reads versions [1], found 2"), "{version}");
    let flags = Profile::from_bytes(&mended(&sample(), |head| head.flags = U64::new(4))).unwrap_err();
    assert!(flags.to_string().starts_with("profile flags"), "{flags}");
    let clip = Profile::from_bytes(b"\x89CLIP\r\n\x1a\n and more").unwrap_err();
    assert!(clip.to_string().contains("this is not an access profile"), "{clip}");
}

/// Claim: a head that promises more than the limits or more runs than there are bytes is refused before memory is taken.
#[test]
fn promises_are_limited() {
    let cases: [fn(&mut RawProfile); 5] = [
        |head| head.raw_len = U64::new(u64::MAX),
        |head| head.stored_len = U64::new(u64::MAX),
        |head| head.runs = U32::new(u32::MAX),
        |head| head.runs = U32::new(6),
        |head| head.layers = U16::new(u16::MAX),
    ];
    for (number, change) in cases.into_iter().enumerate() {
        assert!(Profile::from_bytes(&mended(&sample(), change)).is_err(), "case {number}");
    }
}

/// Claim: runs that leave their stream, overlap, go back in time or are empty are refused, by the reader as by the writer.
#[test]
fn runs_that_cannot_be_are_refused() {
    let layers = || vec![layer(1, 1000), layer(2, 10)];
    let cases = [
        vec![run(2, 0..1, 0)],
        vec![run(0, 0..1001, 0)],
        vec![run(0, 5..5, 0)],
        vec![run(0, 0..10, 5), run(0, 10..20, 4)],
        vec![run(0, 0..10, 0), run(1, 0..5, 0), run(0, 9..12, 0)],
    ];
    for (number, runs) in cases.into_iter().enumerate() {
        let error = Profile::new(Digest::Sha256([0; 32]), layers(), runs.clone()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "case {number}");
        if number != 0 && number != 3 {
            let hostile = Profile { manifest_digest: Digest::Sha256([0; 32]), layers: layers(), runs };
            assert!(Profile::from_bytes(&hostile.to_bytes().unwrap()).is_err(), "case {number}");
        }
    }
}

/// Claim: numbers that overflow, are cut, or are written longer than needed are errors.
#[test]
fn numbers_have_one_form() {
    let read = |bytes: &[u8]| Varints::new(bytes, 0).next("number");
    assert_eq!(read(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]).unwrap(), u64::MAX);
    for bad in [&[0x80, 0x00][..], &[0x80], &[], &[0xff; 10], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02]] {
        assert!(read(bad).is_err(), "{bad:x?}");
    }
    for value in [0, 1, -1, 63, -64, 64, i64::MAX, i64::MIN] {
        let mut bytes = Vec::new();
        push_signed(&mut bytes, value);
        assert_eq!(Varints::new(&bytes, 0).next_signed("number").unwrap(), value);
    }
}

/// Claim: a fit names the layers that are there, counts only those that are needed, and an empty profile fits its own image.
#[test]
fn fits_are_by_digest_of_needed_layers() {
    let profile = sample();
    let [one, two, three] = [0, 1, 2].map(|number| profile.layers()[number].digest);
    let other = Digest::Sha256([77; 32]);
    let whole = profile.fit(&[one, two, three]);
    assert_eq!((whole.needed, whole.found), (2, 2));
    let part = profile.fit(&[other, two]);
    assert_eq!(part.places, [None, Some(LayerIndex(1)), None]);
    assert_eq!((part.needed, part.found, part.is_useful()), (2, 1, true));
    let manifest = Digest::Sha256([5; 32]);
    let error = profile.useful_fit(&manifest, &[three, other]).expect_err("the only equal layer is one that was not needed");
    assert!(error.to_string().contains(&manifest.to_string()) && error.to_string().contains(&profile.manifest_digest().to_string()));
    let empty = profile.trimmed(0);
    assert!(empty.runs().is_empty() && empty.fit(&[one]).is_useful() && !empty.fit(&[other]).is_useful());
}

/// Claim: of the profile's layers with one digest one has a place, the first with runs: a profile of 1,024 equal layers costs as one.
#[test]
fn equal_layers_have_one_place() {
    let equal = |needed: &[u16]| {
        let runs = needed.iter().map(|&layer| run(layer, 0..1000, 0)).collect();
        Profile::new(Digest::Sha256([7; 32]), vec![layer(1, 1000); 1024], runs).unwrap()
    };
    let digests = [layer(2, 0).digest, layer(1, 0).digest, layer(1, 0).digest];
    for (needed, place) in [(&(0..1024).collect::<Vec<u16>>()[..], 0), (&[700, 900], 700), (&[], 0)] {
        let fit = equal(needed).fit(&digests);
        let places: Vec<_> = fit.places.iter().enumerate().filter_map(|(layer, place)| Some((layer, (*place)?))).collect();
        assert_eq!(places, [(place, LayerIndex(1))]);
        assert_eq!((fit.needed, fit.found), (needed.len().min(1), needed.len().min(1)));
        assert!(fit.is_useful());
    }
}

/// Claim: trimming keeps the runs that come first.
#[test]
fn trimming_keeps_what_was_needed_first() {
    assert_eq!(sample().trimmed(1_000_001).runs(), &sample().runs()[..2]);
    assert_eq!(sample().trimmed(u64::MAX), sample());
}

proptest::proptest! {
    /// Claim: whatever runs there are, in whatever order, they come back.
    #[test]
    fn random_profiles_are_read_as_written(
        cuts in proptest::collection::vec((0_u16..3, 1_u64..5000, 0_u64..5000, 0_u32..1000, proptest::prelude::any::<u64>()), 0..60)
    ) {
        let mut ends = [0_u64; 3];
        let mut runs: Vec<(u64, Run)> = Vec::new();
        for (layer, len, gap, ms, order) in cuts {
            let start = ends[usize::from(layer)] + gap;
            ends[usize::from(layer)] = start + len;
            runs.push((order, run(layer, start..start + len, ms)));
        }
        runs.sort_by_key(|(order, _)| *order);
        let mut ms = 0;
        let runs = runs.into_iter().map(|(_, run)| { ms += run.ms; Run { ms, ..run } }).collect();
        let layers = [0, 1, 2].map(|number| layer(number, ends[usize::from(number)])).to_vec();
        let profile = Profile::new(Digest::Sha256([7; 32]), layers, runs).unwrap();
        proptest::prop_assert_eq!(Profile::from_bytes(&profile.to_bytes().unwrap()).unwrap(), profile);
    }
}
