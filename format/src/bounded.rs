//! Reading fixed records out of bytes that nobody vouches for: inside, or an error with where, expected and found.

use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::error::FormatError;

/// `len` bytes at `offset`.
pub(crate) fn slice_at<'a>(bytes: &'a [u8], what: &'static str, offset: u64, len: u64) -> Result<&'a [u8], FormatError> {
    let total = bytes.len() as u64;
    let found = total.saturating_sub(offset);
    if offset > total || len > found {
        return Err(FormatError::Truncated { what, offset, expected: len, found });
    }
    Ok(&bytes[offset as usize..][..len as usize])
}

/// The record of type `T` at `offset`.
pub(crate) fn record_at<'a, T>(bytes: &'a [u8], what: &'static str, offset: u64) -> Result<&'a T, FormatError>
where
    T: FromBytes + KnownLayout + Immutable + Unaligned,
{
    let slice = slice_at(bytes, what, offset, size_of::<T>() as u64)?;
    T::ref_from_bytes(slice).map_err(|_| FormatError::Truncated {
        what,
        offset,
        expected: size_of::<T>() as u64,
        found: slice.len() as u64,
    })
}

/// A field whose value cannot be.
pub(crate) fn field(what: &'static str, offset: u64, expected: impl ToString, found: impl ToString) -> FormatError {
    FormatError::Field { what, offset, expected: expected.to_string(), found: found.to_string() }
}

/// `Ok` when the field holds exactly `expected`.
pub(crate) fn expect_eq<T: PartialEq + ToString>(what: &'static str, offset: u64, expected: T, found: T) -> Result<(), FormatError> {
    if expected == found { Ok(()) } else { Err(field(what, offset, expected, found)) }
}
