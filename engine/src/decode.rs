//! Compressed bytes in, layer stream bytes out, from any entry on. No I/O, no knowledge of digests or caches.

use std::{
    cell::RefCell,
    ops::{Deref, DerefMut},
};

use clip_format::{checkpoints::SpanStart, limits::WINDOW_BYTES};
use thiserror::Error;

use crate::{
    inflate::{Inflate, InflateError, Stop, Until},
    zstd::{Zstd, ZstdError},
};

/// CRC-32 and length after a member's deflate data. Source: RFC 1952 section 2.3.
const TRAILER_BYTES: usize = 8;

/// Blob bytes that cannot be decoded.
#[derive(Debug, Error)]
pub(crate) enum DecodeError {
    #[error(transparent)]
    Inflate(#[from] InflateError),
    #[error("byte {found:#04x} after a gzip member, which is neither a member's start nor padding")]
    AfterMember { found: u8 },
    #[error(transparent)]
    Zstd(#[from] ZstdError),
}

/// Idle inflate states of one thread, 48 KiB each. Source: as many as a flow has jobs that take turns on a shard.
const IDLE_MAX: usize = 4;

thread_local! {
    static IDLE: RefCell<Vec<Inflate>> = const { RefCell::new(Vec::new()) };
}

/// An inflate state that goes back among the idle ones of whichever thread drops it.
struct Pooled(Option<Inflate>);

impl Pooled {
    fn idle() -> Option<Inflate> {
        IDLE.with_borrow_mut(Vec::pop)
    }

    /// As [`Inflate::gzip`].
    fn gzip() -> Self {
        Self(Some(Self::idle().map_or_else(Inflate::gzip, |mut inflate| {
            inflate.reset_gzip();
            inflate
        })))
    }

    /// As [`Inflate::raw`].
    fn raw(window: &[u8; WINDOW_BYTES], bit_offset: u8, first_byte: u8) -> Self {
        Self(Some(match Self::idle() {
            Some(mut inflate) => {
                inflate.reset_raw(Some(window), bit_offset, first_byte);
                inflate
            }
            None => Inflate::raw(Some(window), bit_offset, first_byte),
        }))
    }
}

impl Deref for Pooled {
    type Target = Inflate;

    fn deref(&self) -> &Inflate {
        self.0.as_ref().expect("taken by drop only")
    }
}

impl DerefMut for Pooled {
    fn deref_mut(&mut self) -> &mut Inflate {
        self.0.as_mut().expect("taken by drop only")
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        let inflate = self.0.take();
        // A thread that ends has no idle ones any more: this one is freed too.
        let _ = IDLE.try_with(|idle| {
            let mut idle = idle.borrow_mut();
            if idle.len() < IDLE_MAX {
                idle.extend(inflate);
            }
        });
    }
}

/// Stands somewhere in a layer's blob and decodes onwards.
pub(crate) struct Decoder(State);

enum State {
    Plain,
    /// At a checkpoint, before its first byte is seen.
    Checkpoint {
        window: Box<[u8; WINDOW_BYTES]>,
        bit_offset: u8,
    },
    /// In a member that was entered at its header.
    Member(Pooled),
    /// In a member that was entered at a checkpoint: no trailer is checked.
    Raw(Pooled),
    /// In the trailer of such a member.
    Trailer(Pooled, usize),
    /// Between members: the next byte is a member's first, or padding.
    Between(Pooled),
    /// After the last member.
    Padding,
    /// In or between zstd frames.
    Frames(Box<Zstd>),
}

impl Decoder {
    /// At the entry `start`, whose window is `window`. `None` for a chained span: it is no entry.
    ///
    /// A window that is not stored is one of zeros: the bytes that the data refers to may all be zero, and inflate refuses distances that
    /// reach past a dictionary it was not given.
    pub(crate) fn at(start: SpanStart, window: Option<Box<[u8; WINDOW_BYTES]>>) -> Option<Self> {
        match start {
            SpanStart::Chained => None,
            SpanStart::Plain => Some(Self(State::Plain)),
            SpanStart::Member => Some(Self(State::Member(Pooled::gzip()))),
            SpanStart::Frame { window_log } => Some(Self(State::Frames(Box::new(Zstd::new(window_log))))),
            SpanStart::Deflate { bit_offset, .. } => {
                let window = window.unwrap_or_else(|| Box::new([0; WINDOW_BYTES]));
                Some(Self(State::Checkpoint { window, bit_offset }))
            }
        }
    }

    /// Decodes until `input` is used up and gives no more, or `output` is full: bytes used and bytes written. Earlier input may give
    /// more bytes where the output was full, so an empty input has a use.
    pub(crate) fn decode(&mut self, input: &[u8], output: &mut [u8]) -> Result<(usize, usize), DecodeError> {
        let (mut used, mut written) = (0, 0);
        while written < output.len() && (used < input.len() || matches!(self.0, State::Member(_) | State::Raw(_) | State::Frames(_))) {
            let (more_used, more_written) = self.advance(&input[used..], &mut output[written..])?;
            used += more_used;
            written += more_written;
            if used == input.len() && more_used == 0 && more_written == 0 {
                break;
            }
        }
        Ok((used, written))
    }

    /// One step within one state. `output` is not empty; `input` may be so only inside a member or a frame. Some of them is used, or the state
    /// changes, or a member wants more input.
    fn advance(&mut self, input: &[u8], output: &mut [u8]) -> Result<(usize, usize), DecodeError> {
        let (next, used, written) = match std::mem::replace(&mut self.0, State::Padding) {
            State::Plain => {
                let len = input.len().min(output.len());
                output[..len].copy_from_slice(&input[..len]);
                (State::Plain, len, len)
            }
            State::Checkpoint { window, bit_offset } => {
                let inflate = Pooled::raw(&window, bit_offset, input[0]);
                (State::Raw(inflate), usize::from(bit_offset > 0), 0)
            }
            State::Member(mut inflate) => {
                let step = inflate.step(input, output, Until::Full)?;
                let next = if step.stop == Stop::End { State::Between(inflate) } else { State::Member(inflate) };
                (next, step.consumed, step.produced)
            }
            State::Raw(mut inflate) => {
                let step = inflate.step(input, output, Until::Full)?;
                let next = if step.stop == Stop::End { State::Trailer(inflate, TRAILER_BYTES) } else { State::Raw(inflate) };
                (next, step.consumed, step.produced)
            }
            State::Trailer(inflate, left) => {
                let len = left.min(input.len());
                let next = if len == left { State::Between(inflate) } else { State::Trailer(inflate, left - len) };
                (next, len, 0)
            }
            State::Between(inflate) => (after_member(inflate, input[0])?, 0, 0),
            State::Padding => match input.iter().find(|&&byte| byte != 0) {
                Some(&found) => return Err(DecodeError::AfterMember { found }),
                None => (State::Padding, input.len(), 0),
            },
            State::Frames(mut zstd) => {
                let step = zstd.step(input, output)?;
                (State::Frames(zstd), step.consumed, step.produced)
            }
        };
        self.0 = next;
        Ok((used, written))
    }
}

fn after_member(mut inflate: Pooled, byte: u8) -> Result<State, DecodeError> {
    match byte {
        0 => Ok(State::Padding),
        // The first byte of a gzip header. Source: RFC 1952 section 2.3.1.
        0x1f => {
            inflate.reset_gzip();
            Ok(State::Member(inflate))
        }
        found => Err(DecodeError::AfterMember { found }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::Write;

    use clip_format::checkpoints::WindowRange;
    use flate2::{Compression, write::GzEncoder};

    use super::*;
    use crate::inflate::checkpoint_place;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::new(6));
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn decode_in_pieces(mut decoder: Decoder, input: &[u8], len: usize, piece: usize) -> Result<Vec<u8>, DecodeError> {
        let mut output = vec![0; len];
        let mut written = 0;
        for chunk in input.chunks(piece) {
            let mut chunk = chunk;
            while !chunk.is_empty() && written < len {
                let end = (written + 1000).min(len);
                let (used, more) = decoder.decode(chunk, &mut output[written..end])?;
                chunk = &chunk[used..];
                written += more;
            }
        }
        output.truncate(written);
        Ok(output)
    }

    /// Claim: members one after another, with zeros after the last, give their bytes one after another, however the input is cut.
    #[test]
    fn members_follow_each_other() {
        let (one, two) = (vec![b'a'; 5000], (0..=255).cycle().take(3000).collect::<Vec<u8>>());
        let blob = [gzip(&one), gzip(&[]), gzip(&two), vec![0; 100]].concat();
        let plain = [one, two].concat();
        for piece in [1, 9, 1000, blob.len()] {
            let decoder = Decoder::at(SpanStart::Member, None).unwrap();
            assert!(decode_in_pieces(decoder, &blob, plain.len(), piece).unwrap() == plain, "piece {piece}");
        }
    }

    /// Claim: a decoder that entered at a checkpoint goes on through the trailer into the next member.
    #[test]
    fn a_checkpoint_leads_into_the_next_member() {
        let text: Vec<u8> = (0..200_000u32).flat_map(|number| number.to_string().into_bytes()).collect();
        let first = gzip(&text);
        let (mut inflate, mut used, mut produced) = (Inflate::gzip(), 0, 0);
        let mut out = vec![0; text.len()];
        let place = loop {
            let step = inflate.step(&first[used..], &mut out[produced..], Until::Block).unwrap();
            used += step.consumed;
            produced += step.produced;
            match step.stop {
                Stop::Block { unused_bits } if produced > 300_000 => break checkpoint_place(used as u64, unused_bits),
                Stop::End => panic!("no block boundary"),
                _ => {}
            }
        };
        let blob = [first, gzip(b"and the next member")].concat();
        let window: Box<[u8; WINDOW_BYTES]> = text[produced - WINDOW_BYTES..produced].to_vec().try_into().unwrap();
        let start = SpanStart::Deflate { bit_offset: place.1, window: WindowRange::default() };
        let plain = [&text[produced..], b"and the next member"].concat();
        for piece in [1, 4096] {
            let decoder = Decoder::at(start, Some(window.clone())).unwrap();
            let found = decode_in_pieces(decoder, &blob[place.0.get() as usize..], plain.len(), piece).unwrap();
            assert!(found == plain);
        }
    }

    /// Claim: a checkpoint whose data refers to a history of zeros only, so that its window takes no bytes in the file, can be entered.
    #[test]
    fn a_history_of_zeros_needs_no_stored_window() {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::new(6));
        for part in [&vec![b'a'; 1000][..], &[0; 50_000]] {
            encoder.write_all(part).unwrap();
        }
        // A sync flush ends the block and keeps the history.
        encoder.flush().unwrap();
        encoder.write_all(&[0; 70_000]).unwrap();
        let blob = encoder.finish().unwrap();
        let (mut inflate, mut used, mut produced) = (Inflate::gzip(), 0, 0);
        let mut out = vec![0; 121_000];
        let place = loop {
            let step = inflate.step(&blob[used..], &mut out[produced..], Until::Block).unwrap();
            used += step.consumed;
            produced += step.produced;
            match step.stop {
                Stop::Block { unused_bits } if produced == 51_000 => break checkpoint_place(used as u64, unused_bits),
                Stop::End => panic!("no block boundary at the flush"),
                _ => {}
            }
        };
        let start = SpanStart::Deflate { bit_offset: place.1, window: WindowRange::default() };
        let decoder = Decoder::at(start, None).unwrap();
        let found = decode_in_pieces(decoder, &blob[place.0.get() as usize..], 70_000, 4096).unwrap();
        assert!(found == vec![0; 70_000]);
    }

    /// Claim: output that waits for room comes without more input, so a span that ends inside a long match is not lost at a blob's end.
    #[test]
    fn output_that_waits_needs_no_more_input() {
        let plain = vec![7; 100_000];
        let blob = gzip(&plain);
        let mut decoder = Decoder::at(SpanStart::Member, None).unwrap();
        let mut output = vec![0; plain.len()];
        let (mut used, mut written) = (0, 0);
        while written < plain.len() {
            let end = (written + 100).min(plain.len());
            let (more_used, more_written) = decoder.decode(&blob[used..], &mut output[written..end]).unwrap();
            assert!(more_written > 0, "{used} of {} bytes used, {written} written", blob.len());
            used += more_used;
            written += more_written;
        }
        assert!(output == plain);
    }

    /// Claim: an inflate state that was dropped in the middle of one stream decodes the next as a fresh one would, and few are kept.
    #[test]
    fn inflate_states_are_used_again() {
        let blob = gzip(&[b'x'; 50_000]);
        let mut many: Vec<Decoder> = (0..IDLE_MAX + 3).map(|_| Decoder::at(SpanStart::Member, None).unwrap()).collect();
        for decoder in &mut many {
            decoder.decode(&blob[..blob.len() / 2], &mut [0; 100]).unwrap();
        }
        drop(many);
        assert_eq!(IDLE.with_borrow(Vec::len), IDLE_MAX);
        let decoder = Decoder::at(SpanStart::Member, None).unwrap();
        assert_eq!(IDLE.with_borrow(Vec::len), IDLE_MAX - 1);
        assert!(decode_in_pieces(decoder, &blob, 50_000, 7).unwrap() == [b'x'; 50_000]);
    }

    /// Claim: anything but zeros or a member after a member is an error, and a chained span is no entry.
    #[test]
    fn garbage_after_a_member_is_refused() {
        for tail in [&b"garbage"[..], b"\0\0x"] {
            let blob = [&gzip(b"data")[..], tail].concat();
            let decoder = Decoder::at(SpanStart::Member, None).unwrap();
            assert!(matches!(decode_in_pieces(decoder, &blob, 100, 64), Err(DecodeError::AfterMember { .. })));
        }
        assert!(Decoder::at(SpanStart::Chained, None).is_none());
    }
}
