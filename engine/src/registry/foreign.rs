//! Blobs that their registry may not have: non-distributable ("foreign") layers, whose manifest says by URL where they may be had.
//!
//! The registry is asked first; where it has no such blob, the URLs in their order. A URL that brings nothing for a while is left for the
//! next place, which goes on where it stopped. A URL gets no header but the range: no credentials of any registry, no token. What comes is
//! checked as a registry's bytes are: its length here, its digest by whoever reads it.

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use clip_format::{blob_url::BlobUrl, digest::Digest};
use hyper::{
    HeaderMap,
    header::{LOCATION, RANGE},
};

use super::{
    blob::BlobReader,
    client::Client,
    exchange::{Ask, Exchange},
    hosts::Sender,
    location::{Location, Scheme, is_loopback},
    part,
    redirect::{REDIRECTS_MAX, is_redirect},
    reference::Reference,
    retry::{Failure, Tries},
};
use crate::error::EngineError;

/// How long one URL may be without progress, at most, before the next place is asked ...
const URL_TIME_MAX: Duration = Duration::from_secs(10);
/// ... nor for longer than this part of the client's patience. Source: that is how long a reader waits, so that two places that hang leave
/// time for a third.
const URL_PART: u32 = 3;

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
    /// A bit for each place that has sent wrong bytes; these are asked last. From the 64th on they share one.
    wrong: AtomicU64,
    /// ... and for each that did not help when it was asked last.
    failed: AtomicU64,
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
        Self { repository, digest, size, urls, found_at: AtomicUsize::new(0), wrong: AtomicU64::new(0), failed: AtomicU64::new(0) }
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

    /// Its digest.
    #[must_use]
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Wrong bytes came from `place`: every other is asked before it from now on.
    pub(super) fn distrust(&self, place: usize) {
        self.wrong.fetch_or(bit(place), Ordering::Relaxed);
    }

    fn is_wrong(&self, place: usize) -> bool {
        self.wrong.load(Ordering::Relaxed) & bit(place) != 0
    }

    /// Whether there is a place that has neither sent wrong bytes nor failed when it was asked last.
    pub(crate) fn has_untried_place(&self) -> bool {
        let tried = self.wrong.load(Ordering::Relaxed) | self.failed.load(Ordering::Relaxed);
        self.places().iter().any(|place| tried & bit(*place) == 0)
    }

    /// Every place: the one where it was found last before all others, but after them what has sent wrong bytes.
    fn places(&self) -> Vec<usize> {
        let found_at = self.found_at.load(Ordering::Relaxed);
        let known = |place: &usize| *place > 0 || self.repository.is_some();
        let others = (0..=self.urls.len()).filter(|place| *place != found_at);
        let mut places: Vec<_> = std::iter::once(found_at).chain(others).filter(known).collect();
        places.sort_by_key(|place| self.is_wrong(*place));
        places
    }

    fn note_found(&self, place: usize) {
        self.failed.fetch_and(!bit(place), Ordering::Relaxed);
        if self.found_at.swap(place, Ordering::Relaxed) != place && place > 0 {
            tracing::info!(layer = %self.digest, url = %self.urls[place - 1], "the layer is read from a URL of its manifest");
        }
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

fn bit(place: usize) -> u64 {
    1 << place.min(63)
}

/// The bytes of a range of a blob, from where it was found; where that stops, the rest is from the next place.
pub struct FoundBlob {
    places: Places,
    /// What is still to be given.
    rest: Range<u64>,
    found: Found,
}

/// The places of a blob, as one reader asks them: each once.
struct Places {
    client: Client,
    blob: Arc<ForeignBlob>,
    /// Not asked yet, in order.
    waiting: VecDeque<usize>,
    /// What the URLs said.
    failures: Vec<String>,
}

/// An open body at one of them.
struct Found {
    place: usize,
    reader: PlaceReader,
    /// Made from the sender that the registry's own reader names, if any.
    sender: Option<(Option<Arc<Sender>>, Arc<Sender>)>,
}

enum PlaceReader {
    Registry(Box<BlobReader>),
    Url(Box<UrlReader>),
}

impl FoundBlob {
    /// The next bytes, or `None` when the whole range has been given. Never more than the range.
    ///
    /// # Errors
    /// Every kind, after resuming failed: the registry's own, or `Nowhere` when no place is left.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, EngineError> {
        loop {
            let came = match &mut self.found.reader {
                PlaceReader::Registry(reader) => reader.chunk().await,
                PlaceReader::Url(reader) => reader.chunk().await,
            };
            match came {
                Ok(Some(bytes)) => {
                    self.rest.start += bytes.len() as u64;
                    self.found.note_sender(&self.places.blob);
                    return Ok(Some(bytes));
                }
                Ok(None) => return Ok(None),
                Err(error) => {
                    tracing::info!(layer = %self.places.blob.digest, %error, at = self.rest.start, "the layer stops; the next place is asked");
                    self.places.failed(self.found.place, error)?;
                    self.found = self.places.open(&self.rest).await?;
                }
            }
        }
    }

    /// Who sent the latest bytes.
    #[must_use]
    pub fn sender(&self) -> Option<&Arc<Sender>> {
        self.found.sender.as_ref().map(|(_, sender)| sender)
    }
}

