//! Reading files: a range of a file becomes ranges of layer streams, and their bytes one reply.

use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use clip_engine::{Bytes, EngineError};
use clip_format::{
    erofs::{Extent, FileType, Inode},
    units::{LayerIndex, Nid, StreamOffset},
};
use rustix::io::Errno;
use tracing::{debug, error};

use super::{NodeId, Tree, failures::Failures};
use crate::{errno::errno, source::ByteSource};

/// The most bytes of one read. Source: fs.fuse.max_pages_limit is 65,535 pages at most and 256 by default; we ask for 256 (adapter).
const READ_BYTES_MAX: u32 = 16 << 20;

/// Where the answer to a read goes. Used once, perhaps later and from another thread; dropped unused it must answer EIO.
pub trait ReadReply: Send + 'static {
    /// The bytes of the file at the offset asked for; fewer than asked for only at the end of the file. To be given to a system call
    /// as they are.
    fn data(self, bytes: &[u8]);

    /// The read failed.
    fn fail(self, errno: Errno);
}

/// Where lseek(2) goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeekTo {
    /// The next byte that is in no hole.
    Data,
    /// The next byte that is in a hole; the end of the file is one.
    Hole,
}

/// A piece of a read that lies in one layer.
struct Piece {
    /// Where in the reply.
    at: usize,
    layer: LayerIndex,
    stream: Range<u64>,
}

impl<B: ByteSource> Tree<B> {
    /// Answers `reply` with the bytes of `node` from `offset`, cut at the end of the file: at once when they are present, otherwise when
    /// they have come.
    ///
    /// Errors, through `reply`: ISDIR and INVAL for what is no regular file; what the errno match says for a failed fetch.
    /// Cost: no copy of bytes that are present, in one piece, nor an allocation or a lock while all that follows is present too; otherwise
    /// one copy, none where the piece lies in one span.
    pub fn read<R: ReadReply>(&self, node: NodeId, offset: u64, size: u32, reply: R) {
        let (inode, range) = match self.readable(node, offset, size) {
            Ok(readable) => readable,
            Err(errno) => return reply.fail(errno),
        };
        if range.is_empty() {
            return reply.data(&[]);
        }
        if let Some(errno) = self.failures.recent(inode.nid, &range) {
            return reply.fail(errno);
        }
        // Asked for up to the end of the file, so that the run's end is known: read-ahead must not pass it.
        let run = self.source.index().extents(&inode, range.start..inode.size).next();
        match run {
            Some(Ok(Extent { file, data: Some((layer, stream)) })) if file.start == range.start && file.end >= range.end => {
                self.read_piece(inode.nid, range, layer, stream, file, reply);
            }
            Some(Err(error)) => reply.fail(self.index_failure("read", node, &error)),
            Some(Ok(_)) | None => self.read_pieces(&inode, range, reply),
        }
    }

    fn readable(&self, node: NodeId, offset: u64, size: u32) -> Result<(Inode, Range<u64>), Errno> {
        let inode = self.inode("read", node)?;
        match inode.file_type {
            FileType::Regular => {}
            FileType::Directory => return Err(Errno::ISDIR),
            _ => return Err(Errno::INVAL),
        }
        if size > READ_BYTES_MAX {
            return Err(Errno::INVAL);
        }
        let start = offset.min(inode.size);
        let end = offset.saturating_add(u64::from(size)).min(inode.size);
        Ok((inode, start..end))
    }

    /// The ordinary case: all of it lies in one piece of one layer. `run` is what follows in that piece.
    fn read_piece<R: ReadReply>(&self, nid: Nid, range: Range<u64>, layer: LayerIndex, stream: StreamOffset, run: Range<u64>, reply: R) {
        let (Some(end), Some(run_end)) = (stream.checked_add(range.end - range.start), stream.checked_add(run.end - run.start)) else {
            return reply.fail(Errno::IO);
        };
        let bytes = stream.get()..end.get();
        match self.source.present(layer, bytes.clone()) {
            Some(present) if present.len() as u64 == range.end - range.start => reply.data(present),
            Some(present) => reply.fail(wrong_length(&range, present.len())),
            None => {
                let failures = Arc::clone(&self.failures);
                let done = Box::new(move |result: Result<Bytes, EngineError>| match result {
                    Ok(read) if read.len() as u64 == range.end - range.start => reply.data(&read),
                    Ok(read) => reply.fail(wrong_length(&range, read.len())),
                    Err(error) => reply.fail(fetch_failure(&failures, nid, range, &error)),
                });
                self.source.read_in_file(layer, bytes.clone(), run_end.get(), done);
            }
        }
        if self.source.may_read_ahead(layer, &bytes, run_end.get()) {
            self.source.note_read(&self.streams.of(nid), layer, bytes, run_end.get());
        }
    }

