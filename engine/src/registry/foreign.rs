//! Blobs that their registry may not have: non-distributable ("foreign") layers, whose manifest says by URL where they may be had.
//!
//! The registry is asked first; where it has no such blob, the URLs in their order. A URL gets no header but the range: no credentials
//! of any registry, no token. What comes is checked as a registry's bytes are: its length here, its digest by whoever reads it.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use clip_format::{blob_url::BlobUrl, digest::Digest};
use hyper::{
    HeaderMap, StatusCode,
    header::{CONTENT_RANGE, HeaderValue, LOCATION, RANGE},
};
use tokio::time::timeout;

use super::{
    blob::BlobReader,
    client::{Client, not_encoded},
    exchange::{Ask, Exchange},
    hosts::Sender,
    location::{Location, Scheme, is_loopback},
    redirect::{REDIRECTS_MAX, is_redirect},
    reference::Reference,
    retry::Failure,
};
use crate::error::EngineError;

/// How long one URL may keep the next from being asked. Source: a reader gives up after 30 s by default, so that three of them fit.
const URL_TIME_MAX: Duration = Duration::from_secs(10);
/// Bodies of one reader that may break off after progress. Source: judgement: a blob of 16 GiB through a proxy that cuts each at 16 MiB.
const RESUMES_MAX: u32 = 1024;

/// A blob that may be at its registry or at one of some URLs.
#[derive(Debug)]
pub struct ForeignBlob {
    /// Names the repository that is asked first; `None` for an image that came from files.
    repository: Option<Arc<Reference>>,
    digest: Digest,
    size: u64,
    urls: Vec<BlobUrl>,
    /// The place where it was found last, which is asked first. 0 is the registry, `n` the nth URL.
    found_at: AtomicUsize,
}

impl PartialEq for ForeignBlob {
    fn eq(&self, other: &Self) -> bool {
        let key = |blob: &Self| (blob.repository.clone(), blob.digest, blob.size, blob.urls.clone());
        key(self) == key(other)
    }
}

impl ForeignBlob {
    /// A blob that nobody has looked for yet. `urls` may be empty: then there is an error that says so, where the registry has it not.
    #[must_use]
    pub fn new(repository: Option<Arc<Reference>>, digest: Digest, size: u64, urls: Vec<BlobUrl>) -> Self {
        Self { repository, digest, size, urls, found_at: AtomicUsize::new(0) }
    }

    /// The repository that is asked first.
    #[must_use]
    pub fn repository(&self) -> Option<&Arc<Reference>> {
        self.repository.as_ref()
    }

    /// Its length.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Wrong bytes came from where it was found last: the next place is asked first.
    pub(crate) fn distrust(&self) {
        let found_at = self.found_at.load(Ordering::Relaxed);
        self.found_at.store((found_at + 1) % (self.urls.len() + 1), Ordering::Relaxed);
    }

    /// Every place, the one where it was found last before all others.
    fn places(&self) -> Vec<usize> {
        let found_at = self.found_at.load(Ordering::Relaxed);
        let known = |place: &usize| *place > 0 || self.repository.is_some();
        let others = (0..=self.urls.len()).filter(|place| *place != found_at);
        std::iter::once(found_at).chain(others).filter(known).collect()
    }

    /// The error when no place has it.
    fn nowhere(&self, failures: &[String]) -> EngineError {
        let registry = match &self.repository {
            Some(repository) => format!("{}/{} has no such blob", repository.registry, repository.repository),
            None => "it is not among the image's files".to_owned(),
        };
        let urls = match failures {
            [] => "its manifest gives no URL for it (non-distributable layers are left out of most pushes); push or copy the image again \
                   with all its layers, or index it where they are"
                .to_owned(),
            failures => format!("its URLs did not help: {}", failures.join("; ")),
        };
        EngineError::Nowhere { layer: self.digest, why: format!("{registry}, and {urls}") }
    }
}

/// The bytes of a range of a blob, from where it was found.
pub enum FoundBlob {
    /// At its registry.
    Registry(Box<BlobReader>),
    /// At a URL.
    Url(Box<UrlReader>),
}

impl FoundBlob {
    /// The next bytes, or `None` when the whole range has been given. Never more than the range.
    ///
    /// # Errors
    /// Every kind, after resuming failed.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, EngineError> {
        match self {
            FoundBlob::Registry(reader) => reader.chunk().await,
            FoundBlob::Url(reader) => reader.chunk().await,
        }
    }
}

impl FoundBlob {
    /// Who sent the latest bytes, where others could be asked instead.
    #[must_use]
    pub fn sender(&self) -> Option<&Arc<Sender>> {
        match self {
            FoundBlob::Registry(reader) => reader.sender(),
            FoundBlob::Url(_) => None,
        }
    }
}

