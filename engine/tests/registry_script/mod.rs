//! A server on loopback that answers each request as its script says, faults included, and remembers what it saw.
#![allow(clippy::unwrap_used, dead_code)]

pub mod mirrors;

use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use clip_engine::registry::{Client, ClientConfig, Environment, Login, Reference, Typed};
use clip_format::digest::Digest;
use sha2::Digest as _;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpListener,
};

/// A request as it arrived.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// From 0, in order of arrival.
    pub number: usize,
    /// From 0, in order of acceptance.
    pub connection: usize,
    /// From 0, on its connection.
    pub turn: usize,
    pub method: String,
    pub path: String,
    pub query: String,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// What the server does about a request.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// What Content-Length promises, if not the body's length.
    pub promised: Option<usize>,
    pub then: Then,
}

/// What the server does after the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    KeepAlive,
    Close,
    Stall,
    /// No answer at all, the connection ends.
    Hangup,
    /// No answer at all, the connection stays.
    Silence,
}

pub fn reply(status: u16, body: impl Into<Vec<u8>>) -> Reply {
    Reply { status, headers: Vec::new(), body: body.into(), promised: None, then: Then::KeepAlive }
}

impl Reply {
    pub fn header(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    pub fn then(mut self, then: Then) -> Self {
        self.then = then;
        self
    }

    pub fn promising(mut self, promised: usize) -> Self {
        self.promised = Some(promised);
        self
    }
}

/// What a correct registry answers to a GET, ranged or not, of `blob`.
pub fn serve_blob(seen: &Seen, blob: &[u8]) -> Reply {
    let Some(range) = seen.header("range") else { return reply(200, blob) };
    let (first, last) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
    let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
    reply(206, &blob[first..=last]).header("content-range", format!("bytes {first}-{last}/{}", blob.len()))
}

type Script = Arc<dyn Fn(&Seen) -> Reply + Send + Sync>;

/// Runs as long as the test's runtime.
#[derive(Clone)]
pub struct Server {
    pub port: u16,
    pub seen: Arc<Mutex<Vec<Seen>>>,
    /// Connections that the client closed.
    pub closed: Arc<AtomicUsize>,
}

impl Server {
    pub async fn start(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        Self::run(Arc::new(script), None).await
    }

    /// The same behind TLS.
    pub async fn start_tls(certificates: &Certificates, script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        Self::run(Arc::new(script), Some(certificates.acceptor())).await
    }

    async fn run(script: Script, tls: Option<tokio_rustls::TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self { port: listener.local_addr().unwrap().port(), seen: Arc::default(), closed: Arc::default() };
        let own = server.clone();
        tokio::spawn(async move {
            for connection in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                // Head and body are two writes; the second would wait for an acknowledgement, 40 ms.
                stream.set_nodelay(true).unwrap();
                let (own, script, tls) = (own.clone(), Arc::clone(&script), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => own.converse(stream, connection, script).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                own.converse(stream, connection, script).await;
                            }
                        }
                    }
                });
            }
        });
        server
    }

    async fn converse(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin, connection: usize, script: Script) {
        for turn in 0.. {
            let Some(mut seen) = read_request(&mut stream).await else {
                self.closed.fetch_add(1, SeqCst);
                return;
            };
            (seen.connection, seen.turn) = (connection, turn);
            {
                let mut all = self.seen.lock().unwrap();
                seen.number = all.len();
                all.push(seen.clone());
            }
            let reply = script(&seen);
            if !matches!(reply.then, Then::Hangup | Then::Silence) {
                let mut head = format!("HTTP/1.1 {} X\r\n", reply.status);
                for (name, value) in &reply.headers {
                    head.push_str(&format!("{name}: {value}\r\n"));
                }
                head.push_str(&format!("content-length: {}\r\n\r\n", reply.promised.unwrap_or(reply.body.len())));
                if stream.write_all(head.as_bytes()).await.is_err() || stream.write_all(&reply.body).await.is_err() {
                    self.closed.fetch_add(1, SeqCst);
                    return;
                }
                let _ = stream.flush().await;
            }
            match reply.then {
                Then::KeepAlive => {}
                Then::Close | Then::Hangup => return,
                Then::Stall | Then::Silence => {
                    let _ = stream.read(&mut [0]).await;
                    self.closed.fetch_add(1, SeqCst);
                    return;
                }
            }
        }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub fn reference(&self) -> Reference {
        format!("localhost:{}/a/b:t", self.port).parse().unwrap()
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }
}

/// The first byte of a TLS client. Source: RFC 8446 section 5.1.
const TLS_HANDSHAKE: u8 = 22;

