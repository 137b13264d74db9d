//! An HTTP proxy that counts: tunnels for TLS, and plain requests in absolute form, all led to one port of this machine.

use std::{
    io::{BufReader, Write},
    net::{Shutdown, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use anyhow::Result;

use crate::http::{Head, Listening};

/// A running proxy. Dropping it closes its port.
pub struct Proxy {
    listening: Listening,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    /// A proxy that leads every host to `port` on loopback.
    ///
    /// # Errors
    /// The system's.
    pub fn start(port: u16) -> Result<Self> {
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let kept = Arc::clone(&seen);
        let listening = Listening::start(move |stream, _| serve(stream, port, &kept))?;
        Ok(Self { listening, seen })
    }

    /// `http://127.0.0.1:PORT`
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.listening.port())
    }

    /// The first line of each tunnel and request so far, with its `Proxy-Authorization` behind it.
    #[must_use]
    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
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
    while let Some(head) = Head::read(&mut from)? {
        let (first, headers) = head.lines();
        let authorization = headers.iter().find(|line| line.to_ascii_lowercase().starts_with("proxy-authorization: "));
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
fn forwarded(head: &Head) -> String {
    let (first, headers) = head.lines();
    let mut text = first.replacen("http://", "", 1);
    if let Some((slash, start)) = text.find('/').zip(text.find(' ')) {
        text.replace_range(start + 1..slash, "");
    }
    text.push_str("\r\n");
    for line in headers.iter().filter(|line| !line.to_ascii_lowercase().starts_with("proxy-")) {
        text.push_str(line);
        text.push_str("\r\n");
    }
    text + "\r\n"
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Claim: a request in absolute form is passed on as its server wants it.
    #[test]
    fn requests_are_forwarded_in_origin_form() {
        let text = "GET http://h.x:5/v2/a?b HTTP/1.1\r\nHost: h.x:5\r\nProxy-Authorization: Basic x\r\n\r\n";
        let head = Head::read(&mut text.as_bytes()).unwrap().unwrap();
        assert_eq!(forwarded(&head), "GET /v2/a?b HTTP/1.1\r\nHost: h.x:5\r\n\r\n");
    }
}
