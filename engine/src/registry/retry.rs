//! Which failures are tried again, how often and how long after.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    time::{Duration, Instant, SystemTime},
};

use hyper::{HeaderMap, StatusCode, header::RETRY_AFTER};

use crate::error::EngineError;

/// The wait before the second try, before jitter. Source: the round trip of a registry a continent away, so that a blip is over.
const DELAY_MIN: Duration = Duration::from_millis(200);
/// No wait of ours is longer. Source: judgement: a minute's outage costs a node a dozen tries of each request, and is noticed to be over soon.
const DELAY_MAX: Duration = Duration::from_secs(5);
/// ... nor than this part of the time that tries may take. Source: of the default 30 s 2.5 s: an outage of 6 s costs a reader 7.4 s (measured
/// by tests/tests/fault_table), and one that ends a moment before the time runs out is still noticed.
const DELAY_PART: u32 = 12;
/// What a server asks to wait is made longer by up to this part of it, or by [`DELAY_MIN`] if that is more: whoever was told the same does not
/// return together. Source: judgement: a thousand nodes told "1" come within 250 ms, four to a millisecond.
const TOLD_PART: u32 = 4;
/// Failures in a row after which bytes before those of the work cost time, too. Source: judgement: a registry without ranges may break off
/// thrice on the way to where a body has to go on.
const EXCUSED_MAX: u32 = 3;
/// What brought so much before it broke off is gone on with at once. Source: a proxy that cuts each body at 16 MiB would cost a layer of 10 GB
/// a minute and a half of waits; that many new connections a second as a link brings MiB harm nobody.
const AT_ONCE_BYTES: u64 = 1 << 20;

/// What may be done after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Again {
    /// The same request would fail the same way.
    Never,
    /// The answer contradicts the request: the fault of one connection or one of many servers perhaps, so that one more is worth asking.
    Once,
    /// The time for tries is over.
    OutOfTime,
    /// After our own wait.
    Backoff,
    /// Not before this, as the server said.
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

    pub fn contradiction(error: EngineError) -> Self {
        Self { error, again: Again::Once }
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
        (true, Some(wait)) => Again::After(wait),
        (true, None) => Again::Backoff,
    }
}

/// Seconds, more of them than fit being as many as do, or a date. Source: RFC 9110 section 10.2.3.
fn retry_after(value: &str) -> Option<Duration> {
    match value.trim().parse::<u64>() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(error) if *error.kind() == std::num::IntErrorKind::PosOverflow => Some(Duration::MAX),
        Err(_) => httpdate::parse_http_date(value.trim()).ok().map(|at| at.duration_since(SystemTime::now()).unwrap_or_default()),
    }
}

/// How long one piece of work may go without progress, and how often it may be tried.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    pub tries_max: u32,
    /// Without progress, waits and tries together.
    pub time: Duration,
    /// Bytes a second below which what arrives is no progress.
    pub rate_min: u64,
}

/// How one piece of work goes: its time runs while somebody waits for it, and begins anew whenever it has brought enough for that time.
#[derive(Debug)]
pub(super) struct Tries {
    patience: Patience,
    failed: u32,
    /// Time that was waited without progress before `since`.
    spent: Duration,
    /// Since when somebody waits; `None`: nobody does.
    since: Option<Instant>,
    /// Bytes since the last progress, and since the last failure.
    bytes: u64,
    bytes_since_failure: u64,
    contradicted: bool,
    /// Why the latest try failed.
    last: Option<EngineError>,
}

impl Tries {
    /// Somebody waits from now on.
    pub fn new(patience: Patience) -> Self {
        let since = Some(Instant::now());
        Self { patience, failed: 0, spent: Duration::ZERO, since, bytes: 0, bytes_since_failure: 0, contradicted: false, last: None }
    }

    /// The time runs.
    pub fn resume(&mut self) {
        self.since.get_or_insert_with(Instant::now);
    }

    /// Nobody waits, so that no time passes.
    pub fn pause(&mut self) {
        self.spent = self.elapsed();
        self.since = None;
    }

