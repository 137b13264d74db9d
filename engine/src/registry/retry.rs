//! Which failures are tried again, how often and how long after.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    time::{Duration, SystemTime},
};

use hyper::{HeaderMap, StatusCode, header::RETRY_AFTER};

use crate::error::EngineError;

/// The wait before the second try, before jitter. Source: the round trip of a registry a continent away, so that a blip is over.
const DELAY_MIN: Duration = Duration::from_millis(200);
/// No wait of ours is longer. Source: a reader gives up after 30 s by default, so three tries must fit.
const DELAY_MAX: Duration = Duration::from_secs(5);
/// No wait that a server asks for is longer. Source: as above.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(20);

/// What may be done after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Again {
    /// The same request would fail the same way.
    Never,
    /// After our own wait.
    Backoff,
    /// The server said when.
    After(Duration),
}

/// An error, and whether another try may help.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub error: EngineError,
    pub again: Again,
}

impl Failure {
    pub fn passing(error: EngineError) -> Self {
        Self { error, again: Again::Backoff }
    }
}

/// An error without a verdict is final.
impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        Self { error, again: Again::Never }
    }
}

/// The verdict on an error status.
pub(super) fn after_status(status: StatusCode, headers: &HeaderMap) -> Again {
    let passing = matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
        || status.is_server_error() && !matches!(status, StatusCode::NOT_IMPLEMENTED | StatusCode::HTTP_VERSION_NOT_SUPPORTED);
    match (passing, headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()).and_then(retry_after)) {
        (false, _) => Again::Never,
        (true, Some(wait)) => Again::After(wait.min(RETRY_AFTER_MAX)),
        (true, None) => Again::Backoff,
    }
}

/// Seconds or a date. Source: RFC 9110 section 10.2.3.
fn retry_after(value: &str) -> Option<Duration> {
    match value.trim().parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => httpdate::parse_http_date(value.trim()).ok().map(|at| at.duration_since(SystemTime::now()).unwrap_or_default()),
    }
}

/// How often one piece of work was tried without progress.
#[derive(Debug)]
pub(super) struct Tries {
    failed: u32,
    tries_max: u32,
}

impl Tries {
    pub fn new(tries_max: u32) -> Self {
        Self { failed: 0, tries_max: tries_max.max(1) }
    }

    /// The work moved on, so the count starts again.
    pub fn progressed(&mut self) {
        self.failed = 0;
    }

    /// Waits before the next try.
    ///
    /// # Errors
    /// The failure itself when there is to be no next try.
    pub async fn after(&mut self, failure: Failure) -> Result<(), EngineError> {
        self.failed += 1;
        let wait = match failure.again {
            Again::Never => return Err(failure.error),
            _ if self.failed >= self.tries_max => return Err(failure.error),
            Again::Backoff => jittered(delay(self.failed)),
            Again::After(wait) => wait.max(jittered(DELAY_MIN)),
        };
        tracing::debug!(error = %failure.error, tried = self.failed, tries_max = self.tries_max, wait_ms = wait.as_millis(), "trying again");
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

/// 200 ms, 400 ms, 800 ms ... 5 s.
fn delay(failed: u32) -> Duration {
    DELAY_MIN.saturating_mul(1 << failed.saturating_sub(1).min(10)).min(DELAY_MAX)
}

/// Between half of `delay` and all of it, so that readers who failed together do not return together.
fn jittered(delay: Duration) -> Duration {
    // RandomState is the standard library's only source of randomness; its keys differ per instance.
    let random = RandomState::new().build_hasher().finish() % 1024;
    delay / 2 + delay.mul_f64(random as f64 / 2048.0)
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    #[test]
    fn only_what_may_pass_is_tried_again() {
        let none = HeaderMap::new();
        for status in [408, 429, 500, 502, 503, 504] {
            assert_eq!(after_status(StatusCode::from_u16(status).expect("a status"), &none), Again::Backoff, "{status}");
        }
        for status in [400, 401, 403, 404, 410, 416, 501] {
            assert_eq!(after_status(StatusCode::from_u16(status).expect("a status"), &none), Again::Never, "{status}");
        }
    }

    #[test]
    fn retry_after_is_honoured_up_to_a_cap() {
        let verdict = |value: &'static str| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static(value))]);
            after_status(StatusCode::TOO_MANY_REQUESTS, &headers)
        };
        assert_eq!(verdict("3"), Again::After(Duration::from_secs(3)));
        assert_eq!(verdict("86400"), Again::After(RETRY_AFTER_MAX));
        assert_eq!(verdict("Sun, 06 Nov 1994 08:49:37 GMT"), Again::After(Duration::ZERO));
        assert_eq!(verdict("soon"), Again::Backoff);
        assert_eq!(verdict("-1"), Again::Backoff);
    }

    #[test]
    fn waits_grow_to_their_cap_and_differ() {
        assert_eq!([delay(1), delay(2), delay(3)].map(|wait| wait.as_millis()), [200, 400, 800]);
        assert_eq!(delay(u32::MAX), DELAY_MAX);
        for _ in 0..100 {
            let wait = jittered(DELAY_MIN);
            assert!(wait >= DELAY_MIN / 2 && wait <= DELAY_MIN, "{wait:?}");
        }
    }
}
