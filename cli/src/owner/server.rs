//! Inside the owner: the mounts it serves, the socket, the signals, and when it leaves.

mod answer;
mod waiting;

use std::{
    collections::BTreeMap,
    io::BufReader,
    os::unix::{
        fs::PermissionsExt as _,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clip_engine::{Engine, registry::LoggedIn};
use clip_fuse::Mounted;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};

use self::{answer::answer, waiting::Waiter};
use super::{
    SocketPath,
    background::{Background, TICK},
    peer::Peer,
    protocol::{self, MountRequest, PROTOCOL, Reply, Request},
    report::{self, MountReport, Report},
    settings::OwnerSettings,
};
use crate::{
    clip_input::{self, Recording},
    exit::{advised_text, chain_text},
};

/// How long an owner without any mount waits for its first request. Source: a starter connects within milliseconds; a machine
/// under load gets room.
const FIRST_REQUEST_MAX: Duration = Duration::from_secs(20);
/// How long a peer may take to say what it wants.
const REQUEST_LINE_MAX: Duration = Duration::from_secs(10);
/// How long ended connections may take to be let go by the kernel after an abort.
const ABORT_MAX: Duration = Duration::from_secs(2);
/// What an `Instant` certainly has room for: 136 years.
const STOP_TIMEOUT_MAX: Duration = Duration::from_secs(u32::MAX as u64);
/// Connections handled at once; more wait in the socket's queue. One that waits for the end of its mount is not among them.
const CONNECTIONS_MAX: usize = 256;

enum Event {
    /// A mount has ended.
    Ended(u64),
    /// Something changed that may let the owner leave.
    Changed,
    /// A signal came.
    Signal(i32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// New mounts are welcome.
    Serving,
    /// After the first SIGTERM: mounts are detached, open files are served.
    Stopping,
    /// No more.
    Leaving,
}

struct Served {
    mounted: Mounted,
    mountpoint: PathBuf,
    clip: PathBuf,
    stats: Option<PathBuf>,
    background: Background,
    waiter: Option<Waiter>,
    /// Who asks the registry for this mount, as long as it is one.
    _login: Option<LoggedIn>,
}

struct State {
    phase: Phase,
    mounts: BTreeMap<u64, Served>,
    next_id: u64,
    /// Requests being handled.
    requests: usize,
    /// Requests handled since the start.
    handled: u64,
}

/// The owner of one cache directory.
pub struct Owner {
    engine: Engine,
    started: Instant,
    settings: OwnerSettings,
    state: Mutex<State>,
    events: mpsc::Sender<Event>,
}

/// Counts a request as done, however its thread ends.
struct RequestDone<'a>(&'a Owner);

impl Drop for RequestDone<'_> {
    fn drop(&mut self) {
        self.0.request_done();
    }
}

/// The receiving end of an owner's events; `serve` needs it.
pub struct Events(mpsc::Receiver<Event>);

impl Owner {
    /// An owner around an engine that holds the cache directory's lock.
    pub fn new(engine: Engine, mut settings: OwnerSettings) -> (Arc<Self>, Events) {
        settings.stop_timeout = settings.stop_timeout.min(STOP_TIMEOUT_MAX);
        let (events, receiver) = mpsc::channel();
        let state = State { phase: Phase::Serving, mounts: BTreeMap::new(), next_id: 0, requests: 0, handled: 0 };
        let owner = Self { engine, started: Instant::now(), settings, state: Mutex::new(state), events };
        (Arc::new(owner), Events(receiver))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Listens on the cache directory's socket, which only this user may use. A socket left by a dead owner is replaced: the engine's
    /// lock says that it is dead.
    pub fn listen(self: &Arc<Self>) -> Result<()> {
        let cache_dir = &self.engine.config().cache_dir;
        let context = || format!("socket in {}", cache_dir.display());
        let socket = SocketPath::in_dir(cache_dir).with_context(context)?;
        match std::fs::remove_file(socket.path()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).with_context(context),
            _ => {}
        }
        let listener = UnixListener::bind(socket.path()).with_context(context)?;
        std::fs::set_permissions(socket.path(), std::fs::Permissions::from_mode(0o600)).with_context(context)?;
        let owner = Arc::clone(self);
        std::thread::Builder::new().name("accept".to_owned()).spawn(move || owner.accept(&listener))?;
        Ok(())
    }

