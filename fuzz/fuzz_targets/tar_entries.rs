//! Any bytes are an archive or an error, and the pieces they come in change nothing.
#![no_main]

/// The parser's own files, and not the crate around them: that would be instrumented with its network and TLS.
#[path = "../../indexer/src"]
mod indexer {
    #[allow(dead_code)]
    pub mod tar_entry;
}

use indexer::tar_entry::{Entry, TarError, TarParser};
use libfuzzer_sys::fuzz_target;

fn parse(bytes: &[u8], chunk: usize) -> Result<Vec<Entry>, TarError> {
    let mut parser = TarParser::new();
    let mut entries = Vec::new();
    for piece in bytes.chunks(chunk) {
        parser.push(piece, &mut |entry| {
            entries.push(entry);
            Ok::<(), TarError>(())
        })?;
    }
    parser.finish()?;
    Ok(entries)
}

/// Puts the right checksum in every block that could be a header, so that the fuzzer need not find it.
fn sealed(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for block in bytes.chunks_exact_mut(512).filter(|block| block.iter().any(|byte| *byte != 0)) {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    bytes
}

fuzz_target!(|bytes: &[u8]| {
    let Some((first, rest)) = bytes.split_first() else { return };
    let bytes = if first & 1 == 0 { rest.to_vec() } else { sealed(rest) };
    let whole = parse(&bytes, bytes.len().max(1));
    let chunk = usize::from(first >> 1) * 5 + 1;
    assert_eq!(whole, parse(&bytes, chunk));
});
