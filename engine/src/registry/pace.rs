//! How fast a registry answers and sends, and which connection falls behind its peers.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::plan;

/// What a connection is measured over. Source: a starved connection of the production failure that this is for kept to 1-3 MiB/s for
/// minutes, so a second is long enough to tell and short enough to lose; stalls of single packets (200-400 ms of TCP) do not fill it.
const WINDOW: Duration = Duration::from_secs(1);
/// A transfer arrives as long as its bytes are no further apart. Source: half a window is longer than a stall of a single packet (200-400 ms
/// of TCP), and over before one that stalls with its peers seems to be behind them (seven eighths of a window).
const ARRIVING: Duration = Duration::from_millis(500);
/// Parts of the window, so that it slides. Source: judgement, not measured: a rate is a quarter of a second old at most, and four numbers hold it.
const PARTS: u32 = 4;
/// A connection is a straggler below this part of its peers' median. Source: ordinary spread between connections that share a line is
/// 2-3; the starved ones were 20-60 times slower.
const BEHIND: u64 = 8;
/// A body that is too short to be given up in its midst is judged by so much waiting for whether its connection is used again. Source: a
/// span of 350 KB takes 230 ms on a starved connection, and each later one would again.
const SHORT_WINDOW: Duration = Duration::from_millis(100);
/// Transfers that make a registry's history. Source: enough for a median that one starved connection does not move.
const HISTORY_MAX: usize = 16;
/// ... of which there must be so many before a connection without peers is judged by them. Source: judgement, not measured: the fewest
/// whose median one starved transfer does not move.
const HISTORY_MIN: usize = 4;
/// Shorter bodies say little about a rate: they may come out of a server's socket buffer at once. Source: judgement,
/// not measured: they come within a path's first three round trips (RFC 6928: ten segments, then doubled), and so measure those.
const MEASURED_BYTES_MIN: u64 = 64 << 10;
/// The weight of one answer in the average of first-byte times is one in so many. Source: TCP's smoothed round trip, RFC 6298.
const SMOOTHING: u32 = 8;

/// The paces of all registries that a client has spoken to.
#[derive(Default)]
pub(super) struct Paces(Mutex<HashMap<String, Arc<Pace>>>);

impl Paces {
    /// Of the registry at `endpoint`.
    pub fn of(&self, endpoint: &str) -> Arc<Pace> {
        let mut paces = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pace) = paces.get(endpoint) {
            return pace.clone();
        }
        paces.entry(endpoint.to_owned()).or_default().clone()
    }
}

/// How fast one registry is.
#[derive(Default)]
pub(super) struct Pace(Mutex<State>);

#[derive(Default)]
struct State {
    /// Smoothed time from a request to the head of its answer; zero before the first.
    first_byte: Duration,
    /// Bytes per second of the latest transfers that ended.
    history: VecDeque<u64>,
    /// Those under way, by number.
    under_way: Vec<(u64, Meter)>,
    next: u64,
}

impl Pace {
    /// A request was answered `after` so long.
    pub fn note_first_byte(&self, after: Duration) {
        let mut state = self.lock();
        state.first_byte =
            if state.first_byte.is_zero() { after } else { state.first_byte * (SMOOTHING - 1) / SMOOTHING + after / SMOOTHING };
    }

    /// See [`plan::bridge_bytes`].
    pub fn bridge_bytes_max(&self) -> u64 {
        let state = self.lock();
        plan::bridge_bytes(state.first_byte, median(state.history.iter().copied()).unwrap_or(0))
    }

