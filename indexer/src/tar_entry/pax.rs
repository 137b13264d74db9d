//! PAX records: `<length> <key>=<value>\n`, and what they say about the member after them.

use std::collections::BTreeMap;

use base64::Engine as _;

use super::{Wrong, header::Header};

/// Where a PAX sparse member's map is.
pub struct PaxSparse {
    /// The file's own name, where the header's is a made-up one.
    pub name: Option<Vec<u8>>,
    /// Length of the file with its holes.
    pub real_size: Option<u64>,
    /// Format 1.0: the map stands at the start of the data.
    pub in_data: bool,
    /// Formats 0.0 and 0.1: offsets and lengths, alternating.
    pub map: Vec<Vec<u8>>,
}

/// The records of one extended header; of a repeated key the last counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PaxRecords {
    records: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Format 0.0 repeats its keys: offsets and lengths, alternating.
    sparse_pairs: Vec<Vec<u8>>,
}

impl PaxRecords {
    /// The meaning of an extended header's data.
    ///
    /// # Errors
    /// A record that is none.
    pub fn parse(mut bytes: &[u8]) -> Result<Self, Wrong> {
        let mut parsed = Self::default();
        while !bytes.is_empty() {
            let (key, value, rest) = record(bytes).ok_or_else(|| {
                Wrong::new("a PAX record `length key=value`", format!("{:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(80)])))
            })?;
            bytes = rest;
            let pair_key: Option<&[u8]> = match parsed.sparse_pairs.len() % 2 {
                0 => Some(b"GNU.sparse.offset"),
                _ => Some(b"GNU.sparse.numbytes"),
            };
            match key {
                b"GNU.sparse.offset" | b"GNU.sparse.numbytes" if pair_key == Some(key) => parsed.sparse_pairs.push(value.to_vec()),
                b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                    return Err(Wrong::new("GNU.sparse.offset and GNU.sparse.numbytes by turns", String::from_utf8_lossy(key)));
                }
                _ => {
                    parsed.records.insert(key.to_vec(), value.to_vec());
                }
            }
        }
        Ok(parsed)
    }

    /// The keys, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &[u8]> {
        self.records.keys().map(Vec::as_slice)
    }

    /// The path that the records give, or nothing.
    #[must_use]
    pub fn path(&self) -> &[u8] {
        self.get("path").unwrap_or_default()
    }

    /// Replaces what the records say; an empty value leaves the header's.
    ///
    /// # Errors
    /// A number or time that is none.
    pub fn apply(&self, header: &mut Header) -> Result<(), Wrong> {
        if let Some(path) = self.get("path") {
            header.path = path.to_vec();
        }
        if let Some(link) = self.get("linkpath") {
            header.link = link.to_vec();
        }
        for (key, field) in [("size", &mut header.size), ("uid", &mut header.uid), ("gid", &mut header.gid)] {
            if let Some(value) = self.get(key) {
                *field = decimal(key, value)?;
            }
        }
        if let Some(value) = self.get("mtime") {
            (header.mtime_s, header.mtime_ns) = time(value).ok_or_else(|| wrong("mtime", "seconds with an optional fraction", value))?;
        }
        Ok(())
    }

    /// The extended attributes, sorted by name; one of an empty value says that there is none (POSIX.1-2017 pax, and so Go reads it).
    /// An attribute in both spellings is taken from `SCHILY.xattr`, whose value is not encoded.
    #[must_use]
    pub fn xattrs(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut found = BTreeMap::new();
        for (key, value) in self.prefixed(b"LIBARCHIVE.xattr.") {
            if let Some(value) = base64_bytes(value) {
                found.insert(url_decoded(key), value);
            }
        }
        for (key, value) in self.prefixed(b"SCHILY.xattr.") {
            found.insert(key.to_vec(), value.to_vec());
        }
        found.remove(&b""[..]);
        found.retain(|_, value: &mut Vec<u8>| !value.is_empty());
        found.into_iter().collect()
    }

