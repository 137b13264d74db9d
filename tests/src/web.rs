//! A web server of a test's own: each request's head is kept as it came, and a function answers it.

use std::{
    io::{BufReader, Write},
    net::TcpStream,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::Result;

use crate::http::Listening;

pub use crate::http::Head;

/// What is answered.
#[derive(Clone, Debug)]
pub enum Answer {
    /// The whole of these bytes or, with 206, the range asked for.
    Bytes(Arc<Vec<u8>>),
    /// 200 and the whole of these bytes, whatever range was asked for.
    Whole(Arc<Vec<u8>>),
    /// As `Bytes`, but the connection closes after so many of them.
    Cut(Arc<Vec<u8>>, usize),
    /// As `Bytes`, but after so many of them there is a byte every 50 ms.
    Trickle(Arc<Vec<u8>>, usize),
    /// 302 to this address.
    Redirect(String),
    /// A status, header lines (each with its line end) and no body.
    Status(u16, &'static str),
}

/// Answers requests.
type Handler = Box<dyn Fn(&Head) -> Answer + Send + Sync>;

/// A running server. Dropping it closes its port.
pub struct Web {
    listening: Listening,
    heads: Arc<Mutex<Vec<Head>>>,
}

impl Web {
    /// A server on a free loopback port.
    ///
    /// # Errors
    /// The system's.
    pub fn start(handler: impl Fn(&Head) -> Answer + Send + Sync + 'static) -> Result<Self> {
        let (heads, handler) = (Arc::default(), Box::new(handler) as Handler);
        let kept = Arc::clone(&heads);
        let listening = Listening::start(move |stream, _| serve(stream, &handler, &kept))?;
        Ok(Self { listening, heads })
    }

    /// `127.0.0.1:PORT`
    #[must_use]
    pub fn authority(&self) -> String {
        format!("127.0.0.1:{}", self.listening.port())
    }

    /// Requests so far, oldest first.
    #[must_use]
    pub fn heads(&self) -> Vec<Head> {
        self.heads.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Forgets the requests so far.
    pub fn forget(&self) {
        self.heads.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// Answers the requests of one connection until it closes.
fn serve(stream: TcpStream, handler: &Handler, heads: &Mutex<Vec<Head>>) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut requests = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    while let Some(head) = Head::read(&mut requests)? {
        heads.lock().unwrap_or_else(PoisonError::into_inner).push(head.clone());
        match handler(&head) {
            Answer::Status(status, lines) => write!(stream, "HTTP/1.1 {status} Test\r\n{lines}Content-Length: 0\r\n\r\n")?,
            Answer::Redirect(to) => write!(stream, "HTTP/1.1 302 Test\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n")?,
            Answer::Whole(bytes) => {
                write!(stream, "HTTP/1.1 200 Test\r\nContent-Length: {}\r\n\r\n", bytes.len())?;
                stream.write_all(&bytes)?;
            }
            Answer::Bytes(bytes) => write_range(&mut stream, &head, &bytes, usize::MAX)?,
            Answer::Trickle(bytes, after) => {
                write_range(&mut stream, &head, &bytes, after)?;
                // Ends when the client closes the connection.
                while stream.write_all(b"x").is_ok() {
                    thread::sleep(Duration::from_millis(50));
                }
            }
            Answer::Cut(bytes, after) => return write_range(&mut stream, &head, &bytes, after),
        }
    }
    Ok(())
}

/// Writes what `head` asks of `bytes`, but no more than `len_max` of it.
fn write_range(stream: &mut TcpStream, head: &Head, bytes: &[u8], len_max: usize) -> Result<()> {
    let body = match head.range() {
        Some((first, last)) => {
            let (first, last) = (first as usize, last.min(bytes.len() as u64 - 1) as usize);
            write!(stream, "HTTP/1.1 206 Test\r\nContent-Range: bytes {first}-{last}/{}\r\n", bytes.len())?;
            &bytes[first..=last]
        }
        None => {
            write!(stream, "HTTP/1.1 200 Test\r\n")?;
            bytes
        }
    };
    write!(stream, "Content-Length: {}\r\n\r\n", body.len())?;
    Ok(stream.write_all(&body[..body.len().min(len_max)])?)
}
