//! Any bytes as storage info: an error, or a value whose encoding is read back as the same.
#![no_main]

use clip_format::storage_info::StorageInfo;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(info) = StorageInfo::from_bytes(bytes) {
        let again = info.to_bytes().expect("no longer than what was read");
        assert_eq!(StorageInfo::from_bytes(&again).expect("just written"), info);
    }
});