    /// Where the sparse map is, or `None` for a file without holes (and for a format version that is not known, as in Go).
    ///
    /// # Errors
    /// A size or count that is none.
    pub fn sparse(&self) -> Result<Option<PaxSparse>, Wrong> {
        let version = (self.get("GNU.sparse.major"), self.get("GNU.sparse.minor"));
        let in_data = match version {
            (Some(b"0"), Some(b"0" | b"1")) => false,
            (Some(b"1"), Some(b"0")) => true,
            (None, None) if self.get("GNU.sparse.map").is_some() || !self.sparse_pairs.is_empty() => false,
            _ => return Ok(None),
        };
        let size = self.get("GNU.sparse.size").or_else(|| self.get("GNU.sparse.realsize"));
        let real_size = size.map(|size| decimal("GNU.sparse.size", size)).transpose()?;
        let real_size = real_size.map(|size| u64::try_from(size).map_err(|_| Wrong::new("a sparse size of 0 or more", size.to_string())));
        let map = if in_data { Vec::new() } else { self.map_in_records()? };
        Ok(Some(PaxSparse { name: self.get("GNU.sparse.name").map(<[u8]>::to_vec), real_size: real_size.transpose()?, in_data, map }))
    }

    fn map_in_records(&self) -> Result<Vec<Vec<u8>>, Wrong> {
        let map: Vec<Vec<u8>> = match self.get("GNU.sparse.map") {
            Some(map) => map.split(|byte| *byte == b',').map(<[u8]>::to_vec).collect(),
            None => self.sparse_pairs.clone(),
        };
        let count = self.get("GNU.sparse.numblocks").unwrap_or_default();
        let regions = decimal("GNU.sparse.numblocks", count)?;
        if usize::try_from(regions).ok().and_then(|regions| regions.checked_mul(2)) == Some(map.len()) {
            return Ok(map);
        }
        Err(Wrong::new(format!("{regions} regions in the sparse map"), format!("{} numbers", map.len())))
    }

    /// A record that is there and not empty.
    fn get(&self, key: &str) -> Option<&[u8]> {
        self.records.get(key.as_bytes()).map(Vec::as_slice).filter(|value| !value.is_empty())
    }

    fn prefixed<'a>(&'a self, prefix: &'a [u8]) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        let from = self.records.range(prefix.to_vec()..);
        from.map_while(move |(key, value)| key.strip_prefix(prefix).map(|name| (name, value.as_slice())))
    }
}

/// The first record's key and value, and what follows it.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|byte| *byte == b' ')?;
    let len: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
    if len <= space + 1 || len > bytes.len() {
        return None;
    }
    let body = bytes[space + 1..len].strip_suffix(b"\n")?;
    let equals = body.iter().position(|byte| *byte == b'=')?;
    let (key, value) = (&body[..equals], &body[equals + 1..]);
    let nul_free = match key {
        b"path" | b"linkpath" | b"uname" | b"gname" => value,
        _ => key,
    };
    (!key.is_empty() && !nul_free.contains(&0)).then_some((key, value, &bytes[len..]))
}

fn wrong(key: &str, expected: &str, value: &[u8]) -> Wrong {
    Wrong::new(format!("PAX {key}: {expected}"), format!("{:?}", String::from_utf8_lossy(&value[..value.len().min(80)])))
}

/// A decimal number, perhaps negative.
///
/// # Errors
/// Anything else.
pub fn decimal(key: &str, value: &[u8]) -> Result<i64, Wrong> {
    let parsed = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    parsed.ok_or_else(|| wrong(key, "a decimal number", value))
}

/// `-1.25` is (-2, 750_000_000); digits after the ninth are cut off.
fn time(value: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let digits = fraction.bytes().chain(std::iter::repeat(b'0')).take(9);
    let nanos = digits.fold(0_u32, |sum, digit| sum * 10 + u32::from(digit - b'0'));
    match (whole.starts_with('-'), nanos) {
        (true, 1..) => Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos)),
        _ => Some((seconds, nanos)),
    }
}

/// libarchive leaves the padding out.
fn base64_bytes(value: &[u8]) -> Option<Vec<u8>> {
    let end = value.iter().rposition(|byte| *byte != b'=').map_or(0, |last| last + 1);
    base64::engine::general_purpose::STANDARD_NO_PAD.decode(&value[..end]).ok()
}

fn url_decoded(name: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((first, after)) = rest.split_first() {
        let mut pair = [0_u8; 1];
        if *first == b'%' && after.len() >= 2 && hex::decode_to_slice(&after[..2], &mut pair).is_ok() {
            decoded.push(pair[0]);
            rest = &after[2..];
        } else {
            decoded.push(*first);
            rest = after;
        }
    }
    decoded
}