    /// `bytes` of the work came. With enough of them for the time that passed, count and time start again.
    pub fn brought(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.bytes_since_failure = self.bytes_since_failure.saturating_add(bytes);
        if is_progress(self.bytes, self.elapsed(), self.patience.rate_min) {
            (self.failed, self.spent, self.bytes, self.contradicted, self.last) = (0, Duration::ZERO, 0, false, None);
            self.since = self.since.map(|_| Instant::now());
        }
    }

    /// `time` of it went into bytes that had to come before those of the work.
    pub fn excuse(&mut self, time: Duration) {
        let now = Instant::now();
        if self.failed <= EXCUSED_MAX {
            self.since = self.since.map(|since| (since + time).min(now));
        }
    }

    /// What `step` gives, unless the time is over first.
    pub async fn in_time<T>(&self, what: impl FnOnce() -> String, step: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        let waited = self.patience.time;
        tokio::time::timeout(self.left(), step)
            .await
            .unwrap_or_else(|_| Err(Failure { error: EngineError::Deadline { what: what(), waited }, again: Again::OutOfTime }))
    }

    /// Waits before the next try.
    ///
    /// # Errors
    /// The failure itself when there is to be no next try, with how often and how long it was tried.
    pub async fn after(&mut self, failure: Failure) -> Result<(), EngineError> {
        let wait = self.wait_after(failure)?;
        tokio::time::sleep(wait).await;
        Ok(())
    }

    fn wait_after(&mut self, failure: Failure) -> Result<Duration, EngineError> {
        self.failed = self.failed.saturating_add(1);
        let Failure { error, again } = failure;
        let went_well = std::mem::take(&mut self.bytes_since_failure) >= AT_ONCE_BYTES;
        let wait = match again {
            Again::Never => return Err(error),
            Again::Once if std::mem::replace(&mut self.contradicted, true) => return Err(error),
            // The last try was cut short; the one before it says what is wrong.
            Again::OutOfTime => return Err(self.given_up(error)),
            Again::Backoff if went_well => Duration::ZERO,
            Again::Once | Again::Backoff => jittered(delay(self.failed, self.patience.time)),
            Again::After(told) => spread(told, self.left()).max(jittered(delay(self.failed, self.patience.time))),
        };
        self.last = Some(error.clone());
        if self.failed >= self.patience.tries_max || wait >= self.left() {
            return Err(self.given_up(error));
        }
        if !went_well {
            tracing::info!(%error, tried = self.failed, wait_ms = wait.as_millis(), "trying again");
        }
        Ok(wait)
    }

    fn given_up(&mut self, error: EngineError) -> EngineError {
        let last = self.last.take().unwrap_or(error);
        if self.failed < 2 {
            return last;
        }
        EngineError::GivenUp { last: Box::new(last), tries: self.failed, time: self.elapsed() }
    }

