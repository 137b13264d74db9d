//! A tar writer that writes what it is told, sensible or not: the order, the names and the header forms are the test's.

use std::path::PathBuf;

const BLOCK: usize = 512;

/// How what does not fit a ustar header is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Headers {
    /// PAX records (type `x`).
    #[default]
    Pax,
    /// GNU: `L` and `K` members for long names, base-256 numbers; nanoseconds and xattrs are lost.
    Gnu,
}

/// One member, with setters that return it.
#[derive(Clone, Debug)]
pub struct Member {
    name: Vec<u8>,
    kind: u8,
    mode: u32,
    owner: (u64, u64),
    mtime: (i64, u32),
    link: Vec<u8>,
    device: (u32, u32),
    xattrs: Vec<(String, Vec<u8>)>,
    records: Vec<(String, Vec<u8>)>,
    data: Vec<u8>,
}

impl Member {
    fn new(kind: u8, name: impl AsRef<[u8]>, mode: u32) -> Self {
        Self {
            name: name.as_ref().to_vec(),
            kind,
            mode,
            owner: (0, 0),
            mtime: (1_700_000_000, 0),
            link: Vec::new(),
            device: (0, 0),
            xattrs: Vec::new(),
            records: Vec::new(),
            data: Vec::new(),
        }
    }

    /// A regular file, 0644.
    #[must_use]
    pub fn file(name: impl AsRef<[u8]>, data: impl Into<Vec<u8>>) -> Self {
        Self { data: data.into(), ..Self::new(b'0', name, 0o644) }
    }

    /// A directory, 0755. The name gets the slash that tars have.
    #[must_use]
    pub fn dir(name: impl AsRef<[u8]>) -> Self {
        let mut name = name.as_ref().to_vec();
        if name.last() != Some(&b'/') {
            name.push(b'/');
        }
        Self::new(b'5', name, 0o755)
    }

    /// A symbolic link.
    #[must_use]
    pub fn symlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self { link: target.as_ref().to_vec(), ..Self::new(b'2', name, 0o777) }
    }

    /// A hard link to another member's name.
    #[must_use]
    pub fn hard_link(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self { link: target.as_ref().to_vec(), ..Self::new(b'1', name, 0o644) }
    }

    /// A character device, 0666.
    #[must_use]
    pub fn char_device(name: impl AsRef<[u8]>, major: u32, minor: u32) -> Self {
        Self { device: (major, minor), ..Self::new(b'3', name, 0o666) }
    }

    /// A block device, 0660.
    #[must_use]
    pub fn block_device(name: impl AsRef<[u8]>, major: u32, minor: u32) -> Self {
        Self { device: (major, minor), ..Self::new(b'4', name, 0o660) }
    }

    /// A named pipe, 0644.
    #[must_use]
    pub fn fifo(name: impl AsRef<[u8]>) -> Self {
        Self::new(b'6', name, 0o644)
    }

    /// The marker that removes `dir/name` of lower layers.
    #[must_use]
    pub fn whiteout(dir: &str, name: &str) -> Self {
        Self::file(join(dir, &format!(".wh.{name}")), Vec::new())
    }

    /// The marker that empties `dir` of what lower layers have in it; `""` for the root.
    #[must_use]
    pub fn opaque(dir: &str) -> Self {
        Self::file(join(dir, ".wh..wh..opq"), Vec::new())
    }

    /// Permission, suid, sgid and sticky bits.
    #[must_use]
    pub fn mode(self, mode: u32) -> Self {
        Self { mode, ..self }
    }

    /// User and group ids.
    #[must_use]
    pub fn owner(self, uid: u64, gid: u64) -> Self {
        Self { owner: (uid, gid), ..self }
    }

    /// Seconds since 1970 and nanoseconds.
    #[must_use]
    pub fn mtime(self, seconds: i64, nanoseconds: u32) -> Self {
        Self { mtime: (seconds, nanoseconds), ..self }
    }

    /// One more extended attribute.
    #[must_use]
    pub fn xattr(mut self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.xattrs.push((name.to_owned(), value.into()));
        self
    }

    /// One more PAX record, written as it is.
    #[must_use]
    pub fn record(mut self, key: &str, value: impl Into<Vec<u8>>) -> Self {
        self.records.push((key.to_owned(), value.into()));
        self
    }

    /// Where the member stands below the root, for the oracle's list of named paths.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        crate::oracle::below_root(&self.name)
    }

    /// What it holds.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// The type flag of its header.
    #[must_use]
    pub fn kind(&self) -> u8 {
        self.kind
    }

    /// True for whiteouts of any kind.
    #[must_use]
    pub fn is_marker(&self) -> bool {
        self.path().file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".wh."))
    }
}

fn join(dir: &str, name: &str) -> String {
    if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") }
}

/// A layer stream being written.
#[derive(Default)]
pub struct TarWriter {
    bytes: Vec<u8>,
}

