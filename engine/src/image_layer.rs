//! A layer as one image has it: its own source and entries, over the node's shared copy.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use clip_format::{
    bytes::SharedBytes,
    checkpoints::{SpanStart, SpanTable},
    units::SpanIndex,
    windows::expand_window,
};

use crate::{
    claims::Claims,
    decode::Decoder,
    error::EngineError,
    layer::LayerStore,
    plan::{Group, Wanted},
    priority::Priority,
    source::BlobSource,
};

/// Suspended decoders kept for one layer of one image, 48 KiB each. Source: judgement, not measured: as many as the sequential
/// readers that are told apart in one inode (`readahead.rs`); a fifth decodes from its entry again.
const SUSPENDED_MAX: usize = 4;

/// A layer as one image has it.
pub(crate) struct ImageLayer {
    pub(crate) store: Arc<LayerStore>,
    /// Where decoding can begin in this image's index.
    pub(crate) table: SpanTable,
    pub(crate) source: BlobSource,
    windows: SharedBytes,
    suspended: Mutex<Vec<Suspended>>,
    /// The jobs under way in chains, by entry: who wants a later span of one goes along.
    running: Mutex<Vec<(SpanIndex, Weak<Claims>)>>,
}

/// A decoder that stands between two chained spans, so that a reader of the next need not decode from the entry again.
pub(crate) struct Suspended {
    pub(crate) entry: SpanIndex,
    /// The span that comes out next.
    pub(crate) next: SpanIndex,
    /// The blob's next byte.
    pub(crate) position: u64,
    pub(crate) decoder: Decoder,
}

/// A group to decode, the spans of it that are claimed for that, and where a decoder stands already, if one does.
pub(crate) struct Work {
    pub(crate) group: Group,
    pub(crate) entry: SpanIndex,
    pub(crate) claims: Arc<Claims>,
    pub(crate) decoder: Option<Decoder>,
}

impl ImageLayer {
    pub(crate) fn new(store: Arc<LayerStore>, table: SpanTable, source: BlobSource, windows: SharedBytes) -> Self {
        Self { store, table, source, windows, suspended: Mutex::default(), running: Mutex::default() }
    }

    /// How `wanted`, whose spans are claimed, is decoded; `None` when a job that is under way takes them along. Absent spans on the way
    /// there are claimed too: they come out anyway.
    pub(crate) fn work(self: &Arc<Self>, wanted: Wanted, priority: Priority) -> Option<Work> {
        let (entry, first, last) = (wanted.entry, wanted.first(), wanted.last());
        let jobs = self.jobs_from(entry);
        if let Some(claims) = jobs.iter().find(|claims| claims.extend(&wanted.wanted)) {
            if priority == Priority::Demand {
                claims.urgency().raise();
            }
            return None;
        }
        let suspended = self.resume(entry, first);
        let from = suspended.as_ref().map_or(entry, |suspended| suspended.next);
        let start = suspended.as_ref().map_or_else(|| self.table.compressed_range(entry).start, |suspended| suspended.position);
        let group = Group::new(&self.table, entry, from, start, last);
        let claims = Arc::new(Claims::new(self.clone(), from, wanted.wanted, priority));
        // Only a chain can be gone on with.
        if self.table.next_entry(entry).map_or(self.table.len(), SpanIndex::get) > entry.get() + 1 {
            let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            running.push((entry, Arc::downgrade(&claims)));
        }
        Some(Work { group, entry, claims, decoder: suspended.map(|suspended| suspended.decoder) })
    }

    /// The jobs under way that began at `entry`. Not to be dropped under a lock of this layer: the last holder of claims may call back.
    fn jobs_from(&self, entry: SpanIndex) -> Vec<Arc<Claims>> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|(_, claims)| claims.strong_count() > 0);
        running.iter().filter(|(of, _)| *of == entry).filter_map(|(_, claims)| claims.upgrade()).collect()
    }

    /// A decoder at `entry`, its window expanded.
    pub(crate) fn enter(&self, entry: SpanIndex) -> Result<Decoder, EngineError> {
        let span = self.table.span(entry);
        let window = match span.start {
            SpanStart::Deflate { window, .. } => expand_window((*self.windows).as_ref(), window)
                .map_err(|error| self.store.bad(entry, "a window that expands", error.to_string()))?,
            _ => None,
        };
        Decoder::at(span.start, window).ok_or_else(|| self.store.bad(entry, "an entry", "a chained span"))
    }

    /// Keeps `suspended` for the next reader; the oldest goes when there are too many.
    pub(crate) fn suspend(&self, suspended: Suspended) {
        let mut kept = self.suspended.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= SUSPENDED_MAX {
            kept.remove(0);
        }
        kept.push(suspended);
    }

    /// The kept decoder that stands nearest before `first` in the group of `entry`.
    fn resume(&self, entry: SpanIndex, first: SpanIndex) -> Option<Suspended> {
        let mut kept = self.suspended.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = kept.iter().enumerate().filter(|(_, suspended)| suspended.entry == entry && suspended.next <= first);
        let (place, _) = fits.max_by_key(|(_, suspended)| suspended.next)?;
        Some(kept.remove(place))
    }
}
