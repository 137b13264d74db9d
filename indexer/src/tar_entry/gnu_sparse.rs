//! Sparse maps: which regions of a file have data, in the four ways GNU tar has written them.

use super::{DataExtent, Wrong, header::number, pax::decimal};

/// Regions of one file. Source: Go archive/tar `maxSparseFileEntries`; the maps themselves are bounded by `SPECIAL_BYTES_MAX`.
pub const REGIONS_MAX: usize = 1 << 20;

/// What [`SparseMap::from_data`] could read.
pub enum FromData {
    /// So many lines must be there, in all, before another call makes sense.
    NeedsLines(usize),
    /// The whole map.
    Done(SparseMap),
}

/// The regions of a file that have data; the rest are holes.
pub struct SparseMap {
    real_size: u64,
    /// Offset and length, in order, not overlapping, within `real_size`.
    regions: Vec<(u64, u64)>,
}

impl SparseMap {
    /// No regions yet, in a file of `real_size` bytes.
    #[must_use]
    pub fn new(real_size: u64) -> Self {
        Self { real_size, regions: Vec::new() }
    }

    /// Length of the file with its holes.
    #[must_use]
    pub fn real_size(&self) -> u64 {
        self.real_size
    }

    /// Adds the pairs of an old GNU header (4) or extension block (21); true when another extension block follows.
    ///
    /// # Errors
    /// A field that is no number, a region out of order.
    pub fn push_old_gnu(&mut self, pairs: &[u8], extended: u8) -> Result<bool, Wrong> {
        for pair in pairs.chunks_exact(24) {
            if pair[0] == 0 {
                break;
            }
            self.push(number("sparse offset", &pair[..12])?, number("sparse length", &pair[12..])?)?;
        }
        Ok(extended != 0)
    }

    /// Adds pairs of decimal numbers.
    ///
    /// # Errors
    /// Text that is no number, a region out of order.
    pub fn push_text(&mut self, numbers: &[Vec<u8>]) -> Result<(), Wrong> {
        for pair in numbers.chunks_exact(2) {
            self.push(decimal("sparse offset", &pair[0])?, decimal("sparse length", &pair[1])?)?;
        }
        Ok(())
    }

    /// The map at the start of a PAX 1.0 member's data: the number of regions, then offsets and lengths, a line each.
    ///
    /// # Errors
    /// Lines that are no numbers, a region out of order.
    pub fn from_data(text: &[u8], real_size: u64) -> Result<FromData, Wrong> {
        let mut lines = text.split_inclusive(|byte| *byte == b'\n').filter_map(|line| line.strip_suffix(b"\n"));
        let Some(first) = lines.next() else { return Ok(FromData::NeedsLines(1)) };
        let count = decimal("number of sparse regions", first)?;
        let count = usize::try_from(count).ok().filter(|count| *count <= REGIONS_MAX);
        let count = count.ok_or_else(|| Wrong::new(format!("at most {REGIONS_MAX} sparse regions"), "more, or fewer than 0"))?;
        let mut map = Self::new(real_size);
        for _ in 0..count {
            let (Some(offset), Some(length)) = (lines.next(), lines.next()) else { return Ok(FromData::NeedsLines(1 + 2 * count)) };
            map.push(decimal("sparse offset", offset)?, decimal("sparse length", length)?)?;
        }
        Ok(FromData::Done(map))
    }

    fn push(&mut self, offset: i64, length: i64) -> Result<(), Wrong> {
        let from = self.regions.last().map_or(0, |(offset, length)| offset + length);
        let bad = || {
            let expected = format!("sparse regions in order within {from}..{}", self.real_size);
            Wrong::new(expected, format!("offset {offset}, length {length}"))
        };
        let (offset, length) = (u64::try_from(offset).map_err(|_| bad())?, u64::try_from(length).map_err(|_| bad())?);
        // Both are below 2^63: the sum cannot overflow.
        if offset < from || offset + length > self.real_size {
            return Err(bad());
        }
        if self.regions.len() >= REGIONS_MAX {
            return Err(Wrong::new(format!("at most {REGIONS_MAX} sparse regions"), "one more"));
        }
        self.regions.push((offset, length));
        Ok(())
    }

    /// Where each region's bytes are, when `physical` bytes of packed data begin at stream offset `data`. Neighbours are joined.
    ///
    /// # Errors
    /// A map that describes more or less data than there is.
    pub fn extents(&self, data: u64, physical: u64) -> Result<Vec<DataExtent>, Wrong> {
        let described: u64 = self.regions.iter().map(|(_, length)| length).sum();
        if described != physical {
            return Err(Wrong::new(format!("{described} bytes of data, as the sparse map says"), physical.to_string()));
        }
        let mut extents: Vec<DataExtent> = Vec::new();
        let mut stream = data;
        for (file_offset, len) in self.regions.iter().copied().filter(|(_, len)| *len > 0) {
            match extents.last_mut() {
                Some(last) if last.file_offset + last.len == file_offset => last.len += len,
                _ => extents.push(DataExtent { file_offset, len, stream }),
            }
            stream += len;
        }
        Ok(extents)
    }
}
