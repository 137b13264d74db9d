//! One engine thread: its runtime, its queues, and what it does with a request.

use std::{
    cell::Cell,
    io,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crossbeam::channel::{Receiver, Sender, unbounded};
use tokio::{
    sync::Notify,
    task::{LocalSet, spawn_local, yield_now},
};

use crate::{
    background::{self, Task},
    claims::Delivered,
    config::DiskIo,
    core::Core,
    disk::Disk,
    error::EngineError,
    fetch::{self, Flow},
    job::{Kept, Ran},
    layer::LayerStore,
    metrics::{Gauge, count},
    priority::Priority,
    quota::Held,
    read::Deadline,
    registry::Client,
    span::VerifiedSpan,
};

/// How long a stopping shard waits for its last writes.
const LAST_WRITES_MAX: Duration = Duration::from_secs(5);
/// Threads of a shard's pool where io_uring is barred. Source: two keep a disk's queue filled while a third span decodes.
const POOL_THREADS: usize = 2;

/// Looks at the sockets after a background step while a reader waits for bytes. Source: a look brings one chunk of a body, 8-256 KiB, and
/// costs 2 us beside the 400 us of a step; with one look a step a span of 350 KB took ten steps to arrive.
const LOOKS_URGENT: usize = 16;

/// What a shard is asked for.
pub(crate) enum Request {
    Flow(Flow),
    Background(Task),
    Deadline(Deadline),
}

/// The senders' side of a shard: two queues, on-demand work first.
pub(crate) struct ShardHandle {
    demand: Sender<Request>,
    background: Sender<Request>,
    wake: Arc<Notify>,
    /// With the shard's own connections.
    pub(crate) client: Client,
    /// Flows that were given to it.
    pub(crate) flows: Arc<Gauge>,
    /// Spans that it has decoded.
    pub(crate) spans: AtomicU64,
}

/// The thread's side.
pub(crate) struct ShardQueues {
    demand: Receiver<Request>,
    background: Receiver<Request>,
    wake: Arc<Notify>,
}

/// The two ends of a shard's queues; `client` has a pool of connections for this shard alone.
pub(crate) fn queues(client: Client) -> (ShardHandle, ShardQueues) {
    let (wake, (demand_in, demand), (background_in, background)) = (Arc::new(Notify::new()), unbounded(), unbounded());
    let (flows, spans) = (Arc::default(), AtomicU64::new(0));
    let handle = ShardHandle { demand: demand_in, background: background_in, wake: wake.clone(), client, flows, spans };
    (handle, ShardQueues { demand, background, wake })
}

impl ShardHandle {
    /// Queues `request`; where the shard is gone it is dropped, which fails what it had claimed.
    pub(crate) fn send(&self, request: Request) {
        let is_background = match &request {
            Request::Background(_) => true,
            Request::Flow(flow) => flow.priority.is_background(),
            Request::Deadline(_) => false,
        };
        drop(if is_background { &self.background } else { &self.demand }.send(request));
        self.wake.notify_one();
    }

    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }
}

/// Starts the thread of shard `index`; its runtime works when this returns.
///
/// # Errors
/// `Io`; `Unsupported` when io_uring was demanded and is barred.
pub(crate) fn spawn(core: Arc<Core>, queues: ShardQueues, index: usize) -> Result<JoinHandle<()>, EngineError> {
    let (ready, started) = mpsc::channel();
    let body = move || match Runtime::start(core.config.disk_io) {
        Err(error) => drop(ready.send(Err(error))),
        Ok((runtime, disk)) => {
            drop(ready.send(Ok(())));
            runtime.block_on(serve(core, disk, queues, index));
        }
    };
    let thread = std::thread::Builder::new().name(format!("clip-shard-{index}")).spawn(body);
    let thread = thread.map_err(|error| EngineError::io("start", "an engine thread", error))?;
    match started.recv() {
        Ok(Ok(())) => Ok(thread),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(EngineError::Stopped),
    }
}

enum Runtime {
    Uring(tokio_uring::Runtime),
    Pool(tokio::runtime::Runtime),
}