    /// A body begins to arrive.
    pub fn begin(self: Arc<Self>) -> Transfer {
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        state.under_way.push((number, Meter::new(Instant::now())));
        drop(state);
        Transfer { pace: self, number }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether transfer `number`, with `rest` bytes to come, should be cancelled at `now`.
    fn is_straggler(&self, number: u64, rest: u64, now: Instant) -> bool {
        let own = self.meter(number).and_then(Meter::waited_rate);
        own.is_some_and(|own| self.peers(number, now).is_some_and(|peers| is_behind(own, peers, rest, self.first_byte)))
    }

    /// Whether the connection of transfer `number`, which has ended, should not serve again.
    fn is_slow(&self, number: u64, now: Instant) -> bool {
        let own = self.meter(number).and_then(Meter::short_rate);
        own.is_some_and(|own| self.peers(number, now).is_some_and(|peers| own < peers / BEHIND))
    }

    fn meter(&self, number: u64) -> Option<&Meter> {
        self.under_way.iter().find(|(other, _)| *other == number).map(|(_, meter)| meter)
    }

    /// The median of what the others do now, or of what was done before where there are none, or none that has brought enough to tell.
    /// `None` where nothing arrives on any of them: it is the network that stalls.
    fn peers(&self, number: u64, now: Instant) -> Option<u64> {
        let others = || self.under_way.iter().filter(|(other, _)| *other != number).map(|(_, meter)| meter);
        if others().next().is_some() && !others().any(|meter| meter.is_arriving(now)) {
            return None;
        }
        median(others().filter_map(|meter| meter.throughput(now)))
            .or_else(|| median(self.history.iter().copied()).filter(|_| self.history.len() >= HISTORY_MIN))
    }
}

/// Whether a connection that brings `own` bytes per second while its peers' median is `peers` is worth leaving for a new request: it is
/// far behind, and what is left would take it longer than that request and a window at the peers' rate. Pure.
fn is_behind(own: u64, peers: u64, rest: u64, first_byte: Duration) -> bool {
    let seconds = |rate: u64| rest as f64 / rate.max(1) as f64;
    own < peers / BEHIND && seconds(own) > seconds(peers) + first_byte.as_secs_f64() + WINDOW.as_secs_f64() / 2.0
}

fn median(values: impl Iterator<Item = u64>) -> Option<u64> {
    let mut values: Vec<u64> = values.collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied()
}

/// One body under way. Dropping it makes it history.
pub(super) struct Transfer {
    pace: Arc<Pace>,
    number: u64,
}

impl Transfer {
    /// How long to wait for bytes before [`Self::is_straggler`] is asked.
    pub const LOOK: Duration = WINDOW.checked_div(PARTS).expect("a number of parts");

    /// `bytes` came after `waited`: time in which nobody asked for bytes is not the connection's.
    pub fn note(&self, bytes: u64, waited: Duration) {
        let now = Instant::now();
        if let Some((_, meter)) = self.pace.lock().under_way.iter_mut().find(|(number, _)| *number == self.number) {
            meter.add(bytes, waited, now);
        }
    }

    /// Whether its connection was too slow to be used for another body. Not before the end: a packet that is lost early in a body would
    /// make a good one slow.
    pub fn is_slow(&self) -> bool {
        self.pace.lock().is_slow(self.number, Instant::now())
    }

    /// Whether it has fallen far behind its peers with `rest` bytes to come.
    pub fn is_straggler(&self, rest: u64) -> bool {
        self.pace.lock().is_straggler(self.number, rest, Instant::now())
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        let now = Instant::now();
        let mut state = self.pace.lock();
        let Some(place) = state.under_way.iter().position(|(number, _)| *number == self.number) else { return };
        let (_, meter) = state.under_way.swap_remove(place);
        if let Some(rate) = meter.overall(now) {
            if state.history.len() == HISTORY_MAX {
                state.history.pop_front();
            }
            state.history.push_back(rate);
        }
    }
}

/// What one body has brought. Two clocks: the wall's says what a peer achieves at least, since its reader may be what is slow; the time
/// that its reader waited says what a suspect achieves at most. Pure.
#[derive(Clone, Debug)]
struct Meter {
    began: Instant,
    /// When bytes last came, and when they first came again after the last longer stall.
    last: Option<Instant>,
    resumed: Option<Instant>,
    bytes: u64,
    waited: Duration,
    /// The wait that goes on, and the longest that ended with bytes.
    gap: Duration,
    gap_max: Duration,
    /// Bytes and waits of the latest parts of the window, the latest last.
    parts: VecDeque<(u64, Duration)>,
}

impl Meter {
    fn new(now: Instant) -> Self {
        Self {
            began: now,
            last: None,
            resumed: None,
            bytes: 0,
            waited: Duration::ZERO,
            gap: Duration::ZERO,
            gap_max: Duration::ZERO,
            parts: VecDeque::from([(0, Duration::ZERO)]),
        }
    }

    fn add(&mut self, bytes: u64, waited: Duration, now: Instant) {
        self.bytes += bytes;
        self.waited += waited;
        self.gap += waited;
        if bytes > 0 {
            if self.gap >= ARRIVING {
                self.resumed = Some(now);
            }
            self.gap_max = self.gap_max.max(std::mem::take(&mut self.gap));
            self.last = Some(now);
        }
        if let Some((of_part, waited_of_part)) = self.parts.back_mut() {
            *of_part += bytes;
            *waited_of_part += waited;
            if *waited_of_part >= WINDOW / PARTS {
                self.parts.push_back((0, Duration::ZERO));
            }
        }
        if self.parts.len() > PARTS as usize + 1 {
            self.parts.pop_front();
        }
    }

