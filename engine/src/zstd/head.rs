//! The headers of frames, skippable frames and blocks, gathered byte by byte however they are cut. Pure.

use super::ZstdError;

/// Of a frame. Source: RFC 8878 section 3.1.1, little endian.
const FRAME_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Magic number and length of a skippable frame. Source: RFC 8878 section 3.1.2.
const SKIPPABLE_HEAD_BYTES: usize = 8;
/// Magic number, descriptor, window, dictionary id and content size at their longest. Source: RFC 8878 section 3.1.1.1.
const HEAD_BYTES_MAX: usize = 18;
/// Of a block. Source: RFC 8878 section 3.1.1.2.
const BLOCK_HEAD_BYTES: usize = 3;

/// True for the first bytes of a zstd stream: of a frame or of a skippable one.
#[must_use]
pub(super) fn is_magic(bytes: [u8; 4]) -> bool {
    bytes == FRAME_MAGIC || is_skippable(bytes)
}

fn is_skippable(bytes: [u8; 4]) -> bool {
    matches!(bytes, [0x50..=0x5f, 0x2a, 0x4d, 0x18])
}

/// What a header's bytes say so far.
pub(super) enum Parsed {
    /// More bytes belong to it.
    Wanting,
    Skippable {
        len: u32,
    },
    Frame(FrameHead),
}

/// A frame's header.
pub(super) struct FrameHead {
    pub(super) dictionary_id: u32,
    pub(super) window_bytes: u64,
    pub(super) content_bytes: Option<u64>,
    pub(super) has_checksum: bool,
}

impl FrameHead {
    /// What a decoder has to remember at most.
    pub(super) fn history_bytes(&self) -> u64 {
        self.content_bytes.map_or(self.window_bytes, |content| content.min(self.window_bytes))
    }
}

/// A block's header.
pub(super) struct BlockHead {
    pub(super) is_last: bool,
    /// In the blob, behind the header.
    pub(super) len: u32,
}

/// The bytes of a header.
#[derive(Clone, Copy, Default)]
pub(super) struct Head {
    bytes: [u8; HEAD_BYTES_MAX],
    len: usize,
}

impl Head {
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    pub(super) fn len(&self) -> u8 {
        self.len as u8
    }

    /// What has been gathered; nothing is left here.
    pub(super) fn take(&mut self) -> Self {
        std::mem::take(self)
    }

    /// Reads on in the header of a frame or a skippable frame: bytes used, and what is known. A skippable one is taken at once.
    pub(super) fn read_frame(&mut self, input: &[u8]) -> Result<(usize, Parsed), ZstdError> {
        let mut used = self.fill(input, 5);
        let Some(&magic) = self.as_slice().first_chunk() else { return Ok((used, Parsed::Wanting)) };
        if !is_magic(magic) {
            return Err(ZstdError::Magic { found: magic });
        }
        let wanted = match self.as_slice().get(4) {
            _ if is_skippable(magic) => SKIPPABLE_HEAD_BYTES,
            Some(&descriptor) => frame_head_len(descriptor),
            None => return Ok((used, Parsed::Wanting)),
        };
        used += self.fill(&input[used..], wanted);
        if self.len < wanted {
            return Ok((used, Parsed::Wanting));
        }
        if is_skippable(magic) {
            let len = number(&self.take().bytes[4..8]) as u32;
            return Ok((used, Parsed::Skippable { len }));
        }
        Ok((used, Parsed::Frame(frame_head(self.as_slice())?)))
    }

    /// Reads on in a block's header: bytes used, and what it says when it is complete.
    pub(super) fn read_block(&mut self, input: &[u8]) -> Result<(usize, Option<BlockHead>), ZstdError> {
        let used = self.fill(input, BLOCK_HEAD_BYTES);
        if self.len < BLOCK_HEAD_BYTES {
            return Ok((used, None));
        }
        let head = number(self.as_slice()) as u32;
        let (is_last, kind, size) = (head & 1 == 1, head >> 1 & 3, head >> 3);
        let len = match kind {
            0 | 2 => size,
            // One byte that is repeated.
            1 => 1,
            _ => return Err(ZstdError::Data { reason: "a block of the reserved type 3".to_owned() }),
        };
        Ok((used, Some(BlockHead { is_last, len })))
    }

    /// Takes from `input` until there are `wanted` bytes.
    fn fill(&mut self, input: &[u8], wanted: usize) -> usize {
        let used = wanted.saturating_sub(self.len).min(input.len());
        self.bytes[self.len..self.len + used].copy_from_slice(&input[..used]);
        self.len += used;
        used
    }
}

/// Lengths of a frame header's fields, as its descriptor has them.
struct Fields {
    window: usize,
    dictionary_id: usize,
    content: usize,
}

fn fields(descriptor: u8) -> Fields {
    let is_single_segment = descriptor & 0x20 != 0;
    let content = match descriptor >> 6 {
        0 => usize::from(is_single_segment),
        flag => 1 << flag,
    };
    Fields { window: usize::from(!is_single_segment), dictionary_id: [0, 1, 2, 4][usize::from(descriptor & 3)], content }
}

fn frame_head_len(descriptor: u8) -> usize {
    let Fields { window, dictionary_id, content } = fields(descriptor);
    5 + window + dictionary_id + content
}

/// The meaning of a whole header.
fn frame_head(bytes: &[u8]) -> Result<FrameHead, ZstdError> {
    let descriptor = bytes[4];
    if descriptor & 0x08 != 0 {
        return Err(ZstdError::Data { reason: "the reserved bit of a frame header is set".to_owned() });
    }
    let fields = fields(descriptor);
    let (window, rest) = bytes[5..].split_at(fields.window);
    let (dictionary_id, content) = rest.split_at(fields.dictionary_id);
    let content_bytes = match content.len() {
        0 => None,
        2 => Some(number(content) + 256),
        _ => Some(number(content)),
    };
    let window_bytes = match window.first() {
        Some(&byte) => window_bytes(byte),
        // A single segment: its own content is all the history there is.
        None => content_bytes.unwrap_or(0),
    };
    let dictionary_id = number(dictionary_id) as u32;
    Ok(FrameHead { dictionary_id, window_bytes, content_bytes, has_checksum: descriptor & 0x04 != 0 })
}

/// Source: RFC 8878 section 3.1.1.1.2.
fn window_bytes(descriptor: u8) -> u64 {
    let base = 1u64 << (10 + (descriptor >> 3));
    base + base / 8 * u64::from(descriptor & 7)
}

/// Little endian, up to eight bytes.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
}
