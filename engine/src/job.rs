//! One decode job: a group's compressed bytes in, verified spans out, a step at a time on whichever shard is idle.

use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Instant,
};

use bytes::{Buf, Bytes};
use clip_format::units::SpanIndex;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::{
    background::Ticket,
    backlog::Course,
    buffers::Buffer,
    chain::{Begun, Suspended, run_ahead},
    claims::{Claims, Delivered, Reached},
    core::{Core, Wrong},
    decode::{DecodeError, Decoder},
    error::EngineError,
    image_layer::{ImageLayer, Work},
    jobs::Jobs,
    metrics::{Gauge, Weight, count},
    priority::{Priority, Urgency},
    progress::{self, Progress},
    quota::Held,
    registry::ServedBy,
    source::BlobSource,
    span::{SPAN_LEN_MAX, VerifiedSpan},
};

/// Bytes that are decoded before the shard looks at its sockets and at more urgent work. Source: 0.4 ms of inflate at 680 MB/s; each stop
/// copies the 32 KiB window, which takes 1 % of that.
const STEP_BYTES: usize = 256 << 10;

/// A group whose bytes arrive on `input`; closing the channel early means that the fetch failed.
pub(crate) struct DecodeJob {
    /// What it is a part of.
    pub(crate) course: Arc<Course>,
    pub(crate) work: Work,
    pub(crate) input: mpsc::Receiver<Piece>,
    /// Given back when the job ends: a flow starts no more jobs than it has turns, unless a reader is in a hurry.
    pub(crate) turn: Option<OwnedSemaphorePermit>,
    /// Room for the compressed bytes that wait for it.
    pub(crate) room: Held,
    /// The flow's failure is in the log; of several groups with wrong bytes one is enough.
    pub(crate) said: Arc<AtomicBool>,
    /// What counts its spans as done with, if somebody counts.
    pub(crate) ticket: Option<Arc<Ticket>>,
    /// Who sends its bytes, where others could be asked instead.
    pub(crate) host: Option<Arc<ServedBy>>,
    /// Wrong bytes are final: they have been fetched before.
    pub(crate) is_repeated: bool,
}

/// Compressed bytes that wait for a decoder.
pub(crate) struct Piece {
    pub(crate) bytes: Bytes,
    _weight: Weight,
}

impl Piece {
    pub(crate) fn new(bytes: Bytes, in_flight: &Arc<Gauge>) -> Self {
        let _weight = in_flight.weigh(bytes.len() as u64);
        Self { bytes, _weight }
    }
}

/// A verified span that has answered its waiters and is to be written by the shard that has decoded it, with its part of the budget.
pub(crate) struct Kept {
    pub(crate) delivered: Delivered,
    pub(crate) verified: VerifiedSpan,
    pub(crate) held: Held,
}

/// Where a job is. Only who makes it `Running` may run it.
#[repr(u8)]
enum State {
    /// It waits for input or for room, and is woken by that.
    Idle = 0,
    /// In the queue.
    Queued = 1,
    /// On a shard.
    Running = 2,
    /// On a shard, and woken meanwhile.
    Again = 3,
    /// It has ended.
    Ended = 4,
}

/// What became of one step of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ran {
    /// It can go on at once; the caller has it still.
    OnAndOn,
    /// As that, and a span is complete: a good moment to run another job.
    SpanDone,
    /// It waits, or has ended.
    Over,
}

type Decoding = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A decode job and where it stands. It belongs to no shard: between two steps another may take it.
pub(crate) struct Job {
    decoding: Mutex<Option<Decoding>>,
    state: AtomicU8,
    urgency: Arc<Urgency>,
    jobs: Arc<Jobs>,
    outbox: Arc<Outbox>,
    /// Since when it has waited in the queue.
    queued: Mutex<Instant>,
}

/// What a job's decoding tells whoever runs it.
#[derive(Default)]
struct Outbox {
    span_done: AtomicBool,
    kept: Mutex<Vec<Kept>>,
}

