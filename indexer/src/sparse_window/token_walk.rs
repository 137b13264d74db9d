//! The matches of a deflate stream, without its output: how far back each refers is all that a window needs to know.
//!
//! Source of the format: RFC 1951. Whatever the bytes are, a walk ends or says what is wrong: it never panics, and of what it
//! has walked over it holds less than a block header.

use clip_engine::inflate::InflateError;

/// Bits that `peek` has at the least.
const PEEK_BITS: usize = 57;
/// Bits of the longest code. Source: RFC 1951 section 3.2.7.
const CODE_BITS_MAX: usize = 15;
/// Bits of the longest match: length code and extra bits, distance code and extra bits. `<= PEEK_BITS`
const MATCH_BITS_MAX: usize = 15 + 5 + 15 + 13;
const _: () = assert!(MATCH_BITS_MAX <= PEEK_BITS);

/// The end of a block among the literal and length symbols; length symbols follow it.
const END_OF_BLOCK: u16 = 256;
/// Least length and number of extra bits of each length symbol. Source: RFC 1951 section 3.2.5.
const LENGTHS: [(u16, u8); 29] = [
    (3, 0),
    (4, 0),
    (5, 0),
    (6, 0),
    (7, 0),
    (8, 0),
    (9, 0),
    (10, 0),
    (11, 1),
    (13, 1),
    (15, 1),
    (17, 1),
    (19, 2),
    (23, 2),
    (27, 2),
    (31, 2),
    (35, 3),
    (43, 3),
    (51, 3),
    (59, 3),
    (67, 4),
    (83, 4),
    (99, 4),
    (115, 4),
    (131, 5),
    (163, 5),
    (195, 5),
    (227, 5),
    (258, 0),
];
/// Least distance and number of extra bits of each distance symbol. Source: RFC 1951 section 3.2.5.
const DISTANCES: [(u16, u8); 30] = [
    (1, 0),
    (2, 0),
    (3, 0),
    (4, 0),
    (5, 1),
    (7, 1),
    (9, 2),
    (13, 2),
    (17, 3),
    (25, 3),
    (33, 4),
    (49, 4),
    (65, 5),
    (97, 5),
    (129, 6),
    (193, 6),
    (257, 7),
    (385, 7),
    (513, 8),
    (769, 8),
    (1025, 9),
    (1537, 9),
    (2049, 10),
    (3073, 10),
    (4097, 11),
    (6145, 11),
    (8193, 12),
    (12289, 12),
    (16385, 13),
    (24577, 13),
];
/// The order in which a header has the lengths of the code length codes. Source: RFC 1951 section 3.2.7.
const CODE_LENGTH_ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

/// Takes the matches of a walk.
pub(super) trait Matches {
    /// `length` bytes at output offset `at` are those `distance` before them. `3..=258`, `1..=32768`
    fn found(&mut self, at: usize, length: usize, distance: usize);
}

/// A walk from a block boundary to a wanted number of output bytes, or to the end of the stream.
///
/// Shape: about 5 KiB; `start` keeps the allocations.
pub(super) struct TokenWalk {
    output_max: usize,
    /// Input that is not used up.
    pending: Vec<u8>,
    /// Bits of it that are.
    bit: usize,
    /// Output bytes so far.
    output: usize,
    place: Place,
    literals: Box<Code<1024>>,
    distances: Box<Code<256>>,
}

/// Where a walk stands between two pieces of input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Before a block.
    Header,
    /// In a block of literals and matches.
    Tokens { last: bool },
    /// In a stored block that has so many bytes left.
    Stored { last: bool, left: usize },
    /// At the stream's end.
    Done,
}

/// Why a walk cannot go on: more input, or what is wrong with it.
enum Halt {
    Short,
    Wrong(&'static str),
}

impl TokenWalk {
    /// One that must be started.
    pub(super) fn new() -> Self {
        let (literals, distances) = (Box::new(Code::new()), Box::new(Code::new()));
        Self { output_max: 0, pending: Vec::new(), bit: 0, output: 0, place: Place::Done, literals, distances }
    }

    /// Begins at a block boundary: `bit_offset` bits of `first_byte` belong to the block before (0: the byte is not taken). Walks over
    /// `output_max` bytes of output.
    pub(super) fn start(&mut self, bit_offset: u8, first_byte: u8, output_max: usize) {
        self.output_max = output_max;
        self.pending.clear();
        if bit_offset > 0 {
            self.pending.push(first_byte);
        }
        (self.bit, self.output, self.place) = (usize::from(bit_offset), 0, Place::Header);
    }

