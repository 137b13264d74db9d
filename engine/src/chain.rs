//! Chains of one layer: the jobs that decode them, and the decoders that stand still in them.
//!
//! A chain is an entry and the chained spans behind it: what is far in it can only be had by decoding all before. So whoever wants a span
//! of a chain goes along with a job that has not passed it, or goes on where a decoder stands, or begins at the entry, in that order. What
//! is decided about a chain is decided under one lock: a job that ends has put its decoder away when the next can begin.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use clip_format::{
    checkpoints::SpanTable,
    units::{SpanIndex, StreamOffset},
};

use crate::{
    buffers::Buffer,
    claims::{Claims, Reached},
    decode::Decoder,
    image_layer::ImageLayer,
    quota::Held,
    source::BlobSource,
};

/// Suspended decoders kept for one layer, 48 KiB each and what [`Suspended::memory`] says. Source: judgement, not measured: as
/// many as the sequential readers that are told apart in one inode (`readahead.rs`); a fifth decodes from its entry again.
const SUSPENDED_MAX: usize = 4;
/// Shorter chains are left where their last reader got what it wanted: to decode one of them again takes 16 ms. Source: what a request that
/// is broken off has received for nothing is 1 MiB, 6 % of it, and its connection is lost.
const RUN_AHEAD_CHAIN_MIN: u64 = 16 << 20;
/// A job in a longer one goes on so far at least. Source: judgement, not measured: the read-ahead of a sequential reader.
const RUN_AHEAD_MIN: u64 = 32 << 20;

/// A decoder that stands in a chain, so that a reader of what comes next need not decode from the entry again.
pub(crate) struct Suspended {
    pub(crate) entry: SpanIndex,
    /// The span that comes out next.
    pub(crate) next: SpanIndex,
    /// What of it has come out already, where the compressed bytes ended too early.
    pub(crate) begun: Option<Begun>,
    /// The blob's next byte.
    pub(crate) position: u64,
    pub(crate) decoder: Decoder,
    /// The decoder's part of the memory for decoders, where it needs much.
    pub(crate) memory: Option<Held>,
    /// Where its bytes came from: another image's source may have given it wrong ones.
    pub(crate) source: BlobSource,
}

/// The first bytes of a span.
pub(crate) struct Begun {
    pub(crate) bytes: Buffer,
    pub(crate) filled: usize,
    /// Their part of the memory for decoders.
    pub(crate) _memory: Held,
}

/// What becomes of who wants spans of a chain.
pub(crate) enum Found {
    /// This job takes them along.
    Job(Arc<Claims>),
    /// Nobody decodes them: the caller does, in this job, with the decoder that stands nearest before them.
    Standing(Arc<Claims>, Option<Box<Suspended>>),
    /// Jobs that have passed them meanwhile have taken all of them.
    Nothing,
}

/// Every chain of one layer, as one index has it.
#[derive(Default)]
pub(crate) struct Chains(Mutex<State>);

#[derive(Default)]
struct State {
    /// The oldest first.
    suspended: Vec<Suspended>,
    /// The jobs under way, by entry.
    running: Vec<(SpanIndex, Weak<Claims>)>,
}

impl Chains {
    /// Who wants `wanted` (ascending, claimed by the caller, behind `entry`) in `layer`: goes along with a job, or is given a decoder, of which
    /// `start` makes a job for those that nobody has taken.
    pub(crate) fn find(
        &self,
        entry: SpanIndex,
        wanted: &[SpanIndex],
        layer: &ImageLayer,
        start: impl FnOnce(&[SpanIndex], Option<&Suspended>) -> Arc<Claims>,
    ) -> Found {
        // Dropped after the lock: the last holder of claims may call back.
        let jobs: Vec<Arc<Claims>>;
        let mut state = self.lock();
        state.running.retain(|(_, claims)| claims.strong_count() > 0);
        jobs = state.running.iter().filter(|(of, _)| *of == entry).filter_map(|(_, claims)| claims.upgrade()).collect();
        if let Some(claims) = jobs.iter().find(|claims| claims.extend(wanted)) {
            return Found::Job(claims.clone());
        }
        let wanted = layer.store.untaken(wanted);
        let Some(&first) = wanted.first() else { return Found::Nothing };
        let suspended = state.resume(entry, first, &layer.source);
        let claims = start(&wanted, suspended.as_ref());
        state.running.push((entry, Arc::downgrade(&claims)));
        Found::Standing(claims, suspended.map(Box::new))
    }

    /// The job of `claims` has brought all that is wanted. It goes on to `ahead`, if something is absent up to there, or ends; then what
    /// `suspended` gives is kept.
    pub(crate) fn after_last(
        &self,
        claims: &Claims,
        ahead: Option<SpanIndex>,
        suspended: impl FnOnce(SpanIndex) -> Option<Suspended>,
    ) -> Reached {
        let mut state = self.lock();
        let reached = claims.end(ahead);
        if let Reached::End(next) = reached {
            let too_many = suspended(next).and_then(|suspended| state.keep(suspended));
            drop(state);
            drop(too_many);
        }
        reached
    }

