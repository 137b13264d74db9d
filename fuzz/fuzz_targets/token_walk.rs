//! Any bytes are a deflate stream or an error, and the pieces they come in and are looked at in change nothing.
#![no_main]

// The walk names the engine's error, whose crate would be instrumented with its network and TLS.
extern crate self as clip_engine;

mod inflate {
    #[derive(Debug, PartialEq, Eq)]
    pub struct InflateError {
        pub reason: String,
    }
}

#[path = "../../indexer/src/sparse_window/token_walk.rs"]
mod token_walk;

use inflate::InflateError;
use libfuzzer_sys::fuzz_target;
use token_walk::{Matches, TokenWalk};

/// What the indexer asks for: the window's length.
const OUTPUT_BYTES: usize = 32 << 10;

#[derive(Debug, Default, PartialEq, Eq)]
struct Found(Vec<(usize, usize, usize)>);

impl Matches for Found {
    fn found(&mut self, at: usize, length: usize, distance: usize) {
        assert!(at < OUTPUT_BYTES && (3..=258).contains(&length) && (1..=32_768).contains(&distance), "{at} {length} {distance}");
        self.0.push((at, length, distance));
    }
}

/// All of the walk, `look` bytes of output after another.
fn walk(bit_offset: u8, bytes: &[u8], chunk: usize, look: usize) -> (Result<bool, InflateError>, Found) {
    let (mut walk, mut found) = (TokenWalk::new(), Found::default());
    let rest = if bit_offset > 0 { bytes.get(1..).unwrap_or_default() } else { bytes };
    walk.start(bit_offset, bytes.first().copied().unwrap_or_default(), look);
    let mut looked_at = look;
    let fed = rest.chunks(chunk).try_for_each(|piece| {
        walk.feed(piece, &mut found)?;
        while walk.is_done() && !walk.has_ended() && looked_at < OUTPUT_BYTES {
            looked_at = (looked_at + look).min(OUTPUT_BYTES);
            walk.go_on(looked_at, &mut found)?;
        }
        Ok(())
    });
    (fed.map(|()| walk.is_done()), found)
}

fuzz_target!(|bytes: &[u8]| {
    let [bit_offset, chunk, deflated @ ..] = bytes else { return };
    let bit_offset = bit_offset % 8;
    let whole = walk(bit_offset, deflated, deflated.len().max(1), OUTPUT_BYTES);
    assert_eq!(whole, walk(bit_offset, deflated, usize::from(*chunk) + 1, usize::from(*chunk) * 16 + 1));
});
