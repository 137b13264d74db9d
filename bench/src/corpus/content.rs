//! File contents that compress as the contents of images do, each a pure function of a seed.

/// What a file is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Words of a fixed vocabulary, the common ones most often: sources, documentation, JSON.
    Text,
    /// Instructions that differ in their operands, tables of near numbers, strings and padding: shared libraries.
    Library,
    /// Random bytes: what is compressed already.
    Incompressible,
}

/// splitmix64. Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014.
#[derive(Clone, Debug)]
pub struct Draws(u64);

impl Draws {
    /// A sequence of its own for each seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which is over 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.draw() % end
    }
}

/// Words of the vocabulary.
const WORDS: usize = 4096;
/// Instruction shapes.
const SHAPES: usize = 2048;
/// Bytes of one piece of one kind inside a mixed file, at most.
const PIECE_BYTES_MAX: u64 = 512 << 10;

/// Writes contents; holds the vocabulary, which is made once a corpus.
pub struct Writer {
    words: Vec<Vec<u8>>,
    shapes: Vec<Vec<u8>>,
}

impl Writer {
    /// With the vocabulary of `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut draws = Draws::new(seed);
        let mut word = |_| (0..2 + draws.below(9)).map(|_| b"etaoinshrdlucmfwypvbgkqjxz_("[draws.below(28) as usize]).collect();
        let words = (0..WORDS).map(&mut word).collect();
        let mut draws = Draws::new(seed ^ 1);
        let mut shape = |_| (0..3 + draws.below(9)).map(|_| draws.draw() as u8).collect();
        Self { words, shapes: (0..SHAPES).map(&mut shape).collect() }
    }

    /// `len` bytes of one kind, appended.
    pub fn append(&self, out: &mut Vec<u8>, kind: Kind, len: usize, draws: &mut Draws) {
        let end = out.len() + len;
        out.reserve(len + 64);
        while out.len() < end {
            match kind {
                Kind::Text => self.line(out, draws),
                Kind::Library => self.section(out, draws),
                Kind::Incompressible => out.extend_from_slice(&draws.draw().to_le_bytes()),
            }
        }
        out.truncate(end);
    }

    /// `len` bytes of pieces of all kinds: 9 of 20 library, 7 text, 4 incompressible.
    pub fn append_mixed(&self, out: &mut Vec<u8>, len: usize, draws: &mut Draws) {
        let end = out.len() + len;
        while out.len() < end {
            let kind = match draws.below(20) {
                0..9 => Kind::Library,
                9..16 => Kind::Text,
                _ => Kind::Incompressible,
            };
            let piece = (32 << 10) + draws.below(PIECE_BYTES_MAX - (32 << 10));
            self.append(out, kind, (piece as usize).min(end - out.len()), draws);
        }
    }

    fn line(&self, out: &mut Vec<u8>, draws: &mut Draws) {
        for _ in 0..draws.below(4) {
            out.extend_from_slice(b"    ");
        }
        for _ in 0..3 + draws.below(10) {
            self.word(out, draws);
            out.push(b' ');
        }
        if draws.below(6) == 0 {
            out.extend_from_slice(draws.below(1 << 20).to_string().as_bytes());
        }
        out.push(b'\n');
    }

    /// The cube of an even draw makes the first words the common ones.
    fn word(&self, out: &mut Vec<u8>, draws: &mut Draws) {
        let even = draws.below(1 << 20) as f64 / f64::from(1 << 20);
        out.extend_from_slice(&self.words[(even * even * even * WORDS as f64) as usize]);
    }

    fn section(&self, out: &mut Vec<u8>, draws: &mut Draws) {
        match draws.below(16) {
            0 => out.extend(std::iter::repeat_n(0, draws.below(256) as usize)),
            1 => {
                let base = 0x7f00_0000_0000 + draws.below(1 << 32);
                for _ in 0..draws.below(32) {
                    out.extend_from_slice(&(base + draws.below(1 << 12) * 8).to_le_bytes());
                }
            }
            2 => {
                for _ in 0..draws.below(16) {
                    self.word(out, draws);
                    out.push(0);
                }
            }
            _ => self.instructions(out, draws),
        }
    }

    fn instructions(&self, out: &mut Vec<u8>, draws: &mut Draws) {
        for _ in 0..16 {
            let draw = draws.draw();
            let even = (draw & 0xffff) as f64 / 65_536.0;
            out.extend_from_slice(&self.shapes[(even * even * SHAPES as f64) as usize]);
            let operand = (draw >> 16).to_le_bytes();
            out.extend_from_slice(&operand[..(draw >> 62) as usize]);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write as _;

    use super::*;

    fn share_after_gzip(kind: Kind) -> f64 {
        let mut bytes = Vec::new();
        Writer::new(1).append(&mut bytes, kind, 1 << 20, &mut Draws::new(2));
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
        gzip.write_all(&bytes).unwrap();
        gzip.finish().unwrap().len() as f64 / bytes.len() as f64
    }

    /// Claim: text and libraries compress as real ones do (a Debian base gives 0.3 to 0.5), random bytes not at all.
    #[test]
    fn kinds_compress_as_their_names_say() {
        let shares = [Kind::Text, Kind::Library, Kind::Incompressible].map(share_after_gzip);
        assert!((0.25..0.5).contains(&shares[0]), "text {}", shares[0]);
        assert!((0.3..0.65).contains(&shares[1]), "library {}", shares[1]);
        assert!(shares[2] > 0.99, "incompressible {}", shares[2]);
    }

    /// Claim: the same seed gives the same bytes, another seed others, and exactly as many as asked for.
    #[test]
    fn contents_are_functions_of_the_seed() {
        let mixed = |seed| {
            let mut bytes = Vec::new();
            Writer::new(seed).append_mixed(&mut bytes, 300_000, &mut Draws::new(seed));
            bytes
        };
        assert_eq!(mixed(1).len(), 300_000);
        assert!(mixed(1) == mixed(1) && mixed(1) != mixed(2));
    }
}
