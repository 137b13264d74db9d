//! A network that is slower than loopback: a TCP proxy that holds back and paces what a registry answers.
//!
//! It knows nothing of HTTP but that a client which speaks again after it was answered asks anew. The way up is not paced.

use std::{
    cell::Cell,
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::{Instant, sleep_until},
};

use crate::{args::Shape, background::Background};

/// Bytes that are passed on at once, at most. Source: chosen: a few wakes a millisecond at 1 GB/s.
const PIECE_BYTES_MAX: usize = 256 << 10;
/// Bytes that are passed on at once, at least. Source: an Ethernet frame's payload.
const PIECE_BYTES_MIN: usize = 1460;
/// How far a pace may fall behind and catch up. Source: tokio's timers tick once a millisecond; a few ticks that came late are made up.
const SLACK: Duration = Duration::from_millis(5);

/// A running shaper. Dropping it closes its connections.
pub struct Shaper {
    background: Background,
    /// Connections opened in this round.
    opened: Arc<AtomicU64>,
}

impl Shaper {
    /// Stands before the server at `upstream`. Each connection costs one latency when it is opened, as its handshake would, and one with
    /// each request.
    ///
    /// # Errors
    /// The system's.
    pub fn start(upstream: SocketAddr, shape: &Shape) -> Result<Self> {
        let (shape, opened) = (Arc::new(shape.clone()), Arc::new(AtomicU64::new(0)));
        let counter = opened.clone();
        let background = Background::start("bench-shaper", move || {
            let total = shape.bandwidth.map(|rate| Rc::new(Pace::new(rate)));
            move |stream| {
                let (shape, total) = (shape.clone(), total.clone());
                let number = counter.fetch_add(1, Ordering::Relaxed);
                async move {
                    // What breaks here breaks the client's connection, and shows there.
                    let _ = connection(stream, upstream, &shape, number, total.as_deref()).await;
                }
            }
        })?;
        Ok(Self { background, opened })
    }

    /// Counts connections from the first again: those that are opened next are starved, where that was asked for.
    pub fn begin_round(&self) {
        self.opened.store(0, Ordering::Relaxed);
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.background.address()
    }

    /// What its thread has spent on a core so far.
    #[must_use]
    pub fn cpu(&self) -> Duration {
        self.background.cpu()
    }
}

/// A rate: when the next byte may go.
struct Pace {
    bytes_per_second: u64,
    next: Cell<Instant>,
}

impl Pace {
    fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), next: Cell::new(Instant::now()) }
    }

    /// When `len` bytes, asked for at `now`, will have passed. Whoever asks next comes after them.
    fn passed(&self, len: usize, now: Instant) -> Instant {
        let took = Duration::from_secs_f64(len as f64 / self.bytes_per_second as f64);
        let start = now.checked_sub(SLACK).map_or(self.next.get(), |earliest| earliest.max(self.next.get()));
        self.next.set(start + took);
        start + took
    }

    /// What passes in 10 ms: small enough that a slow connection does not stutter.
    fn piece_bytes(&self) -> usize {
        usize::try_from(self.bytes_per_second / 100).unwrap_or(PIECE_BYTES_MAX).clamp(PIECE_BYTES_MIN, PIECE_BYTES_MAX)
    }
}

/// Bytes a second down connection `number`, where it has a limit of its own.
fn rate_of(shape: &Shape, number: u64) -> Option<u64> {
    let starved = shape.starve.filter(|starve| number < starve.connections).map(|starve| starve.bytes_per_second);
    [starved, shape.bandwidth_per_connection].into_iter().flatten().min()
}

async fn connection(client: TcpStream, upstream: SocketAddr, shape: &Shape, number: u64, total: Option<&Pace>) -> std::io::Result<()> {
    let latency = shape.latency.unwrap_or_default();
    let server = TcpStream::connect(upstream).await?;
    server.set_nodelay(true)?;
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    // The first answer waits for the handshake too.
    let opened = Rc::new(Asked { at: Cell::new(None), held: Cell::new(latency) });
    let own = rate_of(shape, number).map(Pace::new);
    let up = pass_up(client_read, server_write, opened.clone());
    let down = pass_down(server_read, client_write, &opened, latency, [own.as_ref(), total]);
    // Either side's end ends both: HTTP/1.1 does not use half-open connections.
    tokio::select! {
        done = up => done,
        done = down => done,
    }
}

/// When the request that is being answered was asked; none once its answer began.
struct Asked {
    at: Cell<Option<Instant>>,
    /// Held back once more for the connection itself.
    held: Cell<Duration>,
}

async fn pass_up(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, asked: Rc<Asked>) -> std::io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let len = from.read(&mut buffer).await?;
        if len == 0 {
            return Ok(());
        }
        if asked.at.get().is_none() {
            asked.at.set(Some(Instant::now()));
        }
        to.write_all(&buffer[..len]).await?;
    }
}

