//! One answer of the scripted registry: what it would be, and how a fault has it written.

use std::{
    fs::File,
    io::{BufReader, Read, Write},
    net::TcpStream,
    os::unix::fs::FileExt,
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{Backend, Fault, Gate, Request, Seen, State, lock};
use crate::http::Head;
use crate::images::Layout;

/// What is about to be written.
pub(super) struct Answer {
    status: u16,
    /// Each with its line end; Content-Length is not among them.
    headers: String,
    body: Body,
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// The connection can be used again.
    Whole,
    /// It is closed.
    Closed,
    /// It is to be reset.
    Reset,
}

enum Body {
    Bytes(Vec<u8>),
    File { file: File, first: u64, len: u64 },
    Stream { from: BufReader<TcpStream>, len: u64 },
}

impl Body {
    fn len(&self) -> u64 {
        match self {
            Body::Bytes(bytes) => bytes.len() as u64,
            Body::File { len, .. } | Body::Stream { len, .. } => *len,
        }
    }

    /// The bytes from `at`, at most 256 KiB; each once and in order.
    fn chunk(&mut self, at: u64) -> Result<Vec<u8>> {
        let len = usize::try_from((self.len() - at).min(256 << 10))?;
        let mut chunk = vec![0; len];
        match self {
            Body::Bytes(bytes) => {
                let start = usize::try_from(at)?;
                chunk.copy_from_slice(&bytes[start..start + len]);
            }
            Body::File { file, first, .. } => file.read_exact_at(&mut chunk, *first + at)?,
            Body::Stream { from, .. } => from.read_exact(&mut chunk)?,
        }
        Ok(chunk)
    }
}

impl Answer {
    pub(super) fn to(state: &State, request: &Request, fault: Fault) -> Result<Self> {
        if let Fault::Status(status) = fault {
            return Ok(Self::error(status, "UNKNOWN", "scripted"));
        }
        if let Fault::StatusUntil(status, seconds) = fault {
            let mut answer = Self::error(status, "TOOMANYREQUESTS", "scripted");
            answer.headers.push_str(&format!("Retry-After: {seconds}\r\n"));
            return Ok(answer);
        }
        let gate = *lock(&state.gate);
        if let Some(answer) = Self::of_gate(gate, state, request) {
            return Ok(answer);
        }
        let mut seen = request.seen.clone();
        if let Some(path) = seen.path.strip_prefix("/storage") {
            seen.path = path.to_owned();
        }
        if fault == Fault::WholeBlob && seen.is_blob() {
            seen.range = None;
        }
        match &state.backend {
            Backend::Layout(layout) => Self::of_layout(layout, &seen),
            Backend::Registry(port) => Self::of_registry(*port, &seen, &request.accept),
        }
    }

    /// Whether it is an error.
    pub(super) fn is_refusal(&self) -> bool {
        self.status >= 400
    }

    /// What the gate says instead of the registry behind it.
    fn of_gate(gate: Gate, state: &State, request: &Request) -> Option<Self> {
        let (generation, port) = (state.generation.load(Ordering::SeqCst), state.port);
        let path = &request.seen.path;
        match gate {
            Gate::Tokens if path == "/token" => {
                let body = format!(r#"{{"token":"token-{generation}","expires_in":3600}}"#);
                Some(Self { status: 200, headers: "Content-Type: application/json\r\n".to_owned(), body: Body::Bytes(body.into_bytes()) })
            }
            Gate::Tokens if request.authorization != format!("Bearer token-{generation}") => {
                let mut refusal = Self::error(401, "UNAUTHORIZED", "a token is needed");
                let challenge = format!("WWW-Authenticate: Bearer realm=\"http://127.0.0.1:{port}/token\",service=\"test\"\r\n");
                refusal.headers.push_str(&challenge);
                Some(refusal)
            }
            Gate::Redirects if path.starts_with("/storage/") && request.query != format!("signature={generation}") => {
                Some(Self::error(403, "AccessDenied", "Request has expired"))
            }
            Gate::Redirects if request.seen.is_blob() && !path.starts_with("/storage/") => {
                let headers = format!("Location: http://localhost:{port}/storage{path}?signature={generation}\r\n");
                Some(Self { status: 307, headers, body: Body::Bytes(Vec::new()) })
            }
            _ => None,
        }
    }

    fn of_layout(layout: &Layout, seen: &Seen) -> Result<Self> {
        if seen.path == "/v2/" || seen.path == "/v2" {
            return Ok(Self { status: 200, headers: String::new(), body: Body::Bytes(b"{}".to_vec()) });
        }
        if let Some((_, wanted)) = seen.path.rsplit_once("/manifests/") {
            return Self::manifest(layout, wanted);
        }
        match seen.path.rsplit_once("/blobs/") {
            Some((_, digest)) => Self::blob(layout, digest, seen.range),
            None => Ok(Self::error(404, "NAME_UNKNOWN", "no such place")),
        }
    }

    fn manifest(layout: &Layout, wanted: &str) -> Result<Self> {
        let digest = match wanted.contains(':') {
            true => Ok(wanted.to_owned()),
            false => layout.manifest(wanted).map(|(digest, _)| digest),
        };
        let Ok(bytes) = digest.and_then(|digest| Ok(std::fs::read(layout.blob_path(&digest)?)?)) else {
            return Ok(Self::error(404, "MANIFEST_UNKNOWN", "manifest unknown"));
        };
        let document: serde_json::Value = serde_json::from_slice(&bytes)?;
        let media_type = document["mediaType"].as_str().unwrap_or("application/vnd.oci.image.manifest.v1+json").to_owned();
        Ok(Self { status: 200, headers: format!("Content-Type: {media_type}\r\n"), body: Body::Bytes(bytes) })
    }

    fn blob(layout: &Layout, digest: &str, range: Option<(u64, u64)>) -> Result<Self> {
        let Ok(file) = File::open(layout.blob_path(digest)?) else {
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

    /// Asks the registry at `port`, over a connection of its own.
    fn of_registry(port: u16, seen: &Seen, accept: &str) -> Result<Self> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        let range = seen.range.map_or_else(String::new, |(first, last)| format!("Range: bytes={first}-{last}\r\n"));
        let accept = if accept.is_empty() { String::new() } else { format!("Accept: {accept}\r\n") };
        let head = format!("{} {} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n{range}{accept}\r\n", seen.method, seen.path);
        stream.write_all(head.as_bytes())?;
        let mut from = BufReader::new(stream);
        let head = Head::read(&mut from)?.context("an answer")?;
        let (first, lines) = head.lines();
        let status = first.split(' ').nth(1).context("a status line")?.parse()?;
        let len = head.header("content-length").map_or(Ok(0), str::parse)?;
        let is_ours = |line: &&String| !["content-length:", "connection:"].iter().any(|name| line.to_ascii_lowercase().starts_with(name));
        let headers = lines.iter().filter(is_ours).map(|line| format!("{line}\r\n")).collect();
        Ok(Self { status, headers, body: Body::Stream { from, len } })
    }

    fn error(status: u16, code: &str, message: &str) -> Self {
        let body = serde_json::json!({"errors": [{"code": code, "message": message}]}).to_string();
        Self { status, headers: "Content-Type: application/json\r\n".to_owned(), body: Body::Bytes(body.into_bytes()) }
    }

    /// Writes the answer as `fault` has it. Returns the body bytes written, and how it ended.
    pub(super) fn write(&mut self, state: &State, stream: &mut TcpStream, fault: Fault, head_only: bool) -> (u64, Result<Ended>) {
        let mut served = 0;
        let outcome = self.try_write(state, stream, fault, head_only, &mut served);
        (served, outcome)
    }

    fn try_write(&mut self, state: &State, stream: &mut TcpStream, fault: Fault, head_only: bool, served: &mut u64) -> Result<Ended> {
        if let Fault::Late(delay) = fault {
            thread::sleep(delay);
        }
        if fault == Fault::OtherRange {
            self.shift_range();
        }
        let len = self.body.len();
        let said = if let Fault::OtherLength(more) = fault { len.saturating_add_signed(more) } else { len };
        write!(stream, "HTTP/1.1 {} Scripted\r\n{}Content-Length: {said}\r\n\r\n", self.status, self.headers)?;
        let end = match fault {
            _ if head_only => 0,
            Fault::CutAfter(limit)
            | Fault::ExpireAfter(limit)
            | Fault::ResetAfter(limit)
            | Fault::SilentAfter(limit)
            | Fault::TrickleAfter(limit) => limit.min(len),
            _ => len.min(said),
        };
        while *served < end {
            let mut chunk = self.body.chunk(*served)?;
            chunk.truncate(usize::try_from(end - *served).unwrap_or(usize::MAX));
            spoil(&mut chunk, *served, len, fault);
            stream.write_all(&chunk)?;
            *served += chunk.len() as u64;
        }
        match fault {
            Fault::CutAfter(_) | Fault::ExpireAfter(_) => return Ok(Ended::Closed),
            Fault::ResetAfter(_) => {
                // A RST overtakes what was written and not read yet.
                thread::sleep(Duration::from_millis(50));
                return Ok(Ended::Reset);
            }
            Fault::SilentAfter(_) => wait_silently(state, stream, Duration::MAX),
            Fault::TrickleAfter(_) => self.trickle(state, stream, served)?,
            // What is missing never comes.
            Fault::OtherLength(1..) => wait_silently(state, stream, Duration::MAX),
            _ => return Ok(Ended::Whole),
        }
        Ok(Ended::Closed)
    }

    /// A Content-Range one further on, whether there was one or not.
    fn shift_range(&mut self) {
        let len = self.body.len();
        let kept: Vec<&str> = self.headers.split_inclusive('\n').collect();
        let is_range = |line: &&str| line.to_ascii_lowercase().starts_with("content-range: bytes ");
        let range = kept.iter().find(|line| is_range(line)).and_then(|line| line.split(['-', '/', ' ', '\r']).nth(3)?.parse().ok());
        let first: u64 = range.unwrap_or(0) + 1;
        let others: String = kept.iter().filter(|line| !is_range(line)).copied().collect();
        self.status = 206;
        self.headers = format!("{others}Content-Range: bytes {first}-{}/*\r\n", first + len - 1);
    }

    /// A byte a second until somebody has had enough.
    fn trickle(&mut self, state: &State, stream: &mut TcpStream, served: &mut u64) -> Result<()> {
        let rest = self.body.chunk(*served)?;
        for byte in rest {
            let since = Instant::now();
            stream.write_all(&[byte])?;
            *served += 1;
            wait_silently(state, stream, Duration::from_secs(1));
            if since.elapsed() < Duration::from_millis(900) {
                break;
            }
        }
        Ok(())
    }
}

/// Makes of `chunk`, the body's bytes at `at`, what `fault` makes of it.
fn spoil(chunk: &mut [u8], at: u64, len: u64, fault: Fault) {
    match fault {
        Fault::WrongBytes => chunk.iter_mut().for_each(|byte| *byte = !*byte),
        Fault::FlippedBit => {
            let place = (len / 2).checked_sub(at).and_then(|place| usize::try_from(place).ok());
            if let Some(byte) = place.and_then(|place| chunk.get_mut(place)) {
                *byte ^= 0x10;
            }
        }
        _ => {}
    }
}

/// Until the client or the server has had enough, or `time` has passed.
fn wait_silently(state: &State, stream: &TcpStream, time: Duration) {
    let _ = stream.set_read_timeout(Some(Duration::from_millis(50)));
    let (since, mut byte) = (Instant::now(), [0]);
    while !state.ended.load(Ordering::SeqCst) && since.elapsed() < time {
        match stream.peek(&mut byte) {
            Ok(0) => return,
            Err(error) if !matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => return,
            _ => thread::sleep(Duration::from_millis(10)),
        }
    }
}
