//! Ports where a connection comes to nothing, each at another step.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::{Result, ensure};

use crate::http::Listening;

/// How long a connection to a full port is waited for before the port is taken for full. Source: on the loopback a port with room answers in
/// less than a millisecond.
const FULL_AFTER: Duration = Duration::from_millis(300);
/// Connections that a port with a backlog of 0 takes before it drops all others. Source: Linux takes one more than the backlog
/// (sk_acceptq_is_full, include/net/sock.h).
const FILLING_MAX: usize = 8;

/// Where it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nobody answers a SYN.
    Connect,
    /// Connections are accepted, and nothing is ever said.
    Silence,
    /// Connections are accepted, and closed after what the client says first.
    Cut,
    /// The head of each answer comes at a byte a second.
    Head,
}

/// A port of the loopback. Dropping it closes it.
pub struct Hole(Port);

enum Port {
    /// It accepts nobody, and its queue is full of these.
    Full {
        listener: TcpListener,
        _filling: Vec<TcpStream>,
    },
    Accepting(Listening),
}

impl Hole {
    /// A port where connections end at `step`.
    ///
    /// # Errors
    /// The system's.
    pub fn start(step: Step) -> Result<Self> {
        if step != Step::Connect {
            return Ok(Self(Port::Accepting(Listening::start(move |stream, ended| answer(stream, step, ended))?)));
        }
        let listener = TcpListener::bind("127.0.0.1:0")?;
        rustix::net::listen(&listener, 0)?;
        let filling = fill(&listener.local_addr()?)?;
        Ok(Self(Port::Full { listener, _filling: filling }))
    }

    /// Its port on 127.0.0.1.
    ///
    /// # Panics
    /// When the system does not know a listener's address.
    #[must_use]
    pub fn port(&self) -> u16 {
        match &self.0 {
            Port::Full { listener, .. } => listener.local_addr().expect("a listener has an address").port(),
            Port::Accepting(listening) => listening.port(),
        }
    }
}

/// Connects to `address` until nobody answers there any more.
fn fill(address: &SocketAddr) -> Result<Vec<TcpStream>> {
    let mut streams = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(address, FULL_AFTER) {
        streams.push(stream);
        ensure!(streams.len() < FILLING_MAX, "a port with a backlog of 0 took {} connections", streams.len());
    }
    Ok(streams)
}

fn answer(mut stream: TcpStream, step: Step, ended: &AtomicBool) -> Result<()> {
    let mut said = [0; 4096];
    let mut head = b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: 2\r\n\r\n{}".iter();
    if stream.read(&mut said)? == 0 || step == Step::Cut {
        return Ok(());
    }
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    while !ended.load(Ordering::SeqCst) {
        if let (Step::Head, Some(byte)) = (step, head.next()) {
            stream.write_all(&[*byte])?;
        }
        match stream.read(&mut said) {
            Ok(0) => return Ok(()),
            Err(error) if !matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => return Ok(()),
            _ => {}
        }
    }
    Ok(())
}
