//! The bytes of a range of a blob at a URL, resumed where they stop.

use std::{
    ops::Range,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{
    super::{
        client::Client,
        exchange::Exchange,
        location::Location,
        part,
        retry::{Failure, Tries},
    },
    ForeignBlob,
};
use crate::error::EngineError;

/// The body of a URL, chunk by chunk; a body that breaks off is asked for again from there. Dropping it midway closes its connection.
pub(super) struct UrlReader {
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
    pub async fn open(client: Client, blob: &ForeignBlob, url: Location, range: Range<u64>, time: Duration) -> Result<Self, EngineError> {
        part::check_range(&range, blob.digest, blob.size)?;
        let (tries, resumes_left) = (client.tries_within(time), part::resumes_max(&range));
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
