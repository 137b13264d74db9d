//! eStargz layers as stargz-snapshotter's specification lays them out (docs/estargz.md): gzip members at the payload of each file and of
//! each chunk, at the table of contents and at the footer, which is an empty member of 51 bytes that says where the table is.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{
    layout::{Compression, compress},
    tar_writer::{Headers, Member, TarWriter},
};

/// The table of contents.
pub const TOC: &str = "stargz.index.json";
/// Stands behind the prioritised files.
pub const LANDMARK: &str = ".prefetch.landmark";
/// Says that there are none.
pub const NO_LANDMARK: &str = ".no.prefetch.landmark";

/// A blob, and what it expands to.
pub struct Estargz {
    /// As it is served.
    pub blob: Vec<u8>,
    /// The layer stream.
    pub stream: Vec<u8>,
    /// Where each gzip member stands in both: (blob, stream).
    pub members: Vec<(u64, u64)>,
}

/// The landmark file `name`: one byte, 0xf.
#[must_use]
pub fn landmark(name: &str) -> Member {
    Member::file(name, [0xf])
}

/// The layer of `members`, in their order, with files cut into chunks of `chunk_bytes`.
///
/// # Panics
/// When zlib-rs fails.
#[must_use]
pub fn estargz(members: &[Member], chunk_bytes: usize) -> Estargz {
    let mut writer = Writer::default();
    let mut entries = Vec::new();
    for member in members {
        let bytes = tar_bytes(member);
        let head = bytes.len() - member.data().len().next_multiple_of(512);
        writer.open.extend_from_slice(&bytes[..head]);
        let mut entry = entry(member);
        let (mut at, mut rest) = (0, member.data());
        while !rest.is_empty() {
            writer.close();
            let (chunk, more) = rest.split_at(rest.len().min(chunk_bytes));
            entry["offset"] = json!(writer.blob.len());
            entry["chunkOffset"] = json!(at);
            entry["chunkSize"] = json!(if more.is_empty() { 0 } else { chunk.len() });
            entry["chunkDigest"] = json!(digest(chunk));
            entries.push(std::mem::replace(&mut entry, json!({"name": member.path(), "type": "chunk"})));
            writer.open.extend_from_slice(chunk);
            (at, rest) = (at + chunk.len(), more);
        }
        if member.data().is_empty() {
            entries.push(entry);
        }
        // The payload's padding stays in its last chunk's member, and so does the next header.
        writer.open.extend_from_slice(&bytes[head + member.data().len()..]);
    }
    writer.close();
    let toc_offset = writer.blob.len();
    let toc = json!({"version": 1, "entries": entries}).to_string();
    writer.open.extend(TarWriter::stream(&[Member::file(TOC, toc)], Headers::Pax));
    writer.close();
    writer.members.push((writer.blob.len() as u64, writer.stream.len() as u64));
    writer.blob.extend_from_slice(&footer(toc_offset));
    Estargz { blob: writer.blob, stream: writer.stream, members: writer.members }
}

#[derive(Default)]
struct Writer {
    blob: Vec<u8>,
    stream: Vec<u8>,
    members: Vec<(u64, u64)>,
    /// What the gzip member under way holds.
    open: Vec<u8>,
}

impl Writer {
    fn close(&mut self) {
        if self.open.is_empty() {
            return;
        }
        self.members.push((self.blob.len() as u64, self.stream.len() as u64));
        self.blob.extend(compress(&self.open, &Compression::ZlibRs(9)).expect("zlib-rs compresses what is in memory"));
        self.stream.append(&mut self.open);
    }
}

/// Headers, data and padding of one member.
fn tar_bytes(member: &Member) -> Vec<u8> {
    let mut stream = TarWriter::stream([member], Headers::Pax);
    stream.truncate(stream.len() - 1024);
    stream
}

fn entry(member: &Member) -> Value {
    let kind = match member.kind() {
        b'1' => "hardlink",
        b'2' => "symlink",
        b'3' => "char",
        b'4' => "block",
        b'5' => "dir",
        b'6' => "fifo",
        _ => "reg",
    };
    json!({"name": member.path(), "type": kind, "size": member.data().len(), "digest": digest(member.data()), "NumLink": 0})
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// A gzip member of no bytes with an extra field; a stored block.
fn footer(toc_offset: usize) -> Vec<u8> {
    let mut footer = vec![0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255, 26, 0, b'S', b'G', 22, 0];
    footer.extend_from_slice(format!("{toc_offset:016x}STARGZ").as_bytes());
    footer.extend_from_slice(&[1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
    footer
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Read;

    use super::*;

    /// Source: stargz-snapshotter docs/estargz.md, "Footer".
    const FOOTER_BYTES: usize = 51;

    /// Claim: the blob is a gzip file of the stream to others, and its footer has the length and the offset that the specification wants.
    #[test]
    fn other_decoders_read_it() {
        let members = [Member::dir("d"), Member::file("d/f", vec![7; 5000]), Member::file("d/empty", ""), landmark(LANDMARK)];
        let made = estargz(&members, 2000);
        let mut stream = Vec::new();
        flate2::read::MultiGzDecoder::new(&made.blob[..]).read_to_end(&mut stream).unwrap();
        assert!(stream == made.stream);
        // Headers, three chunks, the landmark, the table, the footer.
        assert_eq!(made.members.len(), 7);
        let footer = &made.blob[made.blob.len() - FOOTER_BYTES..];
        let offset = u64::from_str_radix(std::str::from_utf8(&footer[16..32]).unwrap(), 16).unwrap();
        assert_eq!(offset, made.members[5].0);
        assert_eq!(&footer[32..38], b"STARGZ");
    }
}