    fn elapsed(&self) -> Duration {
        self.spent + self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// What is left of the time.
    pub fn left(&self) -> Duration {
        self.patience.time.saturating_sub(self.elapsed())
    }
}

/// Whether `bytes` in `time` are worth waiting for. Pure.
pub(super) fn is_progress(bytes: u64, time: Duration, rate_min: u64) -> bool {
    bytes > 0 && bytes as f64 >= rate_min as f64 * time.as_secs_f64()
}

/// 200 ms, 400 ms, 800 ms ... up to a part of `time`, the time that tries may take.
fn delay(failed: u32, time: Duration) -> Duration {
    let longest = DELAY_MAX.min(time / DELAY_PART);
    DELAY_MIN.saturating_mul(1 << failed.saturating_sub(1).min(10)).min(longest)
}

/// Between half of `delay` and all of it, so that readers who failed together do not return together.
fn jittered(delay: Duration) -> Duration {
    delay / 2 + (delay / 2).mul_f64(random())
}

/// `told`, and some more where the time that is left has room for it: half of that at most.
fn spread(told: Duration, left: Duration) -> Duration {
    let more = (told / TOLD_PART).max(DELAY_MIN).min(left.saturating_sub(told) / 2);
    told.saturating_add(more.mul_f64(random()))
}

/// At least 0 and below 1.
fn random() -> f64 {
    // RandomState is the standard library's only source of randomness; its keys differ per instance.
    (RandomState::new().build_hasher().finish() % 1024) as f64 / 1024.0
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
    fn retry_after_is_seconds_or_a_date() {
        let verdict = |value: &'static str| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static(value))]);
            after_status(StatusCode::TOO_MANY_REQUESTS, &headers)
        };
        assert_eq!(verdict("3"), Again::After(Duration::from_secs(3)));
        assert_eq!(verdict("86400"), Again::After(Duration::from_secs(86400)));
        assert_eq!(verdict("18446744073709551615"), Again::After(Duration::from_secs(u64::MAX)));
        assert_eq!(verdict("18446744073709551616"), Again::After(Duration::MAX));
        assert_eq!(verdict("Sun, 06 Nov 1994 08:49:37 GMT"), Again::After(Duration::ZERO));
        assert_eq!(verdict("soon"), Again::Backoff);
        assert_eq!(verdict("-1"), Again::Backoff);
    }

    #[test]
    fn waits_grow_to_their_cap_and_differ() {
        let time = Duration::from_secs(30);
        assert_eq!([1, 2, 3, 4, 5, 6].map(|failed| delay(failed, time).as_millis()), [200, 400, 800, 1600, 2500, 2500]);
        assert_eq!(delay(u32::MAX, Duration::from_secs(3600)), DELAY_MAX);
        for _ in 0..100 {
            let wait = jittered(DELAY_MIN);
            assert!(wait >= DELAY_MIN / 2 && wait <= DELAY_MIN, "{wait:?}");
        }
    }

    fn tries(time: Duration, tries_max: u32) -> Tries {
        Tries::new(Patience { tries_max, time, rate_min: 1024 })
    }

    fn refused() -> EngineError {
        EngineError::Transport { method: "GET", url: "u".into(), reason: "refused".into() }
    }

    /// `time` has passed for `tries` without anything happening.
    fn pass(tries: &mut Tries, time: Duration) {
        tries.spent += time;
    }

    /// Claim: an outage is tried through as long as the time lasts, however often that is; then the error says the cause, the number and
    /// the time. A limit on the number ends it sooner.
    #[test]
    fn tries_are_bounded_by_time_and_by_number_where_one_is_set() {
        let (mut patient, mut count) = (tries(Duration::from_secs(30), u32::MAX), 0);
        let error = loop {
            match patient.wait_after(Failure::passing(refused())) {
                Ok(wait) => pass(&mut patient, wait),
                Err(error) => break error,
            }
            count += 1;
        };
        assert!((12..40).contains(&count), "{count} waits");
        assert!(patient.elapsed() >= Duration::from_secs(27) && patient.elapsed() <= Duration::from_secs(31), "{:?}", patient.elapsed());
        let text = error.to_string();
        assert!(text.contains("refused") && text.contains(&format!("tried {} times in ", count + 1)), "{text}");
        let mut few = tries(Duration::from_secs(30), 2);
        assert!(few.wait_after(Failure::passing(refused())).is_ok());
        assert!(matches!(few.wait_after(Failure::passing(refused())), Err(EngineError::GivenUp { tries: 2, .. })));
        assert!(matches!(tries(Duration::from_secs(30), 1).wait_after(Failure::passing(refused())), Err(EngineError::Transport { .. })));
    }

