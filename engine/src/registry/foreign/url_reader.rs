//! The bytes of a range of a blob at a URL.

use std::{ops::Range, time::Duration};

use bytes::Bytes;

use super::{
    super::{
        client::Client,
        exchange::Exchange,
        location::Location,
        part,
        resume::{Come, Course, Resumed},
        retry::Failure,
    },
    ForeignBlob,
};
use crate::error::EngineError;

/// The body of a URL, chunk by chunk; a body that breaks off is asked for again from there. Dropping it midway closes its connection.
pub(super) struct UrlReader(Resumed<FromUrl>);

/// One URL.
struct FromUrl {
    client: Client,
    url: Location,
    size: u64,
}

/// An answer under way.
struct Body {
    exchange: Exchange,
    /// Bytes before the range, from a server that ignored it.
    skip: u64,
}

impl UrlReader {
    /// `time`: how long it may be without progress.
    pub async fn open(client: Client, blob: &ForeignBlob, url: Location, range: Range<u64>, time: Duration) -> Result<Self, EngineError> {
        part::check_range(&range, blob.digest, blob.size)?;
        let (tries, what) = (client.tries_within(time), format!("GET {url}"));
        Resumed::open(FromUrl { client, url, size: blob.size }, what, range, tries).await.map(Self)
    }

    pub async fn chunk(&mut self) -> Result<Option<Bytes>, EngineError> {
        self.0.chunk().await
    }
}

impl Course for FromUrl {
    type Body = Body;

    async fn request(&mut self, rest: &Range<u64>) -> Result<Body, Failure> {
        let range = Some(rest).filter(|rest| **rest != (0..self.size));
        let exchange = self.client.get_url(&self.url, range).await?;
        let status = exchange.status();
        if status.is_client_error() || status.is_server_error() {
            return Err(exchange.into_failure().await);
        }
        let skip = part::bytes_before(&exchange, rest, self.size)?;
        Ok(Body { exchange, skip })
    }

    async fn come(&mut self, body: &mut Body, _len: u64) -> Result<Come, Failure> {
        body.exchange.chunk().await.map(Come::Chunk)
    }

    fn parts(body: &mut Body) -> (&mut Exchange, &mut u64) {
        (&mut body.exchange, &mut body.skip)
    }

    fn into_exchange(body: Body) -> Exchange {
        body.exchange
    }
}
