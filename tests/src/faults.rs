//! A registry over an OCI layout that counts every request, and lies, stalls and dies when told.
//!
//! It speaks just the part of the distribution protocol that pulls need, over HTTP/1.1 on plain sockets: a body that is cut in the
//! middle or a connection that goes silent must be exactly what the test says, which a well-behaved HTTP library would mend.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::fs::FileExt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result};

use crate::images::Layout;

/// What the server does with one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// The right answer.
    #[default]
    None,
    /// Every byte of the body is inverted; its length is right.
    WrongBytes,
    /// The connection closes after so many bytes of the body.
    CutAfter(u64),
    /// The connection stays open and silent after so many bytes of the body.
    SilentAfter(u64),
    /// This status instead of the body.
    Status(u16),
    /// 200 and the whole blob, whatever range was asked for.
    WholeBlob,
    /// The right answer, this much later.
    Late(Duration),
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

struct State {
    layout: Layout,
    script: Mutex<Script>,
    seen: Mutex<Vec<Seen>>,
    count: AtomicU64,
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
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let state = Arc::new(State {
            layout: layout.clone(),
            script: Mutex::new(Box::new(|_, _| Fault::None)),
            seen: Mutex::default(),
            count: AtomicU64::new(0),
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
            for (id, stream) in (0u64..).zip(listener.incoming()) {
                if state.ended.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let state = state.clone();
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

/// Answers the requests of one connection until it closes.
fn serve(state: &State, stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut requests = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    while let Some(seen) = read_request(&mut requests)? {
        let place = {
            let mut all = lock(&state.seen);
            all.push(seen.clone());
            all.len() - 1
        };
        let number = state.count.fetch_add(1, Ordering::SeqCst);
        let fault = lock(&state.script)(number, &seen);
        let answer = Answer::to(state, &seen, fault)?;
        let (served, outcome) = answer.write(state, &mut stream, fault, seen.method == "HEAD");
        if let Some(entry) = lock(&state.seen).get_mut(place) {
            entry.served = served;
        }
        if !outcome? {
            break;
        }
    }
    let _ = stream.shutdown(Shutdown::Both);
    Ok(())
}

/// The request's line and its range; `None` when the connection ended.
fn read_request(requests: &mut impl BufRead) -> Result<Option<Seen>> {
    let mut line = String::new();
    if requests.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let method = words.next().context("a method")?.to_owned();
    let target = words.next().context("a target")?;
    let path = target.split('?').next().unwrap_or(target).to_owned();
    let mut range = None;
    loop {
        let mut header = String::new();
        requests.read_line(&mut header)?;
        let Some((name, value)) = header.trim_end().split_once(':') else { break };
        if name.eq_ignore_ascii_case("range") {
            range = parse_range(value.trim());
        }
    }
    Ok(Some(Seen { method, path, range, served: 0 }))
}

fn parse_range(value: &str) -> Option<(u64, u64)> {
    let (first, last) = value.strip_prefix("bytes=")?.split_once('-')?;
    Some((first.parse().ok()?, if last.is_empty() { u64::MAX } else { last.parse().ok()? }))
}

/// What is about to be written.
struct Answer {
    status: u16,
    headers: String,
    body: Body,
}

enum Body {
    Bytes(Vec<u8>),
    File { file: std::fs::File, first: u64, len: u64 },
}

impl Body {
    fn len(&self) -> u64 {
        match self {
            Body::Bytes(bytes) => bytes.len() as u64,
            Body::File { len, .. } => *len,
        }
    }

    /// The bytes from `at`, at most 256 KiB.
    fn chunk(&self, at: u64) -> Result<Vec<u8>> {
        let len = usize::try_from((self.len() - at).min(256 << 10))?;
        match self {
            Body::Bytes(bytes) => {
                let start = usize::try_from(at)?;
                Ok(bytes[start..start + len].to_vec())
            }
            Body::File { file, first, .. } => {
                let mut chunk = vec![0; len];
                file.read_exact_at(&mut chunk, first + at)?;
                Ok(chunk)
            }
        }
    }
}

impl Answer {
    fn to(state: &State, seen: &Seen, fault: Fault) -> Result<Self> {
        if let Fault::Status(status) = fault {
            return Ok(Self::error(status, "UNKNOWN", "scripted"));
        }
        if seen.path == "/v2/" || seen.path == "/v2" {
            return Ok(Self { status: 200, headers: String::new(), body: Body::Bytes(b"{}".to_vec()) });
        }
        if let Some((_, wanted)) = seen.path.rsplit_once("/manifests/") {
            return Self::manifest(state, wanted);
        }
        match seen.path.rsplit_once("/blobs/") {
            Some((_, digest)) => Self::blob(state, digest, if fault == Fault::WholeBlob { None } else { seen.range }),
            None => Ok(Self::error(404, "NAME_UNKNOWN", "no such place")),
        }
    }

    fn manifest(state: &State, wanted: &str) -> Result<Self> {
        let digest = match wanted.contains(':') {
            true => Ok(wanted.to_owned()),
            false => state.layout.manifest(wanted).map(|(digest, _)| digest),
        };
        let Ok(bytes) = digest.and_then(|digest| Ok(std::fs::read(state.layout.blob_path(&digest)?)?)) else {
            return Ok(Self::error(404, "MANIFEST_UNKNOWN", "manifest unknown"));
        };
        let document: serde_json::Value = serde_json::from_slice(&bytes)?;
        let media_type = document["mediaType"].as_str().unwrap_or("application/vnd.oci.image.manifest.v1+json").to_owned();
        Ok(Self { status: 200, headers: format!("Content-Type: {media_type}\r\n"), body: Body::Bytes(bytes) })
    }

    fn blob(state: &State, digest: &str, range: Option<(u64, u64)>) -> Result<Self> {
        let Ok(file) = std::fs::File::open(state.layout.blob_path(digest)?) else {
            return Ok(Self::error(404, "BLOB_UNKNOWN", "blob unknown to registry"));
        };
        let size = file.metadata()?.len();
        let kind = "Content-Type: application/octet-stream\r\nAccept-Ranges: bytes\r\n";
        match range {
            None => Ok(Self { status: 200, headers: kind.to_owned(), body: Body::File { file, first: 0, len: size } }),
            Some((first, _)) if first >= size => Ok(Self::error(416, "UNSUPPORTED", "range")),
            Some((first, last)) => {
                let last = last.min(size - 1);
                let headers = format!("{kind}Content-Range: bytes {first}-{last}/{size}\r\n");
                Ok(Self { status: 206, headers, body: Body::File { file, first, len: last + 1 - first } })
            }
        }
    }

    fn error(status: u16, code: &str, message: &str) -> Self {
        let body = serde_json::json!({"errors": [{"code": code, "message": message}]}).to_string();
        Self { status, headers: "Content-Type: application/json\r\n".to_owned(), body: Body::Bytes(body.into_bytes()) }
    }

    /// Writes the answer as `fault` has it. Returns the body bytes written, and whether the connection can be used again.
    fn write(&self, state: &State, stream: &mut TcpStream, fault: Fault, head_only: bool) -> (u64, Result<bool>) {
        let mut served = 0;
        let outcome = self.try_write(state, stream, fault, head_only, &mut served);
        (served, outcome)
    }

    fn try_write(&self, state: &State, stream: &mut TcpStream, fault: Fault, head_only: bool, served: &mut u64) -> Result<bool> {
        if let Fault::Late(delay) = fault {
            thread::sleep(delay);
        }
        let len = self.body.len();
        write!(stream, "HTTP/1.1 {} Scripted\r\n{}Content-Length: {len}\r\n\r\n", self.status, self.headers)?;
        let end = match fault {
            _ if head_only => 0,
            Fault::CutAfter(limit) | Fault::SilentAfter(limit) => limit.min(len),
            _ => len,
        };
        while *served < end {
            let mut chunk = self.body.chunk(*served)?;
            chunk.truncate(usize::try_from(end - *served).unwrap_or(usize::MAX));
            if fault == Fault::WrongBytes {
                chunk.iter_mut().for_each(|byte| *byte = !*byte);
            }
            stream.write_all(&chunk)?;
            *served += chunk.len() as u64;
        }
        if let Fault::SilentAfter(_) = fault {
            wait_silently(state, stream);
        }
        Ok(!matches!(fault, Fault::CutAfter(_) | Fault::SilentAfter(_)))
    }
}

/// Until the client or the server has had enough.
fn wait_silently(state: &State, stream: &TcpStream) {
    let _ = stream.set_read_timeout(Some(Duration::from_millis(50)));
    let mut byte = [0];
    while !state.ended.load(Ordering::SeqCst) {
        match stream.peek(&mut byte) {
            Ok(0) => return,
            Err(error) if !matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => return,
            _ => thread::sleep(Duration::from_millis(10)),
        }
    }
}
