//! What the servers of the tests share: a port that takes connections, and HTTP/1.1 heads by hand.

use std::{
    io::{BufRead, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::Result;

/// A port of the loopback, each of whose connections is served on a thread of its own. Dropping it closes the port.
pub struct Listening {
    port: u16,
    ended: Arc<AtomicBool>,
}

impl Listening {
    /// Takes connections on a free port. `serve` gets each, and a flag that says when the port is closed; what it fails with is the client's
    /// own business.
    ///
    /// # Errors
    /// The system's.
    pub fn start(serve: impl Fn(TcpStream, &AtomicBool) -> Result<()> + Send + Sync + 'static) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let listening = Self { port: listener.local_addr()?.port(), ended: Arc::default() };
        let (serve, ended) = (Arc::new(serve), Arc::clone(&listening.ended));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                let (serve, ended) = (Arc::clone(&serve), Arc::clone(&ended));
                thread::spawn(move || serve(stream, &ended));
            }
        });
        Ok(listening)
    }

    /// Its port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // The accept call returns once for this connection.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

/// The lines of a request's or a response's head, as they came, without their ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head(Vec<String>);

impl Head {
    /// The next head; `None` when the connection ended.
    ///
    /// # Errors
    /// The system's.
    pub fn read(from: &mut impl BufRead) -> Result<Option<Self>> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if from.read_line(&mut line)? == 0 {
                return Ok(None);
            }
            match line.trim_end() {
                "" => return Ok(Some(Self(lines))),
                text => lines.push(text.to_owned()),
            }
        }
    }

    /// The first line, and those of the headers.
    #[must_use]
    pub fn lines(&self) -> (&str, &[String]) {
        self.0.split_first().map_or(("", &[]), |(first, others)| (first, others))
    }

    /// The first value of a header, without spaces around it; its name is in any case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let pairs = self.lines().1.iter().filter_map(|line| line.split_once(':'));
        pairs.filter(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).next()
    }

    /// `GET`
    #[must_use]
    pub fn method(&self) -> &str {
        self.lines().0.split(' ').next().unwrap_or_default()
    }

    /// `/path?query`
    #[must_use]
    pub fn target(&self) -> &str {
        self.lines().0.split(' ').nth(1).unwrap_or("/")
    }

    /// First and last byte asked for; an open end is the largest number.
    #[must_use]
    pub fn range(&self) -> Option<(u64, u64)> {
        let (first, last) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse().ok()?, if last.is_empty() { u64::MAX } else { last.parse().ok()? }))
    }

    /// As it came, with the empty line.
    #[must_use]
    pub fn to_text(&self) -> String {
        format!("{}\r\n\r\n", self.0.join("\r\n"))
    }
}

/// Writes a whole answer. `headers` are lines with their ends; the body's length is added.
///
/// # Errors
/// The system's.
pub fn respond(out: &mut impl Write, status: &str, headers: &str, body: &str) -> Result<()> {
    write!(out, "HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len())?;
    Ok(out.flush()?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Claim: two heads in a row are read as they came, with the range asked for; a head that is cut is none.
    #[test]
    fn heads_are_read_as_they_came() {
        let text =
            "GET /a?b HTTP/1.1\r\nHost: h\r\nRANGE:  bytes=5-9 \r\n\r\nHEAD / HTTP/1.1\r\nrange: bytes=7-\r\n\r\nGET /cut HTTP/1.1\r\n";
        let mut from = text.as_bytes();
        let head = Head::read(&mut from).unwrap().unwrap();
        assert_eq!((head.method(), head.target(), head.header("host"), head.range()), ("GET", "/a?b", Some("h"), Some((5, 9))));
        assert!(text.replace(" \r", "\r").starts_with(&head.to_text()));
        let second = Head::read(&mut from).unwrap().unwrap();
        assert_eq!((second.method(), second.range(), second.header("host")), ("HEAD", Some((7, u64::MAX)), None));
        assert_eq!(Head::read(&mut from).unwrap(), None);
    }
}