    /// Bytes per second of waiting, over the last window of it; `None` before there was one.
    fn waited_rate(&self) -> Option<u64> {
        let (bytes, waited) = self.parts.iter().fold((0, Duration::ZERO), |sum, part| (sum.0 + part.0, sum.1 + part.1));
        (waited >= WINDOW).then(|| rate(bytes, waited))
    }

    /// Bytes per second of waiting, over all of it but its longest wait, which may have been for one lost packet; `None` before that
    /// was long enough to tell.
    fn short_rate(&self) -> Option<u64> {
        let waited = self.waited.saturating_sub(self.gap_max.max(self.gap));
        (waited >= SHORT_WINDOW).then(|| rate(self.bytes, waited))
    }

    /// Whether its bytes come, and have for a window if they had stalled: connections do not all recover from a pause of the network in
    /// the same moment.
    fn is_arriving(&self, now: Instant) -> bool {
        let comes = self.last.is_some_and(|last| now.saturating_duration_since(last) < ARRIVING);
        comes && self.resumed.is_none_or(|resumed| now.saturating_duration_since(resumed) >= WINDOW)
    }

    /// Bytes per second since it began, of a body that is arriving now and has brought enough to tell.
    fn throughput(&self, now: Instant) -> Option<u64> {
        self.is_arriving(now).then(|| self.overall(now)).flatten()
    }