impl Client {
    /// Opens the bytes `range` of a blob at its registry or, where that has no such blob, at the first of its URLs that answers.
    ///
    /// # Errors
    /// Every kind: the registry's own where it is not that the blob is missing, else `Nowhere`.
    pub async fn foreign_blob(&self, blob: &ForeignBlob, range: Range<u64>) -> Result<FoundBlob, EngineError> {
        let mut failures = Vec::new();
        for place in blob.places() {
            match (self.open_at(blob, place, range.clone()).await, place) {
                (Ok(found), _) => {
                    if blob.found_at.swap(place, Ordering::Relaxed) != place && place > 0 {
                        tracing::info!(layer = %blob.digest, url = %blob.urls[place - 1], "the layer is read from a URL of its manifest");
                    }
                    return Ok(found);
                }
                (Err(error), 0) if is_missing(&error) => {}
                // An outage or missing credentials are not to be hidden by a URL.
                (Err(error), 0) => return Err(error),
                (Err(error), _) => failures.push(said(&error)),
            }
        }
        Err(blob.nowhere(&failures))
    }

    async fn open_at(&self, blob: &ForeignBlob, place: usize, range: Range<u64>) -> Result<FoundBlob, EngineError> {
        let Some(at) = place.checked_sub(1) else {
            let repository = blob.repository.as_ref().ok_or_else(|| blob.nowhere(&[]))?;
            return self.blob(repository, &blob.digest, blob.size, range).await.map(|reader| FoundBlob::Registry(Box::new(reader)));
        };
        let url = &blob.urls[at];
        let opening = UrlReader::open(self.clone(), blob, Location::parse(url.as_str())?, range);
        let late = |_| EngineError::Deadline { what: format!("GET {url}"), waited: URL_TIME_MAX };
        timeout(URL_TIME_MAX, opening).await.map_err(late)?.map(|reader| FoundBlob::Url(Box::new(reader)))
    }

    /// An answer of `url`, redirects followed. A redirect leads from TLS to plain HTTP on this machine only.
    async fn get_url(&self, url: &Location, range: Option<&Range<u64>>) -> Result<Exchange, Failure> {
        let mut headers = HeaderMap::new();
        if let Some(range) = range {
            let value = HeaderValue::from_str(&format!("bytes={}-{}", range.start, range.end.saturating_sub(1)));
            headers.insert(RANGE, value.expect("digits are ASCII"));
        }
        let ask = Ask::get(headers);
        let mut exchange = self.transport.send(url, &ask).await?;
        for _ in 0..REDIRECTS_MAX {
            if !is_redirect(exchange.status()) {
                return Ok(exchange);
            }
            let target = redirected(&exchange)?;
            exchange.drain().await;
            exchange = self.transport.send(&target, &ask).await?;
        }
        match is_redirect(exchange.status()) {
            true => Err(exchange.contradiction(format!("at most {REDIRECTS_MAX} redirects"), "another").into()),
            false => Ok(exchange),
        }
    }
}

/// Whether a registry says that it has no such blob.
fn is_missing(error: &EngineError) -> bool {
    match error {
        EngineError::Status { status, .. } => *status == 404,
        EngineError::EveryHost { last, .. } => is_missing(last),
        _ => false,
    }
}

/// What a URL said, without what there is to do about a registry that says so.
fn said(error: &EngineError) -> String {
    match error {
        EngineError::Status { method, url, status, detail, .. } => format!("{method} {url}: status {status}{detail}"),
        other => other.to_string(),
    }
}

/// Where `exchange` points.
fn redirected(exchange: &Exchange) -> Result<Location, EngineError> {
    let text = exchange.header(LOCATION).ok_or_else(|| exchange.contradiction("a redirect with a Location", "none"))?;
    let target = exchange.url.join(text).map_err(|error| exchange.contradiction("a redirect to a URL", error.to_string()))?;
    let (from, to) = (exchange.url.origin.scheme, target.origin.scheme);
    if (from, to) == (Scheme::Https, Scheme::Http) && !is_loopback(&target.origin.host) {
        return Err(exchange.contradiction("a redirect to https", target.to_string()));
    }
    Ok(target)
}

/// The body of a URL, chunk by chunk; a body that breaks off is asked for again from there. Dropping it midway closes its connection.
pub struct UrlReader {
    client: Client,
    url: Location,
    size: u64,
    /// What is still to be given.
    rest: Range<u64>,
    body: Option<Body>,
    resumes_left: u32,
}

/// An answer under way.
struct Body {
    exchange: Exchange,
    /// Bytes before the range, from a server that ignored it.
    skip: u64,
}

impl UrlReader {
    async fn open(client: Client, blob: &ForeignBlob, url: Location, range: Range<u64>) -> Result<Self, EngineError> {
        if range.start > range.end || range.end > blob.size {
            let (place, expected) = (format!("bytes {}..{}", range.start, range.end), format!("a range within its {} bytes", blob.size));
            return Err(EngineError::Layer { layer: blob.digest, place, expected, found: "one that is not".to_owned() });
        }
        let mut tries = client.tries();
        let mut reader = Self { client, url, size: blob.size, rest: range, body: None, resumes_left: RESUMES_MAX };
        while reader.body.is_none() && !reader.rest.is_empty() {
            match reader.request().await {
                Ok(body) => reader.body = Some(body),
                Err(failure) => tries.after(failure).await?,
            }
        }
        Ok(reader)
    }

