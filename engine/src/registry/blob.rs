//! The bytes of a range of a blob, resumed where they stop.

use std::{ops::Range, pin::pin, sync::Arc, time::Instant};

use bytes::Bytes;
use clip_format::digest::Digest;
use hyper::StatusCode;

use super::{
    client::{Client, blob_path},
    exchange::Exchange,
    fetch::Get,
    hosts::{Avoided, Endpoint, Need, ServedBy, Site},
    pace::Transfer,
    part,
    reference::Reference,
    resume::{Come, Course, Resumed},
    retry::{Again, Failure},
};
use crate::error::EngineError;

/// Connections of one reader that are given up for being far behind their peers. Source: the third is as likely to be slow as the network.
const STRAGGLERS_MAX: u32 = 2;

/// A host that was dead is asked by all again when a body has brought the range, or so much. Source: judgement: a server whose disk hangs still
/// sends what is in memory; sockets hold up to some 100 KiB of a body at its head, and a MiB is less than a second of any link.
const ALIVE_BYTES: u64 = 1 << 20;

/// The body of a blob request, chunk by chunk. Dropping it midway closes its connection.
pub struct BlobReader(Resumed<FromHosts>);

/// The hosts of a registry, as one reader asks them.
struct FromHosts {
    client: Client,
    reference: Reference,
    digest: Digest,
    blob_size: u64,
    stragglers_left: u32,
    /// Who sent the latest bytes, where there are several hosts.
    sender: Option<Arc<ServedBy>>,
    /// Asked behind others.
    avoided: Avoided,
}

/// An answer under way.
struct Body {
    exchange: Exchange,
    from: Arc<Endpoint>,
    /// When that was asked for it.
    asked: Instant,
    is_alone: bool,
    /// Bytes of the range.
    brought: u64,
    /// It was noted that its host serves.
    is_noted: bool,
    transfer: Transfer,
    /// Bytes before the range, from a registry that ignored it.
    skip: u64,
    /// Another connection would bring the rest without what came before it.
    may_be_left: bool,
}

impl Body {
    fn close_if_slow(&mut self) {
        if self.transfer.is_slow() {
            self.exchange.close_after();
        }
    }

    /// `bytes` of the range came, behind which there are `left`.
    fn note(&mut self, bytes: u64, left: u64) {
        self.brought += bytes;
        if !self.is_alone && !self.is_noted && (left == 0 || self.brought >= ALIVE_BYTES) {
            self.is_noted = true;
            self.from.note_alive();
        }
    }
}

impl std::fmt::Debug for BlobReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlobReader").field("digest", &self.0.course.digest).field("rest", self.0.rest()).finish_non_exhaustive()
    }
}

impl BlobReader {
    pub(super) async fn open(
        client: Client,
        reference: Reference,
        digest: Digest,
        blob_size: u64,
        range: Range<u64>,
    ) -> Result<Self, EngineError> {
        part::check_range(&range, digest, blob_size)?;
        let (tries, what) = (client.tries(), format!("GET {} at {}", blob_path(&reference, &digest), reference.registry));
        let (stragglers_left, sender, avoided) = (STRAGGLERS_MAX, None, Avoided::default());
        let hosts = FromHosts { client, reference, digest, blob_size, stragglers_left, sender, avoided };
        Resumed::open(hosts, what, range, tries).await.map(Self)
    }

    /// The next bytes, or `None` when the whole range has been given. Never more than the range.
    ///
    /// # Errors
    /// Every kind, after resuming failed.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, EngineError> {
        self.0.chunk().await
    }

    /// Who sent the latest bytes; `None` where the registry has one host only, so that nobody else can be asked.
    #[must_use]
    pub fn sender(&self) -> Option<&Arc<ServedBy>> {
        self.0.course.sender.as_ref()
    }
}

impl Course for FromHosts {
    type Body = Body;

    /// After an answer that contradicts the request the registry is asked where the blob is.
    async fn request(&mut self, rest: &Range<u64>) -> Result<Body, Failure> {
        let answered = self.answer(rest).await;
        if answered.as_ref().is_err_and(|failure| failure.again == Again::Once) {
            self.client.forget_target(&self.reference, &self.digest);
        }
        let body = answered?;
        self.sender = (!body.is_alone).then(|| Arc::new(ServedBy::new(&self.reference, self.digest, &body.from)));
        Ok(body)
    }

