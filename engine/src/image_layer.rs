//! A layer as one image has it: its own source and entries, over the node's shared copy.

use std::sync::Arc;

use clip_format::{
    bytes::SharedBytes,
    checkpoints::{SpanStart, SpanTable},
    units::SpanIndex,
    windows::expand_window,
};

use crate::{
    chain::{Chains, Found, Suspended},
    claims::Claims,
    decode::Decoder,
    error::EngineError,
    layer::LayerStore,
    plan::{Group, Wanted},
    priority::Priority,
    source::BlobSource,
    zstd::decoder_bytes,
};

/// A layer as one image has it.
pub(crate) struct ImageLayer {
    pub(crate) store: Arc<LayerStore>,
    /// Where decoding can begin in this image's index.
    pub(crate) table: SpanTable,
    pub(crate) source: BlobSource,
    windows: SharedBytes,
    /// What is under way in its chains; shared with other images where their indexes say the same of the layer.
    pub(crate) chains: Arc<Chains>,
}

/// A group to decode, the spans of it that are claimed for that, and where a decoder stands already, if one does.
pub(crate) struct Work {
    pub(crate) group: Group,
    pub(crate) entry: SpanIndex,
    pub(crate) claims: Arc<Claims>,
    pub(crate) resumed: Option<Box<Suspended>>,
}

impl ImageLayer {
    pub(crate) fn new(store: Arc<LayerStore>, table: SpanTable, source: BlobSource, windows: SharedBytes) -> Self {
        let chains = store.chains_of(&table);
        Self { store, table, source, windows, chains }
    }

    /// How `wanted`, whose spans are claimed, is decoded; `None` when a job that is under way takes them along, or jobs have passed them since
    /// they were claimed and have taken them. Absent spans on the way there are claimed too: they come out anyway.
    pub(crate) fn work(self: &Arc<Self>, wanted: Wanted, priority: Priority) -> Option<Work> {
        let Wanted { entry, wanted } = wanted;
        let start = |wanted: &[SpanIndex], resumed: Option<&Suspended>| {
            let from = resumed.map_or(entry, |resumed| resumed.next);
            Arc::new(Claims::new(self.clone(), from, wanted, priority))
        };
        let (claims, resumed) = if self.is_chain(entry) {
            match self.chains.find(entry, &wanted, self, start) {
                Found::Job(claims) => {
                    if priority == Priority::Demand {
                        claims.urgency().raise();
                    }
                    return None;
                }
                Found::Standing(claims, resumed) => (claims, resumed),
                Found::Nothing => return None,
            }
        } else {
            let wanted = self.store.untaken(&wanted);
            if wanted.is_empty() {
                return None;
            }
            (start(&wanted, None), None)
        };
        let from = resumed.as_ref().map_or(entry, |resumed| resumed.next);
        let at = resumed.as_ref().map_or_else(|| self.table.compressed_range(entry).start, |resumed| resumed.position);
        Some(Work { group: Group::new(&self.table, entry, from, at, claims.last()), entry, claims, resumed })
    }

    /// Whether chained spans follow `entry`: only a chain can be gone on with.
    pub(crate) fn is_chain(&self, entry: SpanIndex) -> bool {
        self.chain_end(entry) > entry.get() + 1
    }

    /// The span behind the last that `entry` leads to.
    pub(crate) fn chain_end(&self, entry: SpanIndex) -> u32 {
        self.table.next_entry(entry).map_or(self.table.len(), SpanIndex::get)
    }

    /// Memory of a decoder at `entry` where that is worth counting, else 0.
    pub(crate) fn decoder_bytes(&self, entry: SpanIndex) -> u64 {
        match self.table.span(entry).start {
            SpanStart::Frame { window_log } => decoder_bytes(window_log),
            _ => 0,
        }
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
}
