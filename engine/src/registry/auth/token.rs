//! Asking a token server for a token.
//!
//! Source: distribution's token specifications ("jwt", "oauth"); containerd's core/remotes/docker/auth for what servers do instead.

use std::time::{Duration, SystemTime};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use hyper::{
    HeaderMap, Method,
    header::{AUTHORIZATION, CONTENT_TYPE, DATE, HeaderValue},
};
use serde::Deserialize;

use super::secret::{Credentials, Secret};
use crate::{
    error::EngineError,
    registry::{
        exchange::{Answerer, Ask, Exchange, Transport},
        location::{Location, Scheme, percent_encoded},
        redirect::{self, REDIRECTS_MAX, is_redirect},
        retry::Failure,
    },
};

/// How long a token lives when its server does not say. Source: distribution's token specification, `expires_in`.
const TOKEN_LIFE_DEFAULT: Duration = Duration::from_secs(60);
/// No token is trusted longer: a clock may jump, a server may answer nonsense. Source: registries' tokens live for 5 min to 12 h (Docker Hub,
/// Amazon ECR); a request a day costs nothing.
const TOKEN_LIFE_MAX: Duration = Duration::from_secs(24 * 3600);
/// Source: the largest tokens seen (Azure, GCP) are below 10 KB.
const TOKEN_BYTES_MAX: u64 = 1 << 20;

/// A token request.
pub(super) struct Wanted<'a> {
    pub realm: &'a str,
    pub service: Option<&'a str>,
    pub scope: &'a str,
}

/// What a token server gave.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Token {
    /// Marked as sensitive.
    pub authorization: HeaderValue,
    /// What is left of it.
    pub life: Duration,
}

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
    /// A number; of some servers a text.
    expires_in: Option<serde_json::Value>,
    issued_at: Option<serde_json::Value>,
}

impl Wanted<'_> {
    /// A token. With an identity token by OAuth2's POST, and where a server does not take that by GET; else by GET, with Basic if there is
    /// a password.
    pub async fn fetch(&self, transport: &Transport, credentials: Option<&Credentials>) -> Result<Token, Failure> {
        let realm = self.realm()?;
        if realm.origin.scheme == Scheme::Http && !transport.allows_plain(&realm.origin) {
            let expected = "a token server behind https (or --plain-http)".to_owned();
            return Err(EngineError::Invalid { what: "realm of the registry".to_owned(), expected, found: realm.to_string() }.into());
        }
        match credentials {
            Some(Credentials::IdentityToken(token)) => match self.post(transport, &realm, token).await {
                Err(posted) if is_no_post(&posted) => {
                    // Basic without a name, as containerd sends it to such servers.
                    let got = self.get(transport, &realm, Some(basic("", token))).await;
                    got.map_err(|got| if matches!(got.error, EngineError::Status { .. }) { posted } else { got })
                }
                posted => posted,
            },
            Some(Credentials::Password { user, password }) => self.get(transport, &realm, Some(basic(user, password))).await,
            Some(Credentials::RegistryToken(_)) | None => self.get(transport, &realm, None).await,
        }
        .map_err(|failure| of_token_server(without(credentials, failure)))
    }

    fn realm(&self) -> Result<Location, EngineError> {
        Location::parse(self.realm).map_err(|error| {
            let found = if let EngineError::Invalid { found, .. } = error { found } else { String::new() };
            let what = "realm of the registry's WWW-Authenticate, its token server".to_owned();
            EngineError::Invalid { what, expected: "a URL".to_owned(), found }
        })
    }

    fn query(&self) -> String {
        let mut query = format!("scope={}", percent_encoded(self.scope));
        if let Some(service) = self.service {
            query.push_str("&service=");
            query.push_str(&percent_encoded(service));
        }
        query
    }

    async fn post(&self, transport: &Transport, realm: &Location, identity: &Secret) -> Result<Token, Failure> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        let token = percent_encoded(identity.reveal());
        let form = format!("grant_type=refresh_token&client_id=clip&{}&refresh_token={token}", self.query());
        let ask = Ask { method: Method::POST, headers, body: Bytes::from(form) };
        token_of(transport.send(realm, &ask).await?).await
    }

    async fn get(&self, transport: &Transport, realm: &Location, authorization: Option<HeaderValue>) -> Result<Token, Failure> {
        let mut url = realm.with_query(&self.query())?;
        for _ in 0..=REDIRECTS_MAX {
            let mut headers = HeaderMap::new();
            if let Some(authorization) = authorization.as_ref().filter(|_| url.origin == realm.origin) {
                headers.insert(AUTHORIZATION, authorization.clone());
            }
            let exchange = transport.send(&url, &Ask::get(headers)).await?;
            if !is_redirect(exchange.status()) {
                return token_of(exchange).await;
            }
            url = redirect::target(&exchange, transport)?;
            exchange.drain().await;
        }
        let expected = format!("at most {REDIRECTS_MAX} redirects");
        Err(EngineError::Protocol { method: "GET", url: url.to_string(), expected, found: "another".to_owned() }.into())
    }
}

/// Whether `failure` may only mean that this server takes no POST: 404 and 405 say so, 400 and 401 are what Azure's and JFrog's said.
fn is_no_post(failure: &Failure) -> bool {
    matches!(failure.error, EngineError::Status { status: 400 | 401 | 404 | 405, .. })
}

/// Whether a token server refused the credentials themselves.
pub(super) fn is_refusal(failure: &Failure) -> bool {
    matches!(failure.error, EngineError::Status { status: 400 | 401 | 403, .. })
}