    async fn come(&mut self, body: &mut Body, len: u64) -> Result<Come, Failure> {
        let come = watched(body, len, self.stragglers_left > 0).await?;
        if matches!(come, Come::Another) {
            self.stragglers_left -= 1;
            self.client.transport.counters.note_straggler();
            tracing::debug!(url = %body.exchange.url, left = len, "the connection is far behind its peers; another brings the rest");
        }
        Ok(come)
    }

    fn parts(body: &mut Body) -> (&mut Exchange, &mut u64) {
        (&mut body.exchange, &mut body.skip)
    }

    fn into_exchange(body: Body) -> Exchange {
        body.exchange
    }

    fn note_brought(&mut self, body: &mut Body, bytes: u64, left: u64) {
        body.note(bytes, left);
    }

    /// A host whose body brought nothing or stood still is asked behind others from now on; one whose body stood still, by nobody for a while.
    fn note_failed(&mut self, body: &Body, error: &EngineError) {
        let has_stalled = body.exchange.has_stalled();
        if body.brought == 0 || has_stalled {
            self.avoided.add(&body.from);
        }
        if has_stalled && !body.is_alone {
            body.from.note_dead(body.asked, &self.reference.registry, error);
        }
    }

    fn note_done(&mut self, body: &mut Body) {
        body.close_if_slow();
    }
}

impl FromHosts {
    /// The rest, from the first host that begins to give it.
    async fn answer(&self, rest: &Range<u64>) -> Result<Body, Failure> {
        let mut get = Get::new(blob_path(&self.reference, &self.digest));
        get.blob = Some(self.digest);
        get.range = (*rest != (0..self.blob_size)).then(|| rest.clone());
        let mut round = self.client.round(&self.reference, Need::Pull, Some(self.digest), &self.avoided)?;
        while let Some(site) = round.next() {
            match self.answer_of(&site, &get, rest).await {
                Ok(body) => return Ok(Body { is_alone: round.is_alone(), ..body }),
                Err(failure) => round.failed(&site, failure),
            }
        }
        Err(round.into_failure())
    }

    async fn answer_of(&self, site: &Site, get: &Get, rest: &Range<u64>) -> Result<Body, Failure> {
        let asked = Instant::now();
        let exchange = self.client.try_get(site, get).await?;
        let pace = self.client.pace(&site.endpoint);
        pace.note_first_byte(asked.elapsed());
        let skip = part::bytes_before(&exchange, rest, self.blob_size).map_err(Failure::contradiction)?;
        if get.range.is_some() && exchange.status() == StatusCode::OK {
            self.warn_rangeless(&exchange);
        }
        let from = Arc::clone(&site.endpoint);
        let (transfer, may_be_left) = (pace.begin(), skip == 0);
        Ok(Body { exchange, from, asked, is_alone: true, brought: 0, is_noted: false, transfer, skip, may_be_left })
    }

    fn warn_rangeless(&self, exchange: &Exchange) {
        let mut known = self.client.shared.rangeless.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if known.insert(exchange.url.origin.to_string()) {
            tracing::warn!(
                server = %exchange.url.origin,
                "the registry ignores Range and sends whole layers; every read costs all bytes before it"
            );
        }
    }
}

/// The next bytes of `body`, of which `rest` are wanted; none of a straggler, if those `may_be` given up.
async fn watched(body: &mut Body, rest: u64, may_be: bool) -> Result<Come, Failure> {
    let may_be = may_be && body.may_be_left;
    let chunk = match watched_chunk(&mut body.exchange, &body.transfer, rest, may_be).await? {
        Come::Chunk(chunk) => chunk,
        Come::Another => return Ok(Come::Another),
    };
    if body.exchange.has_ended() {
        body.close_if_slow();
        body.exchange.release_if_ended();
    }
    Ok(Come::Chunk(chunk))
}

/// As [`watched`]; the connection is held at the body's end.
async fn watched_chunk(exchange: &mut Exchange, transfer: &Transfer, rest: u64, may_be: bool) -> Result<Come, Failure> {
    if may_be && transfer.is_straggler(rest) {
        return Ok(Come::Another);
    }
    let mut chunk = pin!(exchange.chunk_held());
    loop {
        let asked = Instant::now();
        let came = tokio::time::timeout(Transfer::LOOK, chunk.as_mut()).await;
        let bytes = match &came {
            Ok(Ok(Some(bytes))) => bytes.len() as u64,
            _ => 0,
        };
        transfer.note(bytes, asked.elapsed());
        match came {
            Ok(Ok(chunk)) => return Ok(Come::Chunk(chunk)),
            Ok(Err(failure)) => return Err(failure),
            Err(_) if may_be && transfer.is_straggler(rest) => return Ok(Come::Another),
            Err(_) => {}
        }
    }
}