    /// Holes, or several pieces: zeros into which each piece is put when it comes; the last one sends the reply.
    fn read_pieces<R: ReadReply>(&self, inode: &Inode, range: Range<u64>, reply: R) {
        let pieces = match self.pieces(inode, &range) {
            Ok(pieces) => pieces,
            Err(errno) => return reply.fail(errno),
        };
        let buffer = vec![0; (range.end - range.start) as usize];
        if pieces.is_empty() {
            return reply.data(&buffer);
        }
        let waiting = Waiting { buffer, absent: pieces.len(), reply: Some(reply) };
        let assembly = Arc::new(Assembly { nid: inode.nid, range, failures: Arc::clone(&self.failures), waiting: Mutex::new(waiting) });
        for piece in pieces {
            let assembly = Arc::clone(&assembly);
            let len = (piece.stream.end - piece.stream.start) as usize;
            self.source.read(piece.layer, piece.stream, Box::new(move |result| assembly.complete(piece.at, len, result)));
        }
    }

    /// The pieces of `range` that are no holes.
    fn pieces(&self, inode: &Inode, range: &Range<u64>) -> Result<Vec<Piece>, Errno> {
        let mut pieces = Vec::new();
        let mut covered = range.start;
        for extent in self.source.index().extents(inode, range.clone()) {
            let extent = extent.map_err(|error| self.index_failure("read", self.node_of(inode.nid), &error))?;
            let Extent { file, data } = extent;
            if file.start != covered || file.end <= file.start || file.end > range.end {
                return Err(Errno::IO);
            }
            covered = file.end;
            let Some((layer, stream)) = data else { continue };
            let end = stream.checked_add(file.end - file.start).ok_or(Errno::IO)?;
            pieces.push(Piece { at: (file.start - range.start) as usize, layer, stream: stream.get()..end.get() });
        }
        if covered == range.end { Ok(pieces) } else { Err(Errno::IO) }
    }

    /// Where the next data or hole at or after `offset` is.
    ///
    /// # Errors
    /// `NXIO` past the end of the file, or when there is no data any more; `INVAL` for what is no regular file.
    pub fn seek(&self, node: NodeId, offset: u64, to: SeekTo) -> Result<u64, Errno> {
        let inode = self.inode("lseek", node)?;
        if inode.file_type != FileType::Regular {
            return Err(Errno::INVAL);
        }
        if offset >= inode.size {
            return Err(Errno::NXIO);
        }
        for extent in self.source.index().extents(&inode, offset..inode.size) {
            let extent = extent.map_err(|error| self.index_failure("lseek", node, &error))?;
            if extent.data.is_some() == (to == SeekTo::Data) {
                return Ok(extent.file.start.max(offset));
            }
        }
        match to {
            SeekTo::Data => Err(Errno::NXIO),
            SeekTo::Hole => Ok(inode.size),
        }
    }
}

/// A read that waits for several pieces.
struct Assembly<R> {
    nid: Nid,
    range: Range<u64>,
    failures: Arc<Failures>,
    waiting: Mutex<Waiting<R>>,
}

struct Waiting<R> {
    buffer: Vec<u8>,
    /// Pieces still to come.
    absent: usize,
    /// `None` once it was answered; pieces that come later are dropped.
    reply: Option<R>,
}

impl<R: ReadReply> Assembly<R> {
    fn complete(&self, at: usize, len: usize, result: Result<Bytes, EngineError>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.reply.is_none() {
            return;
        }
        let failed = match result {
            Ok(bytes) if bytes.len() == len => {
                waiting.buffer[at..at + len].copy_from_slice(&bytes);
                None
            }
            Ok(bytes) => Some(wrong_length(&self.range, bytes.len())),
            Err(error) => Some(fetch_failure(&self.failures, self.nid, self.range.clone(), &error)),
        };
        waiting.absent -= 1;
        if failed.is_none() && waiting.absent > 0 {
            return;
        }
        let Some(reply) = waiting.reply.take() else { return };
        let buffer = std::mem::take(&mut waiting.buffer);
        drop(waiting);
        match failed {
            Some(errno) => reply.fail(errno),
            None => reply.data(&buffer),
        }
    }
}

/// The engine has logged why a fetch failed, so it is not logged again here.
fn fetch_failure(failures: &Failures, nid: Nid, range: Range<u64>, error: &EngineError) -> Errno {
    let errno = errno(error.kind());
    debug!(nid = nid.get(), offset = range.start, %error, %errno, "a read failed");
    failures.note(nid, range, errno);
    errno
}

/// A byte source broke its contract: never serve such bytes.
fn wrong_length(range: &Range<u64>, found: usize) -> Errno {
    error!(offset = range.start, expected = range.end - range.start, found, "a read gave another number of bytes than asked for");
    debug_assert!(false, "a byte source gave {found} bytes for {range:?}");
    Errno::IO
}
