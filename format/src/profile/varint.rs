//! Numbers of as few bytes as they need: LEB128, seven bits a byte, the lowest first, the top bit says that more follow.

use crate::{bounded::field, error::FormatError};

/// Bytes of the longest: 64 bits, seven at a time.
const BYTES_MAX: u32 = 10;

pub(super) fn push_varint(to: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        to.push(value as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

/// The sign in the lowest bit, so that small negative numbers are short too.
pub(super) fn push_signed(to: &mut Vec<u8>, value: i64) {
    push_varint(to, (value.cast_unsigned() << 1) ^ (value >> 63).cast_unsigned());
}

/// Numbers one behind the other.
pub(super) struct Varints<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Varints<'a> {
    /// `at` is not past the end of `bytes`.
    pub(super) fn new(bytes: &'a [u8], at: u64) -> Self {
        Self { bytes, at: usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len()) }
    }

    /// Where the next one stands.
    pub(super) fn at(&self) -> u64 {
        self.at as u64
    }

    /// The next number, which has one form only.
    pub(super) fn next(&mut self, what: &'static str) -> Result<u64, FormatError> {
        let start = self.at();
        let mut value = 0_u64;
        for number in 0..BYTES_MAX {
            let Some(&byte) = self.bytes.get(self.at) else {
                return Err(FormatError::Truncated { what, offset: start, expected: u64::from(number) + 1, found: u64::from(number) });
            };
            self.at += 1;
            let bits = u64::from(byte & 0x7f);
            let shifted = bits << (7 * number);
            if shifted >> (7 * number) != bits {
                break;
            }
            value |= shifted;
            if byte & 0x80 == 0 {
                if byte == 0 && number > 0 {
                    break;
                }
                return Ok(value);
            }
        }
        Err(field(what, start, "a 64-bit number in its shortest form", "another"))
    }

    pub(super) fn next_signed(&mut self, what: &'static str) -> Result<i64, FormatError> {
        let value = self.next(what)?;
        Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
    }

    /// Nothing is left.
    pub(super) fn finish(self, what: &'static str) -> Result<(), FormatError> {
        if self.at == self.bytes.len() {
            return Ok(());
        }
        Err(field(what, self.at(), "the end of the body", format!("{} bytes more", self.bytes.len() - self.at)))
    }
}
