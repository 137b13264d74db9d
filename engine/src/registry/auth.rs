//! Credentials and tokens: asked for when a request needs them, kept in memory only.

mod challenge;
mod docker_config;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use hyper::{
    HeaderMap, Method,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE},
};
use serde::Deserialize;

use self::{challenge::Challenge, docker_config::Credentials};
use super::{
    exchange::{Ask, Exchange, Transport},
    location::{Location, Scheme, percent_encoded},
    reference::Reference,
    retry::{Again, Failure},
};
use crate::error::EngineError;

/// How long a token lives when its server does not say. Source: distribution's token specification, `expires_in`.
const TOKEN_LIFE_DEFAULT: Duration = Duration::from_secs(60);
/// No token is trusted longer: a clock may jump, a server may answer nonsense.
const TOKEN_LIFE_MAX: Duration = Duration::from_secs(24 * 3600);
/// A token is replaced this long before its end, so that it does not end under way. Source: the default first-byte deadline, 30 s, is the
/// longest way; but a token of 60 s must be of use too, so a quarter of its life at most.
const TOKEN_MARGIN_MAX: Duration = Duration::from_secs(30);
/// Source: the largest tokens seen (Azure, GCP) are below 10 KB.
const TOKEN_BYTES_MAX: u64 = 1 << 20;
/// Repositories whose grants are remembered; past it all are forgotten, which costs a request each.
const SLOTS_MAX: usize = 4096;

/// What one registry let us do in one repository.
struct Grant {
    challenge: Challenge,
    authorization: HeaderValue,
    /// `None`: as long as it is accepted.
    renew_at: Option<Instant>,
}

impl Grant {
    fn is_fresh(&self) -> bool {
        self.renew_at.is_none_or(|at| Instant::now() < at)
    }
}

/// One asker at a time: the others wait for its token, or fail with it.
type Slot = Arc<tokio::sync::Mutex<Standing>>;

/// How we stand with one registry for one repository.
#[derive(Default)]
struct Standing {
    grant: Option<Grant>,
    /// When asking last failed, and why. Else those who waited would each wait for a dead token server in turn.
    failed: Option<(Instant, Failure)>,
}

impl Standing {
    /// The failure of whoever asked while a caller waited since `since`.
    fn failed_since(&self, since: Instant) -> Result<(), Failure> {
        match &self.failed {
            Some((at, failure)) if *at >= since => Err(failure.clone()),
            _ => Ok(()),
        }
    }

    /// Keeps what asking gave.
    fn settle(&mut self, asked: Result<Option<Grant>, Failure>) -> Result<Option<HeaderValue>, Failure> {
        self.grant = asked.inspect_err(|failure| self.failed = Some((Instant::now(), failure.clone())))?;
        Ok(self.grant.as_ref().map(|grant| grant.authorization.clone()))
    }
}

/// Grants per registry and repository.
pub(super) struct Auth {
    docker_config_dir: Option<PathBuf>,
    slots: Mutex<HashMap<(String, String), Slot>>,
}

impl Auth {
    pub fn new(docker_config_dir: Option<PathBuf>) -> Self {
        Self { docker_config_dir, slots: Mutex::default() }
    }

    fn slot(&self, reference: &Reference) -> Slot {
        let key = (reference.registry.clone(), reference.repository.clone());
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= SLOTS_MAX && !slots.contains_key(&key) {
            slots.clear();
        }
        Arc::clone(slots.entry(key).or_default())
    }

    /// What to send with a first request: the grant there is, renewed if it is about to end.
    pub async fn authorization(&self, transport: &Transport, reference: &Reference) -> Result<Option<HeaderValue>, Failure> {
        let (since, slot) = (Instant::now(), self.slot(reference));
        let mut standing = slot.lock().await;
        match standing.grant.take() {
            Some(old) if !old.is_fresh() => {
                let asked = self.grant(transport, reference, old.challenge).await;
                standing.settle(asked)
            }
            None => standing.failed_since(since).map(|()| None),
            kept => standing.settle(Ok(kept)),
        }
    }

