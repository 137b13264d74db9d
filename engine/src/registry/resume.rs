//! The bytes of a range of a blob from one body after the other: where one breaks off the next goes on. What a body is, and whom it comes from,
//! is a [`Course`].

use std::{ops::Range, time::Instant};

use bytes::Bytes;

use super::{
    exchange::Exchange,
    part,
    retry::{Failure, Tries},
};
use crate::error::EngineError;

/// Where bodies of one blob come from.
pub(super) trait Course: Send {
    /// An answer under way.
    type Body: Send;

    /// A body that brings `rest`, perhaps after other bytes.
    fn request(&mut self, rest: &Range<u64>) -> impl Future<Output = Result<Self::Body, Failure>> + Send;

    /// What `body` brings next, where `len` bytes of the range are wanted.
    fn come(&mut self, body: &mut Self::Body, len: u64) -> impl Future<Output = Result<Come, Failure>> + Send;

    /// The connection, and how many bytes of `body` come before the rest.
    fn parts(body: &mut Self::Body) -> (&mut Exchange, &mut u64);

    /// The connection, to be read to its end.
    fn into_exchange(body: Self::Body) -> Exchange;

    /// `body` has brought `bytes` of the range, behind which there are `left`.
    fn note_brought(&mut self, _body: &mut Self::Body, _bytes: u64, _left: u64) {}

    /// `body` failed.
    fn note_failed(&mut self, _body: &Self::Body, _error: &EngineError) {}

    /// `body` has brought all that is wanted of it, and will be read to its end.
    fn note_done(&mut self, _body: &mut Self::Body) {}
}

/// What came of a body.
pub(super) enum Come {
    /// As from [`Exchange::chunk`].
    Chunk(Option<Bytes>),
    /// Nothing, and another is to bring the rest.
    Another,
}

/// A range, as far as it has come. Dropping it midway closes its connection.
pub(super) struct Resumed<C: Course> {
    pub course: C,
    /// What is asked for, in words.
    what: String,
    /// What is still to be given.
    rest: Range<u64>,
    body: Option<C::Body>,
    tries: Tries,
    resumes_left: u64,
}

impl<C: Course> Resumed<C> {
    /// The first body has begun, of `what`, as errors call it.
    pub async fn open(course: C, what: String, range: Range<u64>, tries: Tries) -> Result<Self, EngineError> {
        let resumes_left = part::resumes_max(&range);
        let mut reader = Self { course, what, rest: range, body: None, tries, resumes_left };
        while reader.body.is_none() && !reader.rest.is_empty() {
            match reader.request().await {
                Ok(body) => reader.body = Some(body),
                Err(failure) => reader.tries.after(failure).await?,
            }
        }
        reader.tries.pause();
        Ok(reader)
    }

    pub fn rest(&self) -> &Range<u64> {
        &self.rest
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
                    let Some(left) = self.resumes_left.checked_sub(1) else { return Err(failure.error) };
                    self.resumes_left = left;
                    self.tries.after(failure).await?;
                }
            }
        }
        if let Some(mut body) = self.body.take() {
            // A chunked body ends with a frame of its own; after it the connection can serve again.
            self.course.note_done(&mut body);
            C::into_exchange(body).drain().await;
        }
        Ok(None)
    }

    async fn request(&mut self) -> Result<C::Body, Failure> {
        self.tries.in_time(|| self.what.clone(), self.course.request(&self.rest)).await
    }

    /// At least one byte of the rest, none past it. After a failure there is no body.
    async fn try_chunk(&mut self) -> Result<Bytes, Failure> {
        let mut body = match self.body.take() {
            Some(body) => body,
            None => self.request().await?,
        };
        loop {
            let (asked, len) = (Instant::now(), self.rest.end - self.rest.start);
            let come = self.tries.in_time(|| self.what.clone(), self.course.come(&mut body, len)).await;
            let chunk = match come.inspect_err(|failure| self.course.note_failed(&body, &failure.error))? {
                Come::Chunk(chunk) => chunk,
                Come::Another => {
                    body = self.request().await?;
                    continue;
                }
            };
            let (exchange, skip) = C::parts(&mut body);
            let Some(bytes) = chunk else {
                let failure = part::ended_early(exchange, &self.rest);
                self.course.note_failed(&body, &failure.error);
                return Err(failure);
            };
            let bytes = part::wanted(bytes, skip, &self.rest);
            if !bytes.is_empty() {
                self.course.note_brought(&mut body, bytes.len() as u64, len - bytes.len() as u64);
                self.body = Some(body);
                return Ok(bytes);
            }
            // A body that stands still is given up by its own deadline.
            self.tries.excuse(asked.elapsed());
        }
    }
}
