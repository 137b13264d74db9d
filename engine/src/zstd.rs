//! Streaming zstd over any number of frames and skippable frames, a block at a time.
//!
//! The parts of the stream (headers, blocks, checksums) are told apart here, so that it is known where each frame and each block begins
//! and ends, and so that a frame that asks for a dictionary or for too much memory is refused before any is taken. What is in the blocks
//! is libzstd's. Source: RFC 8878 section 3.1.

mod head;

use clip_format::limits::FRAME_WINDOW_LOG_MAX;
use thiserror::Error;
use zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer, ResetDirective, get_error_name};

use head::{BlockHead, FrameHead, Head, Parsed};

/// What a decoder takes beside its window: the context, an input block and two blocks of output. Source: ZSTD_estimateDStreamSize of
/// libzstd 1.5.7 less the window, 0.5 MiB.
const DECODER_BYTES: u64 = 512 << 10;
/// Of a frame's checksum. Source: RFC 8878 section 3.1.1.
const CHECKSUM_BYTES: u32 = 4;

/// Memory of a decoder of frames with windows of `2^window_log` bytes.
#[must_use]
pub fn decoder_bytes(window_log: u8) -> u64 {
    (1u64 << window_log.min(FRAME_WINDOW_LOG_MAX)) + DECODER_BYTES
}

/// Bytes that are no zstd stream, or one that cannot be read here.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ZstdError {
    /// No frame begins here.
    #[error("bytes {} where a zstd frame or a skippable frame begins", hex::encode(found))]
    Magic {
        /// The four bytes.
        found: [u8; 4],
    },
    /// The frame was made with a dictionary.
    #[error("a zstd frame that needs dictionary {id}")]
    Dictionary {
        /// Its id.
        id: u32,
    },
    /// The frame refers to too much history.
    #[error("a zstd frame with a window of {found} bytes")]
    Window {
        /// Bytes.
        found: u64,
        /// Bytes that are allowed.
        max: u64,
    },
    /// A header or a block is damaged.
    #[error("{reason}")]
    Data {
        /// What is wrong, in libzstd's own words where it is libzstd that says so.
        reason: String,
    },
}

impl ZstdError {
    /// What would have been right in its place.
    #[must_use]
    pub fn expected(&self) -> String {
        match self {
            ZstdError::Magic { .. } => "another zstd frame (28b52ffd), a skippable frame (5?2a4d18) or the end of the blob".to_owned(),
            ZstdError::Dictionary { .. } => "a zstd frame that needs no dictionary".to_owned(),
            ZstdError::Window { max, .. } => format!("a zstd frame with a window of at most {max} bytes"),
            ZstdError::Data { .. } => "valid zstd data".to_owned(),
        }
    }
}

/// What one call did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZstdStep {
    /// Input bytes used.
    pub consumed: usize,
    /// Output bytes written.
    pub produced: usize,
    /// Where decoding stands.
    pub stop: ZstdStop,
}

/// Why a call to [`Zstd::step`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZstdStop {
    /// Input used up or output full; call again with more of either.
    More,
    /// A frame's header has been read, and nothing of it decoded.
    FrameStart {
        /// Its length, magic number included: the frame begins so many bytes before the last consumed one's end. `6..=18`
        header_len: u8,
        /// A decoder of this frame needs `2^window_log` bytes of history at most. `<= FRAME_WINDOW_LOG_MAX`
        window_log: u8,
        /// What its header says of its content, if it does; a frame of another length is an error.
        content_bytes: Option<u64>,
    },
    /// A block has ended and all of it is in the output.
    BlockEnd,
    /// A frame has ended, its checksum (where it has one) matches, and all of it is in the output.
    FrameEnd,
    /// A skippable frame has been passed over.
    Skipped,
}

/// Where decoding stands.
#[derive(Clone, Copy)]
enum Part {
    /// Between frames, or in the header of a frame or of a skippable one.
    Head,
    /// In a skippable frame.
    Skip { left: u32 },
    /// In a block's header.
    BlockHead,
    /// In a block, or in the checksum after the last.
    Body { left: u32, ends: Ends },
}