    /// What to send after the 401 `refusal` of a request that carried `refused`; `None` when there is nothing better to send.
    pub async fn answer(
        &self,
        transport: &Transport,
        reference: &Reference,
        refusal: &Exchange,
        refused: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>, Failure> {
        let (since, slot) = (Instant::now(), self.slot(reference));
        let mut standing = slot.lock().await;
        if let Some(other) = standing.grant.as_ref()
            && other.is_fresh()
            && Some(&other.authorization) != refused
        {
            // Another request was refused too and has renewed it meanwhile.
            return Ok(Some(other.authorization.clone()));
        }
        standing.grant = None;
        standing.failed_since(since)?;
        let values = refusal.head.headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let challenge =
            challenge::choose(values).map_err(|found| refusal.contradiction("a 401 with a Bearer or Basic challenge", found))?;
        let asked = self.grant(transport, reference, challenge).await;
        Ok(standing.settle(asked)?.filter(|new| Some(new) != refused))
    }

    async fn grant(&self, transport: &Transport, reference: &Reference, challenge: Challenge) -> Result<Option<Grant>, Failure> {
        let credentials = self.credentials(&reference.registry).await?;
        match &challenge {
            Challenge::Basic => match credentials {
                Some(Credentials::Password { user, password }) => {
                    let authorization = basic(&user, &password);
                    Ok(Some(Grant { challenge, authorization, renew_at: None }))
                }
                Some(Credentials::IdentityToken(_)) => {
                    let reason = "the registry wants a user name and password, but docker's config has an identity token".to_owned();
                    Err(EngineError::Credentials { registry: reference.registry.clone(), reason }.into())
                }
                None => Ok(None),
            },
            Challenge::Bearer { realm, service, scope } => {
                let own_scope = format!("repository:{}:pull", reference.repository);
                let wanted = Wanted { realm, service: service.as_deref(), scope: scope.as_deref().unwrap_or(&own_scope) };
                let (authorization, life) = wanted.fetch(transport, credentials).await?;
                let renew_at = Some(Instant::now() + life - TOKEN_MARGIN_MAX.min(life / 4));
                Ok(Some(Grant { challenge, authorization, renew_at }))
            }
        }
    }

    /// Reads docker's file and runs its helper on a thread of its own, for both block.
    async fn credentials(&self, registry: &str) -> Result<Option<Credentials>, EngineError> {
        let (dir, host) = (self.docker_config_dir.clone(), registry.to_owned());
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let failed = |reason: String| EngineError::Credentials { registry: registry.to_owned(), reason };
        std::thread::Builder::new()
            .name("clip-credentials".to_owned())
            .spawn(move || {
                let _ = sender.send(docker_config::credentials(dir.as_deref(), &host));
            })
            .map_err(|error| failed(format!("cannot start a thread: {error}")))?;
        receiver.await.map_err(|_| failed("the thread that asked for them ended".to_owned()))?
    }
}

/// A token request.
struct Wanted<'a> {
    realm: &'a str,
    service: Option<&'a str>,
    scope: &'a str,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

impl Wanted<'_> {
    /// A token's header and its life. With an identity token by OAuth2's POST, else by GET, with Basic if there is a password.
    async fn fetch(&self, transport: &Transport, credentials: Option<Credentials>) -> Result<(HeaderValue, Duration), Failure> {
        let realm = Location::parse(self.realm)?;
        if realm.origin.scheme == Scheme::Http && !transport.allows_plain(&realm.origin) {
            let expected = "a token server behind https (or --plain-http)".to_owned();
            return Err(EngineError::Invalid { what: "realm of the registry".to_owned(), expected, found: realm.to_string() }.into());
        }
        let (url, ask) = self.request(realm, credentials)?;
        let exchange = transport.send(&url, &ask).await?;
        if !exchange.status().is_success() {
            let mut failure = exchange.into_failure().await;
            if let EngineError::Status { status: 400 | 401, hint, .. } = &mut failure.error {
                *hint = "; the token server refuses these credentials: check the name, or log in again (docker login)";
            }
            return Err(failure);
        }
        let shown = url.to_string();
        let body = exchange.bytes(TOKEN_BYTES_MAX).await?;
        parse_token(&body).map_err(|found| {
            let expected = "JSON with a token".to_owned();
            EngineError::Protocol { method: ask.method_name(), url: shown, expected, found: found.to_owned() }.into()
        })
    }

    fn request(&self, realm: Location, credentials: Option<Credentials>) -> Result<(Location, Ask), EngineError> {
        let mut query = format!("scope={}", percent_encoded(self.scope));
        if let Some(service) = self.service {
            query.push_str("&service=");
            query.push_str(&percent_encoded(service));
        }
        let mut headers = HeaderMap::new();
        match credentials {
            Some(Credentials::IdentityToken(token)) => {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
                let form = format!("grant_type=refresh_token&client_id=clip&{query}&refresh_token={}", percent_encoded(&token));
                return Ok((realm, Ask { method: Method::POST, headers, body: Bytes::from(form) }));
            }
            Some(Credentials::Password { user, password }) => {
                headers.insert(AUTHORIZATION, basic(&user, &password));
            }
            None => {}
        }
        Ok((realm.with_query(&query)?, Ask::get(headers)))
    }
}

fn parse_token(body: &[u8]) -> Result<(HeaderValue, Duration), &'static str> {
    // serde's own message may quote the token.
    let answer: TokenAnswer = serde_json::from_slice(body).map_err(|_| "something else")?;
    let token = answer.token.or(answer.access_token).filter(|token| !token.is_empty()).ok_or("none")?;
    let mut authorization = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| "one that is no header value")?;
    authorization.set_sensitive(true);
    let life = answer.expires_in.map_or(TOKEN_LIFE_DEFAULT, Duration::from_secs).min(TOKEN_LIFE_MAX);
    Ok((authorization, life))
}

fn basic(user: &str, password: &str) -> HeaderValue {
    let encoded = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
    let mut value = HeaderValue::from_str(&encoded).expect("base64 is ASCII");
    value.set_sensitive(true);
    value
}

/// A 401 that nothing could answer is final.
pub(super) async fn refused(exchange: Exchange) -> Failure {
    Failure { again: Again::Never, ..exchange.into_failure().await }
}