impl TarWriter {
    /// The stream of `members`, in their order, with its end marker.
    #[must_use]
    pub fn stream<'a>(members: impl IntoIterator<Item = &'a Member>, headers: Headers) -> Vec<u8> {
        let mut writer = Self::default();
        for member in members {
            writer.member(member, headers);
        }
        writer.finish()
    }

    /// Appends one member.
    pub fn member(&mut self, member: &Member, headers: Headers) {
        match headers {
            Headers::Pax => self.pax_extension(member),
            Headers::Gnu => self.gnu_extension(member),
        }
        let size = member.data.len() as u64;
        self.bytes.extend_from_slice(&header_block(member, size, headers));
        self.data(&member.data);
    }

    /// Appends raw bytes: a header made elsewhere, or damage.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The stream with the two zero blocks that end it.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 2 * BLOCK, 0);
        self.bytes
    }

    fn data(&mut self, data: &[u8]) {
        self.bytes.extend_from_slice(data);
        self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK), 0);
    }

    fn pax_extension(&mut self, member: &Member) {
        let mut records = Vec::new();
        let mut add = |key: &str, value: &[u8]| records.extend_from_slice(&pax_record(key, value));
        if member.name.len() > 100 || !member.name.is_ascii() {
            add("path", &member.name);
        }
        if member.link.len() > 100 || !member.link.is_ascii() {
            add("linkpath", &member.link);
        }
        if member.mtime.1 != 0 || member.mtime.0 < 0 {
            add("mtime", pax_time(member.mtime).as_bytes());
        }
        for (key, id) in [("uid", member.owner.0), ("gid", member.owner.1)] {
            if id > 0o7_777_777 {
                add(key, id.to_string().as_bytes());
            }
        }
        for (name, value) in &member.xattrs {
            add(&format!("SCHILY.xattr.{name}"), value);
        }
        for (key, value) in &member.records {
            add(key, value);
        }
        if !records.is_empty() {
            let extension = Member { data: Vec::new(), ..Member::new(b'x', "PaxHeaders/0", 0o644) };
            self.bytes.extend_from_slice(&header_block(&extension, records.len() as u64, Headers::Pax));
            self.data(&records);
        }
    }

    fn gnu_extension(&mut self, member: &Member) {
        for (kind, text) in [(b'L', &member.name), (b'K', &member.link)] {
            if text.len() > 100 {
                let mut data = text.clone();
                data.push(0);
                let extension = Member::new(kind, "././@LongLink", 0o644);
                self.bytes.extend_from_slice(&header_block(&extension, data.len() as u64, Headers::Gnu));
                self.data(&data);
            }
        }
    }
}

/// `LEN KEY=VALUE\n`, where LEN counts itself.
fn pax_record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while rest + len.to_string().len() != len {
        len = rest + len.to_string().len();
    }
    let mut record = format!("{len} {key}=").into_bytes();
    record.extend_from_slice(value);
    record.push(b'\n');
    record
}

/// Decimal seconds; -1.5 s is second -2 and 500,000,000 ns.
fn pax_time((seconds, nanoseconds): (i64, u32)) -> String {
    match (seconds, nanoseconds) {
        (_, 0) => seconds.to_string(),
        (0.., _) => format!("{seconds}.{nanoseconds:09}"),
        (_, _) => format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanoseconds),
    }
}

fn header_block(member: &Member, size: u64, headers: Headers) -> [u8; BLOCK] {
    let mut block = [0u8; BLOCK];
    put(&mut block[0..100], &member.name);
    number(&mut block[100..108], i128::from(member.mode), headers);
    number(&mut block[108..116], i128::from(member.owner.0), headers);
    number(&mut block[116..124], i128::from(member.owner.1), headers);
    number(&mut block[124..136], i128::from(size), headers);
    number(&mut block[136..148], i128::from(member.mtime.0), headers);
    block[156] = member.kind;
    put(&mut block[157..257], &member.link);
    block[257..265].copy_from_slice(match headers {
        Headers::Pax => b"ustar\x0000",
        Headers::Gnu => b"ustar  \0",
    });
    if matches!(member.kind, b'3' | b'4') {
        number(&mut block[329..337], i128::from(member.device.0), headers);
        number(&mut block[337..345], i128::from(member.device.1), headers);
    }
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// As much of `text` as fits; the rest is in an extension.
fn put(field: &mut [u8], text: &[u8]) {
    let len = text.len().min(field.len());
    field[..len].copy_from_slice(&text[..len]);
}

/// Octal where it fits; else base-256 (GNU), or what fits of it (PAX: the record says the rest).
fn number(field: &mut [u8], value: i128, headers: Headers) {
    let digits = field.len() - 1;
    let fits = value >= 0 && value < 1i128 << (3 * digits);
    match headers {
        _ if fits => field[..digits].copy_from_slice(format!("{value:0digits$o}").as_bytes()),
        Headers::Pax => field[..digits].fill(b'0'),
        Headers::Gnu => {
            let bytes = value.to_be_bytes();
            let start = bytes.len() - field.len();
            field.copy_from_slice(&bytes[start..]);
            field[0] |= 0x80;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lengths of PAX records count their own digits, also where a digit more makes the length a digit longer.
    #[test]
    fn pax_records_count_themselves() {
        for len in 0..1200 {
            let record = pax_record("path", &vec![b'x'; len]);
            let text = String::from_utf8_lossy(&record).into_owned();
            let (count, _) = text.split_once(' ').expect("a space");
            assert_eq!(count.parse::<usize>().ok(), Some(record.len()));
        }
    }

    /// Times before 1970 round towards the past, as PAX wants them.
    #[test]
    fn negative_times_are_written_as_decimals() {
        assert_eq!(pax_time((-2, 500_000_000)), "-1.500000000");
        assert_eq!(pax_time((-1, 999_999_999)), "-0.000000001");
        assert_eq!(pax_time((-5, 0)), "-5");
        assert_eq!(pax_time((7, 5)), "7.000000005");
    }
}
