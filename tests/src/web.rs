//! A web server of a test's own: each request's head is kept as it came, and a function answers it.

use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::Result;

/// A request's head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// `/path?query`
    pub target: String,
    /// Names in lower case, values trimmed.
    pub headers: Vec<(String, String)>,
}

impl Head {
    /// The first value of the header `name` (lower case).
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// First and last byte asked for.
    fn range(&self) -> Option<(usize, usize)> {
        let (first, last) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()?))
    }
}

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
    port: u16,
    heads: Arc<Mutex<Vec<Head>>>,
    ended: Arc<AtomicBool>,
}

impl Web {
    /// A server on a free loopback port.
    ///
    /// # Errors
    /// The system's.
    pub fn start(handler: impl Fn(&Head) -> Answer + Send + Sync + 'static) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let web = Self { port: listener.local_addr()?.port(), heads: Arc::default(), ended: Arc::default() };
        let (handler, heads, ended) = (Arc::new(Box::new(handler) as Handler), web.heads.clone(), web.ended.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                let (handler, heads) = (handler.clone(), heads.clone());
                // A client that went away is its own business.
                thread::spawn(move || drop(serve(stream, &handler, &heads)));
            }
        });
        Ok(web)
    }

    /// `127.0.0.1:PORT`
    #[must_use]
    pub fn authority(&self) -> String {
        format!("127.0.0.1:{}", self.port)
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

impl Drop for Web {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // The accept call returns once for this connection.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

/// Answers the requests of one connection until it closes.
fn serve(stream: TcpStream, handler: &Handler, heads: &Mutex<Vec<Head>>) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut requests = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    while let Some(head) = read_head(&mut requests)? {
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
            let last = last.min(bytes.len() - 1);
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

fn read_head(requests: &mut impl BufRead) -> Result<Option<Head>> {
    let mut line = String::new();
    if requests.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let target = line.split_whitespace().nth(1).unwrap_or_default().to_owned();
    let mut headers = Vec::new();
    loop {
        let mut header = String::new();
        requests.read_line(&mut header)?;
        let Some((name, value)) = header.trim_end().split_once(':') else { break };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    Ok(Some(Head { target, headers }))
}