    fn overall(&self, now: Instant) -> Option<u64> {
        (self.bytes >= MEASURED_BYTES_MIN).then(|| rate(self.bytes, now.saturating_duration_since(self.began)))
    }
}

fn rate(bytes: u64, time: Duration) -> u64 {
    (bytes as f64 / time.as_secs_f64().max(1e-6)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A registry whose transfers, numbered from 0, ran for `time` at `rates` (MiB/s), all of it waiting.
    fn after(time: Duration, rates: &[u64]) -> (State, Instant) {
        let began = Instant::now();
        let mut state = State { first_byte: Duration::from_millis(20), ..State::default() };
        state.under_way = (0..).map(|number| (number, Meter::new(began))).take(rates.len()).collect();
        let mut now = began;
        while now < began + time {
            now += Duration::from_millis(50);
            for ((_, meter), rate) in state.under_way.iter_mut().zip(rates) {
                meter.add(rate * MIB / 20, Duration::from_millis(50), now);
            }
        }
        (state, now)
    }

    fn stragglers(state: &State, rest: u64, now: Instant) -> Vec<u64> {
        state.under_way.iter().map(|(number, _)| *number).filter(|&number| state.is_straggler(number, rest, now)).collect()
    }

    /// Claim: a connection far below its peers' median is found after a second, not before, and only it.
    #[test]
    fn the_starved_one_is_found() {
        let (state, now) = after(Duration::from_millis(900), &[60, 2, 50, 70]);
        assert!(stragglers(&state, 16 * MIB, now).is_empty());
        let (state, now) = after(Duration::from_millis(1100), &[60, 2, 50, 70]);
        assert_eq!(stragglers(&state, 16 * MIB, now), [1]);
        assert!(stragglers(&state, MIB, now).is_empty(), "what is left comes sooner than another request would bring it");
    }

    /// Claim: a network that is slow for all, whatever the rate, cancels nothing; nor does ordinary spread.
    #[test]
    fn a_slow_network_has_no_stragglers() {
        for rates in [&[1, 1, 1, 1][..], &[2, 3, 5, 8], &[1], &[60, 20, 30, 10]] {
            let (state, now) = after(Duration::from_secs(3), rates);
            assert!(stragglers(&state, 100 * MIB, now).is_empty(), "{rates:?}");
        }
    }

    /// Claim: when the whole network pauses nobody is given up, neither during the pause, whatever the registry did before, nor while the
    /// connections recover one after the other; one that stays behind is given up then.
    #[test]
    fn a_pause_of_the_network_is_nobodys_fault() {
        let (mut state, mut now) = after(Duration::from_secs(2), &[60; 8]);
        state.history = VecDeque::from([60 * MIB; HISTORY_MAX]);
        let (look, paused) = (Duration::from_millis(50), now + Duration::from_secs(5));
        while now < paused {
            now += look;
            for number in 0..8 {
                state.under_way[number].1.add(0, look, now);
                assert!(stragglers(&state, 100 * MIB, now).is_empty(), "{:?} before the end of the pause", paused - now);
            }
        }
        // Six come back 150 ms apart, one a little later, one not at all.
        while now < paused + Duration::from_millis(1700) {
            now += look;
            for number in 0..8 {
                let is_back = number < 7 && now >= paused + Duration::from_millis(150) * number;
                let bytes = if is_back { 3 * MIB } else { 0 };
                state.under_way[number as usize].1.add(bytes, look, now);
                let found = stragglers(&state, 100 * MIB, now);
                assert!(found.is_empty() || found == [7], "{found:?} {:?} after the pause", now - paused);
            }
        }
        assert_eq!(stragglers(&state, 100 * MIB, now), [7]);
    }

    /// Claim: one lost packet does not make a connection slow, wherever in the body it was.
    #[test]
    fn a_lost_packet_is_not_slowness() {
        for lost_at in [0, 5, 11] {
            let (mut state, now) = after(Duration::from_millis(500), &[60, 60, 60]);
            let mut meter = Meter::new(now - Duration::from_millis(400));
            for chunk in 0..12 {
                let waited = if chunk == lost_at { Duration::from_millis(300) } else { Duration::from_millis(1) };
                meter.add(30_000, waited, now);
            }
            state.under_way.push((9, meter));
            assert!(!state.is_slow(9, now), "lost at chunk {lost_at}");
        }
    }

    /// Claim: a connection that brought a short body slowly is not used again, after a tenth of a second already; its peers are.
    #[test]
    fn a_slow_connection_serves_once() {
        let (state, now) = after(Duration::from_millis(200), &[60, 2, 50, 70]);
        assert_eq!([0, 1, 2, 3].map(|number| state.is_slow(number, now)), [false, true, false, false]);
        let (state, now) = after(Duration::from_millis(200), &[2, 2, 3]);
        assert_eq!([0, 1, 2].map(|number| state.is_slow(number, now)), [false; 3]);
    }

    /// Claim: one without peers is measured against what the registry has done before, once there is enough of that.
    #[test]
    fn history_stands_in_for_peers() {
        let (mut state, now) = after(Duration::from_secs(2), &[2]);
        assert!(stragglers(&state, 100 * MIB, now).is_empty());
        state.history = VecDeque::from([60 * MIB; 3]);
        assert!(stragglers(&state, 100 * MIB, now).is_empty());
        state.history = VecDeque::from([60 * MIB, 50 * MIB, 2 * MIB, 70 * MIB]);
        assert_eq!(stragglers(&state, 100 * MIB, now), [0]);
        // It has become the ordinary.
        state.history = VecDeque::from([60 * MIB, 2 * MIB, 2 * MIB, 2 * MIB]);
        assert!(stragglers(&state, 100 * MIB, now).is_empty());
    }

    /// Claim: a connection whose reader is slow is not a straggler, however little it brings.
    #[test]
    fn a_slow_reader_is_not_the_connections_fault() {
        let (mut state, now) = after(Duration::from_secs(2), &[60, 60, 60]);
        let began = now - Duration::from_secs(2);
        let mut meter = Meter::new(began);
        for _ in 0..20 {
            meter.add(10_000, Duration::from_micros(100), now);
        }
        state.under_way.push((9, meter));
        assert!(stragglers(&state, 100 * MIB, now).is_empty());
    }

    /// Claim: answers are averaged and bodies that ended are remembered, the latest ones.
    #[test]
    fn a_registry_is_measured() {
        let pace = Arc::new(Pace::default());
        assert_eq!(pace.bridge_bytes_max(), 0);
        pace.note_first_byte(Duration::from_millis(8));
        pace.note_first_byte(Duration::from_millis(16));
        assert_eq!(pace.lock().first_byte, Duration::from_millis(9));
        for _ in 0..20 {
            let transfer = pace.clone().begin();
            transfer.note(MIB, Duration::from_millis(1));
        }
        drop(pace.clone().begin());
        let state = pace.lock();
        assert_eq!((state.history.len(), state.under_way.len()), (HISTORY_MAX, 0));
        drop(state);
        assert!(pace.bridge_bytes_max() > 0);
    }
}
