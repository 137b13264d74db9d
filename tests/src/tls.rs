//! A front of the scripted registry that speaks TLS under a private authority and wants to know who asks.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::{Context, Result};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use crate::{faults::Server, process::shell};

/// The host that the certificate names. Not a loopback address: those are spoken to without TLS.
pub const HOST: &str = "registry.clip.test";
/// Who may pull.
pub const USER: &str = "puller";
/// With which password.
pub const PASSWORD: &str = "a:secret with spaces";
/// `USER:PASSWORD` in base64.
const BASIC: &str = "cHVsbGVyOmE6c2VjcmV0IHdpdGggc3BhY2Vz";
/// What the token server gives.
const TOKEN: &str = "token-of-the-test";

/// How the front wants to be told who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// User and password with every request.
    Basic,
    /// A token, for which the front's own `/token` wants user and password.
    Bearer,
}

/// An authority of its own, and a certificate of [`HOST`] from it, in a directory: `ca.pem`, `server.pem`, `server.key`.
///
/// # Errors
/// openssl's.
pub fn certificates() -> Result<tempfile::TempDir> {
    let dir = tempfile::Builder::new().prefix("clip-tls-").tempdir()?;
    shell(CERTIFICATES, &[dir.path().as_os_str(), HOST.as_ref()])?;
    Ok(dir)
}

/// A running front. Dropping it closes its port.
pub struct TlsFront {
    port: u16,
    ca: PathBuf,
    authorizations: Arc<Mutex<Vec<String>>>,
    ended: Arc<AtomicBool>,
    _dir: tempfile::TempDir,
}

struct Front {
    port: u16,
    behind: u16,
    scheme: Scheme,
    config: Arc<ServerConfig>,
    authorizations: Arc<Mutex<Vec<String>>>,
}

/// An authority, and a certificate of [`HOST`] that it signed.
const CERTIFICATES: &str = r#"
cd "$1"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj "/CN=clip test authority" \
    -keyout ca.key -out ca.pem -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign 2>&1
openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=$2" -keyout server.key -out server.csr 2>&1
printf 'subjectAltName=DNS:%s\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\n' "$2" > extensions
openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 -extfile extensions -out server.pem 2>&1
"#;

impl TlsFront {
    /// A front of `server`, with certificates of its own.
    ///
    /// # Errors
    /// openssl's, or the system's.
    pub fn start(server: &Server, scheme: Scheme) -> Result<Self> {
        let dir = certificates()?;
        let certificate = CertificateDer::from_pem_file(dir.path().join("server.pem"))?;
        let key = PrivateKeyDer::from_pem_file(dir.path().join("server.key"))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let config = Arc::new(config.with_no_client_auth().with_single_cert(vec![certificate], key)?);
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let (authorizations, ended) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let front = Arc::new(Front { port, behind: server.port(), scheme, config, authorizations: Arc::clone(&authorizations) });
        let stop = Arc::clone(&ended);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let front = Arc::clone(&front);
                // A client that goes away, or does not like the certificate, is its own business.
                thread::spawn(move || front.serve(stream));
            }
        });
        Ok(Self { port, ca: dir.path().join("ca.pem"), authorizations, ended, _dir: dir })
    }

    /// `registry.clip.test:PORT/test/NAME:TAG`
    #[must_use]
    pub fn reference(&self, name: &str, tag: &str) -> String {
        format!("{HOST}:{}/test/{name}:{tag}", self.port)
    }

    /// `registry.clip.test:PORT`
    #[must_use]
    pub fn authority(&self) -> String {
        format!("{HOST}:{}", self.port)
    }

    /// The authority's certificate.
    #[must_use]
    pub fn ca(&self) -> &Path {
        &self.ca
    }

    /// `PATH AUTHORIZATION` of every request so far; `-` for none.
    #[must_use]
    pub fn authorizations(&self) -> Vec<String> {
        self.authorizations.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for TlsFront {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // The accept call returns once for this connection.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

/// The lines of a request or response head, and the value of a header.
pub(crate) struct Head(Vec<String>);

impl Head {
    /// `None` when the connection ended.
    pub(crate) fn read(from: &mut impl BufRead) -> Result<Option<Self>> {
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

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let pairs = self.0.iter().skip(1).filter_map(|line| line.split_once(':'));
        pairs.filter(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).next()
    }

    pub(crate) fn method(&self) -> &str {
        self.0.first().and_then(|line| line.split(' ').next()).unwrap_or_default()
    }

    pub(crate) fn target(&self) -> &str {
        self.0.first().and_then(|line| line.split(' ').nth(1)).unwrap_or("/")
    }
}

impl Front {
    fn serve(&self, stream: TcpStream) -> Result<()> {
        stream.set_nodelay(true)?;
        let connection = ServerConnection::new(Arc::clone(&self.config))?;
        let mut stream = BufReader::new(StreamOwned::new(connection, stream));
        while let Some(head) = Head::read(&mut stream)? {
            let authorization = head.header("authorization").unwrap_or("-").to_owned();
            let seen = format!("{} {authorization}", head.target());
            self.authorizations.lock().unwrap_or_else(PoisonError::into_inner).push(seen);
            self.answer(&head, &authorization, stream.get_mut())?;
        }
        Ok(())
    }

    fn answer(&self, head: &Head, authorization: &str, out: &mut impl Write) -> Result<()> {
        let basic = authorization == format!("Basic {BASIC}");
        if self.scheme == Scheme::Bearer && head.target().starts_with("/token") {
            let body = format!(r#"{{"token":"{TOKEN}","expires_in":300}}"#);
            return if basic { respond(out, "200 OK", "Content-Type: application/json\r\n", &body) } else { self.refuse(out) };
        }
        let known = match self.scheme {
            Scheme::Basic => basic,
            Scheme::Bearer => authorization == format!("Bearer {TOKEN}"),
        };
        if known { self.forward(head, out) } else { self.refuse(out) }
    }

    fn refuse(&self, out: &mut impl Write) -> Result<()> {
        let challenge = match self.scheme {
            Scheme::Basic => "Basic realm=\"clip test\"".to_owned(),
            Scheme::Bearer => format!("Bearer realm=\"https://{HOST}:{}/token\",service=\"clip-test\"", self.port),
        };
        let body = r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
        respond(out, "401 Unauthorized", &format!("WWW-Authenticate: {challenge}\r\n"), body)
    }

    /// Asks the server behind, over a connection of its own, and passes the answer on.
    fn forward(&self, head: &Head, out: &mut impl Write) -> Result<()> {
        let mut behind = TcpStream::connect(("127.0.0.1", self.behind))?;
        behind.write_all(format!("{}\r\n\r\n", head.0.join("\r\n")).as_bytes())?;
        let mut behind = BufReader::new(behind);
        let answer = Head::read(&mut behind)?.context("an answer")?;
        out.write_all(format!("{}\r\n\r\n", answer.0.join("\r\n")).as_bytes())?;
        let len: u64 = answer.header("content-length").context("a length")?.parse()?;
        std::io::copy(&mut behind.take(len), out)?;
        Ok(out.flush()?)
    }
}

pub(crate) fn respond(out: &mut impl Write, status: &str, headers: &str, body: &str) -> Result<()> {
    write!(out, "HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len())?;
    Ok(out.flush()?)
}
