//! The faults, each with a form that passes while it is met and one that lasts.

use std::time::Duration;

use clip_tests::{
    faults::{Fault, Gate},
    holes::Step,
};

/// When the registry fails how.
#[derive(Clone, Copy, Debug)]
pub enum Plan {
    /// So many requests for the layer, then it is well.
    First(u64, Fault),
    /// Every request for the layer.
    Always(Fault),
    /// So many requests, whatever they are for.
    FirstOfAny(u64, Fault),
    /// Every request, whatever it is for.
    Any(Fault),
    /// Nobody listens, for so long.
    Closed(Duration),
    /// The name is not known, for so long; only `index` can be shown that.
    Nameless(Duration),
    /// A body of the layer breaks off, and nobody listens for so long after that; so often.
    Outages(u32, Duration),
}

/// Another name for the registry than its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// 127.0.0.1
    Address,
    /// One that nobody knows.
    Unknown,
    /// One that is not taken for a loopback's, so that TLS is spoken; to a server with a certificate of an unknown authority.
    Tls,
    /// As that, to a port where no handshake ends.
    Hole(Step),
}

/// One fault.
pub struct Row {
    pub name: &'static str,
    pub gate: Gate,
    pub at: Name,
    pub passing: Option<Plan>,
    pub lasting: Option<Plan>,
    /// What the error of the lasting form has to say.
    pub says: &'static str,
    /// `--read-timeout`
    pub patience: Option<&'static str>,
    pub passing_max: Duration,
    pub lasting_max: Duration,
    /// Requests of one phase.
    pub requests_max: usize,
    /// Lines of an index that fails. Of bytes that are wrong it says so when they come the first time, too: whoever runs a registry that spoils
    /// them has to know, even where the second try brings the right ones.
    pub lines: usize,
    /// Lines of an owner's log about the lasting form.
    pub log_lines_max: usize,
}

const PATIENCE: &str = "4s";
/// What may be later than it should be. Source: the latest of 162 cells was 0.4 s after its deadline, in a debug build, 24 side by side on
/// 2 cores; and the machine may be busier than that.
const MARGIN: Duration = Duration::from_secs(2);
/// The read timeout ends it.
const IN_TIME: Duration = Duration::from_secs(4).saturating_add(MARGIN);
/// Source: waits of 0.2, 0.3, 0.3 ... s, each shortened by a quarter on the average, are 16 in 4 s; an index asks for three things and a fill at
/// once for 9 spans of the bytes that are read first. Without growing waits it would be 40.
const REQUESTS_MAX: usize = 30;
/// What cannot pass ends at once; a busy machine needs this.
const AT_ONCE: Duration = Duration::from_secs(3);
const FOR_EVER: Duration = Duration::from_secs(3600);

impl Row {
    pub const fn named(name: &'static str) -> Self {
        Self {
            name,
            gate: Gate::Open,
            at: Name::Address,
            passing: None,
            lasting: None,
            says: "",
            patience: Some(PATIENCE),
            passing_max: IN_TIME,
            lasting_max: IN_TIME,
            requests_max: REQUESTS_MAX,
            lines: 1,
            log_lines_max: 1,
        }
    }

    const fn of(name: &'static str, passing: Plan, lasting: Plan, says: &'static str) -> Self {
        Self { passing: Some(passing), lasting: Some(lasting), says, ..Self::named(name) }
    }

    const fn final_at_once(self) -> Self {
        Self { lasting_max: AT_ONCE, ..self }
    }

    /// With a read timeout of 10 s, and noticed to be over within a twelfth of that.
    const fn outage(name: &'static str, time: Duration) -> Self {
        Self { patience: Some("10s"), ..Self::named(name) }.survived(time, Duration::from_millis(833))
    }

    const fn said_twice(self) -> Self {
        Self { lines: 2, ..self }
    }

    const fn behind(self, gate: Gate) -> Self {
        Self { gate, ..self }
    }

    /// Where it stands in the table.
    pub fn place(&self) -> usize {
        ROWS.iter().chain(BY_DEFAULT).position(|row| row.name == self.name).unwrap_or(usize::MAX)
    }
}

use Fault::{
    CutAfter, Expire, ExpireAfter, FlippedBit, Late, OtherLength, OtherRange, ResetAfter, SilentAfter, Status, StatusUntil, TrickleAfter,
    WholeBlob, WrongBytes,
};
use Plan::{Always, Any, Closed, First, FirstOfAny, Nameless, Outages};

