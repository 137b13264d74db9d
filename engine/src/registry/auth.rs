//! Credentials and tokens: asked for when a request needs them, kept in memory only.
//!
//! [`login`] says where credentials come from, in which order; `auth_file`, `variables` and `helper` are the places. `challenge` is what a
//! registry wants to see, `token` asks for it. Here: what one registry let us do in one repository, and for how long.

mod auth_file;
mod challenge;
mod helper;
mod logins;
mod names;
mod token;
mod variables;

pub mod login;
pub mod secret;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use hyper::{
    StatusCode,
    header::{HeaderValue, WWW_AUTHENTICATE},
};

use self::{
    challenge::Challenge,
    logins::{Candidates, Logins},
    names::Names,
    secret::Credentials,
    token::{Wanted, basic, bearer, is_refusal},
};
use super::{
    exchange::{Exchange, Transport},
    reference::Reference,
    retry::{Again, Failure},
};
use crate::error::EngineError;

pub use self::{
    login::{Environment, Login, Typed},
    logins::LoggedIn,
    secret::Secret,
};

/// A token is replaced this long before its end, so that it does not end under way. Source: 30 s, the default time of a read, is the
/// longest way; but a token of 60 s must be of use too, so a quarter of its life at most.
const TOKEN_MARGIN_MAX: Duration = Duration::from_secs(30);
/// How long a token that could not be replaced, but lives yet, is used before the next attempt. Source: the cap of our own waits between tries.
const RENEW_AGAIN: Duration = Duration::from_secs(5);
/// Repositories whose grants are remembered; past it all are forgotten, which costs a request each. Source: judgement: more than one node's
/// images name; with tokens of 10 KB 40 MB.
const SLOTS_MAX: usize = 4096;

/// What a registry was asked for when it refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// Something of a repository.
    Repository,
    /// `/v2/`: what that wants is not what a repository does.
    Root,
}

/// What one registry let us do in one repository.
#[derive(Clone)]
struct Grant {
    challenge: Challenge,
    authorization: HeaderValue,
    /// How many logins before the one that it is of were refused.
    refused_before: usize,
    /// `None`: as long as it is accepted.
    life: Option<Life>,
}

#[derive(Clone, Copy)]
struct Life {
    renew_at: Instant,
    ends_at: Instant,
}

impl Grant {
    fn is_fresh(&self) -> bool {
        self.life.is_none_or(|life| Instant::now() < life.renew_at)
    }

    fn is_alive(&self) -> bool {
        self.life.is_none_or(|life| Instant::now() < life.ends_at)
    }

    /// The same, to be renewed a little later.
    fn postponed(mut self) -> Self {
        if let Some(life) = &mut self.life {
            life.renew_at = life.ends_at.min(Instant::now() + RENEW_AGAIN);
        }
        self
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
        self.grant = None;
        self.grant = asked.inspect_err(|failure| self.failed = Some((Instant::now(), failure.clone())))?;
        Ok(self.grant.as_ref().map(|grant| grant.authorization.clone()))
    }
}

/// A repository at the host that is asked.
#[derive(Clone, Copy)]
pub(super) struct Repository<'a> {
    /// What it is called there: under this name credentials are looked up.
    pub here: &'a Reference,
    /// What the image is called: whose mounts read this, their logins are asked.
    pub image: &'a Reference,
}

/// Registry and repository of an image.
type ImageName = (String, String);

/// Grants per host, and per image: two images may be one repository at a mirror that keeps both, and have different readers.
pub(super) struct Auth {
    pub logins: Logins,
    slots: Mutex<HashMap<(ImageName, ImageName), Slot>>,
}

fn name(reference: &Reference) -> ImageName {
    (reference.registry.clone(), reference.repository.clone())
}

impl Auth {
    /// `login`: of whoever the client works for, where nobody else has logged in.
    pub fn new(login: Login) -> Self {
        Self { logins: Logins::new(login), slots: Mutex::default() }
    }

    fn slot(&self, repository: Repository<'_>) -> Slot {
        let key = (name(repository.here), name(repository.image));
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= SLOTS_MAX && !slots.contains_key(&key) {
            slots.clear();
        }
        Arc::clone(slots.entry(key).or_default())
    }

