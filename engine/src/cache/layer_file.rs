//! One layer's stream on disk: `<cache>/layers/<algorithm>/<hex>/<BLAKE3 of the spans>/{stream,spans}`.

use std::{
    fs::File,
    io::{self, ErrorKind},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use clip_format::{checkpoints::SpanTable, digest::Digest};
use memmap2::{Mmap, MmapOptions};
use rustix::process::Pid;

use super::{
    create_dir,
    lease::{Lease, Standing},
    open_private,
    presence::{Presence, bitmap_bytes},
};
use crate::error::EngineError;

/// Where the files of `layer` with these spans stand. Two indexes whose spans differ never share a directory.
pub(crate) fn layer_dir(cache_dir: &Path, layer: &Digest, table: &SpanTable) -> PathBuf {
    cache_dir.join("layers").join(layer.algorithm()).join(layer.to_hex()).join(hex::encode(table.spans_digest()))
}

/// Bytes of a stream file behind the stream, never written: so that no write gives a file that was cut its whole length back.
const GUARD_BYTES: u64 = 1;

/// The sparse stream file, a read-only map of it, and the presence of its spans.
pub(crate) struct LayerFile {
    dir: PathBuf,
    stream: Arc<File>,
    /// Length of the file: that of the stream and [`GUARD_BYTES`].
    len: u64,
    /// `None` for an empty stream.
    map: Option<Mmap>,
    presence: Presence,
    lease: Lease,
}

impl LayerFile {
    /// Opens the files in `dir`; files that are missing, or of a wrong length, begin anew and empty. `watcher` is told who else wants them.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn open(dir: PathBuf, table: &SpanTable, watcher: Option<Pid>) -> Result<Self, EngineError> {
        create_dir(&dir)?;
        let (stream_path, spans_path) = (dir.join("stream"), dir.join("spans"));
        let too_long = || io::Error::from(ErrorKind::FileTooLarge);
        let len = table.stream_size().checked_add(GUARD_BYTES).ok_or_else(|| EngineError::io("size", &stream_path, too_long()))?;
        let lengths = [(&stream_path, len), (&spans_path, bitmap_bytes(table.len()) as u64)];
        if !lengths.iter().all(|(path, len)| is_file_of(path, *len)) {
            lengths.iter().try_for_each(|(path, _)| remove_anything(path))?;
        }
        let stream = open_of_len(&stream_path, len)?;
        let lease = Lease::take(&stream, watcher);
        // Again, now that nobody else can change it.
        stream.set_len(len).map_err(|error| EngineError::io("size", &stream_path, error))?;
        let spans = open_of_len(&spans_path, bitmap_bytes(table.len()) as u64)?;
        let presence = Presence::open(spans, table.len()).map_err(|error| EngineError::io("read", &spans_path, error))?;
        let map = map_stream(&stream, table.stream_size()).map_err(|error| EngineError::io("map", &stream_path, error))?;
        Ok(Self { dir, stream: Arc::new(stream), len, map, presence, lease })
    }

    /// The bytes `start..end` of the map; `None` past its end. They may vanish: see `Image::present`.
    pub(crate) fn mapped(&self, start: u64, end: u64) -> Option<&[u8]> {
        self.map.as_ref()?.get(usize::try_from(start).ok()?..usize::try_from(end).ok()?)
    }

    pub(crate) fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.stream.read_exact_at(buffer, offset)
    }

    pub(crate) fn stream(&self) -> &Arc<File> {
        &self.stream
    }

    /// What is known of others who may change the file.
    pub(crate) fn standing(&self) -> Standing {
        self.lease.standing()
    }

    pub(crate) fn lease(&self) -> &Lease {
        &self.lease
    }

    /// False when somebody has cut or grown the file. Cost: one fstat, nothing while the file is ours alone.
    pub(crate) fn is_intact(&self) -> bool {
        self.standing() == Standing::Sole || self.has_its_length()
    }

    /// Cost: one fstat.
    pub(crate) fn has_its_length(&self) -> bool {
        rustix::fs::fstat(&*self.stream).is_ok_and(|stat| u64::try_from(stat.st_size) == Ok(self.len))
    }

    /// Gives the file its length back; what was cut off is zeros now.
    pub(crate) fn restore_length(&self) -> Result<(), EngineError> {
        self.stream.set_len(self.len).map_err(|error| EngineError::io("extend", self.dir.join("stream"), error))
    }

    pub(crate) fn presence(&self) -> &Presence {
        &self.presence
    }

    /// The file `spans` says what is present now. A failed write is worth one log line, no error: it costs a later owner a fetch or a hash.
    pub(crate) fn write_presence(&self) {
        if let Err(error) = self.presence.write() {
            tracing::debug!(path = %self.dir.join("spans").display(), %error, "presence of spans was not written");
        }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }
}

fn is_file_of(path: &Path, len: u64) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|found| found.is_file() && found.len() == len)
}

/// Removes what stands at `path`, if anything, whatever it is.
fn remove_anything(path: &Path) -> Result<(), EngineError> {
    let removed = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Ok(found) if found.is_dir() => std::fs::remove_dir_all(path),
        _ => std::fs::remove_file(path),
    };
    removed.map_err(|error| EngineError::io("remove", path, error))
}

fn open_of_len(path: &Path, len: u64) -> Result<File, EngineError> {
    let file = open_private(path).map_err(|error| EngineError::io("open", path, error))?;
    file.set_len(len).map_err(|error| EngineError::io("size", path, error))?;
    Ok(file)
}

fn map_stream(file: &File, len: u64) -> std::io::Result<Option<Mmap>> {
    if len == 0 {
        return Ok(None);
    }
    let len = usize::try_from(len).map_err(|_| ErrorKind::FileTooLarge)?;
    // SAFETY: the map is only handed out as a slice that callers pass to system calls and never touch (`Image::present` says so), so
    // bytes that change or pages that vanish under it are the kernel's to see, not ours.
    unsafe { MmapOptions::new().len(len).map(file) }.map(Some)
}

/// Explicitly, since a write that a shard has not reaped yet may keep the file itself open for a moment.
impl Drop for LayerFile {
    fn drop(&mut self) {
        self.write_presence();
        if self.standing() == Standing::Sole {
            self.lease.give_back(&self.stream);
        }
    }
}