/// All of them.
pub static ROWS: &[Row] = &[
    Row::of("429", FirstOfAny(3, Status(429)), Any(Status(429)), "status 429"),
    Row::of("429, Retry-After", FirstOfAny(2, StatusUntil(429, 1)), Any(StatusUntil(429, 3600)), "status 429").final_at_once(),
    Row::of("429, Retry-After: 0", FirstOfAny(3, StatusUntil(429, 0)), Any(StatusUntil(429, 0)), "status 429"),
    Row::of("500", FirstOfAny(3, Status(500)), Any(Status(500)), "status 500"),
    Row::of("502", FirstOfAny(3, Status(502)), Any(Status(502)), "status 502"),
    Row::of("503", FirstOfAny(3, Status(503)), Any(Status(503)), "status 503"),
    Row::of("408", First(2, Status(408)), Always(Status(408)), "status 408"),
    Row::of("401, the token has expired", First(1, Expire), Always(Expire), "status 401").behind(Gate::Tokens).final_at_once(),
    // Each try is three requests: one that is refused, one for a token, one for the body.
    Row {
        gate: Gate::Tokens,
        requests_max: 3 * REQUESTS_MAX,
        ..Row::of("401 in the middle of a body", First(1, ExpireAfter(20_000)), Always(ExpireAfter(0)), "ended early")
    },
    Row::of("403, the redirect has expired", First(1, Expire), Always(Expire), "status 403").behind(Gate::Redirects).final_at_once(),
    Row { lasting: Some(Always(Status(403))), says: "status 403", ..Row::named("403") }.final_at_once(),
    Row { lasting: Some(Always(Status(404))), says: "status 404", ..Row::named("404") }.final_at_once(),
    Row::of("connection refused", Closed(Duration::from_secs(1)), Closed(FOR_EVER), "refused"),
    Row::of("outage in a body", Outages(1, Duration::from_millis(1500)), Outages(1, FOR_EVER), "refused"),
    Row::outage("outage of 2 s in a body", Duration::from_secs(2)),
    Row::outage("outage of 6 s in a body", Duration::from_secs(6)),
    Row { passing: Some(Outages(3, Duration::from_millis(700))), ..Row::named("three outages in a body") },
    Row::of("reset in a body", First(2, ResetAfter(20_000)), Always(ResetAfter(0)), "ended early"),
    Row::of("stall in a body", First(1, SilentAfter(20_000)), Always(SilentAfter(0)), "no progress"),
    Row::of("truncated body", First(2, CutAfter(20_000)), Always(CutAfter(0)), "ended early"),
    Row { passing: Some(Always(CutAfter(100_000))), ..Row::named("every body truncated") },
    Row::of("slow-loris (1 byte/s)", First(1, TrickleAfter(0)), Always(TrickleAfter(0)), "--min-rate"),
    Row::of("a flipped bit", First(1, FlippedBit), Always(FlippedBit), "expected").final_at_once().said_twice(),
    Row::of("flipped bytes", First(1, WrongBytes), Always(WrongBytes), "expected").final_at_once().said_twice(),
    Row::of("Content-Length too small", First(1, OtherLength(-7)), Always(OtherLength(-7)), "Content-Length").final_at_once(),
    Row::of("Content-Length too large", First(1, OtherLength(7)), Always(OtherLength(7)), "Content-Length").final_at_once(),
    Row::of("wrong range", First(1, OtherRange), Always(OtherRange), "expected").final_at_once(),
    Row { passing: Some(Always(WholeBlob)), ..Row::named("no ranges") },
    Row { passing: Some(Always(Late(Duration::from_millis(100)))), ..Row::named("late") },
    Row { at: Name::Unknown, ..Row::of("DNS failure", Nameless(Duration::from_secs(1)), Any(Fault::None), "cannot look up") },
    Row { lasting: Some(Any(Fault::None)), at: Name::Tls, says: "TLS", ..Row::named("TLS failure") }.final_at_once(),
    Row {
        lasting: Some(Any(Fault::None)),
        at: Name::Hole(Step::Silence),
        says: "TLS handshake with",
        ..Row::named("TLS handshake: silence")
    },
    Row { lasting: Some(Any(Fault::None)), at: Name::Hole(Step::Cut), says: "TLS handshake", ..Row::named("TLS handshake: cut") },
];

/// No outage of the defaults' 30 s is noticed to be over later than this: a twelfth of them.
const NOTICED: Duration = Duration::from_millis(2500);
/// The read timeout where none is named.
const BY_ITSELF: Duration = Duration::from_secs(30);

impl Row {
    /// Without `--read-timeout`. A fill of so large an image has three requests under way, which give up a second or two after each other; the log
    /// says so once a second at most.
    const fn by_default(name: &'static str) -> Self {
        Self { patience: None, lasting_max: BY_ITSELF.saturating_add(MARGIN), log_lines_max: 3, ..Self::named(name) }
    }

    /// One outage in the middle of a body that ends in time.
    const fn survived(self, time: Duration, noticed: Duration) -> Self {
        Self { passing: Some(Outages(1, time)), passing_max: time.saturating_add(noticed).saturating_add(MARGIN), ..self }
    }
}

/// Those that are tried with the deadlines that clip has by itself.
pub static BY_DEFAULT: &[Row] = &[
    Row::by_default("outage of 2 s").survived(Duration::from_secs(2), NOTICED),
    Row::by_default("outage of 6 s").survived(Duration::from_secs(6), NOTICED),
    Row { patience: Some("2m"), ..Row::by_default("outage of 60 s, --read-timeout 2m") }
        .survived(Duration::from_secs(60), Duration::from_secs(5)),
    Row { lasting: Some(Outages(1, Duration::from_secs(60))), says: "refused", ..Row::by_default("outage of 60 s") },
    Row { lasting: Some(Always(TrickleAfter(0))), says: "--min-rate", ..Row::by_default("slow-loris") },
    // A third of the read timeout, and the rest comes over another connection.
    Row {
        passing: Some(First(1, SilentAfter(10_000))),
        passing_max: Duration::from_secs(10).saturating_add(MARGIN),
        ..Row::by_default("stall in a body, by default")
    },
];