async fn pass_down(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    asked: &Asked,
    latency: Duration,
    paces: [Option<&Pace>; 2],
) -> std::io::Result<()> {
    let piece = paces.into_iter().flatten().map(Pace::piece_bytes).min().unwrap_or(PIECE_BYTES_MAX);
    let mut buffer = vec![0; piece];
    loop {
        let len = from.read(&mut buffer).await?;
        if len == 0 {
            return Ok(());
        }
        if let Some(at) = asked.at.take() {
            sleep_until(at + latency + asked.held.take()).await;
        }
        let now = Instant::now();
        let passed = paces.into_iter().flatten().map(|pace| pace.passed(len, now)).max();
        if let Some(passed) = passed.filter(|passed| *passed > now) {
            sleep_until(passed).await;
        }
        to.write_all(&buffer[..len]).await?;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{
        io::{Read as _, Write as _},
        net::TcpStream,
        time::Instant,
    };

    use super::*;
    use crate::{args::Starve, corpus::content::Draws};

    /// Answers each byte it is sent with the same `len` bytes.
    fn server(len: usize) -> (Background, Arc<Vec<u8>>) {
        let mut draws = Draws::new(3);
        let answer: Arc<Vec<u8>> = Arc::new((0..len).map(|_| draws.draw() as u8).collect());
        let sent = answer.clone();
        let background = Background::start("test-server", move || {
            move |mut stream| {
                let answer = sent.clone();
                async move {
                    let mut request = [0];
                    while stream.read_exact(&mut request).await.is_ok() && stream.write_all(&answer).await.is_ok() {}
                }
            }
        });
        (background.unwrap(), answer)
    }

    /// Asks `requests` times over one connection: seconds of each, from the request to the last byte.
    fn ask(address: SocketAddr, answer: &[u8], requests: usize) -> Vec<f64> {
        let mut stream = TcpStream::connect(address).unwrap();
        let mut took = Vec::new();
        let mut found = vec![0; answer.len()];
        for _ in 0..requests {
            let started = Instant::now();
            stream.write_all(b"?").unwrap();
            stream.read_exact(&mut found).unwrap();
            took.push(started.elapsed().as_secs_f64());
            assert!(found == answer, "the shaper changed bytes");
        }
        took
    }

    /// Claim: each answer comes at least one latency late, the first of a connection two, and not much later; the bytes are unchanged.
    #[test]
    fn latency_is_what_was_asked_for() {
        let (server, answer) = server(1000);
        let shape = Shape { latency: Some(Duration::from_millis(40)), ..Shape::default() };
        let shaper = Shaper::start(server.address(), &shape).unwrap();
        let took = ask(shaper.address(), &answer, 4);
        assert!(took[0] >= 0.08, "{took:?}");
        for later in &took[1..] {
            assert!((0.04..0.08).contains(later), "{took:?}");
        }
    }

    /// Claim: one connection gets its own rate, and two together no more than the total.
    #[test]
    fn rates_are_what_was_asked_for() {
        let (server, answer) = server(2_000_000);
        let shape = Shape { bandwidth_per_connection: Some(10_000_000), bandwidth: Some(16_000_000), ..Shape::default() };
        let shaper = Shaper::start(server.address(), &shape).unwrap();
        let one = ask(shaper.address(), &answer, 1)[0];
        assert!((0.19..0.3).contains(&one), "2 MB at 10 MB/s took {one} s");
        let started = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| ask(shaper.address(), &answer, 1));
            }
        });
        let two = started.elapsed().as_secs_f64();
        assert!((0.24..0.4).contains(&two), "4 MB at 16 MB/s took {two} s");
    }

    /// Claim: only the first connections of a round are starved.
    #[test]
    fn the_first_connections_are_starved() {
        let (server, answer) = server(100_000);
        let starve = Starve { connections: 1, bytes_per_second: 400_000 };
        let shaper = Shaper::start(server.address(), &Shape { starve: Some(starve), ..Shape::default() }).unwrap();
        let (first, second) = (ask(shaper.address(), &answer, 1)[0], ask(shaper.address(), &answer, 1)[0]);
        shaper.begin_round();
        let third = ask(shaper.address(), &answer, 1)[0];
        assert!((0.2..0.5).contains(&first) && second < 0.1 && third >= 0.2, "{first} s, {second} s, {third} s");
    }

    /// Claim: without limits all bytes pass, sooner than at the least limit that anybody would call one.
    #[test]
    fn without_a_shape_bytes_just_pass() {
        let (server, answer) = server(5_000_000);
        let shaper = Shaper::start(server.address(), &Shape::default()).unwrap();
        let took = ask(shaper.address(), &answer, 3);
        assert!(took.len() == 3 && took.iter().sum::<f64>() < 3.0, "15 MB took {took:?} s: under 5 MB/s");
    }
}