impl Found {
    fn note_sender(&mut self, blob: &Arc<ForeignBlob>) {
        let host = match &self.reader {
            PlaceReader::Registry(reader) => reader.sender(),
            PlaceReader::Url(_) => None,
        };
        let is_same = |known: &Option<Arc<Sender>>| known.as_ref().map(Arc::as_ptr) == host.map(Arc::as_ptr);
        if !self.sender.as_ref().is_some_and(|(known, _)| is_same(known)) {
            self.sender = Some((host.cloned(), Arc::new(Sender::at_place(blob, self.place, host.cloned()))));
        }
    }
}

impl Places {
    /// `rest` at the first place that has it.
    async fn open(&mut self, rest: &Range<u64>) -> Result<Found, EngineError> {
        while let Some(place) = self.waiting.pop_front() {
            match self.open_at(place, rest.clone()).await {
                Ok(reader) => {
                    self.blob.note_found(place);
                    return Ok(Found { place, reader, sender: None });
                }
                Err(error) => self.failed(place, error)?,
            }
        }
        Err(self.blob.nowhere(&self.failures))
    }

    /// Another place may be asked; the registry's outage or missing credentials are not to be hidden by a URL.
    fn failed(&mut self, place: usize, error: EngineError) -> Result<(), EngineError> {
        self.blob.failed.fetch_or(bit(place), Ordering::Relaxed);
        match place {
            0 if is_missing(&error) => {}
            0 => return Err(error),
            _ => self.failures.push(said(&error)),
        }
        Ok(())
    }

    async fn open_at(&self, place: usize, range: Range<u64>) -> Result<PlaceReader, EngineError> {
        let (client, blob) = (&self.client, &self.blob);
        let Some(at) = place.checked_sub(1) else {
            let repository = blob.repository.as_ref().ok_or_else(|| blob.nowhere(&[]))?;
            return client.blob(repository, &blob.digest, blob.size, range).await.map(|reader| PlaceReader::Registry(Box::new(reader)));
        };
        let url = Location::parse(blob.urls[at].as_str())?;
        UrlReader::open(client.clone(), blob, url, range).await.map(|reader| PlaceReader::Url(Box::new(reader)))
    }
}

impl Client {
    /// Opens the bytes `range` of a blob at its registry or, where that has no such blob, at the first of its URLs that answers.
    ///
    /// # Errors
    /// Every kind: the registry's own where it is not that the blob is missing, else `Nowhere`.
    pub async fn foreign_blob(&self, blob: &Arc<ForeignBlob>, range: Range<u64>) -> Result<FoundBlob, EngineError> {
        let waiting = blob.places().into();
        let mut places = Places { client: self.clone(), blob: Arc::clone(blob), waiting, failures: Vec::new() };
        let found = places.open(&range).await?;
        Ok(FoundBlob { places, rest: range, found })
    }

