//! One engine thread: its runtime, its queues, and what it does with a request.

use std::{
    cell::Cell,
    io,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::Duration,
};

use crossbeam::channel::{Receiver, Sender, unbounded};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit},
    task::{LocalSet, spawn_local, yield_now},
};

use crate::{
    background::Task,
    claims::Delivered,
    config::DiskIo,
    core::Core,
    disk::Disk,
    error::EngineError,
    fetch::{self, Flow},
    job,
    layer::LayerStore,
    metrics::count,
    prefetch::{self, Prefetch},
    read::Deadline,
    registry::Client,
    span::VerifiedSpan,
};

/// How long a stopping shard waits for its last writes.
const LAST_WRITES_MAX: Duration = Duration::from_secs(5);
/// Threads of a shard's pool where io_uring is barred. Source: two keep a disk's queue filled while a third span decodes.
const POOL_THREADS: usize = 2;

/// What a shard is asked for.
pub(crate) enum Request {
    Flow(Flow),
    Prefetch(Prefetch),
    Background(Task),
    Deadline(Deadline),
}

/// The senders' side of a shard: two queues, on-demand work first.
pub(crate) struct ShardHandle {
    demand: Sender<Request>,
    prefetch: Sender<Request>,
    wake: Arc<Notify>,
}

/// The thread's side.
pub(crate) struct ShardQueues {
    demand: Receiver<Request>,
    prefetch: Receiver<Request>,
    wake: Arc<Notify>,
}

/// The two ends of a shard's queues.
pub(crate) fn queues() -> (ShardHandle, ShardQueues) {
    let (wake, (demand_in, demand), (prefetch_in, prefetch)) = (Arc::new(Notify::new()), unbounded(), unbounded());
    (ShardHandle { demand: demand_in, prefetch: prefetch_in, wake: wake.clone() }, ShardQueues { demand, prefetch, wake })
}

impl ShardHandle {
    /// Queues `request`; where the shard is gone it is dropped, which fails what it had claimed.
    pub(crate) fn send(&self, request: Request) {
        let queue = if matches!(request, Request::Prefetch(_) | Request::Background(_)) { &self.prefetch } else { &self.demand };
        drop(queue.send(request));
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
            runtime.block_on(serve(core, disk, queues));
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
                // A write or a name look-up that hangs must not keep the engine from stopping.
                runtime.shutdown_background();
            }
        }
    }
}

/// What the tasks of one shard share.
pub(crate) struct Shard {
    pub(crate) core: Arc<Core>,
    pub(crate) client: Client,
    disk: Disk,
    writes: Cell<usize>,
    written: Notify,
}

/// Serves requests and decode jobs until the engine stops, then waits for the last writes.
async fn serve(core: Arc<Core>, disk: Disk, queues: ShardQueues) {
    let client = core.client.with_own_pool();
    let shard = Rc::new(Shard { core, client, disk, writes: Cell::new(0), written: Notify::new() });
    let jobs = spawn_local(take_jobs(shard.clone()));
    loop {
        while let Ok(request) = queues.demand.try_recv() {
            shard.accept(request);
        }
        if shard.core.is_stopping() {
            break;
        }
        match queues.prefetch.try_recv() {
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

/// Starts one waiting decode job after another, leaving the rest to other shards while it runs.
async fn take_jobs(shard: Rc<Shard>) {
    loop {
        match shard.core.jobs.pop() {
            Some(job) => {
                if !shard.core.jobs.is_empty() {
                    shard.core.job_ready.notify_one();
                }
                spawn_local(job::run(job, shard.clone()));
                yield_now().await;
            }
            None => shard.core.job_ready.notified().await,
        }
    }
}

impl Shard {
    fn accept(self: &Rc<Self>, request: Request) {
        match request {
            Request::Flow(flow) => drop(spawn_local(fetch::run(flow, self.clone()))),
            Request::Prefetch(prefetch) => drop(spawn_local(prefetch::run(prefetch, self.clone()))),
            Request::Background(task) => drop(spawn_local(prefetch::run_task(task, self.clone()))),
            Request::Deadline(deadline) => drop(spawn_local(deadline.watch())),
        }
    }

    /// Writes a delivered span to the cache; its bytes count as in flight until then.
    pub(crate) fn keep(self: &Rc<Self>, delivered: Delivered, verified: VerifiedSpan, held: OwnedSemaphorePermit) {
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
        self.disk.write_all(store.file.stream(), verified.bytes().clone(), offset).await?;
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