    /// The job of `claims` can get no further: whoever asks again finds its decoder, and not the job.
    pub(crate) fn break_off(&self, claims: &Claims, suspended: Option<Suspended>) {
        let mut state = self.lock();
        claims.close();
        let too_many = suspended.and_then(|suspended| state.keep(suspended));
        drop(state);
        drop(too_many);
    }

    /// Lets go of every decoder: one of them may have been fed wrong bytes.
    pub(crate) fn clear(&self) {
        let forgotten = std::mem::take(&mut self.lock().suspended);
        drop(forgotten);
    }

    /// Lets go of every decoder that holds memory.
    pub(crate) fn forget(&self) {
        let mut state = self.lock();
        let (kept, forgotten): (Vec<_>, Vec<_>) =
            state.suspended.drain(..).partition(|suspended| suspended.memory.is_none() && suspended.begun.is_none());
        state.suspended = kept;
        drop(state);
        drop(forgotten);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Gives the oldest back when there are too many: not to be dropped under the lock.
    fn keep(&mut self, suspended: Suspended) -> Option<Suspended> {
        self.suspended.push(suspended);
        (self.suspended.len() > SUSPENDED_MAX).then(|| self.suspended.remove(0))
    }

    /// The kept decoder that stands nearest before `first` in the chain of `entry`.
    fn resume(&mut self, entry: SpanIndex, first: SpanIndex, source: &BlobSource) -> Option<Suspended> {
        let fits = |suspended: &Suspended| suspended.entry == entry && suspended.next <= first && suspended.source.is_same(source);
        let fits = self.suspended.iter().enumerate().filter(|(_, suspended)| fits(suspended));
        let (place, _) = fits.max_by_key(|(_, suspended)| suspended.next)?;
        Some(self.suspended.remove(place))
    }
}

/// The last span that the job goes on to when all that was wanted of the chain of `entry` has come out up to `next`: as far again as it has
/// come, so that not more than twice of what is needed is ever fetched, and the chain is broken off a few times however it is read. `None`
/// for a short chain. Pure.
pub(crate) fn run_ahead(table: &SpanTable, entry: SpanIndex, next: SpanIndex) -> Option<SpanIndex> {
    let end = table.next_entry(entry).map_or(table.len(), SpanIndex::get);
    if next.get() >= end {
        return None;
    }
    let chain = table.stream_range(entry).start..table.stream_range(SpanIndex(end - 1)).end;
    if chain.end - chain.start < RUN_AHEAD_CHAIN_MIN {
        return None;
    }
    let at = table.stream_range(next).start;
    let ahead = (at - chain.start).max(RUN_AHEAD_MIN);
    let target = at.saturating_add(ahead);
    // What would be left is not worth another request.
    let target = if target.saturating_add(ahead / 2) >= chain.end { chain.end } else { target };
    table.span_at(StreamOffset(target - 1))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use clip_format::{
        checkpoints::{Checkpoints, Span, SpanStart},
        digest::Digest,
        storage_info::{Codec, LayerInfo},
        units::CompressedOffset,
    };

    use super::*;
    use crate::{
        buffers::Buffers,
        layer::LayerStore,
        plan::Wanted,
        priority::Priority,
        span::{SpanState, VerifiedSpan},
        tend::Tended,
    };

    /// A zstd layer of `mib` spans of 1 MiB, of which `entries` are entries.
    fn table(mib: u64, entries: &[u64]) -> SpanTable {
        let frame = SpanStart::Frame { window_log: 20 };
        let span = |at: u64| Span {
            start: if entries.contains(&at) { frame } else { SpanStart::Chained },
            compressed: CompressedOffset(at),
            stream: StreamOffset(at << 20),
            digest: [0; 32],
        };
        let (digest, codec) = (Digest::Sha256([1; 32]), Codec::Zstd);
        let info = LayerInfo { digest, diff_id: digest, media_type: String::new(), compressed_size: mib, stream_size: mib << 20, codec };
        let bytes = Checkpoints::encode(&[(0..mib).map(span).collect()]).unwrap();
        Checkpoints::open(Arc::new(bytes), &[info], 0).unwrap().layers()[0].clone()
    }

    /// A layer that is one chain of so many spans.
    fn layer(dir: &std::path::Path, spans: u64) -> Arc<ImageLayer> {
        let table = table(spans, &[0]);
        let tended = Tended::start(Buffers::new(0));
        let store = LayerStore::open(dir.join("layer"), Digest::Sha256([1; 32]), &table, 1, Arc::default(), &tended).unwrap();
        let source = BlobSource::File { path: dir.join("blob"), offset: 0, size: spans };
        Arc::new(ImageLayer::new(Arc::new(store), table, source, Arc::new(Vec::new())))
    }

    /// Claim: a span that is claimed while a job comes to it is that job's when it passes, and its claimant starts nothing for it, but goes along
    /// for what is left, behind it; of two who look at one span, exactly one answers for it.
    #[test]
    fn a_job_takes_what_it_passes() {
        let dir = tempfile::tempdir().unwrap();
        let layer = layer(dir.path(), 10);
        let work = |wanted: &[u32]| {
            let wanted = wanted.iter().copied().map(SpanIndex).collect();
            layer.work(Wanted { entry: SpanIndex(0), wanted }, Priority::Demand).map(|work| work.claims)
        };
        // Claimed by readers that have not come to a job.
        assert!([2, 3, 5, 7].into_iter().all(|span| layer.store.claim(SpanIndex(span))));
        let job = work(&[5]).unwrap();
        assert_eq!(job.open(), [0, 1, 4, 5].map(SpanIndex));
        assert!((0..=2).all(|span| job.passed(SpanIndex(span))) && job.holds(SpanIndex(2)));
        assert!(work(&[2]).is_none() && job.next_span() == Some(SpanIndex(3)));
        assert!(job.passed(SpanIndex(3)));
        assert!(work(&[3, 7]).is_none(), "the job is past one of them and comes to the other");
        assert_eq!((job.holds(SpanIndex(7)), job.last()), (true, SpanIndex(7)));
        assert!(job.passed(SpanIndex(4)) && !layer.store.take(SpanIndex(4)));
        // Wrong bytes came: what is open is anybody's again.
        let left = job.hand_over();
        assert!(left.len() == 8 && layer.store.untaken(&left) == left);
        let other = work(&[2, 3]).unwrap();
        assert_eq!(other.open(), [2, 3].map(SpanIndex));
        assert!(other.passed(SpanIndex(0)) && work(&[0]).is_none());
        drop((job, other));
        assert!(layer.store.claim(SpanIndex(0)) && !layer.store.claim(SpanIndex(1)), "what a job has taken fails with it, and no more");
    }

    /// Claim: who wants the end of a long chain claims that, and of what lies on the way no more than is near: the rest as the job comes to
    /// it, or for a reader who asks for it and has it from the same job.
    #[test]
    fn a_long_way_is_claimed_bit_by_bit() {
        let dir = tempfile::tempdir().unwrap();
        let layer = layer(dir.path(), 5000);
        let work = |span: u32| {
            assert!(layer.store.claim(SpanIndex(span)));
            layer.work(Wanted { entry: SpanIndex(0), wanted: vec![SpanIndex(span)] }, Priority::Demand).map(|work| work.claims)
        };
        let is_absent = |span: u32| layer.store.states.get(SpanIndex(span)) == SpanState::Absent;
        let job = work(4000).unwrap();
        assert_eq!((job.open().len(), job.last()), (1025, SpanIndex(4000)));
        assert!(!is_absent(1023) && is_absent(1024) && is_absent(3999));
        assert!(work(3000).is_none() && job.open().len() == 1026, "the job takes it along");
        for span in (0..=4000).map(SpanIndex) {
            assert_eq!(job.next_span(), Some(span));
            assert!(job.open().len() <= 1026 && job.passed(span));
            let verified = VerifiedSpan::verify(vec![span.get() as u8], blake3::hash(&[span.get() as u8]).as_bytes()).unwrap();
            assert!(job.deliver(span, &verified).is_some());
        }
        assert!(job.next_span().is_none() && job.open().is_empty());
        assert_eq!(job.end(Some(SpanIndex(4999))), Reached::Ahead);
        assert_eq!((job.open().len(), job.last()), (999, SpanIndex(4999)));
    }

    /// Claim: a long chain goes on by 32 MiB or as far as it has come, and to its end where little would be left; a short one, or one that
    /// is at its end, does not.
    #[test]
    fn a_chain_goes_on_as_far_again() {
        let table = table(1000, &[0, 900, 915]);
        let ahead = |entry, next| run_ahead(&table, SpanIndex(entry), SpanIndex(next)).map(SpanIndex::get);
        assert_eq!([ahead(0, 1), ahead(0, 33), ahead(0, 100)], [Some(32), Some(65), Some(199)]);
        assert_eq!([ahead(0, 359), ahead(0, 360), ahead(0, 450)], [Some(717), Some(899), Some(899)]);
        assert_eq!([ahead(0, 899), ahead(0, 900), ahead(900, 901)], [Some(899), None, None]);
        assert_eq!([ahead(915, 916), ahead(915, 1000)], [Some(947), None]);
    }
}
