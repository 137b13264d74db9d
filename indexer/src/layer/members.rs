//! The tar members of the stream, and how far it has come.

use std::time::{Duration, Instant};

use super::{LayerInput, LayerSettings, metadata::MetadataShare};
use crate::{
    error::IndexError,
    progress::{LayerEvent, Progress},
    tar_entry::{Entry, EntryKind, TarError, TarParser, tally::Tally},
};

/// Time between two reports of progress. Source: progress bars are drawn 10 times a second.
const REPORT_INTERVAL: Duration = Duration::from_millis(100);

/// Parses the stream and reports its progress.
pub(super) struct Members<'a> {
    input: &'a LayerInput,
    progress: &'a dyn Progress,
    parser: TarParser,
    entries: Vec<Entry>,
    metadata: MetadataShare<'a>,
    stream: u64,
    reported: Instant,
}

/// What came of a stream.
pub(super) struct Found {
    pub(super) entries: Vec<Entry>,
    /// How many members there were, whiteouts among them.
    pub(super) members: u64,
    /// What the entries take, about.
    pub(super) metadata_bytes: u64,
}

/// Errors of the parser and of the bounds on what comes of it.
enum MemberError {
    Tar(TarError),
    TooMuch(IndexError),
}

impl From<TarError> for MemberError {
    fn from(error: TarError) -> Self {
        MemberError::Tar(error)
    }
}

impl<'a> Members<'a> {
    pub(super) fn new(input: &'a LayerInput, settings: &'a LayerSettings<'_>) -> Self {
        let (progress, metadata) = (settings.progress, MetadataShare::new(settings.metadata));
        Self { input, progress, parser: TarParser::new(), entries: Vec::new(), metadata, stream: 0, reported: Instant::now() }
    }

    /// The members, once the stream has ended where an archive may end.
    pub(super) fn finish(self, warnings: &mut Vec<String>) -> Result<Found, IndexError> {
        self.parser.finish().map_err(|error| self.to_error(MemberError::Tar(error)))?;
        warnings.extend(globals_warning(self.parser.ignored_globals()).map(|warning| format!("layer {}: {warning}", self.input.digest)));
        let members = self.parser.members();
        Ok(Found { entries: self.entries, members, metadata_bytes: self.metadata.keep() })
    }

    /// Takes the next stream bytes; `compressed` bytes of the blob are used.
    ///
    /// # Errors
    /// What is no tar member, with its place.
    pub(super) fn push(&mut self, bytes: &[u8], compressed: u64) -> Result<(), IndexError> {
        self.parse(bytes).map_err(|error| self.to_error(error))?;
        self.stream += bytes.len() as u64;
        self.report(compressed);
        Ok(())
    }

    fn parse(&mut self, bytes: &[u8]) -> Result<(), MemberError> {
        let (entries, metadata) = (&mut self.entries, &mut self.metadata);
        self.parser.push(bytes, &mut |entry: Entry| {
            metadata.grow(metadata_bytes(&entry)).map_err(MemberError::TooMuch)?;
            entries.push(entry);
            Ok(())
        })
    }

    fn to_error(&self, error: MemberError) -> IndexError {
        match error {
            MemberError::Tar(error) if error.unsupported => IndexError::Unsupported {
                what: format!("layer {}, {}", self.input.digest, error.place()),
                found: error.found,
                hint: format!("expected {}", error.expected),
            },
            MemberError::Tar(error) => {
                let place = error.place();
                IndexError::Layer { layer: self.input.digest, place, expected: error.expected, found: error.found }
            }
            MemberError::TooMuch(error) => error,
        }
    }

    fn report(&mut self, compressed: u64) {
        if self.reported.elapsed() >= REPORT_INTERVAL {
            self.reported = Instant::now();
            self.progress.layer(self.input.index, LayerEvent::Advanced { compressed, stream: self.stream });
        }
    }
}

/// One line about global PAX records, where there are any that say more than a comment.
fn globals_warning(ignored: &Tally) -> Option<String> {
    let mut telling: Vec<String> = ignored.iter().map(|(key, _)| key).filter(|key| key != "comment").collect();
    if ignored.others() > 0 {
        telling.push(format!("and {} more", ignored.others()));
    }
    let keys = telling.join(", ");
    (!telling.is_empty()).then(|| format!("global PAX records are ignored, as containerd and docker do: {keys}"))
}

/// About what an entry takes in memory.
fn metadata_bytes(entry: &Entry) -> u64 {
    let kind = match &entry.kind {
        EntryKind::Regular { data, .. } => size_of_val(data.as_slice()),
        EntryKind::Symlink(target) | EntryKind::HardLink(target) => target.len(),
        _ => 0,
    };
    let xattrs: usize = entry.xattrs.iter().map(|(name, value)| 48 + name.len() + value.len()).sum();
    (size_of::<Entry>() + entry.path.len() + kind + xattrs) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Claim: however many keys of whatever length and bytes a hostile archive has, what is kept of them is bounded, and one line says it.
    #[test]
    fn a_million_global_keys_are_one_short_line() {
        let mut tally = Tally::default();
        assert_eq!(globals_warning(&tally), None);
        tally.add(b"comment");
        assert_eq!(globals_warning(&tally), None);
        tally.add(b"mtime");
        let warning = globals_warning(&tally).unwrap_or_default();
        assert!(warning.ends_with("as containerd and docker do: mtime"), "{warning}");
        for number in 0..1_000_000_u32 {
            tally.add(format!("{number}\n\x1b[2J{}", "x".repeat(if number < 100 { 1 << 20 } else { 0 })).as_bytes());
        }
        let warning = globals_warning(&tally).unwrap_or_default();
        assert!(warning.len() < 4096 && warning.contains("0\\n") && !warning.contains(['\n', '\x1b']), "{warning}");
        assert!(warning.ends_with(", and 999970 more"), "{warning}");
    }
}