/// What ends with a part.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ends {
    Block,
    /// The frame's last block, which a checksum follows.
    LastBlock,
    Frame,
}

/// A decoder of a stream of zstd frames.
///
/// Cost: [`decoder_bytes`] of the largest window met so far.
pub struct Zstd {
    context: DCtx<'static>,
    part: Part,
    head: Head,
    has_checksum: bool,
    /// Bytes that the frame still has, where its header says how many it has in all.
    content_left: Option<u64>,
    /// The output was full: there may be more.
    output_waits: bool,
    window_log_max: u8,
}

impl Zstd {
    /// At the start of a frame or of a skippable frame; frames whose windows are larger than `2^window_log_max` bytes are refused.
    ///
    /// # Panics
    /// When there is no memory.
    #[must_use]
    pub fn new(window_log_max: u8) -> Self {
        let mut context = DCtx::create();
        let limit = DParameter::WindowLogMax(u32::from(FRAME_WINDOW_LOG_MAX));
        context.set_parameter(limit).expect("the limit is one that libzstd knows");
        Self {
            context,
            part: Part::Head,
            head: Head::default(),
            has_checksum: false,
            content_left: None,
            output_waits: false,
            window_log_max: window_log_max.min(FRAME_WINDOW_LOG_MAX),
        }
    }

