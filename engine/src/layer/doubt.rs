//! Whether the layer's file is still what was written to it, although others may open it.

use std::sync::{PoisonError, atomic::Ordering};

use clip_format::units::SpanIndex;

use super::LayerStore;
use crate::{cache::lease::Standing, span::SpanState};

impl LayerStore {
    /// After a sign that the file was changed by somebody else: if its length is wrong, no span is trusted before it is hashed, and then
    /// the length is right again.
    pub(crate) fn doubt_file(&self) {
        let _one_at_a_time = self.mending.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.file.has_its_length() {
            self.forget();
        }
    }

    /// No span is trusted before it is hashed again, and the file has its length. Under the lock `mending`.
    fn forget(&self) {
        let cut = !self.file.has_its_length();
        if cut && let Some(unsaid) = self.lines.next() {
            let path = self.file.dir().display();
            tracing::warn!(layer = %self.digest, %path, unsaid, "a cache file was changed by another process; its spans are verified again");
        }
        self.doubts.fetch_add(1, Ordering::AcqRel);
        self.states.doubt_all();
        let mended = if cut { self.file.restore_length() } else { Ok(()) };
        self.doubts.fetch_add(1, Ordering::AcqRel);
        if let Err(error) = mended
            && let Some(unsaid) = self.lines.next()
        {
            tracing::warn!(%error, unsaid, "a cache file could not be mended");
        }
    }

    /// How often the file was found changed and mended, to be asked for again after it was used.
    pub(crate) fn doubts(&self) -> u64 {
        self.doubts.load(Ordering::Acquire)
    }

    /// Whether bytes of spans that were present, when there were so many `doubts`, can be relied on: nobody else can have changed the
    /// file, or, where that cannot be known, its length is right.
    ///
    /// Cost: two loads; one fstat where the file system has no leases.
    pub(crate) fn is_sure(&self, doubts: u64) -> bool {
        match self.file.standing() {
            Standing::Sole => {}
            Standing::Shared => return false,
            Standing::Unknown => {
                if !self.file.has_its_length() {
                    self.doubt_file();
                    return false;
                }
            }
        }
        self.undoubted_since(doubts)
    }

    /// Whether bytes of present spans, used since there were so many `doubts` and before the file was seen intact, are right. A cut file
    /// is either still cut when it is looked at, or was mended, which counts; the state alone may be trusted anew by then.
    fn undoubted_since(&self, doubts: u64) -> bool {
        doubts.is_multiple_of(2) && self.doubts() == doubts
    }

    /// Makes `span`, whose bytes were seen or written when there were so many `doubts`, present; unverified when the file was found
    /// changed since.
    pub(super) fn trust(&self, span: SpanIndex, from: SpanState, doubts: u64) {
        let _nobody_mends = self.mending.lock().unwrap_or_else(PoisonError::into_inner);
        if self.undoubted_since(doubts) {
            self.states.change(span, from, SpanState::Present);
        } else if from == SpanState::InFlight {
            self.states.change(span, from, SpanState::Unverified);
        }
    }

    /// When somebody else waits for the file, its bytes are hashed before each use from now on; true then, and [`Self::give_back`] is due.
    pub(crate) fn withdraw_if_wanted(&self) -> bool {
        let wanted = self.file.lease().is_wanted(self.file.stream());
        if wanted {
            self.file.lease().withdraw();
            if let Some(unsaid) = self.lines.next() {
                let path = self.file.dir().display();
                tracing::info!(layer = %self.digest, %path, unsaid, "another process opens a cache file; what is read of it is hashed each time");
            }
        }
        wanted
    }

    /// Whoever waits for the file gets it.
    pub(crate) fn give_back(&self) {
        self.file.lease().give_back(self.file.stream());
    }

    /// When nobody else has the file open any more, each span is hashed once more, at its next use, and then trusted again.
    pub(crate) fn retake(&self) {
        if self.file.lease().retake(self.file.stream()) {
            let _one_at_a_time = self.mending.lock().unwrap_or_else(PoisonError::into_inner);
            self.forget();
            self.file.lease().confirm();
        }
    }

    /// The presence of spans is on disk.
    pub(crate) fn write_presence(&self) {
        self.file.write_presence();
    }
}