    /// True when the wanted output was walked over, or the stream has ended.
    pub(super) fn is_done(&self) -> bool {
        self.has_ended() || self.output >= self.output_max
    }

    /// True at the end of the stream.
    pub(super) fn has_ended(&self) -> bool {
        self.place == Place::Done
    }

    /// Takes the next compressed bytes. What is not needed is kept for [`Self::go_on`].
    ///
    /// # Errors
    /// What is no deflate stream.
    pub(super) fn feed(&mut self, input: &[u8], matches: &mut impl Matches) -> Result<(), InflateError> {
        if self.has_ended() {
            return Ok(());
        }
        self.pending.drain(..self.bit / 8);
        self.bit %= 8;
        self.pending.extend_from_slice(input);
        self.go_on(self.output_max, matches)
    }

    /// Walks over `output_max` bytes of output in all, as far as the input goes.
    ///
    /// # Errors
    /// As `feed`.
    pub(super) fn go_on(&mut self, output_max: usize, matches: &mut impl Matches) -> Result<(), InflateError> {
        self.output_max = output_max;
        match self.walk(matches) {
            Ok(()) | Err(Halt::Short) => Ok(()),
            Err(Halt::Wrong(reason)) => Err(InflateError { reason: reason.to_owned() }),
        }
    }

    fn walk(&mut self, matches: &mut impl Matches) -> Result<(), Halt> {
        while self.output < self.output_max {
            match self.place {
                Place::Header => self.header()?,
                Place::Tokens { last } => {
                    if self.tokens(matches)? {
                        self.place = if last { Place::Done } else { Place::Header };
                    }
                }
                Place::Stored { last, left } => {
                    let used = left.min(self.pending.len() - self.bit / 8);
                    (self.bit, self.output) = (self.bit + used * 8, self.output + used);
                    self.place = match left - used {
                        0 if last => Place::Done,
                        0 => Place::Header,
                        left => Place::Stored { last, left },
                    };
                    if used < left && self.output < self.output_max {
                        return Err(Halt::Short);
                    }
                }
                Place::Done => return Ok(()),
            }
        }
        Ok(())
    }

    /// Reads a block's header; again from its start when the input was too short.
    fn header(&mut self) -> Result<(), Halt> {
        let mut bits = Bits { bytes: &self.pending, at: self.bit };
        let last = bits.take(1)? == 1;
        let place = match bits.take(2)? {
            0 => {
                bits.at = bits.at.next_multiple_of(8);
                let (len, check) = (bits.take(16)?, bits.take(16)?);
                if len != !check & 0xffff {
                    return Err(Halt::Wrong("invalid stored block lengths"));
                }
                Place::Stored { last, left: len }
            }
            1 => {
                self.literals.set(&fixed_lengths())?;
                self.distances.set(&[5; 30])?;
                Place::Tokens { last }
            }
            2 => {
                let (lengths, literals) = dynamic_lengths(&mut bits, &mut self.distances)?;
                let (literals, distances) = lengths.split_at(literals);
                self.literals.set(literals)?;
                self.distances.set(distances)?;
                Place::Tokens { last }
            }
            _ => return Err(Halt::Wrong("invalid block type")),
        };
        (self.bit, self.place) = (bits.at, place);
        Ok(())
    }