    /// What was granted for `image`, anywhere, is forgotten.
    pub(super) fn forget(&self, image: &ImageName) {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).retain(|(_, known), _| known != image);
    }

    /// What to send with a first request: the grant there is, renewed if it is about to end.
    pub async fn authorization(&self, transport: &Transport, repository: Repository<'_>) -> Result<Option<HeaderValue>, Failure> {
        let (since, slot) = (Instant::now(), self.slot(repository));
        let mut standing = slot.lock().await;
        let Some(old) = standing.grant.clone() else {
            return standing.failed_since(since).map(|()| None);
        };
        if old.is_fresh() {
            return Ok(Some(old.authorization));
        }
        let mut candidates = self.logins.candidates(repository.image, old.refused_before);
        let asked = match grant(transport, repository.here, &old.challenge, &mut candidates, None).await {
            Err(failure) if old.is_alive() => {
                tracing::debug!(error = %failure.error, "a token that is about to end cannot be replaced yet");
                Ok(Some(old.postponed()))
            }
            asked => asked,
        };
        standing.settle(asked)
    }

    /// Whether anybody who is logged in has credentials for `repository`; a place that cannot be read counts as none.
    pub async fn has_credentials(&self, transport: &Transport, repository: Repository<'_>) -> bool {
        let mut candidates = self.logins.candidates(repository.image, 0);
        while let Some(login) = candidates.next() {
            if credentials(transport, login, repository.here).await.is_ok_and(|found| found.is_some()) {
                return true;
            }
        }
        false
    }

    /// `failure`, a refusal, with the password that somebody typed for the registry of the image, but that the host which is asked did not get.
    pub fn with_what_was_not_sent(&self, repository: Repository<'_>, mut failure: Failure) -> Failure {
        let (asked, named) = (&repository.here.registry, &repository.image.registry);
        if let EngineError::Status { status: 400 | 401 | 403, detail, .. } = &mut failure.error
            && !Names::of(asked, "").is_host(named)
            && self.logins.has_password_of(repository.image)
        {
            detail.push_str(&format!(
                "; --creds are of {named} and were not sent to {asked}, which its hosts.toml names: log in to {asked} (docker login), or ask for the image there"
            ));
        }
        failure
    }

    /// What to send after `refusal` of what was `asked`, a request that carried `refused`; `None` when there is nothing better to send.
    /// `tried` answers of this request were refused before.
    pub async fn answer(
        &self,
        transport: &Transport,
        repository: Repository<'_>,
        asked: Asked,
        refusal: &Exchange,
        refused: Option<&HeaderValue>,
        tried: usize,
    ) -> Result<Option<HeaderValue>, Failure> {
        if tried > logins::CANDIDATES_MAX {
            return Ok(None);
        }
        let (since, slot) = (Instant::now(), self.slot(repository));
        let mut standing = slot.lock().await;
        if let Some(other) = standing.grant.as_ref()
            && other.is_fresh()
            && Some(&other.authorization) != refused
        {
            // Another request was refused too and has renewed it meanwhile.
            return Ok(Some(other.authorization.clone()));
        }
        let old = standing.grant.take();
        standing.failed_since(since)?;
        let challenge = challenge::choose(challenges(refusal))
            .map_err(|found| refusal.contradiction("a 401 with a Bearer or Basic challenge", found))?;
        let challenge = match asked {
            Asked::Repository => challenge,
            Asked::Root => challenge.without_scope(),
        };
        let refused_before = match &old {
            // A token that was good may have ended, and a wider scope may be had; what was new is no good.
            Some(old) => old.refused_before + usize::from(tried > 0 && old.challenge == challenge),
            None => tried,
        };
        let mut candidates = self.logins.candidates(repository.image, refused_before);
        let granted = grant(transport, repository.here, &challenge, &mut candidates, refused).await;
        Ok(standing.settle(granted)?.filter(|new| Some(new) != refused))
    }
}

