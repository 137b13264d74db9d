//! One try of one GET at one host of a registry: credentials, redirects and what the final status means.

use std::ops::Range;

use clip_format::digest::Digest;
use hyper::{
    HeaderMap, StatusCode,
    header::{ACCEPT, AUTHORIZATION, HeaderValue, RANGE},
};

use super::{
    auth::{self, Asked},
    client::Client,
    exchange::{Answerer, Ask, Exchange},
    hosts::Site,
    location::{Location, Origin},
    part::range_header,
    redirect::{self, REDIRECTS_MAX, is_redirect, is_stale},
    retry::Failure,
};
use crate::error::EngineError;

/// What is wanted from a registry.
pub(super) struct Get {
    /// Escaped, from the repository on.
    pub path: String,
    pub accept: Option<HeaderValue>,
    /// Half-open, not empty.
    pub range: Option<Range<u64>>,
    /// The blob whose redirect target may be remembered.
    pub blob: Option<Digest>,
}

impl Get {
    pub fn new(path: String) -> Self {
        Self { path, accept: None, range: None, blob: None }
    }

    /// The request as it goes to `origin`; what the host's settings add goes to nobody else.
    fn ask(&self, site: &Site, origin: &Origin, authorization: Option<&HeaderValue>) -> Result<Ask, EngineError> {
        let own = origin == site.endpoint.origin();
        let mut headers = if own { site.endpoint.headers.clone() } else { HeaderMap::new() };
        if let Some(accept) = &self.accept {
            headers.insert(ACCEPT, accept.clone());
        }
        if let Some(range) = &self.range {
            headers.insert(RANGE, range_header(range));
        }
        if let Some(authorization) = authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        Ok(Ask::get(headers))
    }
}

impl Client {
    /// An answer of `site` with status 200 or 206.
    pub(super) async fn try_get(&self, site: &Site, get: &Get) -> Result<Exchange, Failure> {
        if let Some(exchange) = self.try_remembered(site, get).await? {
            return settled(exchange, Answerer::Storage).await;
        }
        let mut asked_again = false;
        loop {
            let (exchange, authorization) = self.ask_registry(site, get).await?;
            if !is_redirect(exchange.status()) {
                return settled(exchange, Answerer::Registry).await;
            }
            let registry = exchange.url.clone();
            let exchange = follow(site, get, exchange, authorization.as_ref()).await?;
            if is_stale(exchange.status()) && !asked_again {
                asked_again = true;
                exchange.drain().await;
                continue;
            }
            let is_elsewhere = exchange.url.origin != registry.origin;
            if let Some(blob) = get.blob.filter(|_| exchange.status().is_success() && is_elsewhere) {
                self.shared.targets.remember(&site.reference, &blob, exchange.url.clone());
            }
            return settled(exchange, if is_elsewhere { Answerer::Storage } else { Answerer::Registry }).await;
        }
    }

    /// The answer of the remembered redirect target, unless there is none or it has run out.
    async fn try_remembered(&self, site: &Site, get: &Get) -> Result<Option<Exchange>, Failure> {
        let Some(blob) = get.blob else { return Ok(None) };
        let Some(target) = self.shared.targets.get(&site.reference, &blob) else { return Ok(None) };
        let sent = site.transport.send(&target, &get.ask(site, &target.origin, None)?).await;
        match sent {
            Ok(exchange) if exchange.status().is_success() => Ok(Some(exchange)),
            Ok(exchange) => {
                // Whatever it says instead of the blob, the registry has the last word.
                self.shared.targets.forget(&site.reference, &blob);
                exchange.drain().await;
                Ok(None)
            }
            Err(failure) => {
                self.shared.targets.forget(&site.reference, &blob);
                Err(failure)
            }
        }
    }

