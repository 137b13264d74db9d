//! Ports where a connection comes to nothing, each at another step.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};

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
pub struct Hole {
    port: u16,
    ended: Arc<AtomicBool>,
    /// What fills the queue.
    _filling: Vec<TcpStream>,
    /// A port that accepts nobody.
    _listener: Option<TcpListener>,
}

impl Hole {
    /// A port where connections end at `step`.
    ///
    /// # Errors
    /// The system's.
    pub fn start(step: Step) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let ended = Arc::new(AtomicBool::new(false));
        let mut hole = Self { port: address.port(), ended: Arc::clone(&ended), _filling: Vec::new(), _listener: None };
        if step == Step::Connect {
            rustix::net::listen(&listener, 0)?;
            hole._filling = fill(&address)?;
            hole._listener = Some(listener);
        } else {
            thread::spawn(move || accept(&listener, step, &ended));
        }
        Ok(hole)
    }

    /// Its port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Hole {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // The accept call returns once for this connection; nobody waits at a full port.
        if self._listener.is_none() {
            let _ = TcpStream::connect(("127.0.0.1", self.port));
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

fn accept(listener: &TcpListener, step: Step, ended: &Arc<AtomicBool>) {
    for stream in listener.incoming().flatten() {
        if ended.load(Ordering::SeqCst) {
            return;
        }
        let ended = Arc::clone(ended);
        // A client that went away is its own business.
        thread::spawn(move || answer(stream, step, &ended));
    }
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
