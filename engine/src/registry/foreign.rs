//! Blobs that their registry may not have: non-distributable ("foreign") layers, whose manifest says by URL where they may be had.
//!
//! The registry is asked first; where it has no such blob, the URLs in their order. A URL that brings nothing for a while is left for the
//! next place, which goes on where it stopped. A URL gets no header but the range: no credentials of any registry, no token. What comes is
//! checked as a registry's bytes are: its length here, its digest by whoever reads it.

mod url_reader;

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

use self::url_reader::UrlReader;
use super::{
    blob::BlobReader,
    client::Client,
    exchange::{Ask, Exchange},
    hosts::ServedBy,
    location::{Location, Scheme, is_loopback},
    part,
    redirect::{REDIRECTS_MAX, is_redirect},
    reference::Reference,
    retry::Failure,
};
use crate::error::EngineError;

/// How long one URL may be without progress, at most, before the next place is asked ...
const URL_TIME_MAX: Duration = Duration::from_secs(10);
/// ... nor for longer than this part of the client's patience. Source: that is how long a reader waits, so that two places that hang leave
/// time for a third.
const URL_PART: u32 = 3;
/// ... nor so long that of the patience, which all of them share, less than this part is left to each of the others. Source: half of it for
/// the most URLs that a layer has, 16; of the default 30 s 0.9 s, in which a URL that works has answered.
const URL_PART_MIN: u32 = 32;
/// Reasons of different kinds that an error shows. Source: judgement: more are a page, and tell no more of what to do.
const REASONS_MAX: usize = 3;

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
    fn nowhere(&self, failures: &[Refusal]) -> EngineError {
        let registry = match &self.repository {
            Some(repository) => format!("{}/{} has no such blob", repository.registry, repository.repository),
            None => "it is not among the image's files".to_owned(),
        };
        let urls = match failures {
            [] => "its manifest gives no URL for it (non-distributable layers are left out of most pushes); push or copy the image again \
                   with all its layers, or index it where they are"
                .to_owned(),
            failures => format!("its URLs did not help: {}", shown(failures)),
        };
        EngineError::Nowhere { layer: self.digest, why: format!("{registry}, and {urls}") }
    }
}

/// What a URL said instead of the bytes.
struct Refusal {
    url: String,
    reason: String,
}

/// The first, those of other reasons, and how many more there are.
fn shown(refusals: &[Refusal]) -> String {
    let mut told: Vec<&Refusal> = Vec::new();
    for refusal in refusals {
        if told.len() < REASONS_MAX && told.iter().all(|known| known.reason != refusal.reason) {
            told.push(refusal);
        }
    }
    let mut text = told.iter().map(|refusal| format!("{}: {}", refusal.url, refusal.reason)).collect::<Vec<_>>().join("; ");
    match refusals.len() - told.len() {
        0 => {}
        more => text.push_str(&format!("; and {more} more")),
    }
    text
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
    failures: Vec<Refusal>,
    /// How long URLs were waited for since one brought something.
    waited: Duration,
}

/// An open body at one of them.
struct Found {
    place: usize,
    reader: PlaceReader,
    /// Made from the sender that the registry's own reader names, if any.
    sender: Option<(Option<Arc<ServedBy>>, Arc<ServedBy>)>,
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
            let asked = Instant::now();
            let came = match &mut self.found.reader {
                PlaceReader::Registry(reader) => reader.chunk().await,
                PlaceReader::Url(reader) => reader.chunk().await,
            };
            match came {
                Ok(Some(bytes)) => {
                    self.rest.start += bytes.len() as u64;
                    self.places.waited = Duration::ZERO;
                    self.found.note_sender(&self.places.blob);
                    return Ok(Some(bytes));
                }
                Ok(None) => return Ok(None),
                Err(error) => {
                    tracing::info!(layer = %self.places.blob.digest, %error, at = self.rest.start, "the layer stops; the next place is asked");
                    self.places.failed(self.found.place, asked.elapsed(), error)?;
                    self.found = self.places.open(&self.rest).await?;
                }
            }
        }
    }

    /// Who sent the latest bytes.
    #[must_use]
    pub fn sender(&self) -> Option<&Arc<ServedBy>> {
        self.found.sender.as_ref().map(|(_, sender)| sender)
    }
}

impl Found {
    fn note_sender(&mut self, blob: &Arc<ForeignBlob>) {
        let host = match &self.reader {
            PlaceReader::Registry(reader) => reader.sender(),
            PlaceReader::Url(_) => None,
        };
        let is_same = |known: &Option<Arc<ServedBy>>| known.as_ref().map(Arc::as_ptr) == host.map(Arc::as_ptr);
        if !self.sender.as_ref().is_some_and(|(known, _)| is_same(known)) {
            self.sender = Some((host.cloned(), Arc::new(ServedBy::at_place(blob, self.place, host.cloned()))));
        }
    }
}

impl Places {
    /// `rest` at the first place that has it.
    async fn open(&mut self, rest: &Range<u64>) -> Result<Found, EngineError> {
        while let Some(place) = self.waiting.pop_front() {
            let asked = Instant::now();
            match self.open_at(place, rest.clone()).await {
                Ok(reader) => {
                    self.blob.note_found(place);
                    return Ok(Found { place, reader, sender: None });
                }
                Err(error) => self.failed(place, asked.elapsed(), error)?,
            }
        }
        Err(self.blob.nowhere(&self.failures))
    }

