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
    retry::{Again, Failure, Tries},
};
use crate::error::EngineError;

/// Connections of one reader that are given up for being far behind their peers. Source: the third is as likely to be slow as the network.
const STRAGGLERS_MAX: u32 = 2;

/// A host that was dead is asked by all again when a body has brought the range, or so much. Source: judgement: a server whose disk hangs still
/// sends what is in memory; sockets hold up to some 100 KiB of a body at its head, and a MiB is less than a second of any link.
const ALIVE_BYTES: u64 = 1 << 20;

/// The body of a blob request, chunk by chunk. Dropping it midway closes its connection.
pub struct BlobReader {
    client: Client,
    reference: Reference,
    digest: Digest,
    blob_size: u64,
    /// What is still to be given.
    rest: Range<u64>,
    body: Option<Body>,
    tries: Tries,
    resumes_left: u64,
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
        f.debug_struct("BlobReader").field("digest", &self.digest).field("rest", &self.rest).finish_non_exhaustive()
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
        let (tries, resumes_left) = (client.tries(), part::resumes_max(&range));
        let mut reader = Self {
            client,
            reference,
            digest,
            blob_size,
            rest: range,
            body: None,
            tries,
            resumes_left,
            stragglers_left: STRAGGLERS_MAX,
            sender: None,
            avoided: Avoided::default(),
        };
        while reader.body.is_none() && !reader.rest.is_empty() {
            match reader.tries.in_time(|| reader.what(), reader.request()).await {
                Ok(body) => reader.body = Some(reader.of_sender(body)),
                Err(failure) => reader.tries.after(failure).await?,
            }
        }
        reader.tries.pause();
        Ok(reader)
    }

    /// The next bytes, or `None` when the whole range has been given. Never more than the range.
    ///
    /// # Errors
    /// Every kind, after resuming failed.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, EngineError> {
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
                    self.body = None;
                    self.resumes_left = match self.resumes_left.checked_sub(1) {
                        Some(left) => left,
                        None => return Err(failure.error),
                    };
                    self.tries.after(failure).await?;
                }
            }
        }
        if let Some(mut body) = self.body.take() {
            // A chunked body ends with a frame of its own; after it the connection can serve again.
            body.close_if_slow();
            body.exchange.drain().await;
        }
        Ok(None)
    }

    /// Who sent the latest bytes; `None` where the registry has one host only, so that nobody else can be asked.
    #[must_use]
    pub fn sender(&self) -> Option<&Arc<ServedBy>> {
        self.sender.as_ref()
    }

    fn of_sender(&mut self, body: Body) -> Body {
        self.sender = (!body.is_alone).then(|| Arc::new(ServedBy::new(&self.reference, self.digest, &body.from)));
        body
    }

    /// At least one byte of the rest, none past it.
    async fn try_chunk(&mut self) -> Result<Bytes, Failure> {
        let mut body = match self.body.take() {
            Some(body) => body,
            None => {
                let body = self.tries.in_time(|| self.what(), self.request()).await?;
                self.of_sender(body)
            }
        };
        loop {
            let asked = Instant::now();
            let watched = watched(&mut body, self.rest.end - self.rest.start, self.stragglers_left > 0);
            let watched = self.tries.in_time(|| self.what(), watched).await;
            let Watched::Chunk(chunk) = watched.inspect_err(|failure| self.note_failed(&body, &failure.error))? else {
                self.stragglers_left -= 1;
                self.client.transport.counters.note_straggler();
                tracing::debug!(url = %body.exchange.url, at = self.rest.start, "the connection is far behind its peers; another brings the rest");
                let other = self.tries.in_time(|| self.what(), self.request()).await?;
                body = self.of_sender(other);
                continue;
            };
            let Some(bytes) = chunk else {
                let failure = part::ended_early(&body.exchange, &self.rest);
                self.note_failed(&body, &failure.error);
                return Err(failure);
            };
            let bytes = part::wanted(bytes, &mut body.skip, &self.rest);
            if !bytes.is_empty() {
                let len = bytes.len() as u64;
                body.note(len, self.rest.end - self.rest.start - len);
                self.body = Some(body);
                return Ok(bytes);
            }
            // A body that stands still is given up by its own deadline.
            self.tries.excuse(asked.elapsed());
        }
    }

    fn what(&self) -> String {
        format!("GET {} at {}", blob_path(&self.reference, &self.digest), self.reference.registry)
    }

    /// As [`Self::answer`]; after an answer that contradicts the request the registry is asked where the blob is.
    async fn request(&self) -> Result<Body, Failure> {
        let answered = self.answer().await;
        if answered.as_ref().is_err_and(|failure| failure.again == Again::Once) {
            self.client.forget_target(&self.reference, &self.digest);
        }
        answered
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

    /// The rest, from the first host that begins to give it.
    async fn answer(&self) -> Result<Body, Failure> {
        let mut get = Get::new(blob_path(&self.reference, &self.digest));
        get.blob = Some(self.digest);
        get.range = (self.rest != (0..self.blob_size)).then(|| self.rest.clone());
        let mut round = self.client.round(&self.reference, Need::Pull, Some(self.digest), &self.avoided)?;
        while let Some(site) = round.next() {
            match self.answer_of(&site, &get).await {
                Ok(body) => return Ok(Body { is_alone: round.is_alone(), ..body }),
                Err(failure) => round.failed(&site, failure),
            }
        }
        Err(round.into_failure())
    }

    async fn answer_of(&self, site: &Site, get: &Get) -> Result<Body, Failure> {
        let asked = Instant::now();
        let exchange = self.client.try_get(site, get).await?;
        let pace = self.client.pace(&site.endpoint);
        pace.note_first_byte(asked.elapsed());
        let skip = part::bytes_before(&exchange, &self.rest, self.blob_size).map_err(Failure::contradiction)?;
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

enum Watched {
    /// As from [`Exchange::chunk`].
    Chunk(Option<Bytes>),
    /// The connection is far behind its peers, and may be given up.
    Straggler,
}

/// The next bytes of `body`, of which `rest` are wanted; none of a straggler, if those `may_be` given up.
async fn watched(body: &mut Body, rest: u64, may_be: bool) -> Result<Watched, Failure> {
    let may_be = may_be && body.may_be_left;
    let chunk = match watched_chunk(&mut body.exchange, &body.transfer, rest, may_be).await? {
        Watched::Chunk(chunk) => chunk,
        Watched::Straggler => return Ok(Watched::Straggler),
    };
    if body.exchange.has_ended() {
        body.close_if_slow();
        body.exchange.release_if_ended();
    }
    Ok(Watched::Chunk(chunk))
}

/// As [`watched`]; the connection is held at the body's end.
async fn watched_chunk(exchange: &mut Exchange, transfer: &Transfer, rest: u64, may_be: bool) -> Result<Watched, Failure> {
    if may_be && transfer.is_straggler(rest) {
        return Ok(Watched::Straggler);
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
            Ok(Ok(chunk)) => return Ok(Watched::Chunk(chunk)),
            Ok(Err(failure)) => return Err(failure),
            Err(_) if may_be && transfer.is_straggler(rest) => return Ok(Watched::Straggler),
            Err(_) => {}
        }
    }
}
