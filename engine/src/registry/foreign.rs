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

use clip_format::{blob_url::BlobUrl, digest::Digest};
use hyper::{
    HeaderMap,
    header::{HeaderValue, RANGE},
};
use tokio::time::timeout;

use super::{
    blob::BlobReader,
    client::{Client, PlainHttp},
    exchange::{Ask, Exchange},
    fetch::settled,
    location::{Location, Scheme},
    pace::Pace,
    redirect::{self, REDIRECTS_MAX, is_redirect},
    reference::Reference,
    retry::Failure,
};
use crate::error::EngineError;

/// How long one URL may keep the next from being asked. Source: a reader gives up after 30 s by default, so that three of them fit.
const URL_TIME_MAX: Duration = Duration::from_secs(10);

/// Where the bytes of a reader come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Registry(Reference),
    /// Outside the registry; without credentials.
    Url(Location),
}

impl From<Reference> for Place {
    fn from(reference: Reference) -> Self {
        Place::Registry(reference)
    }
}

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

    /// Its length.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Every place, the one where it was found last before all others.
    fn places(&self) -> Vec<usize> {
        let found_at = self.found_at.load(Ordering::Relaxed);
        let known = |place: &usize| *place > 0 || self.repository.is_some();
        let others = (0..=self.urls.len()).filter(|place| *place != found_at);
        std::iter::once(found_at).chain(others).filter(known).collect()
    }

    fn place(&self, place: usize) -> Result<Place, EngineError> {
        match (place.checked_sub(1), &self.repository) {
            (None, Some(repository)) => Ok(Place::Registry((**repository).clone())),
            (Some(at), _) if at < self.urls.len() => Ok(Place::Url(Location::parse(self.urls[at].as_str())?)),
            _ => Err(self.nowhere(&[])),
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

impl Client {
    /// Opens the bytes `range` of a blob at its registry or, where that has no such blob, at the first of its URLs that answers.
    ///
    /// # Errors
    /// Every kind: the registry's own where it is not that the blob is missing, else `Nowhere`.
    pub async fn foreign_blob(&self, blob: &ForeignBlob, range: Range<u64>) -> Result<BlobReader, EngineError> {
        let mut failures = Vec::new();
        for place in blob.places() {
            let opened = self.open_at(blob, place, range.clone()).await;
            match (opened, place) {
                (Ok(reader), _) => {
                    if blob.found_at.swap(place, Ordering::Relaxed) != place && place > 0 {
                        tracing::info!(layer = %blob.digest, url = %blob.urls[place - 1], "the layer is read from a URL of its manifest");
                    }
                    return Ok(reader);
                }
                (Err(EngineError::Status { status: 404, .. }), 0) => {}
                (Err(error), 0) => return Err(error),
                (Err(error), _) => failures.push(error.to_string()),
            }
        }
        Err(blob.nowhere(&failures))
    }

    async fn open_at(&self, blob: &ForeignBlob, place: usize, range: Range<u64>) -> Result<BlobReader, EngineError> {
        let at = blob.place(place)?;
        let opening = BlobReader::open(self.clone(), at, blob.digest, blob.size, range);
        if place == 0 {
            return opening.await;
        }
        let late = |_| EngineError::Deadline { what: format!("GET {}", blob.urls[place - 1]), waited: URL_TIME_MAX };
        timeout(URL_TIME_MAX, opening).await.map_err(late)?
    }

    /// The widest gap that costs less to receive than another request does, where the blob was found last; 0 before it was measured.
    pub(crate) fn foreign_bridge_bytes_max(&self, blob: &ForeignBlob) -> u64 {
        let place = blob.place(blob.found_at.load(Ordering::Relaxed));
        place.map_or(0, |place| self.pace_at(&place).bridge_bytes_max())
    }

    pub(super) fn pace_at(&self, place: &Place) -> Arc<Pace> {
        match place {
            Place::Registry(reference) => self.pace(reference),
            Place::Url(url) => self.shared.paces.of(&url.origin.to_string()),
        }
    }

    /// An answer of `url` with status 200 or 206, redirects followed. A redirect leads from TLS to plain HTTP on this machine only.
    pub(super) async fn try_url(&self, url: &Location, range: Option<&Range<u64>>) -> Result<Exchange, Failure> {
        let mut headers = HeaderMap::new();
        if let Some(range) = range {
            let value = HeaderValue::from_str(&format!("bytes={}-{}", range.start, range.end.saturating_sub(1)));
            headers.insert(RANGE, value.expect("digits are ASCII"));
        }
        let ask = Ask::get(headers);
        let mut exchange = self.transport.send(url, &ask).await?;
        for _ in 0..REDIRECTS_MAX {
            if !is_redirect(exchange.status()) {
                return settled(exchange).await;
            }
            let plain_http = match exchange.url.origin.scheme {
                Scheme::Http => PlainHttp::Always,
                Scheme::Https => self.transport.config.plain_http,
            };
            let target = redirect::target(&exchange, plain_http)?;
            exchange.drain().await;
            exchange = self.transport.send(&target, &ask).await?;
        }
        if is_redirect(exchange.status()) {
            return Err(exchange.contradiction(format!("at most {REDIRECTS_MAX} redirects"), "another").into());
        }
        settled(exchange).await
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
        assert!(matches!(both.place(0).unwrap(), Place::Registry(_)));
        assert!(matches!(both.place(2).unwrap(), Place::Url(url) if url.to_string() == "http://x/2"));
        assert!(both.place(3).is_err() && blob(None, &[]).place(0).is_err());
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
