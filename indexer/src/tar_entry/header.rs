//! One 512-byte header block: v7, ustar, star or GNU.

use super::{DEVICE_MAJOR_MAX, DEVICE_MINOR_MAX, DataExtent, Entry, EntryKind, PATH_BYTES_MAX, Wrong};

/// Length of a block. Source: POSIX.1-2017 pax, ustar interchange format.
pub const BLOCK_BYTES: usize = 512;

/// A block.
pub type Block = [u8; BLOCK_BYTES];

/// What a header introduces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TypeFlag {
    /// `0`, `7` (contiguous), or NUL without a trailing slash.
    Regular,
    /// NUL: a directory when the final name ends in a slash, else a file.
    Old,
    /// `1`
    HardLink,
    /// `2`
    Symlink,
    /// `3`
    CharDevice,
    /// `4`
    BlockDevice,
    /// `5`
    Directory,
    /// `6`
    Fifo,
    /// `x`
    Pax,
    /// `g`
    GlobalPax,
    /// `L`
    LongName,
    /// `K`
    LongLink,
    /// `S`
    OldSparse,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Dialect {
    V7,
    Ustar,
    Star,
    Gnu,
}

/// A header block in numbers and names, and what extended headers make of it.
#[derive(Clone, Debug)]
pub struct Header {
    /// What it introduces.
    pub type_flag: TypeFlag,
    /// Prefix and name joined.
    pub path: Vec<u8>,
    /// Target of a link.
    pub link: Vec<u8>,
    /// Bytes of data in the archive; may be negative in hostile ones.
    pub size: i64,
    /// All mode bits.
    pub mode: i64,
    /// Owner.
    pub uid: i64,
    /// Group.
    pub gid: i64,
    /// Whole seconds.
    pub mtime_s: i64,
    /// `< 1_000_000_000`
    pub mtime_ns: u32,
    /// Of a device.
    pub device: (i64, i64),
    /// Length of an old GNU sparse file with its holes.
    pub real_size: Result<u64, Wrong>,
}

impl Header {
    /// The meaning of `block`.
    ///
    /// # Errors
    /// A wrong checksum, a field that is no number, an unknown type.
    pub fn parse(block: &Block) -> Result<Self, Wrong> {
        check_sum(block)?;
        let dialect = dialect(block);
        let name = text(&block[..100]).to_vec();
        let type_flag = type_flag(block[156], &name)?;
        if type_flag == TypeFlag::OldSparse && dialect != Dialect::Gnu {
            return Err(Wrong::new("a GNU header for a sparse file of type S", "another tar format"));
        }
        let device = match dialect {
            Dialect::V7 => (0, 0),
            _ => (number("device major", &block[329..337])?, number("device minor", &block[337..345])?),
        };
        Ok(Self {
            type_flag,
            path: join(prefix(block, dialect), name),
            link: text(&block[157..257]).to_vec(),
            mode: number("mode", &block[100..108])?,
            uid: number("uid", &block[108..116])?,
            gid: number("gid", &block[116..124])?,
            size: number("size", &block[124..136])?,
            mtime_s: number("mtime", &block[136..148])?,
            mtime_ns: 0,
            device,
            real_size: number("sparse real size", &block[483..495])
                .and_then(|size| u64::try_from(size).map_err(|_| Wrong::new("a sparse real size of 0 or more", size.to_string()))),
        })
    }

    /// Bytes of data that follow in the archive: none for links, directories, devices and fifos, whatever the size field says.
    ///
    /// # Errors
    /// A negative size.
    pub fn data_len(&self) -> Result<u64, Wrong> {
        match self.final_type() {
            TypeFlag::HardLink
            | TypeFlag::Symlink
            | TypeFlag::CharDevice
            | TypeFlag::BlockDevice
            | TypeFlag::Directory
            | TypeFlag::Fifo => Ok(0),
            _ => u64::try_from(self.size).map_err(|_| Wrong::new("a size of 0 or more", self.size.to_string())),
        }
    }

