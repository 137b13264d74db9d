//! The parser: an incremental one, fed with pieces of any size.

use super::{
    Entry, EntryKind, SPECIAL_BYTES_MAX, TarError, Wrong,
    gnu_sparse::{FromData, SparseMap},
    header::{self, BLOCK_BYTES, Block, Header, TypeFlag},
    pax::PaxRecords,
    tally::Tally,
};

/// What the next bytes are.
enum State {
    /// A header block (or the end).
    Header,
    /// The second zero block of the end marker.
    EndMarker,
    /// The data of an extended header.
    Special { kind: Special, rest: u64, padding: u64, bytes: Vec<u8> },
    /// An extension block of an old GNU sparse header.
    OldSparse { member: Box<Member>, map: SparseMap, map_bytes: u64 },
    /// The map blocks at the start of a PAX 1.0 sparse member's data.
    PaxSparse { member: Box<Member>, real_size: u64, text: MapText },
    /// File data and padding that the parser passes over.
    Data { rest: u64, padding: u64 },
    /// After the end marker: nothing means anything.
    End,
}

/// Which extended header is being read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Special {
    Pax,
    GlobalPax,
    LongName,
    LongLink,
}

/// What is there of a sparse map in a member's data.
#[derive(Default)]
struct MapText {
    bytes: Vec<u8>,
    lines: usize,
    /// Lines that must be there before parsing makes sense.
    wanted: usize,
}

/// A member whose header is read and whose sparse map may not be.
struct Member {
    entry: Entry,
    /// Bytes of data in the archive, maps included.
    physical: u64,
    padding: u64,
}

/// The extended headers that stand before a member.
#[derive(Default)]
struct Pending {
    offset: Option<u64>,
    pax: PaxRecords,
    long_name: Vec<u8>,
    long_link: Vec<u8>,
}

/// Reads one archive. Feed it with [`TarParser::push`], then call [`TarParser::finish`].
///
/// Cost: one block, the current extended header (at most [`SPECIAL_BYTES_MAX`]) and nothing else is held.
pub struct TarParser {
    state: State,
    /// Stream offset of the next byte.
    offset: u64,
    block: Block,
    /// `< BLOCK_BYTES` between calls
    filled: usize,
    pending: Pending,
    members: u64,
    ignored_globals: Tally,
}

impl Default for TarParser {
    fn default() -> Self {
        Self::new()
    }
}

impl TarParser {
    /// At the start of an archive.
    #[must_use]
    pub fn new() -> Self {
        Self {
            state: State::Header,
            offset: 0,
            block: [0; BLOCK_BYTES],
            filled: 0,
            pending: Pending::default(),
            members: 0,
            ignored_globals: Tally::default(),
        }
    }

    /// Members given out so far.
    #[must_use]
    pub fn members(&self) -> u64 {
        self.members
    }

    /// Keys of global PAX headers, with how often each was seen. They change nothing, as with containerd and docker.
    #[must_use]
    pub fn ignored_globals(&self) -> &Tally {
        &self.ignored_globals
    }

    /// Reads on; `sink` gets each member as soon as its headers and sparse map are complete, before its data has passed.
    ///
    /// # Errors
    /// The first thing that is no archive, or the first error of `sink`. The parser is not to be used after that.
    pub fn push<E: From<TarError>>(&mut self, mut bytes: &[u8], sink: &mut impl FnMut(Entry) -> Result<(), E>) -> Result<(), E> {
        while !bytes.is_empty() {
            let used = match &mut self.state {
                State::End => bytes.len(),
                State::Data { rest, padding } => pass_over(rest, padding, bytes.len()),
                State::Special { rest, padding, bytes: kept, .. } => {
                    let wanted = (*rest).min(bytes.len() as u64) as usize;
                    kept.extend_from_slice(&bytes[..wanted]);
                    pass_over(rest, padding, bytes.len())
                }
                State::Header | State::EndMarker | State::OldSparse { .. } | State::PaxSparse { .. } => {
                    let wanted = (BLOCK_BYTES - self.filled).min(bytes.len());
                    self.block[self.filled..self.filled + wanted].copy_from_slice(&bytes[..wanted]);
                    self.filled += wanted;
                    wanted
                }
            };
            self.offset += used as u64;
            bytes = &bytes[used..];
            if let Some(entry) = self.advance()? {
                self.members += 1;
                sink(entry)?;
            }
        }
        Ok(())
    }

    /// Checks that the archive may end here: after the end marker, or at a block boundary between members.
    ///
    /// # Errors
    /// A truncated archive.
    pub fn finish(&self) -> Result<(), TarError> {
        let missing = match &self.state {
            State::End | State::EndMarker if self.filled == 0 => return Ok(()),
            State::Data { rest: 0, .. } => return Ok(()),
            State::Header if self.filled == 0 && self.pending.offset.is_none() => return Ok(()),
            State::Data { rest, .. } => format!("{rest} more bytes of file data"),
            State::Special { rest, .. } => format!("{rest} more bytes of an extended header"),
            State::Header if self.filled == 0 => "a member after its extended header".to_owned(),
            _ => format!("{} more bytes of a header block", BLOCK_BYTES - self.filled),
        };
        Err(self.error(Wrong::new(missing, "the end of the stream")))
    }