    async fn chunk(&mut self) -> Result<Option<Bytes>, EngineError> {
        let mut tries = self.client.tries();
        while !self.rest.is_empty() {
            match self.try_chunk().await {
                Ok(bytes) => {
                    self.rest.start += bytes.len() as u64;
                    return Ok(Some(bytes));
                }
                Err(failure) => {
                    let Some(left) = self.resumes_left.checked_sub(1) else { return Err(failure.error) };
                    self.resumes_left = left;
                    tries.after(failure).await?;
                }
            }
        }
        if let Some(body) = self.body.take() {
            // A chunked body ends with a frame of its own; after it the connection can serve again.
            body.exchange.drain().await;
        }
        Ok(None)
    }

    /// At least one byte of the rest, none past it. After a failure there is no body.
    async fn try_chunk(&mut self) -> Result<Bytes, Failure> {
        let mut body = match self.body.take() {
            Some(body) => body,
            None => self.request().await?,
        };
        loop {
            let Some(mut bytes) = body.exchange.chunk().await? else {
                let (method, url) = (body.exchange.method, body.exchange.url.to_string());
                let reason = format!("the body ended before byte {} of the blob, at {}", self.rest.end, self.rest.start);
                return Err(Failure::passing(EngineError::Transport { method, url, reason }));
            };
            let skipped = body.skip.min(bytes.len() as u64);
            body.skip -= skipped;
            // Both are at most the length of `bytes`, so they fit.
            drop(bytes.split_to(skipped as usize));
            bytes.truncate((self.rest.end - self.rest.start).min(bytes.len() as u64) as usize);
            if !bytes.is_empty() {
                self.body = Some(body);
                return Ok(bytes);
            }
        }
    }

    async fn request(&self) -> Result<Body, Failure> {
        let range = Some(&self.rest).filter(|rest| **rest != (0..self.size));
        let exchange = self.client.get_url(&self.url, range).await?;
        match (exchange.status(), range) {
            (StatusCode::PARTIAL_CONTENT, Some(range)) => {
                not_encoded(&exchange)?;
                check_range(&exchange, range, self.size)?;
                check_length(&exchange, range.end - range.start)?;
                Ok(Body { exchange, skip: 0 })
            }
            (StatusCode::OK, _) => {
                not_encoded(&exchange)?;
                check_length(&exchange, self.size)?;
                Ok(Body { exchange, skip: self.rest.start })
            }
            (status, _) if status.is_client_error() || status.is_server_error() => Err(exchange.into_failure().await),
            (status, _) => Err(exchange.contradiction("status 200 or 206", status.as_u16().to_string()).into()),
        }
    }
}

/// The answer holds exactly the range asked for. Source: RFC 9110 section 14.4.
fn check_range(exchange: &Exchange, range: &Range<u64>, size: u64) -> Result<(), EngineError> {
    let expected = format!("bytes {}-{}/", range.start, range.end - 1);
    let found = exchange.header(CONTENT_RANGE).unwrap_or("none").trim();
    match found.strip_prefix(&expected) {
        Some(total) if total == "*" || total.parse() == Ok(size) => Ok(()),
        _ => Err(exchange.contradiction(format!("Content-Range {expected}{size}"), found.chars().take(80).collect::<String>())),
    }
}

fn check_length(exchange: &Exchange, expected: u64) -> Result<(), EngineError> {
    match exchange.content_length() {
        Some(found) if found != expected => Err(exchange.contradiction(format!("Content-Length {expected}"), found.to_string())),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn blob(repository: Option<&str>, urls: &[&str]) -> ForeignBlob {
        let repository = repository.map(|text| Arc::new(text.parse().unwrap()));
        ForeignBlob::new(repository, Digest::Sha256([7; 32]), 9, urls.iter().map(|url| BlobUrl::parse(url).unwrap()).collect())
    }

    /// Claim: the registry comes first and then the URLs in order, except that the place which had it last comes before all.
    #[test]
    fn places_are_asked_in_order() {
        let both = blob(Some("localhost:1/a/b"), &["http://x/1", "http://x/2"]);
        assert_eq!(both.places(), [0, 1, 2]);
        both.found_at.store(2, Ordering::Relaxed);
        assert_eq!(both.places(), [2, 0, 1]);
        assert_eq!(blob(None, &["http://x/1"]).places(), [1]);
        assert_eq!(blob(Some("localhost:1/a/b"), &[]).places(), [0]);
    }

    /// Claim: the error says that there is no URL, or what each said; which places there were; and what to do.
    #[test]
    fn nowhere_says_what_was_tried() {
        let without = blob(Some("localhost:1/a/b"), &[]).nowhere(&[]).to_string();
        assert!(without.contains("localhost:1/a/b") && without.contains("no URL") && without.contains("push or copy"), "{without}");
        let with = blob(None, &["http://x/1"]).nowhere(&["GET http://x/1: status 404".to_owned()]).to_string();
        assert!(with.contains("image's files") && with.contains("http://x/1: status 404"), "{with}");
    }
}
