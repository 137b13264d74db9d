//! A registry that counts every request, and lies, stalls and dies when told.
//!
//! It stands before an OCI layout, or before another registry, whose answers it then spoils. It speaks just the part of the distribution protocol that pulls need, over HTTP/1.1 on plain sockets: a body that is cut in the
//! middle or a connection that goes silent must be exactly what the test says, which a well-behaved HTTP library would mend.

mod answer;

use std::{
    collections::BTreeMap,
    io::BufReader,
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{http::Head, images::Layout};
use answer::{Answer, Ended};

/// What the server does with one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// The right answer.
    #[default]
    None,
    /// Every byte of the body is inverted; its length is right.
    WrongBytes,
    /// One bit in the middle of the body is inverted.
    FlippedBit,
    /// The connection closes after so many bytes of the body.
    CutAfter(u64),
    /// As that, with a RST.
    ResetAfter(u64),
    /// The connection stays open and silent after so many bytes of the body.
    SilentAfter(u64),
    /// A byte a second after so many bytes of the body.
    TrickleAfter(u64),
    /// This status instead of the body.
    Status(u16),
    /// As that, with a Retry-After of so many seconds.
    StatusUntil(u16, u64),
    /// A Content-Range one byte further on than what was asked for.
    OtherRange,
    /// A Content-Length that differs from the body's length by so much.
    OtherLength(i64),
    /// What the [`Gate`] gave out so far is void from now on, for this request too.
    Expire,
    /// The connection closes after so many bytes of the body, and what the [`Gate`] gave out so far is void from then on; a request that the
    /// gate refuses is answered as ever.
    ExpireAfter(u64),
    /// 200 and the whole blob, whatever range was asked for.
    WholeBlob,
    /// The right answer, this much later.
    Late(Duration),
}

/// What stands between a request and the registry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gate {
    /// Nothing.
    #[default]
    Open,
    /// Every request needs a token of `/token`.
    Tokens,
    /// Blobs are elsewhere, at an address with a signature: on another name of the same server.
    Redirects,
}

/// A request as it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// `GET` or `HEAD`.
    pub method: String,
    /// `/v2/...`
    pub path: String,
    /// First and last byte asked for.
    pub range: Option<(u64, u64)>,
    /// Body bytes that were written.
    pub served: u64,
}

impl Seen {
    /// Whether it asked for a blob.
    #[must_use]
    pub fn is_blob(&self) -> bool {
        self.path.contains("/blobs/")
    }
}

/// Decides what happens to the nth (from 0) request; `seen.served` is still 0.
pub type Script = Box<dyn Fn(u64, &Seen) -> Fault + Send + Sync>;

/// Where the answers come from.
enum Backend {
    Layout(Layout),
    /// A registry at this port of the loopback.
    Registry(u16),
}

struct State {
    backend: Backend,
    port: u16,
    gate: Mutex<Gate>,
    /// Which tokens and signatures are good.
    generation: AtomicU64,
    script: Mutex<Script>,
    seen: Mutex<Vec<Seen>>,
    count: AtomicU64,
    /// Connections so far.
    accepted: AtomicU64,
    /// Set when the listener must end; sleeping requests look at it too.
    ended: AtomicBool,
    open: Mutex<BTreeMap<u64, TcpStream>>,
}

/// A running server. Dropping it closes every connection.
pub struct Server {
    port: u16,
    state: Arc<State>,
    accepting: Option<thread::JoinHandle<()>>,
}

impl Server {
    /// Serves the images of `layout` under every repository name, without faults.
    ///
    /// # Errors
    /// The system's.
    pub fn start(layout: &Layout) -> Result<Self> {
        Self::before(Backend::Layout(layout.clone()))
    }

    /// Stands before the registry at `port` of the loopback, without faults.
    ///
    /// # Errors
    /// The system's.
    pub fn before_registry(port: u16) -> Result<Self> {
        Self::before(Backend::Registry(port))
    }

