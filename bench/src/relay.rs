//! A plain HTTP front of any registry, so that the shaper can stand before it: it asks with clip's own client, TLS, tokens and all.

use std::{collections::HashMap, convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use bytes::Bytes;
use clip_engine::{
    EngineError, ErrorKind,
    registry::{BlobReader, Client, ClientConfig, Reference},
};
use clip_format::{digest::Digest, storage_info::LayerInfo};
use http_body_util::{BodyExt as _, Full, channel::Channel, combinators::UnsyncBoxBody};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;

use crate::{background::Background, registry::byte_range};

/// Largest config that is passed on. Source: chosen, over what the indexer takes.
const CONFIG_BYTES_MAX: u64 = 16 << 20;

type Body = UnsyncBoxBody<Bytes, EngineError>;

/// A running relay. Dropping it closes its connections.
pub struct Relay(Background);

struct Behind {
    client: Client,
    reference: Reference,
    /// Lengths of the layers' blobs, which ranges need.
    sizes: HashMap<String, u64>,
}

impl Relay {
    /// Stands before the registry of `reference`; `layers` are the blobs that may be asked for in ranges.
    ///
    /// # Errors
    /// The system's.
    pub fn start(reference: Reference, layers: &[LayerInfo]) -> Result<Self> {
        let client = Client::new(ClientConfig::default()).context("make a client for the relay")?;
        let sizes = layers.iter().map(|layer| (layer.digest.to_string(), layer.compressed_size)).collect();
        let behind = Arc::new(Behind { client, reference, sizes });
        let background = Background::start("bench-relay", move || {
            move |stream| {
                let behind = behind.clone();
                async move {
                    let service = service_fn(move |request| {
                        let behind = behind.clone();
                        async move { Ok::<_, Infallible>(behind.answer(&request).await) }
                    });
                    // A client that goes away in the middle is its own affair.
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                }
            }
        })?;
        Ok(Self(background))
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.0.address()
    }

    /// What its thread has spent on a core so far.
    #[must_use]
    pub fn cpu(&self) -> Duration {
        self.0.cpu()
    }
}

impl Behind {
    async fn answer(&self, request: &Request<Incoming>) -> Response<Body> {
        let prefix = format!("/v2/{}/", self.reference.repository);
        let path = request.uri().path();
        let answer = match path.strip_prefix(&prefix).and_then(|rest| rest.split_once('/')) {
            Some(("blobs", digest)) => self.blob(request, digest).await,
            Some(("manifests", name)) => self.manifest(request, name).await,
            _ => return plain(if path == "/v2/" { StatusCode::OK } else { StatusCode::NOT_FOUND }, String::new()),
        };
        answer.unwrap_or_else(|error| refusal(&error))
    }

    async fn blob(&self, request: &Request<Incoming>, digest: &str) -> Result<Response<Body>, EngineError> {
        let Ok(parsed) = digest.parse::<Digest>() else { return Ok(plain(StatusCode::NOT_FOUND, String::new())) };
        let Some(&size) = self.sizes.get(digest) else {
            let bytes = self.client.blob_bytes(&self.reference, &parsed, CONFIG_BYTES_MAX).await?;
            return Ok(whole(request, "application/octet-stream", bytes));
        };
        let asked = request.headers().get(RANGE).and_then(|range| byte_range(range.to_str().ok()?, usize::try_from(size).ok()?));
        let range = asked.map_or(0..size, |(start, end)| start as u64..end as u64);
        let mut head = Response::builder().header(CONTENT_TYPE, "application/octet-stream").header(CONTENT_LENGTH, range.end - range.start);
        if let Some((start, end)) = asked {
            head = head.status(StatusCode::PARTIAL_CONTENT).header(CONTENT_RANGE, format!("bytes {start}-{}/{size}", end - 1));
        }
        let body = if request.method() == Method::HEAD {
            Full::default().map_err(|never| match never {}).boxed_unsync()
        } else {
            passed_on(self.client.blob(&self.reference, &parsed, size, range).await?)
        };
        Ok(head.body(body).unwrap_or_else(|_| plain(StatusCode::INTERNAL_SERVER_ERROR, String::new())))
    }

    async fn manifest(&self, request: &Request<Incoming>, name: &str) -> Result<Response<Body>, EngineError> {
        let reference = match name.parse::<Digest>() {
            Ok(digest) => self.reference.at_digest(digest),
            Err(_) => Reference { tag: Some(name.to_owned()), digest: None, ..self.reference.clone() },
        };
        let manifest = self.client.manifest(&reference).await?;
        Ok(whole(request, &manifest.media_type, manifest.bytes))
    }
}

/// The body as it comes; a failure breaks it off.
fn passed_on(mut reader: BlobReader) -> Body {
    let (mut sender, body) = Channel::new(4);
    tokio::task::spawn_local(async move {
        loop {
            match reader.chunk().await {
                // A reader that went away wants no more.
                Ok(Some(bytes)) => match sender.send_data(bytes).await {
                    Ok(()) => {}
                    Err(_) => return,
                },
                Ok(None) => return,
                Err(error) => return sender.abort(error),
            }
        }
    });
    body.boxed_unsync()
}

fn whole(request: &Request<Incoming>, media_type: &str, bytes: Bytes) -> Response<Body> {
    let head = Response::builder().header(CONTENT_TYPE, media_type).header(CONTENT_LENGTH, bytes.len());
    let bytes = if request.method() == Method::HEAD { Bytes::new() } else { bytes };
    let body = Full::new(bytes).map_err(|never| match never {}).boxed_unsync();
    head.body(body).unwrap_or_else(|_| plain(StatusCode::INTERNAL_SERVER_ERROR, String::new()))
}

fn plain(status: StatusCode, text: String) -> Response<Body> {
    let mut answer = Response::new(Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync());
    *answer.status_mut() = status;
    answer
}

/// The registry's refusal, as near as a status can say it.
fn refusal(error: &EngineError) -> Response<Body> {
    let status = match error.kind() {
        ErrorKind::Denied => StatusCode::FORBIDDEN,
        _ => StatusCode::BAD_GATEWAY,
    };
    plain(status, format!("{error:#}\n"))
}