    /// Acts on what has been gathered; at most one member comes of it.
    fn advance(&mut self) -> Result<Option<Entry>, TarError> {
        match &self.state {
            State::Data { rest: 0, padding: 0 } => self.state = State::Header,
            State::Special { rest: 0, padding: 0, .. } => self.special_done()?,
            State::Header | State::EndMarker | State::OldSparse { .. } | State::PaxSparse { .. } if self.filled == BLOCK_BYTES => {
                self.filled = 0;
                return self.block_done();
            }
            _ => {}
        }
        Ok(None)
    }

    fn block_done(&mut self) -> Result<Option<Entry>, TarError> {
        match std::mem::replace(&mut self.state, State::Header) {
            State::EndMarker => {
                if self.block != [0; BLOCK_BYTES] {
                    return Err(self.error(Wrong::new("a second zero block, or the end of the stream", "a block that is not zero")));
                }
                self.state = State::End;
                Ok(None)
            }
            State::OldSparse { member, mut map, map_bytes } => {
                let more = map.push_old_gnu(&self.block[..504], self.block[504]).map_err(|wrong| self.error_of(&member.entry, wrong))?;
                self.old_sparse(member, map, map_bytes + BLOCK_BYTES as u64, more)
            }
            State::PaxSparse { mut member, real_size, mut text } => {
                text.bytes.extend_from_slice(&self.block);
                text.lines += self.block.iter().filter(|byte| **byte == b'\n').count();
                member.physical -= BLOCK_BYTES as u64;
                self.pax_sparse(member, real_size, text)
            }
            _ => self.header_done(),
        }
    }

    fn header_done(&mut self) -> Result<Option<Entry>, TarError> {
        if self.block == [0; BLOCK_BYTES] {
            if self.pending.offset.is_some() {
                return Err(self.error(Wrong::new("a member after its extended header", "a zero block")));
            }
            self.state = State::EndMarker;
            return Ok(None);
        }
        let start = self.offset - BLOCK_BYTES as u64;
        self.pending.offset.get_or_insert(start);
        let header = Header::parse(&self.block).map_err(|wrong| self.error(wrong))?;
        let special = match header.type_flag {
            TypeFlag::Pax => Some(Special::Pax),
            TypeFlag::GlobalPax => Some(Special::GlobalPax),
            TypeFlag::LongName => Some(Special::LongName),
            TypeFlag::LongLink => Some(Special::LongLink),
            _ => None,
        };
        let Some(kind) = special else { return self.member(header) };
        let rest = header.data_len().map_err(|wrong| self.error(wrong))?;
        if rest > SPECIAL_BYTES_MAX {
            return Err(self.error(Wrong::new(format!("an extended header of at most {SPECIAL_BYTES_MAX} bytes"), format!("{rest}"))));
        }
        self.state = State::Special { kind, rest, padding: padding_of(rest), bytes: Vec::new() };
        if rest == 0 {
            self.special_done()?;
        }
        Ok(None)
    }

    fn special_done(&mut self) -> Result<(), TarError> {
        let State::Special { kind, bytes, .. } = std::mem::replace(&mut self.state, State::Header) else { return Ok(()) };
        match kind {
            Special::Pax => self.pending.pax = PaxRecords::parse(&bytes).map_err(|wrong| self.error(wrong))?,
            Special::GlobalPax => {
                let records = PaxRecords::parse(&bytes).map_err(|wrong| self.error(wrong))?;
                records.keys().for_each(|key| self.ignored_globals.add(key));
                // As in Go, a global header stands alone: what was pending before it is gone with it.
                self.pending = Pending::default();
            }
            Special::LongName => self.pending.long_name = header::text(&bytes).to_vec(),
            Special::LongLink => self.pending.long_link = header::text(&bytes).to_vec(),
        }
        Ok(())
    }