async fn read_request(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Option<Seen> {
    let mut head = vec![stream.read_u8().await.ok()?];
    if head == [TLS_HANDSHAKE] {
        // As most servers answer a TLS client.
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\nno TLS here\n").await;
        return None;
    }
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.lines();
    let mut first = lines.next()?.split(' ');
    let (method, target) = (first.next()?.to_owned(), first.next()?);
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let headers: Vec<_> =
        lines.filter_map(|line| line.split_once(": ")).map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
    let mut seen = Seen { method, path: path.to_owned(), query: query.to_owned(), headers, ..Seen::default() };
    let len: usize = seen.header("content-length").map_or(0, |len| len.parse().unwrap());
    let mut body = vec![0; len];
    stream.read_exact(&mut body).await.ok()?;
    seen.body = String::from_utf8(body).unwrap();
    Some(seen)
}

/// True, after saying so on the terminal, when this machine has not all of `programs`.
#[must_use]
pub fn lacks(programs: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there = |program: &str| std::env::split_paths(&path).any(|dir| dir.join(program).is_file());
    let Some(missing) = programs.iter().find(|program| !is_there(program)) else { return false };
    // Past the test harness, which captures what `eprintln` writes: a skipped test must not look like a passed one.
    let test = std::thread::current().name().unwrap_or("test").to_owned();
    let _ = std::io::Write::write_all(
        &mut std::io::stderr(),
        format!("skipped: {test}: {missing} is not installed (scripts/setup installs it)\n").as_bytes(),
    );
    true
}

/// A private CA and a certificate of `localhost` and 127.0.0.1.
pub struct Certificates {
    pub dir: tempfile::TempDir,
}

impl Certificates {
    /// `None` where openssl is missing.
    pub fn make() -> Option<Self> {
        if lacks(&["openssl"]) {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let openssl = |arguments: &str| {
            let done = std::process::Command::new("openssl").args(arguments.split(' ')).current_dir(&dir).output().unwrap();
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        };
        let common = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2";
        openssl(&format!("{common} -keyout ca.key -out ca.pem -subj /CN=clip-test-ca"));
        openssl(&format!(
            "{common} -keyout leaf.key -out leaf.pem -subj /CN=localhost -CA ca.pem -CAkey ca.key -addext basicConstraints=critical,CA:FALSE \
             -addext subjectAltName=DNS:localhost,IP:127.0.0.1"
        ));
        Some(Self { dir })
    }

    pub fn ca(&self) -> std::path::PathBuf {
        self.dir.path().join("ca.pem")
    }

    pub fn acceptor(&self) -> tokio_rustls::TlsAcceptor {
        use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
        let chain = CertificateDer::pem_file_iter(self.dir.path().join("leaf.pem")).unwrap().map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_file(self.dir.path().join("leaf.key")).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        tokio_rustls::TlsAcceptor::from(Arc::new(config))
    }
}

/// Of somebody who has `config.json` and helper programs in `docker`, and no credentials elsewhere.
pub fn login(docker: &Path) -> Login {
    let path = format!("{}:{}", docker.display(), std::env::var("PATH").unwrap());
    let file = docker.join("config.json").to_str().unwrap().to_owned();
    let environment = Environment::from_pairs([("PATH", path), ("REGISTRY_AUTH_FILE", file)]);
    Login { typed: Typed::Nothing, environment, ..Login::anonymous() }
}

/// Short deadlines, and no credentials but those in `docker`.
pub fn config(docker: &Path) -> ClientConfig {
    ClientConfig {
        login: login(docker),
        connect_timeout: Duration::from_secs(5),
        first_byte_timeout: Duration::from_secs(5),
        progress_timeout: Duration::from_secs(5),
        ..ClientConfig::default()
    }
}

/// Without any credentials.
pub fn anonymous() -> Client {
    Client::new(config(Path::new("/nonexistent"))).unwrap()
}

pub fn sha256(bytes: &[u8]) -> Digest {
    Digest::Sha256(sha2::Sha256::digest(bytes).into())
}

/// Bytes that are the same at no two places nearby.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| ((at * 31) ^ (at >> 8)) as u8).collect()
}

/// All bytes of a range through `Client::blob`.
pub async fn read(client: &Client, server: &Server, blob: &[u8], range: std::ops::Range<u64>) -> Result<Vec<u8>, clip_engine::EngineError> {
    let mut reader = client.blob(&server.reference(), &sha256(blob), blob.len() as u64, range).await?;
    let mut all = Vec::new();
    while let Some(bytes) = reader.chunk().await? {
        assert!(!bytes.is_empty());
        all.extend_from_slice(&bytes);
    }
    Ok(all)
}