    /// Claim: bytes are progress when they are enough for the time that they took; a byte a second, over however many tries, is not.
    #[test]
    fn a_trickle_is_no_progress() {
        let mut slow = tries(Duration::from_secs(30), u32::MAX);
        let mut failed = None;
        for second in 0..60 {
            slow.brought(1);
            pass(&mut slow, Duration::from_secs(1));
            if second % 10 == 9 {
                failed = slow.wait_after(Failure::passing(refused())).err();
            }
            if failed.is_some() {
                break;
            }
        }
        assert!(matches!(failed, Some(EngineError::GivenUp { tries: 3, .. })), "{failed:?}");
        let mut honest = tries(Duration::from_secs(30), u32::MAX);
        for _ in 0..100 {
            pass(&mut honest, Duration::from_secs(9));
            honest.brought(20 << 10);
            pass(&mut honest, Duration::from_secs(5));
            assert!(honest.wait_after(Failure::passing(refused())).is_ok());
        }
    }

    /// Claim: a contradiction is tried once more; what broke off after much progress goes on at once, what was told to wait waits, and
    /// longer than there is time nobody waits.
    #[test]
    fn each_failure_has_its_wait() {
        let time = Duration::from_secs(30);
        let mut twice = tries(time, u32::MAX);
        assert!(twice.wait_after(Failure::contradiction(refused())).is_ok());
        assert!(twice.wait_after(Failure::contradiction(refused())).is_err());
        let mut cut = tries(time, u32::MAX);
        cut.brought(AT_ONCE_BYTES);
        assert_eq!(cut.wait_after(Failure::passing(refused())).ok(), Some(Duration::ZERO));
        assert!(cut.wait_after(Failure::passing(refused())).is_ok_and(|wait| wait >= DELAY_MIN / 2));
        let told = |wait| Failure { error: refused(), again: Again::After(wait) };
        let wait = tries(time, u32::MAX).wait_after(told(Duration::from_secs(7))).expect("there is time");
        assert!(wait >= Duration::from_secs(7) && wait <= Duration::from_millis(8750), "{wait:?}");
        assert!(tries(Duration::from_secs(5), u32::MAX).wait_after(told(Duration::from_secs(7))).is_err());
        assert!(tries(time, u32::MAX).wait_after(told(Duration::MAX)).is_err());
    }

    /// Claim: a server that says `Retry-After: 0`, or a date that is past, is asked no more often than one that says nothing.
    #[test]
    fn no_wait_told_is_no_leave_to_hurry() {
        let (mut hurried, mut waits) = (tries(Duration::from_secs(30), u32::MAX), Vec::new());
        while let Ok(wait) = hurried.wait_after(Failure { error: refused(), again: Again::After(Duration::ZERO) }) {
            pass(&mut hurried, wait);
            waits.push(wait);
        }
        assert!((12..40).contains(&waits.len()), "{waits:?}");
        assert!(waits[4..].iter().all(|wait| *wait >= Duration::from_millis(1250)), "{waits:?}");
    }

    /// Claim: who was told the same returns at different times, later than told by at most a quarter and never by more than the time left
    /// allows; a wait of minutes is obeyed where there are minutes.
    #[test]
    fn those_told_the_same_do_not_return_together() {
        let second = Duration::from_secs(1);
        let waits: Vec<Duration> = (0..100).map(|_| spread(second, Duration::from_secs(30))).collect();
        assert!(waits.iter().all(|wait| *wait >= second && *wait <= second * 5 / 4), "{waits:?}");
        let (first, last) = (waits.iter().min(), waits.iter().max());
        assert!(last.zip(first).is_some_and(|(last, first)| *last - *first > Duration::from_millis(100)), "{waits:?}");
        assert!((0..100).all(|_| spread(second, second * 11 / 10) < second * 11 / 10));
        assert_eq!(spread(second * 7, second * 5), second * 7);
        let mut patient = tries(second * 300, u32::MAX);
        let wait = patient.wait_after(Failure { error: refused(), again: Again::After(second * 120) });
        assert!(wait.is_ok_and(|wait| wait >= second * 120 && wait <= second * 150));
    }

    /// Claim: time in which nobody waits is not counted.
    #[test]
    fn only_waiting_counts() {
        let mut paused = tries(Duration::from_millis(50), u32::MAX);
        paused.pause();
        std::thread::sleep(Duration::from_millis(60));
        paused.resume();
        assert!(paused.left() > Duration::from_millis(20));
    }
}