    /// The member that this header, completed by extended ones, stands for; its data begins at stream offset `data`.
    ///
    /// # Errors
    /// A value that no Linux inode can have.
    pub fn to_entry(&self, offset: u64, data: u64, xattrs: Vec<(Vec<u8>, Vec<u8>)>) -> Result<Entry, Wrong> {
        if self.path.len() > PATH_BYTES_MAX {
            return Err(Wrong::new(format!("a path of at most {PATH_BYTES_MAX} bytes"), self.path.len().to_string()));
        }
        Ok(Entry {
            offset,
            path: self.path.clone(),
            permissions: (self.mode & 0o7777) as u16,
            uid: id("uid", self.uid)?,
            gid: id("gid", self.gid)?,
            mtime_s: self.mtime_s,
            mtime_ns: self.mtime_ns,
            xattrs,
            kind: self.kind(data)?,
        })
    }

    fn final_type(&self) -> TypeFlag {
        match self.type_flag {
            TypeFlag::Old if self.path.ends_with(b"/") => TypeFlag::Directory,
            TypeFlag::Old => TypeFlag::Regular,
            other => other,
        }
    }

    fn kind(&self, data: u64) -> Result<EntryKind, Wrong> {
        Ok(match self.final_type() {
            TypeFlag::HardLink => EntryKind::HardLink(self.link_target()?),
            TypeFlag::Symlink => EntryKind::Symlink(self.link_target()?),
            TypeFlag::CharDevice => EntryKind::CharDevice(self.major()?, self.minor()?),
            TypeFlag::BlockDevice => EntryKind::BlockDevice(self.major()?, self.minor()?),
            TypeFlag::Directory => EntryKind::Directory,
            TypeFlag::Fifo => EntryKind::Fifo,
            _ => {
                let size = self.data_len()?;
                let extent = (size > 0).then_some(DataExtent { file_offset: 0, len: size, stream: data });
                EntryKind::Regular { size, data: extent.into_iter().collect() }
            }
        })
    }

    fn link_target(&self) -> Result<Vec<u8>, Wrong> {
        match self.link.len() {
            0 => Err(Wrong::new("a link target", "an empty one")),
            len if len > PATH_BYTES_MAX => Err(Wrong::new(format!("a link target of at most {PATH_BYTES_MAX} bytes"), len.to_string())),
            _ => Ok(self.link.clone()),
        }
    }

    fn major(&self) -> Result<u32, Wrong> {
        bounded("device major", self.device.0, DEVICE_MAJOR_MAX)
    }

    fn minor(&self) -> Result<u32, Wrong> {
        bounded("device minor", self.device.1, DEVICE_MINOR_MAX)
    }
}

/// The bytes before the first NUL, or all.
#[must_use]
pub fn text(field: &[u8]) -> &[u8] {
    field.iter().position(|byte| *byte == 0).map_or(field, |end| &field[..end])
}

/// A number field: octal between spaces and NULs, or base-256 where the first bit is set.
///
/// # Errors
/// Anything else, and what does not fit 63 bits.
pub fn number(what: &str, field: &[u8]) -> Result<i64, Wrong> {
    let bad = || Wrong::new(format!("{what} in octal or base-256"), format!("{:?}", String::from_utf8_lossy(field)));
    match field.first() {
        Some(first) if first & 0x80 != 0 => base_256(field).ok_or_else(bad),
        _ => octal(field).ok_or_else(bad),
    }
}

