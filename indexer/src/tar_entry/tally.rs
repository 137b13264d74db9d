//! How often each of some names was seen, in bounded memory whoever gave them.

use std::collections::BTreeMap;

/// Names that are told apart. Source: judgement: more than an honest archive has, and as many as one warning can say.
const NAMES_MAX: usize = 32;
/// Bytes kept of each.
const NAME_BYTES_MAX: usize = 64;

/// Names with how often each was seen. Shape: at most 32 names of at most 64 bytes; the rest is only counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    counts: BTreeMap<Vec<u8>, u64>,
    others: u64,
}

impl Tally {
    /// `name` was seen once more.
    pub fn add(&mut self, name: &[u8]) {
        let name = &name[..name.len().min(NAME_BYTES_MAX)];
        if let Some(count) = self.counts.get_mut(name) {
            *count += 1;
        } else if self.counts.len() < NAMES_MAX {
            self.counts.insert(name.to_vec(), 1);
        } else {
            self.others += 1;
        }
    }

    /// The names that were kept, sorted, with their counts; on one line whatever their bytes are.
    pub fn iter(&self) -> impl Iterator<Item = (String, u64)> {
        self.counts.iter().map(|(name, count)| (String::from_utf8_lossy(name).escape_debug().to_string(), *count))
    }

    /// How often some other name was seen.
    #[must_use]
    pub fn others(&self) -> u64 {
        self.others
    }
}