impl Runtime {
    fn start(wanted: DiskIo) -> Result<(Self, Disk), EngineError> {
        static WARNED: AtomicBool = AtomicBool::new(false);
        let barred = match wanted {
            DiskIo::Pool => None,
            DiskIo::Auto | DiskIo::Uring => match tokio_uring::Runtime::new(&tokio_uring::builder()) {
                Ok(runtime) => return Ok((Runtime::Uring(runtime), Disk::Uring)),
                Err(error) => Some(error),
            },
        };
        match barred {
            Some(error) if wanted == DiskIo::Uring => {
                let hint = "use --disk-io auto, or allow io_uring (kernel.io_uring_disabled, seccomp)".to_owned();
                return Err(EngineError::Unsupported { what: "io_uring".to_owned(), found: error.to_string(), hint });
            }
            Some(error) if !WARNED.swap(true, Ordering::Relaxed) => {
                tracing::warn!(%error, "io_uring is not available here; the cache is written by a pool of threads");
            }
            _ => {}
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(POOL_THREADS).build();
        let runtime = runtime.map_err(|error: io::Error| EngineError::io("start", "an engine runtime", error))?;
        Ok((Runtime::Pool(runtime), Disk::Pool))
    }

    fn block_on(self, future: impl Future<Output = ()>) {
        match self {
            Runtime::Uring(runtime) => runtime.block_on(future),
            Runtime::Pool(runtime) => {
                LocalSet::new().block_on(&runtime, future);
                // A write or a name look-up that hangs must not keep the engine from stopping. Such a write keeps the directory's lock.
                runtime.shutdown_background();
            }
        }
    }
}

/// What the tasks of one shard share.
pub(crate) struct Shard {
    pub(crate) core: Arc<Core>,
    pub(crate) client: Client,
    /// Its number.
    pub(crate) index: usize,
    /// Flows here that readers wait for.
    urgent_flows: Rc<Cell<usize>>,
    disk: Disk,
    writes: Cell<usize>,
    written: Notify,
}

/// A flow of a shard that a reader waits for.
pub(crate) struct Urgent(Rc<Cell<usize>>);

impl Drop for Urgent {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Serves requests and decode jobs until the engine stops, then waits for the last writes.
async fn serve(core: Arc<Core>, disk: Disk, queues: ShardQueues, index: usize) {
    let client = core.client_of(index).clone();
    let shard = Rc::new(Shard { core, client, index, urgent_flows: Rc::default(), disk, writes: Cell::new(0), written: Notify::new() });
    let jobs = spawn_local(take_jobs(shard.clone()));
    loop {
        while let Ok(request) = queues.demand.try_recv() {
            shard.accept(request);
        }
        if shard.core.is_stopping() {
            break;
        }
        match queues.background.try_recv() {
            Ok(request) => {
                shard.accept(request);
                yield_now().await;
            }
            Err(_) => queues.wake.notified().await,
        }
    }
    jobs.abort();
    let last_writes = async {
        while shard.writes.get() > 0 {
            shard.written.notified().await;
        }
    };
    let _ = tokio::time::timeout(LAST_WRITES_MAX, last_writes).await;
}

/// Decodes: the most urgent job, a step at a time, with a look at the sockets after each step. A job gives way to more urgent ones after
/// any step, to its equals after each span; another shard may go on with it.
async fn take_jobs(shard: Rc<Shard>) {
    let (jobs, takes) = (shard.core.jobs.clone(), shard.core.takes(shard.index));
    let (mut kept, mut slept_since) = (Vec::new(), None);
    loop {
        let Some(job) = jobs.pop(takes) else {
            slept_since.get_or_insert_with(Instant::now);
            jobs.ready(takes).await;
            continue;
        };
        let slept = slept_since.take().filter(|_| job.priority() != Priority::Fill);
        if let Some(slept_since) = slept {
            let idle = job.queued_since().max(slept_since).elapsed();
            count(&shard.core.counters.idle_with_work_us, u64::try_from(idle.as_micros()).unwrap_or(u64::MAX));
        }
        loop {
            let ran = job.step(&mut kept);
            for Kept { delivered, verified, held } in kept.drain(..) {
                shard.core.note_decoded(shard.index);
                shard.keep(delivered, verified, held);
            }
            if ran == Ran::Over {
                // It may wait for bytes that have come.
                yield_now().await;
                break;
            }
            let priority = job.priority();
            for _ in 0..shard.looks(priority) {
                yield_now().await;
            }
            if jobs.has_before(priority, ran == Ran::SpanDone) || priority == Priority::Fill && jobs.is_barred(takes) {
                job.put_back(ran == Ran::OnAndOn);
                break;
            }
        }
    }
}

impl Shard {
    fn accept(self: &Rc<Self>, request: Request) {
        match request {
            Request::Flow(flow) => drop(spawn_local(fetch::run(flow, self.clone()))),
            Request::Background(task) => drop(spawn_local(background::run(task, self.clone()))),
            Request::Deadline(deadline) => drop(spawn_local(deadline.watch())),
        }
    }

    /// Background decoding leaves more room to the sockets as long as what is given back lives.
    pub(crate) fn urgent_flow(&self) -> Urgent {
        self.urgent_flows.set(self.urgent_flows.get() + 1);
        Urgent(self.urgent_flows.clone())
    }

    /// How often to look at the sockets after a step for `priority`.
    fn looks(&self, priority: Priority) -> usize {
        if priority.is_background() && self.urgent_flows.get() > 0 { LOOKS_URGENT } else { 1 }
    }

    /// Writes a delivered span to the cache; its bytes count as in flight until then.
    pub(crate) fn keep(self: &Rc<Self>, delivered: Delivered, verified: VerifiedSpan, held: Held) {
        self.writes.set(self.writes.get() + 1);
        let shard = self.clone();
        spawn_local(async move {
            let doubts = delivered.store.doubts();
            match shard.write(&delivered, &verified).await {
                Ok(()) => delivered.written(doubts),
                Err(error) => shard.not_kept(&delivered.store, &error),
            }
            drop(held);
            shard.writes.set(shard.writes.get() - 1);
            shard.written.notify_one();
        });
    }

    async fn write(&self, delivered: &Delivered, verified: &VerifiedSpan) -> io::Result<()> {
        let (store, span) = (&delivered.store, delivered.span);
        if !store.file.is_intact() {
            store.doubt_file();
        }
        let offset = store.table.stream_range(span).start;
        self.disk.write_all(store.file.stream(), verified.bytes().clone(), offset, self.core.owner_lock()).await?;
        // A file that was cut meanwhile has grown again by this write, over zeros.
        if !store.file.is_intact() {
            store.doubt_file();
        }
        Ok(())
    }

    /// The span was served and is not kept: a full disk makes reads slower, never wrong.
    fn not_kept(&self, store: &LayerStore, error: &io::Error) {
        count(&self.core.counters.spans_not_cached, 1);
        if !self.core.warned_disk.swap(true, Ordering::Relaxed) {
            let path = store.file.dir().display();
            tracing::warn!(%path, %error, "the cache cannot be written; what is read is passed through and fetched again next time");
        }
    }
}