impl Job {
    /// Queues `job`.
    pub(crate) fn start(core: &Arc<Core>, job: DecodeJob) {
        let (outbox, urgency) = (Arc::new(Outbox::default()), job.work.claims.urgency().clone());
        let decoding: Decoding = Box::pin(run(job, core.clone(), outbox.clone()));
        let state = AtomicU8::new(State::Idle as u8);
        let (decoding, queued) = (Mutex::new(Some(decoding)), Mutex::new(Instant::now()));
        let job = Arc::new(Self { decoding, state, urgency: urgency.clone(), jobs: core.jobs.clone(), outbox, queued });
        urgency.set_job(Arc::downgrade(&job));
        job.schedule();
    }

    pub(crate) fn priority(&self) -> Priority {
        self.urgency.get()
    }

    /// Since when it waited in the queue.
    pub(crate) fn queued_since(&self) -> Instant {
        *self.queued.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its priority has risen: where it waits in the queue, it moves up.
    pub(crate) fn raise(self: &Arc<Self>) {
        // In one order with `schedule`, which queues and then looks at the priority: one of the two sees the other.
        if self.state.load(Ordering::SeqCst) == State::Queued as u8 {
            self.jobs.push(self.clone());
        }
    }

    /// True when it was queued and is the caller's to run now.
    pub(crate) fn take(&self) -> bool {
        self.change(State::Queued, State::Running)
    }

    /// Gives a job that [`Self::take`] gave back to the queue, before its equals or behind them.
    pub(crate) fn put_back(self: Arc<Self>, first: bool) {
        self.state.store(State::Queued as u8, Ordering::SeqCst);
        self.note_queued();
        let jobs = self.jobs.clone();
        if first { jobs.push_front(self) } else { jobs.push(self) }
    }

    /// Goes on for one step. What it has completed is in `kept` then.
    pub(crate) fn step(self: &Arc<Self>, kept: &mut Vec<Kept>) -> Ran {
        let mut decoding = self.decoding.lock().unwrap_or_else(PoisonError::into_inner);
        let waker = Waker::from(self.clone());
        let polled = match decoding.as_mut() {
            // An answer that panics ends this job, not the shard; its claims fail when it is dropped.
            Some(future) => catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut Context::from_waker(&waker)))),
            None => Ok(Poll::Ready(())),
        };
        kept.append(&mut self.outbox.kept.lock().unwrap_or_else(PoisonError::into_inner));
        if let Ok(Poll::Pending) = polled {
            drop(decoding);
            let span_done = self.outbox.span_done.swap(false, Ordering::Relaxed);
            if self.change(State::Running, State::Idle) {
                return Ran::Over;
            }
            // It was woken meanwhile.
            self.state.store(State::Running as u8, Ordering::Release);
            return if span_done { Ran::SpanDone } else { Ran::OnAndOn };
        }
        self.state.store(State::Ended as u8, Ordering::Release);
        let ended = decoding.take();
        drop(decoding);
        let dropped = catch_unwind(AssertUnwindSafe(|| drop(ended)));
        if polled.is_err() || dropped.is_err() {
            tracing::error!("an answer to a reader panicked in a decode job");
        }
        Ran::Over
    }

    /// Drops what a job that will never run again holds; what it has claimed fails.
    pub(crate) fn abandon(&self) {
        let ended = self.decoding.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(ended);
        let kept = std::mem::take(&mut *self.outbox.kept.lock().unwrap_or_else(PoisonError::into_inner));
        drop(kept);
    }

    /// Makes sure that the job runs once more. Both changes can fail although the job is not queued: it may become idle between them.
    fn schedule(self: Arc<Self>) {
        loop {
            if self.change(State::Idle, State::Queued) {
                self.note_queued();
                return self.jobs.clone().push(self);
            }
            if self.change(State::Running, State::Again) {
                return;
            }
            let state = self.state.load(Ordering::SeqCst);
            if state != State::Idle as u8 && state != State::Running as u8 {
                return;
            }
        }
    }

    fn change(&self, from: State, to: State) -> bool {
        self.state.compare_exchange(from as u8, to as u8, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    fn note_queued(&self) {
        *self.queued.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}

impl Wake for Job {
    fn wake(self: Arc<Self>) {
        self.schedule();
    }
}

/// Lets the shard look up from the job, which goes on at once if nothing is more urgent.
async fn pause() {
    let mut paused = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut paused, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Decodes `job` to its last wanted span. Wrong bytes of a registry are fetched once more. What fails otherwise, or again, fails the spans that
/// are left, with one log line here unless the fetch said it.
async fn run(job: DecodeJob, core: Arc<Core>, outbox: Arc<Outbox>) {
    let (claims, layer, said, host) = (job.work.claims.clone(), job.course.layer.clone(), job.said.clone(), job.host.clone());
    let (ticket, is_remote) = (job.ticket.clone(), !matches!(layer.source, BlobSource::File { .. }));
    let was_resumed = job.work.resumed.is_some();
    let mut is_last_try = job.is_repeated;
    let Err(ended) = decode(job, &mut is_last_try, &core, &outbox).await else { return };
    let (error, is_wrong) = match ended {
        Ended::Wrong(error) => (error, is_remote),
        Ended::Failed(error) => (error, false),
    };
    if claims.error().is_none() && !core.is_stopping() {
        // Before those who wait are told: they ask again. What a decoder held already may be another host's.
        if let Some(host) = host.filter(|_| is_wrong && !was_resumed) {
            host.distrust();
        }
        if is_wrong && !is_last_try {
            layer.chains.clear();
            let (claimed, priority) = (claims.hand_over(), claims.urgency().get());
            return core.fetch_again(&layer, Wrong { claimed, priority, ticket, said }, &error);
        }
        core.say_fetch_failed(&said, &layer.store.digest, &error);
    }
    drop(claims.fail(error));
}

/// Why a job has not brought all.
enum Ended {
    /// Its compressed bytes are not those that were indexed.
    Wrong(EngineError),
    Failed(EngineError),
}

impl From<EngineError> for Ended {
    fn from(error: EngineError) -> Self {
        Self::Failed(error)
    }
}

/// `is_last_try` falls with the first right span: what is wrong after it is another matter.
async fn decode(job: DecodeJob, is_last_try: &mut bool, core: &Core, outbox: &Outbox) -> Result<(), Ended> {
    let DecodeJob { course, work, input, turn: _turn, room: _room, said: _, ticket: _ticket, host: _, is_repeated: _ } = job;
    let (layer, claims) = (&course.layer, work.claims.clone());
    let not_cached = core.counters.spans_not_cached.load(Ordering::Relaxed);
    let mut source = Source::start(work, input, layer, core).await?;
    loop {
        let Some(span) = claims.next_span() else {
            let keeps = core.counters.spans_not_cached.load(Ordering::Relaxed) == not_cached;
            if go_on(&course, &claims, &mut source, keeps, core) {
                continue;
            }
            return Ok(());
        };
        let (bytes, held) = match next_span(layer, &mut source, span, claims.urgency(), core).await? {
            Came::All(bytes, held) => (bytes, held),
            Came::Some(bytes, filled) => {
                // Where their request failed, that is why; else there are fewer than were indexed.
                return Err(Ended::Wrong(break_off(layer, &claims, source, (bytes, filled), span, core)));
            }
        };
        if claims.passed(span) {
            let verified = verify(layer, span, bytes).map_err(Ended::Wrong)?;
            *is_last_try = false;
            count(&core.counters.spans_fetched, 1);
            if let Some(delivered) = claims.deliver(span, &verified) {
                outbox.kept.lock().unwrap_or_else(PoisonError::into_inner).push(Kept { delivered, verified, held });
            }
        }
        outbox.span_done.store(true, Ordering::Relaxed);
        pause().await;
    }
}

/// All that was wanted has come out. In a long chain that a reader waited for, the job goes on for whoever comes next, as long as what
/// comes is kept (`keeps`); else its decoder is put away, and the answer is no.
fn go_on(course: &Arc<Course>, claims: &Claims, source: &mut Source, keeps: bool, core: &Core) -> bool {
    let (layer, entry) = (&course.layer, source.entry);
    let was_for_a_reader = !claims.urgency().get().is_background();
    let is_fed = claims.error().is_none();
    let may_go_on = keeps && was_for_a_reader && is_fed && core.config.read_ahead_bytes_max > 0 && !core.is_stopping();
    let ahead = claims.next().filter(|_| may_go_on).and_then(|next| run_ahead(&layer.table, entry, next));
    if ahead.is_some() {
        // Before anything is claimed: who comes to wait for that finds this job and makes it urgent again.
        claims.urgency().lower();
        layer.store.backlog.enter(course);
    }
    let end = layer.chain_end(entry);
    let mut holds_memory = false;
    let reached = layer.chains.after_last(claims, ahead, |next| {
        let suspended = if next.get() < end { source.suspended(next, None, layer) } else { None };
        holds_memory = suspended.as_ref().is_some_and(|suspended| suspended.memory.is_some());
        suspended
    });
    if holds_memory {
        core.decoders.note_standing(&layer.chains);
    }
    if reached == Reached::More && ahead.is_some() {
        // Perhaps a reader's, who made this job urgent before it was lowered.
        claims.urgency().raise();
    }
    !matches!(reached, Reached::End(_))
}

/// The compressed bytes have ended within `span`: why. Where their request failed, whoever asks again goes on from here.
fn break_off(
    layer: &Arc<ImageLayer>,
    claims: &Claims,
    mut source: Source,
    (bytes, filled): (Buffer, usize),
    span: SpanIndex,
    core: &Core,
) -> EngineError {
    let Some(error) = claims.error().cloned() else {
        return layer.store.bad(span, format!("{} bytes", bytes.len()), format!("{filled} bytes, then the compressed bytes end"));
    };
    if !layer.is_chain(source.entry) {
        return error;
    }
    // What has come out of the span is kept if there is room for it: without it the decoder is of no use.
    let begun = core.decoders.try_acquire(bytes.len() as u64).map(|_memory| Begun { bytes, filled, _memory });
    let is_of_use = begun.is_some() || filled == 0;
    let suspended = if is_of_use { source.suspended(span, begun, layer) } else { None };
    layer.chains.break_off(claims, suspended);
    core.decoders.note_standing(&layer.chains);
    error
}

/// A decoder and the bytes it has not seen.
struct Source {
    entry: SpanIndex,
    /// `None` once it has been put away.
    decoder: Option<Decoder>,
    memory: Option<Held>,
    /// The first bytes of the next span.
    begun: Option<Begun>,
    input: mpsc::Receiver<Piece>,
    piece: Option<Piece>,
    /// The blob's next byte.
    position: u64,
}

impl Source {
    /// Goes on where a decoder stands, or enters once there is memory for one.
    async fn start(work: Work, input: mpsc::Receiver<Piece>, layer: &ImageLayer, core: &Core) -> Result<Self, EngineError> {
        let Work { group, entry, claims, resumed } = work;
        let (decoder, memory, begun) = match resumed.map(|resumed| *resumed) {
            Some(Suspended { decoder, memory, begun, .. }) => (decoder, memory, begun),
            None => {
                let memory = match layer.decoder_bytes(entry) {
                    0 => None,
                    bytes => Some(waited(core.decoders.acquire(bytes, claims.urgency()), "a decoder", layer, core).await?),
                };
                (layer.enter(entry)?, memory, None)
            }
        };
        Ok(Self { entry, decoder: Some(decoder), memory, begun, input, piece: None, position: group.compressed.start })
    }

    /// The decoder as it stands before `next`, to be put away.
    fn suspended(&mut self, next: SpanIndex, begun: Option<Begun>, layer: &ImageLayer) -> Option<Suspended> {
        let (entry, position, memory, source) = (self.entry, self.position, self.memory.take(), layer.source.clone());
        self.decoder.take().map(|decoder| Suspended { entry, next, begun, position, decoder, memory, source })
    }

    /// Decodes what is there, at most a step of it: bytes written.
    fn step(&mut self, output: &mut [u8]) -> Result<usize, DecodeError> {
        let input = self.piece.as_ref().map_or(&[][..], |piece| &piece.bytes[..]);
        let end = output.len().min(STEP_BYTES);
        let Some(decoder) = &mut self.decoder else { return Ok(0) };
        let (used, written) = decoder.decode(input, &mut output[..end])?;
        if let Some(piece) = &mut self.piece {
            piece.bytes.advance(used);
            self.position += used as u64;
        }
        self.piece.take_if(|piece| piece.bytes.is_empty());
        Ok(written)
    }
}

/// What has come out of a span.
enum Came {
    /// Its bytes, not verified, and the part of the budget that they take.
    All(Buffer, Held),
    /// So many of its bytes; then the compressed bytes end.
    Some(Buffer, usize),
}

/// Decodes the next span.
async fn next_span(layer: &ImageLayer, source: &mut Source, span: SpanIndex, urgency: &Urgency, core: &Core) -> Result<Came, Ended> {
    let range = layer.table.stream_range(span);
    let len = range.end - range.start;
    if len > SPAN_LEN_MAX {
        return Err(layer.store.bad(span, format!("at most {SPAN_LEN_MAX} bytes"), format!("{len} bytes")).into());
    }
    let held = waited(core.budget.acquire_as(len, urgency), "decoded bytes", layer, core).await?;
    let (mut bytes, mut filled) = match source.begun.take() {
        Some(begun) => (begun.bytes, begun.filled),
        None => (layer.store.buffers.take(len as usize), 0),
    };
    loop {
        // Before more input is waited for: the decoder may hold output of input that it has used.
        let step = source.step(&mut bytes[filled..]);
        let written = step.map_err(|error| Ended::Wrong(layer.store.bad(span, "bytes that decompress", error.to_string())))?;
        filled += written;
        if filled == bytes.len() {
            break;
        }
        if written == STEP_BYTES {
            pause().await;
            continue;
        }
        let Some(piece) = source.input.recv().await else { return Ok(Came::Some(bytes, filled)) };
        source.piece = Some(piece);
    }
    count(&core.counters.bytes_decoded, len);
    Ok(Came::All(bytes, held))
}

/// Waits for a part of some memory as long as others get theirs, or bytes arrive: only a disk that hangs stops both.
async fn waited(
    acquire: impl Future<Output = Result<Held, EngineError>>,
    what: &str,
    layer: &ImageLayer,
    core: &Core,
) -> Result<Held, EngineError> {
    let (waiting, idle_max) = (Progress::default(), core.config.read_timeout);
    let held = progress::while_moving(acquire, &[&waiting, &core.room, &core.progress], idle_max).await.ok_or_else(|| {
        let what = format!("room for {what} of layer {} (is the disk of the cache hanging?)", layer.store.digest);
        EngineError::Deadline { what, waited: idle_max }
    })??;
    core.room.touch();
    Ok(held)
}

fn verify(layer: &ImageLayer, span: SpanIndex, bytes: Buffer) -> Result<VerifiedSpan, EngineError> {
    let expected = layer.store.table.span(span).digest;
    VerifiedSpan::verify(bytes, &expected).map_err(|found| {
        let text = |digest| format!("BLAKE3 {}", hex::encode(digest));
        layer.store.bad(span, text(expected), text(found))
    })
}