    /// Reads literals and matches; true at the end of the block, false at the wanted output.
    fn tokens(&mut self, matches: &mut impl Matches) -> Result<bool, Halt> {
        let end = self.pending.len() * 8;
        while self.output < self.output_max {
            let left = end - self.bit;
            let mut word = Word { bits: Bits { bytes: &self.pending, at: self.bit }.peek(), used: 0 };
            let run = self.literals.literals(&mut word, left).map_err(|halt| halt.with_bits(left))?;
            (self.bit, self.output) = (self.bit + word.used, self.output + run.literals);
            let Some(next) = run.next else { continue };
            if self.output >= self.output_max {
                return Ok(false);
            }
            let left = end - self.bit;
            let mut word = Word { bits: Bits { bytes: &self.pending, at: self.bit }.peek(), used: 0 };
            let token = word.token(next, &self.distances).map_err(|halt| halt.with_bits(left))?;
            if word.used > left {
                return Err(Halt::Short);
            }
            self.bit += word.used;
            let Some((length, distance)) = token else { return Ok(true) };
            matches.found(self.output, length, distance);
            self.output += length;
        }
        Ok(false)
    }
}

impl Halt {
    /// What it means where so many bits are left: those after them are zeros, which need not be a code.
    fn with_bits(self, left: usize) -> Self {
        if left < PEEK_BITS { Halt::Short } else { self }
    }
}

/// A symbol, and the length of its code.
type Symbol = (u16, usize);

/// Literals in a row.
struct Run {
    literals: usize,
    /// What comes after them, unless it is a literal too, or not looked at.
    next: Option<Symbol>,
}

/// At least `PEEK_BITS` bits, and how many of them are used.
struct Word {
    bits: u64,
    used: usize,
}

impl Word {
    fn take(&mut self, count: impl Into<usize>) -> usize {
        let count = count.into();
        let value = (self.bits >> self.used) & ((1 << count) - 1);
        self.used += count;
        value as usize
    }

    /// The match (length and distance) or the end of block, whose first symbol is known.
    fn token(&mut self, (symbol, len): Symbol, distances: &Code<256>) -> Result<Option<(usize, usize)>, Halt> {
        self.used += len;
        if symbol == END_OF_BLOCK {
            return Ok(None);
        }
        let (base, extra) = LENGTHS.get(usize::from(symbol - END_OF_BLOCK - 1)).ok_or(Halt::Wrong("invalid length"))?;
        let length = usize::from(*base) + self.take(*extra);
        let (symbol, len) = distances.decode(self.bits >> self.used)?;
        self.used += len;
        let (base, extra) = DISTANCES.get(usize::from(symbol)).ok_or(Halt::Wrong("invalid distance"))?;
        Ok(Some((length, usize::from(*base) + self.take(*extra))))
    }
}

/// Bytes read bit by bit, the lowest first.
struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    /// At least `PEEK_BITS` bits from here on; zeros after the end.
    fn peek(&self) -> u64 {
        let start = self.at / 8;
        let word = match self.bytes.get(start..).and_then(|rest| rest.first_chunk()) {
            Some(bytes) => u64::from_le_bytes(*bytes),
            None => {
                let rest = self.bytes.get(start..).unwrap_or_default();
                let mut padded = [0; 8];
                padded[..rest.len()].copy_from_slice(rest);
                u64::from_le_bytes(padded)
            }
        };
        word >> (self.at % 8)
    }

    fn take(&mut self, count: usize) -> Result<usize, Halt> {
        if self.at + count > self.bytes.len() * 8 {
            return Err(Halt::Short);
        }
        let value = self.peek() & ((1 << count) - 1);
        self.at += count;
        Ok(value as usize)
    }

    /// The next symbol of `code`.
    fn symbol<const SHORT: usize>(&mut self, code: &Code<SHORT>) -> Result<u16, Halt> {
        let left = self.bytes.len() * 8 - self.at;
        let (symbol, len) = code.decode(self.peek()).map_err(|halt| halt.with_bits(left))?;
        self.take(len)?;
        Ok(symbol)
    }
}

/// The code lengths of a dynamic block, literals before distances, and the number of the literals'. `lengths_code` is overwritten.
fn dynamic_lengths(bits: &mut Bits<'_>, lengths_code: &mut Code<256>) -> Result<(Vec<u8>, usize), Halt> {
    let (literals, distances, count) = (bits.take(5)? + 257, bits.take(5)? + 1, bits.take(4)? + 4);
    let mut code_lengths = [0; 19];
    for &place in &CODE_LENGTH_ORDER[..count] {
        code_lengths[place] = bits.take(3)? as u8;
    }
    lengths_code.set(&code_lengths)?;
    let all = literals + distances;
    let mut lengths = Vec::with_capacity(all);
    while lengths.len() < all {
        let (length, count) = match bits.symbol(lengths_code)? {
            length @ 0..=15 => (length as u8, 1),
            16 => (*lengths.last().ok_or(Halt::Wrong("invalid bit length repeat"))?, 3 + bits.take(2)?),
            17 => (0, 3 + bits.take(3)?),
            _ => (0, 11 + bits.take(7)?),
        };
        lengths.resize(lengths.len() + count, length);
    }
    if lengths.len() > all {
        return Err(Halt::Wrong("invalid bit length repeat"));
    }
    Ok((lengths, literals))
}