    fn accept(self: Arc<Self>, listener: &UnixListener) {
        loop {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!("accept on {}: {error}", super::SOCKET_NAME);
                    std::thread::sleep(Duration::from_millis(100));
                    continue;
                }
            };
            while self.state().requests >= CONNECTIONS_MAX {
                std::thread::sleep(Duration::from_millis(20));
            }
            self.state().requests += 1;
            let owner = Arc::clone(&self);
            let spawned = std::thread::Builder::new().name("request".to_owned()).spawn(move || {
                let _done = RequestDone(&owner);
                answer(stream, |stream| owner.handle(stream));
            });
            if let Err(error) = spawned {
                tracing::error!("no thread for a request: {error}");
                self.request_done();
            }
        }
    }

    /// The request that was counted by `accept` is done.
    fn request_done(&self) {
        let mut state = self.state();
        state.requests -= 1;
        state.handled += 1;
        let _ = self.events.send(Event::Changed);
    }

    fn handle(self: &Arc<Self>, stream: UnixStream) -> Result<()> {
        let peer = Peer::of(&stream).context("SO_PEERCRED")?;
        if !peer.is_trusted() {
            bail!("refused {peer}");
        }
        stream.set_read_timeout(Some(REQUEST_LINE_MAX))?;
        let mut from = BufReader::new(stream.try_clone()?);
        let mut to = stream;
        match protocol::receive(&mut from).context("read a request")? {
            None => Ok(()),
            Some(Request::Mount(request)) => self.handle_mount(&request, &mut from, &mut to),
        }
    }

    fn handle_mount(self: &Arc<Self>, request: &MountRequest, from: &mut BufReader<UnixStream>, to: &mut UnixStream) -> Result<()> {
        if let Some(refusal) = self.refusal(request) {
            return protocol::send(to, &refusal);
        }
        if let Some(refusal) = request.wait.then(|| self.waits_too_many(waiting::WAITERS_MAX)).flatten() {
            return protocol::send(to, &refusal);
        }
        let id = match self.mount(request) {
            Ok(id) => id,
            Err(error) => {
                let message = advised_text(&error, &request.clip);
                tracing::error!("{message}");
                return protocol::send(to, &Reply::Refused { message });
            }
        };
        if let Err(error) = protocol::send(to, &Reply::Mounted { pid: std::process::id() }) {
            self.detach(id);
            return Err(error.context(format!("{}: whoever asked for this mount is gone, so it is too", request.mountpoint.display())));
        }
        if request.wait { self.tell_when_ended(id, from.get_ref()) } else { Ok(()) }
    }

    fn detach(&self, id: u64) {
        if let Some(Err(error)) = self.state().mounts.get(&id).map(|served| served.mounted.detach()) {
            tracing::warn!("{error}");
        }
    }

    fn refusal(&self, request: &MountRequest) -> Option<Reply> {
        let pid = std::process::id();
        if request.protocol != PROTOCOL {
            let message = format!(
                "the owner (pid {pid}) is another version of clip (protocol {PROTOCOL}, asked {}); unmount its mounts first or use another --cache-dir",
                request.protocol
            );
            return Some(Reply::Refused { message });
        }
        match self.state().phase {
            Phase::Serving => {}
            Phase::Stopping => {
                let reason = format!("the owner (pid {pid}) was told to stop and still serves open files");
                return Some(Reply::Leaving { reason });
            }
            Phase::Leaving => return Some(Reply::Leaving { reason: String::new() }),
        }
        if request.mount_namespace != super::mount_namespace() {
            let message = format!("the owner (pid {pid}) lives in another mount namespace; use another --cache-dir here");
            return Some(Reply::Refused { message });
        }
        let mut differences = request.wish.differences(self.engine.config());
        differences.extend(request.owner_wish.differences(&self.settings));
        (!differences.is_empty()).then_some(Reply::Differs { differences })
    }

    /// Opens the image and serves it at the mountpoint; the mount's number.
    pub fn mount(self: &Arc<Self>, request: &MountRequest) -> Result<u64> {
        let started = Instant::now();
        let options = clip_fuse::MountOptions::from(&request.options);
        let wish = &request.background;
        let recording = if wish.record.is_some() { Recording::On } else { Recording::Off };
        let image = clip_input::open(&self.engine, &request.clip, &request.whence()?, recording)?;
        let login = self.engine.log_in(&image, request.login.clone());
        let profile = wish.choose(&request.clip, &image)?;
        let mounted = clip_fuse::mount(image.clone(), &request.mountpoint, &options)?;
        let background = wish.begin(image, &profile, self.engine.stats().reads_waited);
        let mut state = self.state();
        let id = state.next_id;
        state.next_id += 1;
        state.handled += 1;
        let events = self.events.clone();
        mounted.on_end(Box::new(move || {
            let _ = events.send(Event::Ended(id));
        }));
        if state.phase != Phase::Serving {
            let _ = mounted.detach();
        }
        let (mountpoint, clip) = (request.mountpoint.clone(), request.clip.clone());
        tracing::info!("mounted {} at {} in {:.1} ms", clip.display(), mountpoint.display(), started.elapsed().as_secs_f64() * 1e3);
        let stats = request.stats.clone();
        state.mounts.insert(id, Served { mounted, mountpoint, clip, stats, background, waiter: None, _login: login });
        Ok(id)
    }

    fn report(&self) -> Report {
        let state = self.state();
        let mounts = state.mounts.values();
        let mounts = mounts
            .map(|served| MountReport {
                mountpoint: served.mountpoint.display().to_string(),
                clip: served.clip.display().to_string(),
                work: served.background.work(),
            })
            .collect();
        let seconds = self.started.elapsed().as_secs_f64();
        Report::new(&self.engine.config().cache_dir, seconds, mounts, &self.engine.stats())
    }

    fn write_stats(&self, paths: &[PathBuf]) {
        let report = self.report();
        for path in paths {
            if let Err(error) = report::write(path, &report) {
                tracing::warn!("{}", chain_text(&error));
            }
        }
    }

    fn stats_paths(&self) -> Vec<PathBuf> {
        self.state().mounts.values().filter_map(|served| served.stats.clone()).collect()
    }

    /// Serves until the last mount has ended or a second signal came; then the socket is gone. `Err` only when signals cannot be had.
    pub fn serve(self: &Arc<Self>, events: Events) -> Result<()> {
        self.watch_signals()?;
        let first_request_by = Instant::now() + FIRST_REQUEST_MAX;
        let mut stop_by = None;
        loop {
            let wake = stop_by.unwrap_or(first_request_by).saturating_duration_since(Instant::now());
            let wake = if wake.is_zero() { Duration::from_secs(3600) } else { wake };
            match events.0.recv_timeout(if self.tick() { wake.min(TICK) } else { wake }) {
                Ok(Event::Ended(id)) => self.ended(id),
                Ok(Event::Signal(SIGUSR1)) => {
                    report::log(&self.engine.stats());
                    self.write_stats(&self.stats_paths());
                }
                Ok(Event::Signal(signal)) if stop_by.is_none() => {
                    self.begin_stop(signal);
                    stop_by = Some(Instant::now() + self.settings.stop_timeout);
                }
                Ok(Event::Signal(_)) => return self.abort(&events, "second signal"),
                Ok(Event::Changed) | Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => bail!("the owner's own events are gone"),
            }
            if self.try_leave(first_request_by) {
                self.unlink_socket();
                report::log(&self.engine.stats());
                return Ok(());
            }
            if stop_by.is_some_and(|by| Instant::now() >= by) {
                return self.abort(&events, "--stop-timeout is over");
            }
        }
    }

    fn watch_signals(&self) -> Result<()> {
        let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1]).context("signal handlers")?;
        let events = self.events.clone();
        std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
            for signal in signals.forever() {
                if events.send(Event::Signal(signal)).is_err() {
                    return;
                }
            }
        })?;
        Ok(())
    }

    /// Does what is due beside serving; true when it must be looked at again soon.
    fn tick(&self) -> bool {
        let mut state = self.state();
        let mut working = state.mounts.values_mut().map(|served| &mut served.background).filter(|work| work.wants_ticks()).peekable();
        if working.peek().is_none() {
            return false;
        }
        let (reads_waited, mut records) = (self.engine.stats().reads_waited, Vec::new());
        for work in working {
            work.tick(reads_waited);
            records.extend(work.record());
        }
        drop(state);
        records.iter().filter(|record| record.is_due()).for_each(|record| record.write());
        true
    }

    /// Every record is in its file.
    fn write_records(&self) {
        let records: Vec<_> = self.state().mounts.values().filter_map(|served| served.background.record()).collect();
        records.iter().for_each(|record| record.write());
    }

    fn ended(&self, id: u64) {
        let removed = self.state().mounts.remove(&id);
        let Some(served) = removed else { return };
        if let Some(record) = served.background.record() {
            record.write();
        }
        tracing::info!("{} is unmounted", served.mountpoint.display());
        if let Some(path) = &served.stats {
            self.write_stats(std::slice::from_ref(path));
        }
        if let Some(waiter) = &served.waiter {
            waiter.tell();
        }
    }

    fn begin_stop(&self, signal: i32) {
        let mut state = self.state();
        state.phase = Phase::Stopping;
        let seconds = self.settings.stop_timeout.as_secs_f64();
        tracing::info!("signal {signal}: {} mounts are detached; open files are served for {seconds} s at most", state.mounts.len());
        for served in state.mounts.values_mut() {
            if let Err(error) = served.mounted.detach() {
                tracing::warn!("{error}");
            }
            served.background.cancel();
        }
        drop(state);
        self.write_records();
    }

    /// True, and no request will be taken from here on, when nothing is served and nobody is being answered.
    fn try_leave(&self, first_request_by: Instant) -> bool {
        let mut state = self.state();
        let waiting_for_first = state.phase == Phase::Serving && state.handled == 0 && Instant::now() < first_request_by;
        let idle = state.mounts.is_empty() && (state.requests == 0 || state.phase == Phase::Stopping);
        if idle && !waiting_for_first {
            state.phase = Phase::Leaving;
        }
        state.phase == Phase::Leaving
    }

    fn abort(&self, events: &Events, why: &str) -> Result<()> {
        self.unlink_socket();
        let stats_paths = self.stats_paths();
        {
            let mut state = self.state();
            state.phase = Phase::Leaving;
            tracing::warn!("{why}: ending {} mounts; files that are still open fail from here on", state.mounts.len());
            for served in state.mounts.values() {
                if let Err(error) = served.mounted.abort() {
                    tracing::warn!("{error}");
                }
            }
        }
        self.write_records();
        self.write_stats(&stats_paths);
        let by = Instant::now() + ABORT_MAX;
        while !self.state().mounts.is_empty() {
            match events.0.recv_timeout(by.saturating_duration_since(Instant::now())) {
                Ok(Event::Ended(id)) => self.ended(id),
                Ok(_) => {}
                Err(_) => break,
            }
        }
        Ok(())
    }

    fn unlink_socket(&self) {
        let _ = std::fs::remove_file(self.engine.config().cache_dir.join(super::SOCKET_NAME));
    }

    /// Says in the log that nothing bounds the cache, with the room it has.
    pub fn log_cache_room(&self) {
        log_cache_room(&self.engine.config().cache_dir);
    }
}

fn log_cache_room(cache_dir: &Path) {
    match free_bytes(cache_dir) {
        Ok(free) => {
            tracing::info!("cache {} has no size limit yet; {} are free on its file system", cache_dir.display(), crate::values::size(free))
        }
        Err(error) => tracing::warn!("cache {} has no size limit yet; free space unknown: {error}", cache_dir.display()),
    }
}

/// Bytes that this user may still write on the file system of `path`.
pub fn free_bytes(path: &Path) -> std::io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}
