//! Deflate streams that no compressor writes.

use flate2::Crc;

/// Bits, lowest first, as RFC 1951 packs them.
#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    held: u64,
    count: u32,
}

impl Bits {
    fn push(&mut self, value: u32, count: u32) {
        self.held |= u64::from(value) << self.count;
        self.count += count;
        while self.count >= 8 {
            self.bytes.push((self.held & 0xff) as u8);
            self.held >>= 8;
            self.count -= 8;
        }
    }

    /// A Huffman code: its highest bit comes first.
    fn code(&mut self, code: u32, count: u32) {
        self.push(code.reverse_bits() >> (32 - count), count);
    }

    /// A literal byte in the fixed code (RFC 1951, 3.2.6).
    fn literal(&mut self, byte: u8) {
        match byte {
            0..=143 => self.code(0x30 + u32::from(byte), 8),
            144..=255 => self.code(0x190 + u32::from(byte) - 144, 9),
        }
    }

    fn finish(mut self) -> Vec<u8> {
        if self.count > 0 {
            self.push(0, 8 - self.count);
        }
        self.bytes
    }
}

/// A gzip member that holds `head`, then `zeros` zero bytes, all in one deflate block of the fixed code: no checkpoint can stand inside it.
#[must_use]
pub fn one_block_gzip(head: &[u8], zeros: u64) -> Vec<u8> {
    let mut bits = Bits::default();
    bits.push(0b011, 3); // the last block, fixed code
    head.iter().for_each(|byte| bits.literal(*byte));
    // Literal zeros up to a multiple of 258, at least one, since a match needs history.
    let literals = if zeros.is_multiple_of(258) { zeros.min(258) } else { zeros % 258 };
    (0..literals).for_each(|_| bits.literal(0));
    for _ in 0..(zeros - literals) / 258 {
        bits.code(0b1100_0101, 8); // length 258
        bits.code(0, 5); // distance 1
    }
    bits.code(0, 7); // end of block
    let mut gzip = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    gzip.extend_from_slice(&bits.finish());
    gzip.extend_from_slice(&trailer(head, zeros));
    gzip
}

fn trailer(head: &[u8], zeros: u64) -> [u8; 8] {
    let mut crc = Crc::new();
    crc.update(head);
    let chunk = vec![0; 1 << 20];
    let mut left = zeros;
    while left > 0 {
        let len = left.min(chunk.len() as u64);
        crc.update(&chunk[..len as usize]);
        left -= len;
    }
    let mut trailer = [0; 8];
    trailer[..4].copy_from_slice(&crc.sum().to_le_bytes());
    trailer[4..].copy_from_slice(&crc.amount().to_le_bytes());
    trailer
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Read;

    use super::*;

    /// What is written by hand is a gzip file to others.
    #[test]
    fn other_decoders_read_it() {
        let head: Vec<u8> = (0..=255).collect();
        for zeros in [1, 258, 258_000, 300_001] {
            let gzip = one_block_gzip(&head, zeros);
            let mut decoded = Vec::new();
            flate2::read::GzDecoder::new(&gzip[..]).read_to_end(&mut decoded).unwrap();
            assert_eq!(decoded.len() as u64, 256 + zeros);
            assert_eq!(&decoded[..256], &head[..]);
            assert!(decoded[256..].iter().all(|byte| *byte == 0));
        }
    }
}