/// Source: RFC 1951 section 3.2.6.
fn fixed_lengths() -> [u8; 288] {
    let mut lengths = [8; 288];
    lengths[144..256].fill(9);
    lengths[256..280].fill(7);
    lengths
}

/// A canonical Huffman code; `SHORT` is the size of the table for its short codes, a power of two.
struct Code<const SHORT: usize> {
    /// By the next bits: the symbol, and in the low four bits its code's length; 0 for a longer code or none.
    short: [u16; SHORT],
    /// How many codes each length has.
    counts: [u16; CODE_BITS_MAX + 1],
    /// In the order of their codes.
    symbols: [u16; 288],
}

impl<const SHORT: usize> Code<SHORT> {
    const SHORT_BITS: usize = SHORT.trailing_zeros() as usize;

    fn new() -> Self {
        Self { short: [0; SHORT], counts: [0; CODE_BITS_MAX + 1], symbols: [0; 288] }
    }

    /// Makes the code with these lengths, one a symbol. `lengths.len() <= 288`, each `<= 15`
    fn set(&mut self, lengths: &[u8]) -> Result<(), Halt> {
        self.counts = [0; CODE_BITS_MAX + 1];
        lengths.iter().for_each(|length| self.counts[usize::from(*length)] += 1);
        self.counts[0] = 0;
        // The first code and the first place in `symbols` of each length.
        let (mut codes, mut places) = ([0_u32; CODE_BITS_MAX + 2], [0_usize; CODE_BITS_MAX + 2]);
        for length in 1..=CODE_BITS_MAX {
            let count = self.counts[length];
            if codes[length] + u32::from(count) > 1 << length {
                return Err(Halt::Wrong("over-subscribed code lengths"));
            }
            codes[length + 1] = (codes[length] + u32::from(count)) << 1;
            places[length + 1] = places[length] + usize::from(count);
        }
        self.short = [0; SHORT];
        for (symbol, length) in lengths.iter().enumerate().filter(|(_, length)| **length > 0) {
            let length = usize::from(*length);
            self.symbols[places[length]] = symbol as u16;
            places[length] += 1;
            if length <= Self::SHORT_BITS {
                let reversed = (codes[length] as u16).reverse_bits() >> (16 - length);
                let entry = (symbol as u16) << 4 | length as u16;
                self.short.iter_mut().skip(usize::from(reversed)).step_by(1 << length).for_each(|place| *place = entry);
            }
            codes[length] += 1;
        }
        Ok(())
    }

    /// The literals at the front of `word`, whose first `left` bits are input. At least a literal or what comes after none.
    fn literals(&self, word: &mut Word, left: usize) -> Result<Run, Halt> {
        let mut literals = 0;
        while word.used + CODE_BITS_MAX <= PEEK_BITS {
            let decoded = self.decode(word.bits >> word.used);
            match decoded {
                Ok((symbol, len)) if word.used + len <= left => {
                    if symbol >= END_OF_BLOCK {
                        return Ok(Run { literals, next: Some((symbol, len)) });
                    }
                    (literals, word.used) = (literals + 1, word.used + len);
                }
                // The run before it stands for itself.
                _ if literals > 0 => break,
                Ok(_) => return Err(Halt::Short),
                Err(halt) => return Err(halt),
            }
        }
        Ok(Run { literals, next: None })
    }

    /// The symbol at the front of `word`, and the length of its code.
    fn decode(&self, word: u64) -> Result<Symbol, Halt> {
        let entry = self.short[word as usize & (SHORT - 1)];
        if entry != 0 { Ok((entry >> 4, usize::from(entry & 15))) } else { self.decode_long(word) }
    }

    #[cold]
    fn decode_long(&self, word: u64) -> Result<Symbol, Halt> {
        let (mut code, mut first, mut place) = (0_u32, 0_u32, 0_usize);
        for length in 1..=CODE_BITS_MAX {
            code |= (word >> (length - 1)) as u32 & 1;
            let count = u32::from(self.counts[length]);
            if code < first + count {
                return Ok((self.symbols[place + (code - first) as usize], length));
            }
            place += count as usize;
            first = (first + count) << 1;
            code <<= 1;
        }
        Err(Halt::Wrong("invalid code"))
    }
}