fn octal(field: &[u8]) -> Option<i64> {
    let padding = |byte: &u8| *byte == b' ' || *byte == 0;
    let start = field.iter().position(|byte| !padding(byte));
    let Some(start) = start else { return Some(0) };
    let end = field.iter().rposition(|byte| !padding(byte))?;
    text(&field[start..=end]).iter().try_fold(0_i64, |sum, digit| match digit {
        b'0'..=b'7' => sum.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

/// Two's complement, big endian; the first bit only marks the encoding, the second is the sign. Source: GNU tar manual, Extensions.
fn base_256(field: &[u8]) -> Option<i64> {
    let negative = field.first()? & 0x40 != 0;
    let flip = if negative { 0xff } else { 0 };
    let mut sum = 0_u64;
    for (place, byte) in field.iter().enumerate() {
        let byte = (byte ^ flip) & if place == 0 { 0x7f } else { 0xff };
        if sum >> 56 != 0 {
            return None;
        }
        sum = sum << 8 | u64::from(byte);
    }
    let sum = i64::try_from(sum).ok()?;
    Some(if negative { !sum } else { sum })
}

/// The header's sum, by unsigned bytes as POSIX says or signed ones as old Sun tars did.
fn check_sum(block: &Block) -> Result<(), Wrong> {
    let stored = octal(&block[148..156]);
    let (mut unsigned, mut signed) = (0_i64, 0_i64);
    for (place, byte) in block.iter().enumerate() {
        let byte = if (148..156).contains(&place) { b' ' } else { *byte };
        unsigned += i64::from(byte);
        signed += i64::from(byte as i8);
    }
    if stored == Some(unsigned) || stored == Some(signed) {
        return Ok(());
    }
    let field = String::from_utf8_lossy(&block[148..156]).into_owned();
    Err(Wrong::new(format!("a tar header with checksum {unsigned:o}"), format!("checksum field {field:?}")))
}

fn dialect(block: &Block) -> Dialect {
    match (&block[257..263], &block[263..265]) {
        (b"ustar\0", _) if &block[508..512] == b"tar\0" => Dialect::Star,
        (b"ustar\0", _) => Dialect::Ustar,
        (b"ustar ", b" \0") => Dialect::Gnu,
        _ => Dialect::V7,
    }
}

/// Where the first part of a long name stands. GNU has none, but Go before 1.8 wrote one there: it is taken where the times that
/// stand in its place are no numbers (golang.org/issue/12594).
fn prefix(block: &Block, dialect: Dialect) -> &[u8] {
    match dialect {
        Dialect::V7 => &[],
        Dialect::Ustar => text(&block[345..500]),
        Dialect::Star => text(&block[345..476]),
        Dialect::Gnu => {
            let times = [&block[345..357], &block[357..369]];
            let prefix = text(&block[345..500]);
            let is_time = |field: &&[u8]| field[0] == 0 || number("time", field).is_ok();
            if times.iter().all(is_time) || !prefix.is_ascii() { &[] } else { prefix }
        }
    }
}

fn join(prefix: &[u8], name: Vec<u8>) -> Vec<u8> {
    if prefix.is_empty() { name } else { [prefix, b"/", &name].concat() }
}

fn type_flag(flag: u8, name: &[u8]) -> Result<TypeFlag, Wrong> {
    Ok(match flag {
        b'0' | b'7' => TypeFlag::Regular,
        0 => TypeFlag::Old,
        b'1' => TypeFlag::HardLink,
        b'2' => TypeFlag::Symlink,
        b'3' => TypeFlag::CharDevice,
        b'4' => TypeFlag::BlockDevice,
        b'5' => TypeFlag::Directory,
        b'6' => TypeFlag::Fifo,
        b'x' => TypeFlag::Pax,
        b'g' => TypeFlag::GlobalPax,
        b'L' => TypeFlag::LongName,
        b'K' => TypeFlag::LongLink,
        b'S' => TypeFlag::OldSparse,
        other => {
            let found = format!("tar member type {:?} ({:?})", other as char, String::from_utf8_lossy(name));
            return Err(Wrong { unsupported: true, ..Wrong::new("a file, link, directory, device or fifo", found) });
        }
    })
}

fn id(what: &str, value: i64) -> Result<u32, Wrong> {
    bounded(what, value, u32::MAX)
}

fn bounded(what: &str, value: i64, max: u32) -> Result<u32, Wrong> {
    u32::try_from(value).ok().filter(|value| *value <= max).ok_or_else(|| Wrong::new(format!("{what} from 0 to {max}"), value.to_string()))
}
