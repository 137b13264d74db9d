//! A registry in this process, on loopback: the reading half of the OCI distribution protocol, with counters.

use std::{
    collections::HashMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::Result;
use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request, Response, StatusCode, body::Incoming, header, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, sync::oneshot};

/// One thing that can be fetched.
#[derive(Clone, Debug)]
pub struct Object {
    /// Content-Type.
    pub media_type: &'static str,
    /// `sha256:...`
    pub digest: String,
    /// The bytes.
    pub bytes: Bytes,
}

/// Requests answered and body bytes sent so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// Requests.
    pub requests: u64,
    /// Bytes of bodies.
    pub bytes: u64,
}

struct Shelf {
    /// By path: `/v2/NAME/manifests/TAG`, `/v2/NAME/blobs/DIGEST`.
    objects: HashMap<String, Object>,
    requests: AtomicU64,
    bytes: AtomicU64,
}

/// A running registry; dropping it stops it.
pub struct Registry {
    address: SocketAddr,
    shelf: Arc<Shelf>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Registry {
    /// Serves `objects` on a free port of loopback.
    pub fn start(objects: HashMap<String, Object>) -> Result<Self> {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let shelf = Arc::new(Shelf { objects, requests: AtomicU64::new(0), bytes: AtomicU64::new(0) });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let serving = Arc::clone(&shelf);
        let thread = std::thread::Builder::new().name("registry".to_owned()).spawn(move || {
            runtime.block_on(async move {
                tokio::select! {
                    () = accept(listener, serving) => {}
                    _ = stopped => {}
                }
            });
        })?;
        Ok(Self { address, shelf, stop: Some(stop), thread: Some(thread) })
    }

    /// `127.0.0.1:PORT`
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Counters so far.
    pub fn served(&self) -> Served {
        Served { requests: self.shelf.requests.load(Ordering::Relaxed), bytes: self.shelf.bytes.load(Ordering::Relaxed) }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(listener: std::net::TcpListener, shelf: Arc<Shelf>) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!("demo registry: {error}"),
    };
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let shelf = Arc::clone(&shelf);
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let answer = shelf.answer(&request);
                async move { Ok::<_, Infallible>(answer) }
            });
            if let Err(error) = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await {
                tracing::debug!("demo registry: {error}");
            }
        });
    }
}

impl Shelf {
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let range = request.headers().get(header::RANGE).and_then(|value| value.to_str().ok());
        let answer = self.look_up(request.method(), request.uri().path(), range);
        self.requests.fetch_add(1, Ordering::Relaxed);
        if request.method() != Method::HEAD {
            self.bytes.fetch_add(hyper::body::Body::size_hint(answer.body()).lower(), Ordering::Relaxed);
        }
        answer
    }

    fn look_up(&self, method: &Method, path: &str, range: Option<&str>) -> Response<Full<Bytes>> {
        if method != Method::GET && method != Method::HEAD {
            return plain(StatusCode::METHOD_NOT_ALLOWED);
        }
        if path == "/v2/" || path == "/v2" {
            return plain(StatusCode::OK);
        }
        let Some(object) = self.objects.get(path) else { return plain(StatusCode::NOT_FOUND) };
        let len = object.bytes.len();
        let mut answer = Response::new(Full::new(object.bytes.clone()));
        if let Some(range) = range {
            let Some((first, last)) = parse_range(range, len) else { return plain(StatusCode::RANGE_NOT_SATISFIABLE) };
            answer = Response::new(Full::new(object.bytes.slice(first..=last)));
            *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
            set(&mut answer, header::CONTENT_RANGE, &format!("bytes {first}-{last}/{len}"));
        }
        set(&mut answer, header::CONTENT_TYPE, object.media_type);
        set(&mut answer, header::HeaderName::from_static("docker-content-digest"), &object.digest);
        set(&mut answer, header::ACCEPT_RANGES, "bytes");
        answer
    }
}

fn set(answer: &mut Response<Full<Bytes>>, name: header::HeaderName, value: &str) {
    if let Ok(value) = header::HeaderValue::from_str(value) {
        answer.headers_mut().insert(name, value);
    }
}

fn plain(status: StatusCode) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = status;
    answer
}

/// `bytes=FIRST-LAST` or `bytes=FIRST-` as inclusive places in `len` bytes; nothing else is served.
fn parse_range(range: &str, len: usize) -> Option<(usize, usize)> {
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    let first: usize = first.parse().ok()?;
    let last = if last.is_empty() { len.checked_sub(1)? } else { last.parse::<usize>().ok()?.min(len.checked_sub(1)?) };
    (first <= last).then_some((first, last))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::{Read as _, Write as _};

    /// One range, cut to the object; several ranges, or one that starts past the end, are refused.
    #[test]
    fn ranges() {
        assert_eq!(parse_range("bytes=0-9", 100), Some((0, 9)));
        assert_eq!(parse_range("bytes=90-", 100), Some((90, 99)));
        assert_eq!(parse_range("bytes=90-500", 100), Some((90, 99)));
        for bad in ["bytes=100-", "bytes=5-4", "bytes=0-1,3-4", "bytes=-5", "items=0-1", "bytes=0-0"] {
            let len = if bad == "bytes=0-0" { 0 } else { 100 };
            assert_eq!(parse_range(bad, len), None, "{bad}");
        }
    }

    /// A ranged GET gets exactly its bytes, and the counters say so.
    #[test]
    fn ranged_get() {
        let object =
            Object { media_type: "application/octet-stream", digest: "sha256:0".to_owned(), bytes: Bytes::from_static(b"0123456789") };
        let registry = Registry::start(HashMap::from([("/v2/x/blobs/sha256:0".to_owned(), object)])).unwrap();
        let mut stream = std::net::TcpStream::connect(registry.address()).unwrap();
        stream.write_all(b"GET /v2/x/blobs/sha256:0 HTTP/1.1\r\nHost: x\r\nRange: bytes=2-4\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 206 "), "{answer}");
        assert!(answer.contains("content-range: bytes 2-4/10") && answer.ends_with("\r\n\r\n234"), "{answer}");
        assert_eq!(registry.served(), Served { requests: 1, bytes: 3 });
    }
}