    fn before(backend: Backend) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let state = Arc::new(State {
            backend,
            port,
            gate: Mutex::default(),
            generation: AtomicU64::new(0),
            script: Mutex::new(Box::new(|_, _| Fault::None)),
            seen: Mutex::default(),
            count: AtomicU64::new(0),
            accepted: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            open: Mutex::default(),
        });
        let mut server = Self { port, state, accepting: None };
        server.accept(listener);
        Ok(server)
    }

    /// `127.0.0.1:PORT/test/NAME:TAG`
    #[must_use]
    pub fn reference(&self, name: &str, tag: &str) -> String {
        format!("127.0.0.1:{}/test/{name}:{tag}", self.port)
    }

    /// Its port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on `gate` stands before it.
    pub fn set_gate(&self, gate: Gate) {
        *lock(&self.state.gate) = gate;
    }

    /// Connections that are open now.
    #[must_use]
    pub fn open_connections(&self) -> usize {
        lock(&self.state.open).len()
    }

    /// From now on `script` decides.
    pub fn script(&self, script: impl Fn(u64, &Seen) -> Fault + Send + Sync + 'static) {
        *lock(&self.state.script) = Box::new(script);
    }

    /// From now on every blob request gets `fault`.
    pub fn fault(&self, fault: Fault) {
        self.script(move |_, seen| if seen.is_blob() { fault } else { Fault::None });
    }

    /// Requests so far, oldest first.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        lock(&self.state.seen).clone()
    }

    /// Requests for the blob `digest` so far.
    #[must_use]
    pub fn seen_of(&self, digest: &str) -> Vec<Seen> {
        self.seen().into_iter().filter(|seen| seen.path.ends_with(digest)).collect()
    }

    /// Forgets the requests so far.
    pub fn forget(&self) {
        lock(&self.state.seen).clear();
        self.state.count.store(0, Ordering::SeqCst);
    }

    /// Closes the port and every connection: connecting is refused from now on.
    pub fn die(&mut self) {
        self.state.ended.store(true, Ordering::SeqCst);
        // The accept call returns once for this connection; that it fails means that it has returned already.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        for stream in lock(&self.state.open).values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        if let Some(thread) = self.accepting.take() {
            let _ = thread.join();
        }
    }

    /// Whether it listens.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.accepting.is_some()
    }

    /// Listens on the same port again after [`Server::die`].
    ///
    /// # Errors
    /// When something else has taken the port.
    pub fn revive(&mut self) -> Result<()> {
        let listener = TcpListener::bind(("127.0.0.1", self.port)).context("listen on the same port again")?;
        self.state.ended.store(false, Ordering::SeqCst);
        self.accept(listener);
        Ok(())
    }

    fn accept(&mut self, listener: TcpListener) {
        let state = self.state.clone();
        self.accepting = Some(thread::spawn(move || {
            for stream in listener.incoming() {
                if state.ended.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let state = state.clone();
                // Those from before it died are still among the open ones for a moment.
                let id = state.accepted.fetch_add(1, Ordering::SeqCst);
                thread::spawn(move || {
                    if let Ok(clone) = stream.try_clone() {
                        lock(&state.open).insert(id, clone);
                    }
                    // A client that went away is its own business.
                    let _ = serve(&state, stream);
                    lock(&state.open).remove(&id);
                });
            }
        }));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.die();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A request with what [`Seen`] does not tell.
struct Request {
    seen: Seen,
    query: String,
    authorization: String,
    accept: String,
}

/// Answers the requests of one connection until it closes.
fn serve(state: &State, stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut requests = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    while let Some(head) = Head::read(&mut requests)? {
        let request = request_of(&head);
        let seen = &request.seen;
        let place = {
            let mut all = lock(&state.seen);
            all.push(seen.clone());
            all.len() - 1
        };
        let number = state.count.fetch_add(1, Ordering::SeqCst);
        let fault = lock(&state.script)(number, seen);
        if fault == Fault::Expire {
            state.generation.fetch_add(1, Ordering::SeqCst);
        }
        let mut answer = Answer::to(state, &request, fault)?;
        let fault = if matches!(fault, Fault::ExpireAfter(_)) && answer.is_refusal() { Fault::None } else { fault };
        let (served, outcome) = answer.write(state, &mut stream, fault, seen.method == "HEAD");
        if matches!(fault, Fault::ExpireAfter(_)) {
            state.generation.fetch_add(1, Ordering::SeqCst);
        }
        if let Some(entry) = lock(&state.seen).get_mut(place) {
            entry.served = served;
        }
        match outcome? {
            Ended::Whole => {}
            Ended::Closed => break,
            // Closing the last descriptor sends it.
            Ended::Reset => return Ok(rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?),
        }
    }
    let _ = stream.shutdown(Shutdown::Both);
    Ok(())
}

/// A request of this head.
fn request_of(head: &Head) -> Request {
    let (path, query) = head.target().split_once('?').unwrap_or((head.target(), ""));
    let seen = Seen { method: head.method().to_owned(), path: path.to_owned(), range: head.range(), served: 0 };
    let value = |name| head.header(name).unwrap_or_default().to_owned();
    Request { seen, query: query.to_owned(), authorization: value("authorization"), accept: value("accept") }
}