    /// Another place may be asked; the registry's outage or missing credentials are not to be hidden by a URL.
    fn failed(&mut self, place: usize, waited: Duration, error: EngineError) -> Result<(), EngineError> {
        self.blob.failed.fetch_or(bit(place), Ordering::Relaxed);
        match place {
            0 if is_missing(&error) => {}
            0 => return Err(error),
            _ => {
                self.waited += waited;
                self.failures.push(Refusal { url: self.blob.urls[place - 1].to_string(), reason: reason(error) });
            }
        }
        Ok(())
    }

    /// How long the next URL may be without progress.
    fn time(&self) -> Duration {
        let patience = self.client.patience();
        let others = u32::try_from(self.waiting.iter().filter(|place| **place > 0).count()).unwrap_or(u32::MAX);
        let least = patience / URL_PART_MIN;
        let left = patience.saturating_sub(self.waited).saturating_sub(least.saturating_mul(others));
        left.min(patience / URL_PART).min(URL_TIME_MAX).max(least)
    }

    async fn open_at(&self, place: usize, range: Range<u64>) -> Result<PlaceReader, EngineError> {
        let (client, blob) = (&self.client, &self.blob);
        let Some(at) = place.checked_sub(1) else {
            let repository = blob.repository.as_ref().ok_or_else(|| blob.nowhere(&[]))?;
            return client.blob(repository, &blob.digest, blob.size, range).await.map(|reader| PlaceReader::Registry(Box::new(reader)));
        };
        let url = Location::parse(blob.urls[at].as_str())?;
        UrlReader::open(client.clone(), blob, url, range, self.time()).await.map(|reader| PlaceReader::Url(Box::new(reader)))
    }
}

impl Client {
    /// Opens the bytes `range` of a blob at its registry or, where that has no such blob, at the first of its URLs that answers.
    ///
    /// # Errors
    /// Every kind: the registry's own where it is not that the blob is missing, else `Nowhere`.
    pub async fn foreign_blob(&self, blob: &Arc<ForeignBlob>, range: Range<u64>) -> Result<FoundBlob, EngineError> {
        let waiting = blob.places().into();
        let mut places = Places { client: self.clone(), blob: Arc::clone(blob), waiting, failures: Vec::new(), waited: Duration::ZERO };
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

/// Why a URL did not help, without what there is to do about a registry that says so, and without the URL itself.
fn reason(error: EngineError) -> String {
    match error {
        EngineError::Status { status, detail, .. } => format!("status {status}{detail}"),
        EngineError::Transport { reason, .. } => reason,
        EngineError::Protocol { expected, found, .. } => format!("expected {expected}, found {found}"),
        // Each has what is left of one time: not a reason that differs from the others'.
        EngineError::Deadline { .. } => "no progress within its time".to_owned(),
        EngineError::GivenUp { last, .. } => reason(*last),
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

    fn refusal(url: &str, reason: &str) -> Refusal {
        Refusal { url: url.to_owned(), reason: reason.to_owned() }
    }

    /// Claim: of many URLs that failed the first is shown and the first of each other reason; the others are counted.
    #[test]
    fn many_failures_are_counted() {
        let one = || refusal("http://x/1", "status 404");
        assert_eq!(shown(&[one()]), "http://x/1: status 404");
        assert_eq!(shown(&[one(), one(), one()]), "http://x/1: status 404; and 2 more");
        let many: Vec<_> = (0..16).map(|number| refusal(&format!("u{number}"), &format!("r{}", number / 2))).collect();
        assert_eq!(shown(&many), "u0: r0; u2: r1; u4: r2; and 13 more");
    }

    /// Claim: two URLs that hang leave time for a third, sixteen get some time each, and all together take no longer than a reader waits.
    #[test]
    fn urls_share_a_readers_patience() {
        for (seconds, urls) in [(30, 1), (30, 2), (30, 3), (30, 16), (3, 16), (300, 16)] {
            let patience = Duration::from_secs(seconds);
            let client = Client::new(crate::registry::ClientConfig { patience, ..Default::default() }).unwrap();
            let many: Vec<_> = (0..urls).map(|number| format!("http://x/{number}")).collect();
            let blob = Arc::new(blob(None, &many.iter().map(String::as_str).collect::<Vec<_>>()));
            let waiting = blob.places().into();
            let mut places = Places { client, blob, waiting, failures: Vec::new(), waited: Duration::ZERO };
            let mut times = Vec::new();
            while let Some(place) = places.waiting.pop_front() {
                times.push(places.time());
                places.failed(place, places.time(), EngineError::Stopped).unwrap();
            }
            assert!(times.iter().sum::<Duration>() <= patience, "{times:?}");
            assert!(times.iter().all(|time| *time >= patience / 32), "{times:?}");
            assert_eq!(times[0], (patience / 3).min(Duration::from_secs(10)), "{times:?}");
        }
    }

    /// Claim: the error says that there is no URL, or what each said; which places there were; and what to do.
    #[test]
    fn nowhere_says_what_was_tried() {
        let without = blob(Some("localhost:1/a/b"), &[]).nowhere(&[]).to_string();
        assert!(without.contains("localhost:1/a/b") && without.contains("no URL") && without.contains("push or copy"), "{without}");
        let with = blob(None, &["http://x/1"]).nowhere(&[refusal("http://x/1", "status 404")]).to_string();
        assert!(with.contains("image's files") && with.contains("http://x/1: status 404"), "{with}");
    }
}
