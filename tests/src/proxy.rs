//! An HTTP proxy that counts: tunnels for TLS, and plain requests in absolute form, all led to one port of this machine.

use std::{
    io::{BufRead, BufReader, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::{Context, Result};

/// A running proxy. Dropping it closes its port.
pub struct Proxy {
    port: u16,
    seen: Arc<Mutex<Vec<String>>>,
    ended: Arc<AtomicBool>,
}

impl Proxy {
    /// A proxy that leads every host to `port` on loopback.
    ///
    /// # Errors
    /// The system's.
    pub fn start(port: u16) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let proxy = Self { port: listener.local_addr()?.port(), seen: Arc::default(), ended: Arc::default() };
        let (seen, ended) = (Arc::clone(&proxy.seen), Arc::clone(&proxy.ended));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                let seen = Arc::clone(&seen);
                // A client that goes away is its own business.
                thread::spawn(move || serve(stream, port, &seen));
            }
        });
        Ok(proxy)
    }

    /// `http://127.0.0.1:PORT`
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The first line of each tunnel and request so far, with its `Proxy-Authorization` behind it.
    #[must_use]
    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // The accept call returns once for this connection.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

/// One connection of a client: a tunnel, or plain requests of one host.
fn serve(client: TcpStream, port: u16, seen: &Mutex<Vec<String>>) -> Result<()> {
    client.set_nodelay(true)?;
    let behind = TcpStream::connect(("127.0.0.1", port))?;
    behind.set_nodelay(true)?;
    let mut from = BufReader::new(client.try_clone()?);
    let (mut to, mut back_to) = (behind.try_clone()?, client.try_clone()?);
    let mut answers = Some((behind.try_clone()?, client));
    while let Some(head) = read_head(&mut from)? {
        let first = head.first().context("a request line")?;
        let authorization = head.iter().find(|line| line.to_ascii_lowercase().starts_with("proxy-authorization: "));
        let line = format!("{first} {}", authorization.map_or("", String::as_str));
        seen.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        let is_tunnel = first.starts_with("CONNECT ");
        if is_tunnel {
            back_to.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
        } else {
            to.write_all(forwarded(&head).as_bytes())?;
        }
        if let Some((mut answers_from, mut answers_to)) = answers.take() {
            thread::spawn(move || {
                let _ = std::io::copy(&mut answers_from, &mut answers_to);
                let _ = answers_to.shutdown(Shutdown::Both);
            });
        }
        if is_tunnel {
            std::io::copy(&mut from, &mut to)?;
        }
    }
    Ok(behind.shutdown(Shutdown::Both)?)
}

/// The request for the server: its target in origin form, nothing that was for the proxy.
fn forwarded(head: &[String]) -> String {
    let mut text = head[0].replacen("http://", "", 1);
    if let Some((slash, start)) = text.find('/').zip(text.find(' ')) {
        text.replace_range(start + 1..slash, "");
    }
    text.push_str("\r\n");
    for line in head[1..].iter().filter(|line| !line.to_ascii_lowercase().starts_with("proxy-")) {
        text.push_str(line);
        text.push_str("\r\n");
    }
    text + "\r\n"
}

/// `None` when the connection ended.
fn read_head(from: &mut impl BufRead) -> Result<Option<Vec<String>>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if from.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        match line.trim_end() {
            "" => return Ok(Some(lines)),
            text => lines.push(text.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Claim: a request in absolute form is passed on as its server wants it.
    #[test]
    fn requests_are_forwarded_in_origin_form() {
        let head = ["GET http://h.x:5/v2/a?b HTTP/1.1", "Host: h.x:5", "Proxy-Authorization: Basic x"].map(str::to_owned);
        assert_eq!(forwarded(&head), "GET /v2/a?b HTTP/1.1\r\nHost: h.x:5\r\n\r\n");
    }
}
