//! Any bytes as a whole `.clip`: an error or sections that are what the header says.
#![no_main]

use clip_format::{
    clip_file::ClipFile,
    header::{HEADER_LEN, Header},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // A checksum that fits, so that what stands behind the check is reached too.
    let mut bytes = bytes.to_vec();
    if bytes.len() >= HEADER_LEN && bytes[0] == 0x89 {
        let checksum = *blake3_of(&bytes[..480]).as_slice().first_chunk::<32>().expect("32 bytes");
        bytes[480..512].copy_from_slice(&checksum);
    }
    if let Ok(header) = Header::from_bytes(&bytes) {
        assert_eq!(header.to_bytes()[..], bytes[..HEADER_LEN], "one header has one form");
    }
    if let Ok(file) = ClipFile::parse(&bytes) {
        // Bound the work, not the check: sections of up to 16 MiB are expanded.
        if file.header().index.raw_len < 16 << 20 {
            let _ = file.index();
        }
        let _ = file.storage_info();
        if file.header().checkpoints.raw_len < 16 << 20 {
            let _ = file.checkpoints();
        }
        let _ = file.windows();
    }
});

fn blake3_of(bytes: &[u8]) -> Vec<u8> {
    blake3::hash(bytes).as_bytes().to_vec()
}