    /// What the stream breaks off in when it ends here, in words; `None` between frames.
    #[must_use]
    pub fn is_within(&self) -> Option<&'static str> {
        match self.part {
            Part::Head if self.head.is_empty() => None,
            Part::Head => Some("the header of a zstd frame"),
            Part::Skip { .. } => Some("a skippable frame"),
            Part::BlockHead | Part::Body { .. } => Some("a zstd frame"),
        }
    }

    /// Decodes from `input` into `output` up to the end of the part that it stands in, or until one of them ends.
    ///
    /// # Errors
    /// Data that is no valid stream, or that needs a dictionary or too large a window. The decoder is of no use afterwards.
    pub fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<ZstdStep, ZstdError> {
        if self.output_waits && !matches!(self.part, Part::Body { .. }) {
            // What libzstd holds back comes before anything of a new part.
            let (_, produced) = self.run(&[], output)?;
            return Ok(ZstdStep { consumed: 0, produced, stop: ZstdStop::More });
        }
        match self.part {
            Part::Head => self.read_head(input),
            Part::Skip { left } => {
                let consumed = input.len().min(left as usize);
                let left = left - consumed as u32;
                self.part = if left == 0 { Part::Head } else { Part::Skip { left } };
                Ok(ZstdStep { consumed, produced: 0, stop: if left == 0 { ZstdStop::Skipped } else { ZstdStop::More } })
            }
            Part::BlockHead => self.read_block_head(input),
            Part::Body { left, ends } => self.decode(input, output, left, ends),
        }
    }

    fn read_head(&mut self, input: &[u8]) -> Result<ZstdStep, ZstdError> {
        let (consumed, parsed) = self.head.read_frame(input)?;
        let stop = match parsed {
            Parsed::Wanting => ZstdStop::More,
            Parsed::Skippable { len: 0 } => ZstdStop::Skipped,
            Parsed::Skippable { len } => {
                self.part = Part::Skip { left: len };
                ZstdStop::More
            }
            Parsed::Frame(frame) => self.begin_frame(frame)?,
        };
        Ok(ZstdStep { consumed, produced: 0, stop })
    }

    fn begin_frame(&mut self, frame: FrameHead) -> Result<ZstdStop, ZstdError> {
        if frame.dictionary_id != 0 {
            return Err(ZstdError::Dictionary { id: frame.dictionary_id });
        }
        let window_log = log_of(frame.history_bytes());
        if frame.window_bytes > 1 << FRAME_WINDOW_LOG_MAX || window_log > self.window_log_max {
            return Err(ZstdError::Window { found: frame.window_bytes, max: 1 << self.window_log_max });
        }
        self.context.reset(ResetDirective::SessionOnly).map_err(data)?;
        let header = self.head.take();
        self.feed(header.as_slice())?;
        (self.part, self.has_checksum, self.content_left) = (Part::BlockHead, frame.has_checksum, frame.content_bytes);
        Ok(ZstdStop::FrameStart { header_len: header.len(), window_log, content_bytes: frame.content_bytes })
    }

    fn read_block_head(&mut self, input: &[u8]) -> Result<ZstdStep, ZstdError> {
        let (consumed, block) = self.head.read_block(input)?;
        let Some(BlockHead { is_last, len }) = block else {
            return Ok(ZstdStep { consumed, produced: 0, stop: ZstdStop::More });
        };
        let header = self.head.take();
        self.feed(header.as_slice())?;
        let ends = match (is_last, self.has_checksum) {
            (false, _) => Ends::Block,
            (true, true) => Ends::LastBlock,
            (true, false) => Ends::Frame,
        };
        let stop = if len == 0 { self.end(ends) } else { ZstdStop::More };
        if len > 0 {
            self.part = Part::Body { left: len, ends };
        }
        Ok(ZstdStep { consumed, produced: 0, stop })
    }

    /// Decodes what is left of a block or a checksum. Of a frame's last byte libzstd takes no note before all output is written.
    fn decode(&mut self, input: &[u8], output: &mut [u8], left: u32, ends: Ends) -> Result<ZstdStep, ZstdError> {
        let input = &input[..input.len().min(left as usize)];
        if input.is_empty() && !self.output_waits && left > 0 {
            return Ok(ZstdStep { consumed: 0, produced: 0, stop: ZstdStop::More });
        }
        let (consumed, produced) = self.run(input, output)?;
        let left = left - consumed as u32;
        self.part = Part::Body { left, ends };
        let stop = if left == 0 && !self.output_waits { self.end(ends) } else { ZstdStop::More };
        Ok(ZstdStep { consumed, produced, stop })
    }

    fn end(&mut self, ends: Ends) -> ZstdStop {
        let (part, stop) = match ends {
            Ends::Block => (Part::BlockHead, ZstdStop::BlockEnd),
            Ends::LastBlock => (Part::Body { left: CHECKSUM_BYTES, ends: Ends::Frame }, ZstdStop::BlockEnd),
            Ends::Frame => (Part::Head, ZstdStop::FrameEnd),
        };
        self.part = part;
        stop
    }

    /// Gives libzstd a header, which makes no output.
    fn feed(&mut self, header: &[u8]) -> Result<(), ZstdError> {
        let (consumed, _) = self.run(header, &mut [])?;
        if consumed == header.len() {
            return Ok(());
        }
        Err(ZstdError::Data { reason: format!("{consumed} of the {} bytes of a header are one", header.len()) })
    }

    fn run(&mut self, input: &[u8], output: &mut [u8]) -> Result<(usize, usize), ZstdError> {
        let has_room = !output.is_empty();
        let mut source = InBuffer::around(input);
        let mut target = OutBuffer::around(output);
        self.context.decompress_stream(&mut target, &mut source).map_err(data)?;
        let produced = target.pos();
        self.output_waits = has_room && produced == target.capacity();
        self.count_content(produced as u64)?;
        Ok((source.pos(), produced))
    }

    /// A frame with more content than its header says is refused at the first byte too many. libzstd sees it where its buffer is full,
    /// and how large that is depends on the frames before: the same frame would be sound after them and damaged to who enters at it.
    fn count_content(&mut self, produced: u64) -> Result<(), ZstdError> {
        let Some(left) = &mut self.content_left else { return Ok(()) };
        *left = left.checked_sub(produced).ok_or_else(|| {
            let reason = "a zstd frame with more content than its header says".to_owned();
            ZstdError::Data { reason }
        })?;
        Ok(())
    }
}

fn data(code: usize) -> ZstdError {
    ZstdError::Data { reason: get_error_name(code).to_owned() }
}

/// The smallest power of two that is not less than `bytes`.
fn log_of(bytes: u64) -> u8 {
    bytes.max(1).checked_next_power_of_two().map_or(u64::BITS, u64::trailing_zeros) as u8
}

#[cfg(test)]
mod tests;
