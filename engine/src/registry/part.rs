//! A range of a blob: how it is asked for, which answers hold it, and which bytes of a body are of it. Pure.

use std::ops::Range;

use bytes::Bytes;
use clip_format::digest::Digest;
use hyper::{
    StatusCode,
    header::{CONTENT_RANGE, HeaderValue},
};

use super::{client::not_encoded, exchange::Exchange, retry::Failure};
use crate::error::EngineError;

/// Bodies of one reader that may break off. Source: judgement: more than any network breaks in the time that a MiB takes.
const RESUMES_MAX: u64 = 1024;
/// ... and one more for so many bytes of the range. Source: a proxy that cuts each body at 16 MiB, of a layer of any length.
const RESUME_BYTES: u64 = 1 << 20;

/// `range` is one of the blob's `size` bytes.
///
/// # Errors
/// `Layer`, which names `blob`.
pub(super) fn check_range(range: &Range<u64>, blob: Digest, size: u64) -> Result<(), EngineError> {
    if range.start <= range.end && range.end <= size {
        return Ok(());
    }
    Err(EngineError::Layer {
        layer: blob,
        place: format!("bytes {}..{}", range.start, range.end),
        expected: format!("a range within the blob's {size} bytes"),
        found: "one that is not".to_owned(),
    })
}

/// How many bodies of one reader of `range` may break off.
pub(super) fn resumes_max(range: &Range<u64>) -> u64 {
    RESUMES_MAX + range.end.saturating_sub(range.start) / RESUME_BYTES
}

/// The value of the header `Range`; `range` is not empty.
pub(super) fn range_header(range: &Range<u64>) -> HeaderValue {
    let value = HeaderValue::from_str(&format!("bytes={}-{}", range.start, range.end.saturating_sub(1)));
    value.expect("digits are ASCII")
}

/// How many bytes of the body come before `rest` of a blob of `size` bytes, in a good answer of a server that was asked for `rest`: none,
/// unless it ignored the range. The end may be missing: then the body is a short one, after which the rest is asked for. Source: RFC 9110
/// sections 14.4 and 15.3.7, where a server may send less than was asked for.
///
/// # Errors
/// `Protocol`: the head says that other bytes follow.
pub(super) fn bytes_before(exchange: &Exchange, rest: &Range<u64>, size: u64) -> Result<u64, EngineError> {
    not_encoded(exchange)?;
    let is_whole = *rest == (0..size);
    match exchange.status() {
        StatusCode::PARTIAL_CONTENT if !is_whole => {
            let found = exchange.header(CONTENT_RANGE).unwrap_or("none");
            let Some(end) = end_of(found, rest, size) else {
                let expected = format!("Content-Range bytes {}-{}/{size}", rest.start, rest.end - 1);
                return Err(exchange.contradiction(expected, found.chars().take(80).collect::<String>()));
            };
            check_length(exchange, end - rest.start).map(|()| 0)
        }
        StatusCode::OK => check_length(exchange, size).map(|()| rest.start),
        status => {
            let expected = if is_whole { "the whole blob (status 200)" } else { "status 200 or 206" };
            Err(exchange.contradiction(expected, status.as_u16().to_string()))
        }
    }
}

/// Where `found`, a Content-Range that begins with `rest` and ends with it or earlier, ends; of `size` bytes or of an unknown number.
fn end_of(found: &str, rest: &Range<u64>, size: u64) -> Option<u64> {
    let (range, of) = found.trim().strip_prefix("bytes ")?.trim_start().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let is_of_blob = of == "*" || of.parse() == Ok(size);
    let last: u64 = last.parse().ok().filter(|last| rest.contains(last))?;
    (is_of_blob && first.parse() == Ok(rest.start)).then_some(last + 1)
}

fn check_length(exchange: &Exchange, expected: u64) -> Result<(), EngineError> {
    match exchange.content_length() {
        Some(found) if found != expected => Err(exchange.contradiction(format!("Content-Length {expected}"), found.to_string())),
        _ => Ok(()),
    }
}

/// What of `bytes` is of `rest`, after the `skip` bytes that come before it; these are counted down.
pub(super) fn wanted(mut bytes: Bytes, skip: &mut u64, rest: &Range<u64>) -> Bytes {
    let skipped = (*skip).min(bytes.len() as u64);
    *skip -= skipped;
    // Both are at most the length of `bytes`, so they fit.
    drop(bytes.split_to(skipped as usize));
    bytes.truncate((rest.end - rest.start).min(bytes.len() as u64) as usize);
    bytes
}

/// The body ended, and `rest` has not come.
pub(super) fn ended_early(exchange: &Exchange, rest: &Range<u64>) -> Failure {
    let (method, url) = (exchange.method, exchange.url.to_string());
    let reason = format!("the body ended before byte {} of the blob, at {}", rest.end, rest.start);
    Failure::passing(EngineError::Transport { method, url, reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Claim: a Content-Range is right when its numbers are, however it is spaced, with a length that is unknown, and with an early end.
    #[test]
    fn a_range_begins_where_it_was_asked_for() {
        for (right, end) in [("bytes 10-19/100", 20), (" bytes  10-19/100 ", 20), ("bytes 10-19/*", 20), ("bytes 10-10/100", 11)] {
            assert_eq!(end_of(right, &(10..20), 100), Some(end), "{right}");
        }
        let wrong = ["none", "bytes 10-20/100", "bytes 9-19/100", "bytes 10-19/101", "bytes */100", "10-19/100", "bytes 10-19"];
        for wrong in wrong.into_iter().chain(["bytes 10-9/100", "bytes 11-19/100", "bytes 10-18446744073709551615/*"]) {
            assert_eq!(end_of(wrong, &(10..20), 100), None, "{wrong}");
        }
    }

    /// Claim: neither what comes before the range is given, nor what comes after it.
    #[test]
    fn only_the_range_is_wanted() {
        let mut skip = 4;
        assert_eq!(wanted(Bytes::from_static(b"abc"), &mut skip, &(4..6)), "");
        assert_eq!(skip, 1);
        assert_eq!(wanted(Bytes::from_static(b"defgh"), &mut skip, &(4..6)), "ef");
        assert_eq!(skip, 0);
    }
}