    /// The registry's own answer, and the credentials it accepted: first what was granted before, then what each login can get.
    pub(super) async fn ask_registry(&self, site: &Site, get: &Get) -> Result<(Exchange, Option<HeaderValue>), Failure> {
        let (auth, transport) = (&self.shared.auth, &site.transport);
        site.endpoint.learn_scheme(transport).await?;
        let url = site.endpoint.location(&get.path)?;
        let mut authorization = auth.authorization(transport, site.repository()).await?;
        let mut tried = 0;
        loop {
            let mut exchange = transport.send(&url, &get.ask(site, &url.origin, authorization.as_ref())?).await?;
            let mut asked = Asked::Repository;
            let wants_others = auth::wants_others(&exchange);
            if !wants_others || auth::has_no_challenge(&exchange) {
                match self.hidden_challenge(site, &exchange, authorization.as_ref()).await? {
                    Some(challenged) => (asked, exchange) = (Asked::Root, challenged),
                    None if wants_others => {}
                    None => return Ok((exchange, authorization)),
                }
            }
            let renewed = auth.answer(transport, site.repository(), asked, &exchange, authorization.as_ref(), tried).await;
            let renewed = renewed.map_err(|failure| auth.with_what_was_not_sent(site.repository(), failure))?;
            let Some(renewed) = renewed else {
                return Err(auth.with_what_was_not_sent(site.repository(), auth::refused(exchange).await));
            };
            exchange.drain().await;
            authorization = Some(renewed);
            tried += 1;
        }
    }

    /// The 401 of `/v2/`, which is where some registries name their challenge, and only there: they answer 401 without one elsewhere; or
    /// they show anybody a part and answer 403 or 404 for the rest, so that this is asked only for those who have credentials.
    ///
    /// Source: every docker client begins with `GET /v2/` and so never meets this.
    async fn hidden_challenge(
        &self,
        site: &Site,
        exchange: &Exchange,
        authorization: Option<&HeaderValue>,
    ) -> Result<Option<Exchange>, Failure> {
        let may_be_hidden = authorization.is_none() && matches!(exchange.status(), StatusCode::FORBIDDEN | StatusCode::NOT_FOUND);
        let is_asked = match may_be_hidden {
            true => self.shared.auth.has_credentials(&site.transport, site.repository()).await,
            false => auth::has_no_challenge(exchange),
        };
        if !is_asked {
            return Ok(None);
        }
        let url = site.endpoint.location("/")?;
        // Where that fails, the answer that is there stays.
        let root = site.transport.send(&url, &Ask::get(site.endpoint.headers.clone())).await.ok();
        Ok(root.filter(auth::wants_others))
    }
}

/// Goes where `exchange`, a redirect, points; credentials go only to where they were given to.
async fn follow(site: &Site, get: &Get, exchange: Exchange, authorization: Option<&HeaderValue>) -> Result<Exchange, Failure> {
    let home = exchange.url.origin.clone();
    let mut exchange = exchange;
    for _ in 0..REDIRECTS_MAX {
        let target: Location = redirect::target(&exchange, &site.transport)?;
        exchange.drain().await;
        let authorization = authorization.filter(|_| target.origin == home);
        exchange = site.transport.send(&target, &get.ask(site, &target.origin, authorization)?).await?;
        if !is_redirect(exchange.status()) {
            return Ok(exchange);
        }
    }
    Err(exchange.contradiction(format!("at most {REDIRECTS_MAX} redirects"), "another").into())
}

/// The answer if it is one, else the failure that its status means.
async fn settled(exchange: Exchange, whom: Answerer) -> Result<Exchange, Failure> {
    match exchange.status() {
        StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(exchange),
        StatusCode::RANGE_NOT_SATISFIABLE => {
            let found = exchange.header(hyper::header::CONTENT_RANGE).map_or_else(String::new, |range| format!(" ({range})"));
            Err(exchange.contradiction("the range asked for", format!("416: the blob is shorter than its manifest says{found}")).into())
        }
        status if status.is_success() || status.is_redirection() || status.is_informational() => {
            Err(exchange.contradiction("status 200 or 206", status.as_u16().to_string()).into())
        }
        _ => Err(exchange.into_failure_of(whom).await),
    }
}
