//! A registry in this process, on loopback: what a read of an image needs of the distribution protocol, and nothing that costs.
//!
//! It shares the machine's cores with what is measured, so its own time on a core is counted and can be stated beside a figure.

use std::{
    collections::HashMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicI32, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result};
use bytes::Bytes;
use clip_format::digest::Digest;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, sync::oneshot};

use crate::{
    corpus::{Corpus, REPOSITORY},
    layout::LayoutImage,
    machine,
};

/// The tag of an image that is served alone.
const IMAGE_TAG: &str = "image";

struct Object {
    media_type: String,
    bytes: Bytes,
}

struct Shelf {
    /// By path of the request.
    objects: HashMap<String, Object>,
    requests: AtomicU64,
    bytes: AtomicU64,
    /// The serving thread.
    tid: AtomicI32,
}

/// What a registry has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// Requests answered.
    pub requests: u64,
    /// Body bytes sent.
    pub bytes: u64,
    /// Its thread's time on a core.
    pub cpu: Duration,
}

impl Served {
    /// What was done since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self { requests: self.requests - earlier.requests, bytes: self.bytes - earlier.bytes, cpu: self.cpu.saturating_sub(earlier.cpu) }
    }
}

/// A running registry. Dropping it stops it.
pub struct Registry {
    address: SocketAddr,
    shelf: Arc<Shelf>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Registry {
    /// Serves `corpus` from memory on a free port of loopback.
    ///
    /// # Errors
    /// The system's.
    pub fn start(corpus: &Corpus) -> Result<Self> {
        Self::serve(objects(corpus))
    }

    /// Serves one image from memory, as [`image_reference`](Self::image_reference).
    ///
    /// # Errors
    /// The system's.
    pub fn of_image(image: &LayoutImage) -> Result<Self> {
        let blobs = image.layers.iter().chain([&image.config]);
        let blob = |(digest, bytes): &(Digest, Bytes)| {
            let object = Object { media_type: "application/octet-stream".to_owned(), bytes: bytes.clone() };
            (format!("/v2/{REPOSITORY}/blobs/{digest}"), object)
        };
        let mut objects: HashMap<_, _> = blobs.map(blob).collect();
        for name in [IMAGE_TAG.to_owned(), image.digest.to_string()] {
            let object = Object { media_type: image.media_type.clone(), bytes: image.manifest.clone() };
            objects.insert(format!("/v2/{REPOSITORY}/manifests/{name}"), object);
        }
        Self::serve(objects)
    }

    fn serve(objects: HashMap<String, Object>) -> Result<Self> {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).context("listen on loopback")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let counters = (AtomicU64::new(0), AtomicU64::new(0), AtomicI32::new(0));
        let shelf = Arc::new(Shelf { objects, requests: counters.0, bytes: counters.1, tid: counters.2 });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let serving = shelf.clone();
        let thread = std::thread::Builder::new().name("bench-registry".to_owned()).spawn(move || {
            serving.tid.store(rustix::thread::gettid().as_raw_nonzero().get(), Ordering::Relaxed);
            runtime.block_on(async move {
                tokio::select! {
                    () = accept(listener, serving) => {}
                    _ = stopped => {}
                }
            });
        })?;
        Ok(Self { address, shelf, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `127.0.0.1:PORT/REPOSITORY:TAG`
    #[must_use]
    pub fn reference(&self, tag: &str) -> String {
        format!("{}/{REPOSITORY}:{tag}", self.address)
    }

    /// The image of [`of_image`](Self::of_image).
    #[must_use]
    pub fn image_reference(&self) -> String {
        self.reference(IMAGE_TAG)
    }

    /// What it has done so far.
    #[must_use]
    pub fn served(&self) -> Served {
        let cpu = machine::thread_cpu_ns(self.shelf.tid.load(Ordering::Relaxed)).unwrap_or_default();
        let (requests, bytes) = (self.shelf.requests.load(Ordering::Relaxed), self.shelf.bytes.load(Ordering::Relaxed));
        Served { requests, bytes, cpu: Duration::from_nanos(cpu) }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of its thread has shown itself as failing reads.
            let _ = thread.join();
        }
    }
}

fn objects(corpus: &Corpus) -> HashMap<String, Object> {
    let blob = |(digest, bytes): (clip_format::digest::Digest, &Bytes)| {
        (format!("/v2/{REPOSITORY}/blobs/{digest}"), Object { media_type: "application/octet-stream".to_owned(), bytes: bytes.clone() })
    };
    let mut objects: HashMap<_, _> = corpus.blobs().map(blob).collect();
    for manifest in &corpus.manifests {
        for name in [manifest.tag.to_owned(), manifest.digest.to_string()] {
            let object = Object { media_type: manifest.media_type().to_owned(), bytes: manifest.bytes.clone() };
            objects.insert(format!("/v2/{REPOSITORY}/manifests/{name}"), object);
        }
    }
    objects
}

async fn accept(listener: std::net::TcpListener, shelf: Arc<Shelf>) {
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        // Without it the last part of an answer may wait for an acknowledgement. A refusal only costs time.
        let _ = stream.set_nodelay(true);
        let shelf = shelf.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let answer = shelf.answer(&request);
                async move { Ok::<_, Infallible>(answer) }
            });
            // A client that goes away in the middle is its own affair.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

impl Shelf {
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let path = request.uri().path();
        let Some(object) = self.objects.get(path) else {
            return status(if path == "/v2/" { StatusCode::OK } else { StatusCode::NOT_FOUND });
        };
        let len = object.bytes.len();
        let range = request.headers().get(RANGE).and_then(|range| byte_range(range.to_str().ok()?, len));
        let part = range.map_or_else(|| object.bytes.clone(), |(start, end)| object.bytes.slice(start..end));
        let mut answer = Response::builder()
            .status(if range.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK })
            .header(CONTENT_TYPE, object.media_type.as_str())
            .header(ACCEPT_RANGES, "bytes")
            .header(CONTENT_LENGTH, part.len());
        if let Some((start, end)) = range {
            answer = answer.header(CONTENT_RANGE, format!("bytes {start}-{}/{len}", end - 1));
        }
        let body = if request.method() == Method::HEAD { Bytes::new() } else { part };
        self.bytes.fetch_add(body.len() as u64, Ordering::Relaxed);
        answer.body(Full::new(body)).unwrap_or_else(|_| status(StatusCode::INTERNAL_SERVER_ERROR))
    }
}

fn status(status: StatusCode) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(Bytes::new()));
    *answer.status_mut() = status;
    answer
}

/// `bytes=START-LAST` or `bytes=START-` as a half-open range of `len` bytes; anything else is answered with the whole, as RFC 9110
/// section 14.2 allows.
fn byte_range(range: &str, len: usize) -> Option<(usize, usize)> {
    let (start, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    let start: usize = start.parse().ok()?;
    let end = if last.is_empty() { len } else { last.parse::<usize>().ok()?.checked_add(1)?.min(len) };
    (start < end).then_some((start, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Claim: a range is cut to the object; what is no single range of it gives the whole.
    #[test]
    fn ranges_are_cut_to_the_object() {
        assert_eq!(byte_range("bytes=0-9", 100), Some((0, 10)));
        assert_eq!(byte_range("bytes=90-200", 100), Some((90, 100)));
        assert_eq!(byte_range("bytes=90-", 100), Some((90, 100)));
        for other in ["bytes=100-", "bytes=5-4", "bytes=0-1,5-6", "bytes=-5", "lines=0-1"] {
            assert_eq!(byte_range(other, 100), None, "{other}");
        }
    }
}