    /// An answer of `url`, redirects followed. A redirect leads from TLS to plain HTTP on this machine only.
    async fn get_url(&self, url: &Location, range: Option<&Range<u64>>) -> Result<Exchange, Failure> {
        let mut headers = HeaderMap::new();
        if let Some(range) = range {
            headers.insert(RANGE, part::range_header(range));
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
        EngineError::EveryHost { last, .. } | EngineError::GivenUp { last, .. } => is_missing(last),
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
struct UrlReader {
    client: Client,
    url: Location,
    size: u64,
    /// What is still to be given.
    rest: Range<u64>,
    body: Option<Body>,
    tries: Tries,
    resumes_left: u64,
}

/// An answer under way.
struct Body {
    exchange: Exchange,
    /// Bytes before the range, from a server that ignored it.
    skip: u64,
}

impl UrlReader {
    async fn open(client: Client, blob: &ForeignBlob, url: Location, range: Range<u64>) -> Result<Self, EngineError> {
        part::check_range(&range, blob.digest, blob.size)?;
        let (tries, resumes_left) = (client.tries_within(URL_TIME_MAX, URL_PART), part::resumes_max(&range));
        let mut reader = Self { client, url, size: blob.size, rest: range, body: None, tries, resumes_left };
        while reader.body.is_none() && !reader.rest.is_empty() {
            match reader.tries.in_time(|| reader.what(), reader.request()).await {
                Ok(body) => reader.body = Some(body),
                Err(failure) => reader.tries.after(failure).await?,
            }
        }
        reader.tries.pause();
        Ok(reader)
    }

    async fn chunk(&mut self) -> Result<Option<Bytes>, EngineError> {
        self.tries.resume();
        while !self.rest.is_empty() {
            match self.try_chunk().await {
                Ok(bytes) => {
                    self.rest.start += bytes.len() as u64;
                    self.tries.brought(bytes.len() as u64);
                    self.tries.pause();
                    return Ok(Some(bytes));
                }
                Err(failure) => {
                    let Some(left) = self.resumes_left.checked_sub(1) else { return Err(failure.error) };
                    self.resumes_left = left;
                    self.tries.after(failure).await?;
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
            None => self.tries.in_time(|| self.what(), self.request()).await?,
        };
        loop {
            let asked = Instant::now();
            let chunk = self.tries.in_time(|| self.what(), body.exchange.chunk()).await?;
            let Some(bytes) = chunk else { return Err(part::ended_early(&body.exchange, &self.rest)) };
            let bytes = part::wanted(bytes, &mut body.skip, &self.rest);
            if !bytes.is_empty() {
                self.body = Some(body);
                return Ok(bytes);
            }
            // A body that stands still is given up by its own deadline.
            self.tries.excuse(asked.elapsed());
        }
    }

    fn what(&self) -> String {
        format!("GET {}", self.url)
    }

    async fn request(&self) -> Result<Body, Failure> {
        let range = Some(&self.rest).filter(|rest| **rest != (0..self.size));
        let exchange = self.client.get_url(&self.url, range).await?;
        let status = exchange.status();
        if status.is_client_error() || status.is_server_error() {
            return Err(exchange.into_failure().await);
        }
        let skip = part::bytes_before(&exchange, &self.rest, self.size)?;
        Ok(Body { exchange, skip })
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

    /// Claim: the registry comes first and then the URLs in order, except that the place which had it last comes
    /// before all, and what has sent wrong bytes after all.
    #[test]
    fn places_are_asked_in_order() {
        let both = blob(Some("localhost:1/a/b"), &["http://x/1", "http://x/2"]);
        assert_eq!(both.places(), [0, 1, 2]);
        both.found_at.store(2, Ordering::Relaxed);
        assert_eq!(both.places(), [2, 0, 1]);
        both.distrust(2);
        assert_eq!(both.places(), [0, 1, 2]);
        both.distrust(0);
        assert_eq!(both.places(), [1, 2, 0]);
        assert!(both.has_untried_place());
        both.distrust(1);
        assert!(both.places() == [2, 0, 1] && !both.has_untried_place());
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