/// `failure` without the server's own words, should they repeat the secret.
fn without(credentials: Option<&Credentials>, mut failure: Failure) -> Failure {
    if let EngineError::Status { detail, .. } = &mut failure.error
        && credentials.is_some_and(|credentials| credentials.is_in(detail))
    {
        detail.clear();
    }
    failure
}

/// `failure` says whose it is: statuses do so by their advice.
fn of_token_server(mut failure: Failure) -> Failure {
    match &mut failure.error {
        EngineError::Transport { reason, .. } => reason.insert_str(0, "the registry's token server: "),
        EngineError::Deadline { what, .. } => what.push_str(" (the registry's token server)"),
        _ => {}
    }
    failure
}

async fn token_of(exchange: Exchange) -> Result<Token, Failure> {
    if !exchange.status().is_success() {
        return Err(exchange.into_failure_of(Answerer::TokenServer).await);
    }
    let (method, url) = (exchange.method, exchange.url.to_string());
    let now = exchange.header(DATE).and_then(|date| httpdate::parse_http_date(date).ok()).unwrap_or_else(SystemTime::now);
    let body = exchange.bytes(TOKEN_BYTES_MAX).await?;
    parse_token(&body, now).map_err(|found| {
        let expected = "JSON with a token".to_owned();
        EngineError::Protocol { method, url, expected, found: found.to_owned() }.into()
    })
}

/// `now` is the server's own: what a token has lived already does not depend on our clock.
fn parse_token(body: &[u8], now: SystemTime) -> Result<Token, &'static str> {
    // serde's own message may quote the token.
    let answer: Answer = serde_json::from_slice(body).map_err(|_| "something else")?;
    let filled = |token: Option<String>| token.filter(|token| !token.is_empty());
    let token = filled(answer.token).or(filled(answer.access_token)).ok_or("none")?;
    let life = answer.expires_in.as_ref().and_then(seconds).unwrap_or(TOKEN_LIFE_DEFAULT).min(TOKEN_LIFE_MAX);
    let issued = answer.issued_at.as_ref().and_then(|at| at.as_str()?.parse::<jiff::Timestamp>().ok());
    let issued = issued.and_then(|at| Some(SystemTime::UNIX_EPOCH + Duration::from_secs(at.as_second().try_into().ok()?)));
    let age = issued.and_then(|issued| now.duration_since(issued).ok()).unwrap_or_default();
    Ok(Token { authorization: bearer(&Secret::new(token)).ok_or("one that is no header value")?, life: life.saturating_sub(age) })
}

/// A number of seconds, whole or not, or a text that is one; a negative one is none left.
fn seconds(value: &serde_json::Value) -> Option<Duration> {
    let number = value.as_f64().or_else(|| value.as_str()?.trim().parse().ok())?;
    Some(Duration::try_from_secs_f64(number.max(0.0)).unwrap_or(TOKEN_LIFE_MAX))
}

/// `None` when it holds what no header may.
pub(super) fn bearer(token: &Secret) -> Option<HeaderValue> {
    sensitive(&format!("Bearer {}", token.reveal()))
}

pub(super) fn basic(user: &str, password: &Secret) -> HeaderValue {
    let pair = STANDARD.encode(format!("{user}:{}", password.reveal()));
    sensitive(&format!("Basic {pair}")).expect("base64 is ASCII")
}

fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn life(rest: &str, now_seconds: u64) -> u64 {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(now_seconds);
        parse_token(format!(r#"{{"token":"t"{rest}}}"#).as_bytes(), now).unwrap().life.as_secs()
    }

    /// Claim: a token's life is what its server says, less what it has lived by the server's own clock, within bounds.
    #[test]
    fn a_tokens_life_is_what_is_left_of_it() {
        // 2026-01-01T00:00:00Z
        let now = 1_767_225_600;
        for (rest, expected) in [
            ("", 60),
            (r#","expires_in":300"#, 300),
            (r#","expires_in":"300""#, 300),
            (r#","expires_in":299.5"#, 299),
            (r#","expires_in":-5"#, 0),
            (r#","expires_in":1e300"#, 24 * 3600),
            (r#","expires_in":null"#, 60),
            (r#","expires_in":"soon""#, 60),
            (r#","expires_in":300,"issued_at":"2025-12-31T23:58:20Z""#, 200),
            (r#","expires_in":300,"issued_at":"2026-01-01T00:58:20.123456789+01:00""#, 200),
            (r#","issued_at":"2025-12-31T23:00:00Z""#, 0),
            (r#","expires_in":300,"issued_at":"2026-01-01T01:00:00Z""#, 300),
            (r#","expires_in":300,"issued_at":"yesterday""#, 300),
            (r#","expires_in":300,"issued_at":7"#, 300),
        ] {
            assert_eq!(life(rest, now), expected, "{rest}");
        }
    }

    /// Claim: either name of the token is taken, an empty one is none, and what is wrong is said without quoting it.
    #[test]
    fn tokens_have_two_names() {
        let parse = |body: &str| parse_token(body.as_bytes(), SystemTime::UNIX_EPOCH).map(|token| token.authorization);
        assert_eq!(parse(r#"{"token":"a","access_token":"b"}"#).unwrap(), "Bearer a");
        assert_eq!(parse(r#"{"token":"","access_token":"b"}"#).unwrap(), "Bearer b");
        assert!(parse(r#"{"token":"a"}"#).unwrap().is_sensitive());
        for body in ["s3cret", "{}", r#"{"token":""}"#, r#"{"token":"s3\ncret"}"#, r#"{"token":["s3cret"]}"#] {
            assert!(!parse(body).unwrap_err().contains("s3"), "{body}");
        }
    }
}
