//! A registry in this process, on loopback: what a read of an image needs of the distribution protocol, and nothing that costs.
//!
//! It shares the machine's cores with what is measured, so its own time on a core is counted and can be stated beside a figure.

use std::{
    collections::HashMap,
    convert::Infallible,
    io::Write as _,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
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
use rustls_pki_types::PrivateKeyDer;
use tempfile::NamedTempFile;
use tokio_rustls::TlsAcceptor;

use crate::{
    background::Background,
    corpus::{Corpus, REPOSITORY},
    layout::LayoutImage,
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
}

/// What a registry has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// Requests answered.
    pub requests: u64,
    /// Body bytes sent.
    pub bytes: u64,
    /// Its threads' time on a core.
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
    plain: Background,
    tls: Background,
    /// The certificate that its TLS side shows, PEM.
    ca_file: NamedTempFile,
    shelf: Arc<Shelf>,
}

impl Registry {
    /// Serves `corpus` from memory on two free ports of loopback: plain HTTP, and TLS under a certificate of its own.
    ///
    /// # Errors
    /// The system's.
    pub fn start(corpus: &Corpus) -> Result<Self> {
        Self::of_objects(objects(corpus))
    }

    /// Serves one image as [`start`](Self::start) does, as [`image_reference`](Self::image_reference).
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
        Self::of_objects(objects)
    }

    fn of_objects(objects: HashMap<String, Object>) -> Result<Self> {
        let shelf = Arc::new(Shelf { objects, requests: AtomicU64::new(0), bytes: AtomicU64::new(0) });
        let serving = shelf.clone();
        let plain = Background::start("bench-registry", move || {
            move |stream| {
                let shelf = serving.clone();
                async move { serve(shelf, TokioIo::new(stream)).await }
            }
        })?;
        let (acceptor, certificate) = tls()?;
        let mut ca_file = tempfile::Builder::new().prefix("clip-bench-ca-").suffix(".pem").tempfile().context("make a file for the CA")?;
        ca_file.write_all(certificate.as_bytes()).context("write the CA")?;
        let serving = shelf.clone();
        let tls = Background::start("bench-registry", move || {
            move |stream| {
                let (shelf, acceptor) = (serving.clone(), acceptor.clone());
                async move {
                    // A client that does not like the certificate says so itself.
                    if let Ok(stream) = acceptor.accept(stream).await {
                        serve(shelf, TokioIo::new(stream)).await;
                    }
                }
            }
        })?;
        Ok(Self { plain, tls, ca_file, shelf })
    }

    /// Where plain HTTP is spoken.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.plain.address()
    }

    /// Where TLS is spoken.
    #[must_use]
    pub fn tls_address(&self) -> SocketAddr {
        self.tls.address()
    }

    /// Whom a client must trust to speak TLS with it.
    #[must_use]
    pub fn ca_file(&self) -> &Path {
        self.ca_file.path()
    }

    /// `127.0.0.1:PORT/REPOSITORY:TAG`
    #[must_use]
    pub fn reference(&self, tag: &str) -> String {
        Self::reference_at(self.address(), tag)
    }

    /// The image of [`of_image`](Self::of_image).
    #[must_use]
    pub fn image_reference(&self) -> String {
        self.reference(IMAGE_TAG)
    }

    /// The same, by way of `address`.
    #[must_use]
    pub fn reference_at(address: SocketAddr, tag: &str) -> String {
        format!("{address}/{REPOSITORY}:{tag}")
    }

    /// What it has done so far, both sides.
    #[must_use]
    pub fn served(&self) -> Served {
        let (requests, bytes) = (self.shelf.requests.load(Ordering::Relaxed), self.shelf.bytes.load(Ordering::Relaxed));
        Served { requests, bytes, cpu: self.plain.cpu() + self.tls.cpu() }
    }
}

/// A certificate for 127.0.0.1, made now, and what shows it.
fn tls() -> Result<(TlsAcceptor, String)> {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).context("make a certificate")?;
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .context("use the certificate")?;
    Ok((TlsAcceptor::from(Arc::new(config)), made.cert.pem()))
}

async fn serve<I: hyper::rt::Read + hyper::rt::Write + Unpin>(shelf: Arc<Shelf>, io: I) {
    let service = service_fn(move |request| {
        let answer = shelf.answer(&request);
        async move { Ok::<_, Infallible>(answer) }
    });
    // A client that goes away in the middle is its own affair.
    let _ = http1::Builder::new().serve_connection(io, service).await;
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
pub(crate) fn byte_range(range: &str, len: usize) -> Option<(usize, usize)> {
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
