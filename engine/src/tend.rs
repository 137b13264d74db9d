//! The thread beside the shards: gives cache files to others who want them, writes presence bits, gives unused memory back.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, atomic::AtomicBool, atomic::Ordering, mpsc},
    thread,
    time::{Duration, Instant},
};

use rustix::process::Pid;

use crate::{buffers::Buffers, cache::lease::LEASE_SIGNAL, layer::LayerStore, memory};

/// How often presence bits are written and memory is given back. Source: what an owner that is killed loses is fetched again by the
/// next, so half a second of a fetch; a look at 10,000 layers takes 0.1 ms of it.
const ROUND: Duration = Duration::from_millis(500);
/// How long a reply that took its bytes before the lease was withdrawn has to reach the kernel, before the other gets the file. Source:
/// 1 MiB is copied in 0.1 ms; the rest is for a thread that is not scheduled, or a page that must come from the disk. The other waits
/// that long for its open.
const GRACE: Duration = Duration::from_millis(20);

/// The layers that are open, and the buffers.
pub(crate) struct Tended {
    stores: Mutex<Vec<Weak<LayerStore>>>,
    /// A layer was added, whose signal may have come before it.
    added: AtomicBool,
    /// The thread, when there is one.
    watcher: Option<Pid>,
    /// Held by the thread while it holds layers; true once it takes none any more.
    stopped: Mutex<bool>,
    pub(crate) buffers: Arc<Buffers>,
}

impl Tended {
    /// Starts the thread, which ends within [`ROUND`] after the last holder of the answer has let go. Without a thread all works, slower.
    pub(crate) fn start(buffers: Arc<Buffers>) -> Arc<Self> {
        let (ready, started) = mpsc::channel();
        let (give, take) = mpsc::channel::<Weak<Tended>>();
        let body = move || {
            block_signal();
            let _ = ready.send(rustix::thread::gettid());
            if let Ok(tended) = take.recv() {
                watch(&tended);
            }
        };
        let watcher = match thread::Builder::new().name("clip-tend".to_owned()).spawn(body) {
            Ok(_) => started.recv().ok(),
            Err(error) => {
                tracing::warn!(%error, "no thread to write presence bits: what is cached now is kept only if the owner ends in order");
                None
            }
        };
        let tended =
            Arc::new(Self { stores: Mutex::default(), added: AtomicBool::new(false), watcher, stopped: Mutex::default(), buffers });
        drop(give.send(Arc::downgrade(&tended)));
        tended
    }

    /// The thread that hears of who wants a file.
    pub(crate) fn watcher(&self) -> Option<Pid> {
        self.watcher
    }

    /// The thread holds no layer and never will again: those that nobody else holds are closed.
    pub(crate) fn stop(&self) {
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }

    /// Looks after `store` too, until it is gone.
    pub(crate) fn add(&self, store: &Arc<LayerStore>) {
        self.lock().push(Arc::downgrade(store));
        self.added.store(true, Ordering::Release);
    }

    fn stores(&self) -> Vec<Arc<LayerStore>> {
        let mut stores = self.lock();
        stores.retain(|store| store.strong_count() > 0);
        stores.iter().filter_map(Weak::upgrade).collect()
    }

    /// Gives every file that somebody waits for to them.
    fn give_way(&self) {
        let mut wanted = self.stores();
        wanted.retain(|store| store.withdraw_if_wanted());
        if !wanted.is_empty() {
            thread::sleep(GRACE);
            wanted.iter().for_each(|store| store.give_back());
        }
    }

    fn round(&self, idle: &mut Idle) {
        if self.added.swap(false, Ordering::AcqRel) {
            self.give_way();
        }
        for store in self.stores() {
            store.retake();
            store.write_presence();
        }
        if idle.should_trim(self.buffers.trim()) {
            memory::give_back();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<LayerStore>>> {
        self.stores.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When the allocator's own idle memory is worth a look: once, in the first round without work after rounds with some.
#[derive(Default)]
struct Idle {
    worked: bool,
}

impl Idle {
    fn should_trim(&mut self, gave_up_buffers: bool) -> bool {
        std::mem::replace(&mut self.worked, gave_up_buffers) && !gave_up_buffers
    }
}

fn watch(tended: &Weak<Tended>) {
    let (mut next, mut idle) = (Instant::now() + ROUND, Idle::default());
    loop {
        let wanted = signal_within(next.saturating_duration_since(Instant::now()));
        let Some(tended) = tended.upgrade() else { return };
        let stopped = tended.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        if *stopped {
            return;
        }
        if wanted {
            tended.give_way();
        }
        if Instant::now() >= next {
            tended.round(&mut idle);
            next = Instant::now() + ROUND;
        }
    }
}

fn signals() -> libc::sigset_t {
    let mut set = std::mem::MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set that it is given, which sigaddset then changes; the signal's number is valid.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), LEASE_SIGNAL);
        set.assume_init()
    }
}

/// The signal waits until this thread asks for it.
fn block_signal() {
    // SAFETY: the set is initialised, and the old one is not asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &signals(), std::ptr::null_mut()) };
}

/// Whether the signal came within `time`.
fn signal_within(time: Duration) -> bool {
    // Less than a second, always.
    let time = libc::timespec { tv_sec: 0, tv_nsec: time.subsec_nanos().into() };
    // SAFETY: the set and the time are initialised; what came is not asked for.
    unsafe { libc::sigtimedwait(&signals(), std::ptr::null_mut(), &time) == LEASE_SIGNAL }
}