/// What the next login that knows credentials is granted; without any, what anybody is granted.
async fn grant(
    transport: &Transport,
    reference: &Reference,
    challenge: &Challenge,
    candidates: &mut Candidates,
    refused: Option<&HeaderValue>,
) -> Result<Option<Grant>, Failure> {
    let mut failed = None;
    while let Some(login) = candidates.next() {
        let credentials = match credentials(transport, login, reference).await {
            Ok(Some(credentials)) => credentials,
            Ok(None) => continue,
            Err(error) => {
                failed.get_or_insert(Failure::from(error));
                continue;
            }
        };
        let refused_before = candidates.refused;
        if !candidates.is_next_to_try() {
            continue;
        }
        match grant_for(transport, reference, challenge, Some(&credentials), refused_before).await {
            Ok(grant) if Some(&grant.authorization) == refused => {}
            Ok(grant) => return Ok(Some(grant)),
            Err(failure) if is_refusal(&failure) || matches!(failure.error, EngineError::Credentials { .. }) => {
                failed.get_or_insert(failure);
            }
            Err(failure) => return Err(failure),
        }
    }
    match (failed, challenge) {
        (Some(failure), _) => Err(failure),
        (None, Challenge::Bearer { .. }) if candidates.may_be_anonymous() => {
            grant_for(transport, reference, challenge, None, 0).await.map(Some)
        }
        _ => Ok(None),
    }
}

async fn grant_for(
    transport: &Transport,
    reference: &Reference,
    challenge: &Challenge,
    credentials: Option<&Credentials>,
    refused_before: usize,
) -> Result<Grant, Failure> {
    let unusable = |reason: &str| EngineError::Credentials { registry: reference.registry.clone(), reason: reason.to_owned() };
    let (authorization, life) = match (challenge, credentials) {
        (_, Some(Credentials::RegistryToken(token))) => {
            (bearer(token).ok_or_else(|| unusable("the registrytoken in the auth file is no header value"))?, None)
        }
        (Challenge::Basic, Some(Credentials::Password { user, password })) => (basic(user, password), None),
        (Challenge::Basic, _) => {
            return Err(unusable("the registry wants a user name and password, but an identity token is what was found").into());
        }
        (Challenge::Bearer { realm, service, scope }, credentials) => {
            let own_scope = format!("repository:{}:pull", reference.repository);
            let wanted = Wanted { realm, service: service.as_deref(), scope: scope.as_deref().unwrap_or(&own_scope) };
            let token = wanted.fetch(transport, credentials).await?;
            let now = Instant::now();
            let renew_at = now + token.life - TOKEN_MARGIN_MAX.min(token.life / 4);
            (token.authorization, Some(Life { renew_at, ends_at: now + token.life }))
        }
    };
    Ok(Grant { challenge: challenge.clone(), authorization, refused_before, life })
}

/// Reads files and runs helpers on a thread of its own, for both block.
async fn credentials(transport: &Transport, login: Arc<Login>, reference: &Reference) -> Result<Option<Credentials>, EngineError> {
    let (registry, repository) = (reference.registry.clone(), reference.repository.clone());
    let helper_time_max = helper::time_max(transport.config.patience);
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let failed = |reason: String| EngineError::Credentials { registry: reference.registry.clone(), reason };
    std::thread::Builder::new()
        .name("clip-credentials".to_owned())
        .spawn(move || {
            let _ = sender.send(login.credentials(&registry, &repository, helper_time_max));
        })
        .map_err(|error| failed(format!("cannot start a thread: {error}")))?;
    receiver.await.map_err(|_| failed("the thread that asked for them ended".to_owned()))?
}

fn challenges(exchange: &Exchange) -> impl Iterator<Item = &str> {
    exchange.head.headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok())
}

/// Whether other credentials may change this answer: a 401, or a 403 that asks for a wider scope.
pub(super) fn wants_others(exchange: &Exchange) -> bool {
    match exchange.status() {
        StatusCode::UNAUTHORIZED => true,
        StatusCode::FORBIDDEN => challenge::is_insufficient_scope(challenges(exchange)) && challenge::choose(challenges(exchange)).is_ok(),
        _ => false,
    }
}

/// Whether a 401 does not say what it wants to see.
pub(super) fn has_no_challenge(exchange: &Exchange) -> bool {
    exchange.status() == StatusCode::UNAUTHORIZED && challenge::choose(challenges(exchange)).is_err()
}

/// A 401 that nothing could answer is final.
pub(super) async fn refused(exchange: Exchange) -> Failure {
    Failure { again: Again::Never, ..exchange.into_failure().await }
}
