//! A front of the scripted registry that speaks TLS under a private authority and wants to know who asks.

use std::{
    io::{BufReader, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use crate::{
    faults::Server,
    http::{Head, Listening, respond},
    process::shell,
};

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

/// A certificate that an authority signs, by the name in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaf {
    /// `server.pem` and `server.key`.
    Server(&'static str),
    /// `client.pem` and `client.key`.
    Client(&'static str),
}

/// An authority of its own and the certificates that it signed, in a directory: `ca.pem` and those of `leaves`.
///
/// # Errors
/// openssl's.
pub fn certificates(leaves: &[Leaf]) -> Result<tempfile::TempDir> {
    let dir = tempfile::Builder::new().prefix("clip-tls-").tempdir()?;
    shell(AUTHORITY, &[dir.path().as_os_str()])?;
    for leaf in leaves {
        let (kind, name) = match leaf {
            Leaf::Server(name) => ("server", name),
            Leaf::Client(name) => ("client", name),
        };
        shell(LEAF, &[dir.path().as_os_str(), kind.as_ref(), name.as_ref()])?;
    }
    Ok(dir)
}

/// A running front. Dropping it closes its port.
pub struct TlsFront {
    listening: Listening,
    ca: PathBuf,
    authorizations: Arc<Mutex<Vec<String>>>,
    _dir: tempfile::TempDir,
}

struct Front {
    behind: u16,
    scheme: Scheme,
    config: Arc<ServerConfig>,
    authorizations: Arc<Mutex<Vec<String>>>,
}

const AUTHORITY: &str = r#"
cd "$1"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj "/CN=clip test authority" \
    -keyout ca.key -out ca.pem -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign 2>&1
"#;

const LEAF: &str = r#"
cd "$1"
openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=$3" -keyout "$2.key" -out "$2.csr" 2>&1
printf 'subjectAltName=DNS:%s\nbasicConstraints=CA:FALSE\nextendedKeyUsage=%sAuth\n' "$3" "$2" > extensions
openssl x509 -req -in "$2.csr" -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 -extfile extensions -out "$2.pem" 2>&1
"#;

impl TlsFront {
    /// A front of `server`, with certificates of its own.
    ///
    /// # Errors
    /// openssl's, or the system's.
    pub fn start(server: &Server, scheme: Scheme) -> Result<Self> {
        let dir = certificates(&[Leaf::Server(HOST)])?;
        let certificate = CertificateDer::from_pem_file(dir.path().join("server.pem"))?;
        let key = PrivateKeyDer::from_pem_file(dir.path().join("server.key"))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let config = Arc::new(config.with_no_client_auth().with_single_cert(vec![certificate], key)?);
        let authorizations = Arc::default();
        let front = Front { behind: server.port(), scheme, config, authorizations: Arc::clone(&authorizations) };
        let listening = Listening::start(move |stream, _| front.serve(stream))?;
        Ok(Self { listening, ca: dir.path().join("ca.pem"), authorizations, _dir: dir })
    }

    /// `registry.clip.test:PORT/test/NAME:TAG`
    #[must_use]
    pub fn reference(&self, name: &str, tag: &str) -> String {
        format!("{HOST}:{}/test/{name}:{tag}", self.listening.port())
    }

    /// `registry.clip.test:PORT`
    #[must_use]
    pub fn authority(&self) -> String {
        format!("{HOST}:{}", self.listening.port())
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

impl Front {
    fn serve(&self, stream: TcpStream) -> Result<()> {
        stream.set_nodelay(true)?;
        let port = stream.local_addr()?.port();
        let connection = ServerConnection::new(Arc::clone(&self.config))?;
        let mut stream = BufReader::new(StreamOwned::new(connection, stream));
        while let Some(head) = Head::read(&mut stream)? {
            let authorization = head.header("authorization").unwrap_or("-").to_owned();
            let seen = format!("{} {authorization}", head.target());
            self.authorizations.lock().unwrap_or_else(PoisonError::into_inner).push(seen);
            self.answer(&head, &authorization, port, stream.get_mut())?;
        }
        Ok(())
    }

    fn answer(&self, head: &Head, authorization: &str, port: u16, out: &mut impl Write) -> Result<()> {
        let basic = authorization == format!("Basic {BASIC}");
        if self.scheme == Scheme::Bearer && head.target().starts_with("/token") {
            let body = format!(r#"{{"token":"{TOKEN}","expires_in":300}}"#);
            return if basic { respond(out, "200 OK", "Content-Type: application/json\r\n", &body) } else { self.refuse(port, out) };
        }
        let known = match self.scheme {
            Scheme::Basic => basic,
            Scheme::Bearer => authorization == format!("Bearer {TOKEN}"),
        };
        if known { self.forward(head, out) } else { self.refuse(port, out) }
    }

    fn refuse(&self, port: u16, out: &mut impl Write) -> Result<()> {
        let challenge = match self.scheme {
            Scheme::Basic => "Basic realm=\"clip test\"".to_owned(),
            Scheme::Bearer => format!("Bearer realm=\"https://{HOST}:{port}/token\",service=\"clip-test\""),
        };
        let body = r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
        respond(out, "401 Unauthorized", &format!("WWW-Authenticate: {challenge}\r\n"), body)
    }

    /// Asks the server behind, over a connection of its own, and passes the answer on.
    fn forward(&self, head: &Head, out: &mut impl Write) -> Result<()> {
        let mut behind = TcpStream::connect(("127.0.0.1", self.behind))?;
        behind.write_all(head.to_text().as_bytes())?;
        let mut behind = BufReader::new(behind);
        let answer = Head::read(&mut behind)?.context("an answer")?;
        out.write_all(answer.to_text().as_bytes())?;
        let len: u64 = answer.header("content-length").context("a length")?.parse()?;
        std::io::copy(&mut behind.take(len), out)?;
        Ok(out.flush()?)
    }
}
