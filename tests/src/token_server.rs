//! A token server as distribution's token specification wants it: it signs the tokens that a docker-registry with `auth: token:` accepts.

use std::{
    io::{BufReader, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use rustls::{SignatureScheme, crypto::ring::sign::any_supported_type, sign::SigningKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde_json::json;

use crate::{
    http::{Head, Listening, respond},
    process::shell,
};

const ISSUER: &str = "clip-test-issuer";
const SERVICE: &str = "clip-test-registry";
/// A repository below this may be pulled by anybody.
const PUBLIC: &str = "public/";
/// docker-registry takes a token so many seconds after its end yet. Source: distribution registry/auth/token/token.go, `Leeway`.
const LEEWAY_SECONDS: i64 = 60;

/// How long tokens are good, in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Lives {
    /// What the answer says.
    pub said: u64,
    /// What the registry sees.
    pub true_life: i64,
}

/// Who may pull, and with what.
#[derive(Clone, Debug)]
pub struct Account {
    /// Name.
    pub user: String,
    /// For Basic.
    pub password: String,
    /// For OAuth2's POST.
    pub identity_token: String,
}

/// A running token server. Dropping it closes its port.
pub struct TokenServer {
    listening: Listening,
    issued: Arc<Mutex<Vec<Issued>>>,
    dir: tempfile::TempDir,
}

/// A token that was given.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The token.
    pub token: String,
    /// To whom; `None` for anybody.
    pub user: Option<String>,
    /// By POST.
    pub by_post: bool,
}

struct Server {
    account: Account,
    lives: Lives,
    certificate: String,
    key: Arc<dyn SigningKey>,
    issued: Arc<Mutex<Vec<Issued>>>,
}

const CERTIFICATE: &str = r#"
openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj "/CN=clip test token server" -keyout "$1/token.key" -out "$1/token.pem" 2>&1
"#;

impl TokenServer {
    /// A server with a key of its own, which knows `account`.
    ///
    /// # Errors
    /// openssl's, or the system's.
    pub fn start(account: Account, lives: Lives) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("clip-tokens-").tempdir()?;
        shell(CERTIFICATE, &[dir.path().as_os_str()])?;
        let certificate = STANDARD.encode(CertificateDer::from_pem_file(dir.path().join("token.pem"))?);
        let key = any_supported_type(&PrivateKeyDer::from_pem_file(dir.path().join("token.key"))?)?;
        let issued = Arc::default();
        let server = Server { account, lives, certificate, key, issued: Arc::clone(&issued) };
        let listening = Listening::start(move |stream, _| server.serve(&stream))?;
        Ok(Self { listening, issued, dir })
    }

    /// The part of docker-registry's configuration that makes it want these tokens.
    #[must_use]
    pub fn registry_auth(&self) -> String {
        format!(
            "auth:\n  token:\n    realm: http://127.0.0.1:{}/token\n    service: {SERVICE}\n    issuer: {ISSUER}\n    rootcertbundle: {}\n",
            self.listening.port(),
            self.certificate().display()
        )
    }

    fn certificate(&self) -> PathBuf {
        Path::new(self.dir.path()).join("token.pem")
    }

    /// The tokens given so far.
    #[must_use]
    pub fn issued(&self) -> Vec<Issued> {
        self.issued.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Who asks: nobody, the account, or somebody with the wrong password.
enum Asker {
    Anybody,
    Known,
    Wrong,
}

impl Server {
    fn serve(&self, stream: &TcpStream) -> Result<()> {
        let (mut from, mut to) = (BufReader::new(stream), stream);
        while let Some(head) = Head::read(&mut from)? {
            let len: usize = head.header("content-length").map_or(Ok(0), str::parse)?;
            let mut body = vec![0; len];
            from.read_exact(&mut body)?;
            self.answer(&head, &String::from_utf8(body)?, &mut to)?;
        }
        Ok(())
    }

    fn answer(&self, head: &Head, body: &str, to: &mut impl Write) -> Result<()> {
        let by_post = head.method() == "POST";
        let parameters = if by_post { body } else { head.target().split_once('?').map_or("", |(_, query)| query) };
        let parameter = |name: &str| {
            let found = parameters.split('&').filter_map(|pair| pair.split_once('=')).find(|(known, _)| *known == name);
            found.map(|(_, value)| decoded(value))
        };
        let asker = match (by_post, head.header("authorization")) {
            (true, _) if parameter("refresh_token").as_deref() == Some(self.account.identity_token.as_str()) => Asker::Known,
            (false, None) => Asker::Anybody,
            (false, Some(value))
                if value == format!("Basic {}", STANDARD.encode(format!("{}:{}", self.account.user, self.account.password))) =>
            {
                Asker::Known
            }
            _ => Asker::Wrong,
        };
        let scope = parameter("scope").unwrap_or_default();
        let user = match asker {
            Asker::Wrong => return respond(to, "401 Unauthorized", "", r#"{"details":"incorrect username or password"}"#),
            Asker::Anybody => None,
            Asker::Known => Some(self.account.user.clone()),
        };
        let repository = scope.strip_prefix("repository:").and_then(|rest| rest.rsplit_once(':')).map_or("", |(name, _)| name);
        let may_pull = user.is_some() || repository.starts_with(PUBLIC);
        let token = self.token(repository, may_pull)?;
        self.issued.lock().unwrap_or_else(PoisonError::into_inner).push(Issued { token: token.clone(), user, by_post });
        let name = if by_post { "access_token" } else { "token" };
        let answer = json!({ name: token, "expires_in": self.lives.said });
        respond(to, "200 OK", "Content-Type: application/json\r\n", &answer.to_string())
    }

    fn token(&self, repository: &str, may_pull: bool) -> Result<String> {
        let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?;
        let actions: &[&str] = if may_pull { &["pull"] } else { &[] };
        let number = self.issued.lock().unwrap_or_else(PoisonError::into_inner).len();
        let header = json!({"typ": "JWT", "alg": "RS256", "x5c": [self.certificate]});
        let claims = json!({
            "iss": ISSUER, "sub": self.account.user, "aud": SERVICE, "jti": format!("{repository}-{number}"),
            "exp": now + self.lives.true_life - LEEWAY_SECONDS, "nbf": now - 600, "iat": now - 600,
            "access": [{"type": "repository", "name": repository, "actions": actions}],
        });
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()));
        let signer = self.key.choose_scheme(&[SignatureScheme::RSA_PKCS1_SHA256]).context("an RSA key")?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signer.sign(signed.as_bytes())?)))
    }
}

/// `%XX` and `+` as the characters they stand for.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let hex = after.get(..2).filter(|_| *first == b'%').and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        bytes.push(hex.unwrap_or(if *first == b'+' { b' ' } else { *first }));
        rest = if hex.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