    /// A member's own header: joins it with what stands before it, and finds its data.
    fn member(&mut self, header: Header) -> Result<Option<Entry>, TarError> {
        let pending = std::mem::take(&mut self.pending);
        let offset = pending.offset.unwrap_or(self.offset);
        let mut header = header;
        let at = |wrong: Wrong, name: &[u8]| TarError {
            offset,
            member: name.to_vec(),
            expected: wrong.expected,
            found: wrong.found,
            unsupported: wrong.unsupported,
        };
        let name = header.path.clone();
        pending.pax.apply(&mut header).map_err(|wrong| at(wrong, &name))?;
        if !pending.long_name.is_empty() {
            header.path = pending.long_name;
        }
        if !pending.long_link.is_empty() {
            header.link = pending.long_link;
        }
        let sparse = pending.pax.sparse().map_err(|wrong| at(wrong, &header.path))?;
        if let Some(name) = sparse.as_ref().and_then(|sparse| sparse.name.clone()) {
            header.path = name;
        }
        let physical = header.data_len().map_err(|wrong| at(wrong, &header.path))?;
        let entry = header.to_entry(offset, self.offset, pending.pax.xattrs()).map_err(|wrong| at(wrong, &header.path))?;
        let has_data = matches!(entry.kind, EntryKind::Regular { .. });
        let member = Box::new(Member { entry, physical, padding: padding_of(physical) });
        if header.type_flag == TypeFlag::OldSparse {
            let mut map = SparseMap::new(header.real_size.map_err(|wrong| at(wrong, &header.path))?);
            let more = map.push_old_gnu(&self.block[386..482], self.block[482]).map_err(|wrong| at(wrong, &header.path))?;
            return self.old_sparse(member, map, 0, more);
        }
        match sparse {
            Some(_) if !has_data => Err(at(Wrong::new("a regular file under a sparse map", member.entry.kind.as_str()), &header.path)),
            Some(sparse) if sparse.in_data => {
                self.pax_sparse(member, sparse.real_size.unwrap_or(physical), MapText { wanted: 1, ..MapText::default() })
            }
            Some(sparse) => {
                let mut map = SparseMap::new(sparse.real_size.unwrap_or(physical));
                map.push_text(&sparse.map).map_err(|wrong| at(wrong, &header.path))?;
                self.sparse_done(*member, &map).map(Some)
            }
            None => Ok(Some(self.start_data(*member))),
        }
    }

    fn old_sparse(&mut self, member: Box<Member>, map: SparseMap, map_bytes: u64, more: bool) -> Result<Option<Entry>, TarError> {
        if !more {
            return self.sparse_done(*member, &map).map(Some);
        }
        if map_bytes >= SPECIAL_BYTES_MAX {
            let wrong = Wrong::new(format!("a sparse map of at most {SPECIAL_BYTES_MAX} bytes"), "one more extension block");
            return Err(self.error_of(&member.entry, wrong));
        }
        self.state = State::OldSparse { member, map, map_bytes };
        Ok(None)
    }

    fn pax_sparse(&mut self, member: Box<Member>, real_size: u64, mut text: MapText) -> Result<Option<Entry>, TarError> {
        // Parsed twice at most: once for the count, once as a whole.
        while text.lines >= text.wanted {
            match SparseMap::from_data(&text.bytes, real_size).map_err(|wrong| self.error_of(&member.entry, wrong))? {
                FromData::Done(map) => return self.sparse_done(*member, &map).map(Some),
                FromData::NeedsLines(lines) => text.wanted = lines,
            }
        }
        if member.physical < BLOCK_BYTES as u64 || text.bytes.len() as u64 >= SPECIAL_BYTES_MAX {
            let wrong = Wrong::new(format!("a whole sparse map of at most {SPECIAL_BYTES_MAX} bytes in the data"), "none");
            return Err(self.error_of(&member.entry, wrong));
        }
        self.state = State::PaxSparse { member, real_size, text };
        Ok(None)
    }

    /// The map is complete: the data that follows is its regions, packed.
    fn sparse_done(&mut self, mut member: Member, map: &SparseMap) -> Result<Entry, TarError> {
        let data = map.extents(self.offset, member.physical).map_err(|wrong| self.error_of(&member.entry, wrong))?;
        member.entry.kind = EntryKind::Regular { size: map.real_size(), data };
        Ok(self.start_data(member))
    }

    fn start_data(&mut self, member: Member) -> Entry {
        self.state = State::Data { rest: member.physical, padding: member.padding };
        if member.physical == 0 && member.padding == 0 {
            self.state = State::Header;
        }
        member.entry
    }

    fn error(&self, wrong: Wrong) -> TarError {
        let offset = self.pending.offset.unwrap_or(self.offset - self.offset % BLOCK_BYTES as u64);
        let member = if self.pending.long_name.is_empty() { self.pending.pax.path() } else { &self.pending.long_name };
        let Wrong { expected, found, unsupported } = wrong;
        TarError { offset, member: member.to_vec(), expected, found, unsupported }
    }

    fn error_of(&self, entry: &Entry, wrong: Wrong) -> TarError {
        let Wrong { expected, found, unsupported } = wrong;
        TarError { offset: entry.offset, member: entry.path.clone(), expected, found, unsupported }
    }
}

fn pass_over(rest: &mut u64, padding: &mut u64, available: usize) -> usize {
    let data = (*rest).min(available as u64);
    *rest -= data;
    let pad = (*padding).min(available as u64 - data);
    *padding -= pad;
    (data + pad) as usize
}

fn padding_of(len: u64) -> u64 {
    len.wrapping_neg() % BLOCK_BYTES as u64
}
