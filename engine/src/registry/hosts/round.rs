//! One question, to one host after the other, until one answers.

use std::{collections::VecDeque, sync::Arc, time::Instant};

use clip_format::digest::Digest;

use super::{
    super::{
        client::Client,
        foreign::ForeignBlob,
        reference::Reference,
        retry::{Again, Failure},
    },
    Endpoint, Hosts, Need, Site,
    standing::Passed,
};
use crate::error::EngineError;

/// One of several who has sent bytes of a blob, to be told on when they were wrong.
pub struct Sender {
    blob: Digest,
    who: Who,
}

enum Who {
    /// Of the hosts of a registry.
    Host { repository: String, endpoint: Arc<Endpoint> },
    /// Of the places where a layer may be; `host` where that is a registry with several.
    Place { of: Arc<ForeignBlob>, place: usize, host: Option<Arc<Sender>> },
}

impl Sender {
    pub(in super::super) fn new(reference: &Reference, blob: Digest, endpoint: &Arc<Endpoint>) -> Self {
        Self { blob, who: Who::Host { repository: reference.repository.clone(), endpoint: Arc::clone(endpoint) } }
    }

    pub(in super::super) fn at_place(of: &Arc<ForeignBlob>, place: usize, host: Option<Arc<Sender>>) -> Self {
        Self { blob: *of.digest(), who: Who::Place { of: Arc::clone(of), place, host } }
    }

    /// The blob.
    #[must_use]
    pub fn blob(&self) -> &Digest {
        &self.blob
    }

    /// The blob is asked for elsewhere first: of a registry's hosts for ten minutes, of the places of a foreign layer from now on.
    pub fn distrust(&self) {
        match &self.who {
            Who::Host { repository, endpoint } => {
                let (standing, blob) = (&endpoint.standing, &self.blob);
                if !standing.passes_over(repository, blob) {
                    tracing::warn!(host = %endpoint.origin, %blob, "a host sent wrong bytes of a layer; the others are asked for it");
                }
                standing.pass_over(repository, blob, Passed::Wrong);
            }
            Who::Place { of, place, host } => {
                host.iter().for_each(|host| host.distrust());
                of.distrust(*place);
            }
        }
    }
}

/// Who is still to be asked, and what the others said.
///
/// Whatever a host answers but what was asked for, the next is asked: so does containerd. Hosts that were found dead are asked only when
/// there is no other, or when the others failed in a way that may pass.
pub(in super::super) struct Round<'a> {
    client: &'a Client,
    reference: &'a Reference,
    blob: Option<Digest>,
    waiting: VecDeque<Arc<Endpoint>>,
    dead: VecDeque<Arc<Endpoint>>,
    /// There is one host, which nothing is held against.
    is_alone: bool,
    asked: Instant,
    failures: Vec<Failure>,
}

impl Client {
    /// The hosts that can be asked by `need`, for `blob` where that has a digest; those in `avoided` last.
    ///
    /// # Errors
    /// `Invalid`: the settings cannot be used, or no host may be asked.
    pub(in super::super) fn round<'a>(
        &'a self,
        reference: &'a Reference,
        need: Need,
        blob: Option<Digest>,
        avoided: &[Arc<Endpoint>],
    ) -> Result<Round<'a>, EngineError> {
        let hosts = self.shared.hosts.of(&reference.registry)?;
        let mut waiting: Vec<_> = hosts.able(need).cloned().collect();
        if waiting.is_empty() {
            return Err(nobody(&hosts, need));
        }
        let is_alone = waiting.len() == 1;
        let later = |endpoint: &Arc<Endpoint>| {
            let passed_over = blob.is_some_and(|blob| endpoint.standing.passes_over(&reference.repository, &blob));
            passed_over || avoided.iter().any(|avoided| Arc::ptr_eq(avoided, endpoint))
        };
        waiting.sort_by_cached_key(|endpoint| !is_alone && later(endpoint));
        let (waiting, dead, failures) = (waiting.into(), VecDeque::new(), Vec::new());
        Ok(Round { client: self, reference, blob, waiting, dead, is_alone, asked: Instant::now(), failures })
    }

    /// Whether a host of several can be asked for `blob` against which nothing is held.
    pub(crate) fn has_untried_host(&self, reference: &Reference, blob: &Digest) -> bool {
        let Ok(hosts) = self.shared.hosts.of(&reference.registry) else { return false };
        let is_untried =
            |endpoint: &Arc<Endpoint>| !endpoint.standing.is_dead() && !endpoint.standing.passes_over(&reference.repository, blob);
        hosts.able(Need::Pull).count() > 1 && hosts.able(Need::Pull).any(is_untried)
    }
}

fn nobody(hosts: &Hosts, need: Need) -> EngineError {
    let expected = match need {
        Need::Resolve => "a host with the capabilities pull and resolve; or name the image by its digest",
        Need::Pull => "a host with the capability pull",
    };
    let (what, found) = (format!("hosts of {}", hosts.registry), hosts.shown().join(", "));
    EngineError::Invalid { what, expected: expected.to_owned(), found }
}

impl Round<'_> {
    /// The next to be asked.
    pub fn next(&mut self) -> Option<Site> {
        self.asked = Instant::now();
        while let Some(endpoint) = self.waiting.pop_front() {
            if self.is_alone || endpoint.standing.claim() {
                return Some(self.site(&endpoint));
            }
            self.dead.push_back(endpoint);
        }
        let may_help = self.failures.is_empty() || self.failures.iter().any(|failure| failure.again != Again::Never);
        if may_help { self.dead.pop_front().map(|endpoint| self.site(&endpoint)) } else { None }
    }

    fn site(&self, endpoint: &Arc<Endpoint>) -> Site {
        Site::new(endpoint, self.reference, &self.client.transport)
    }

    /// Whether there is one host only.
    pub fn is_alone(&self) -> bool {
        self.is_alone
    }

    /// `site` gave what was asked for.
    pub fn answered(&self, site: &Site) {
        if !self.is_alone && site.endpoint.standing.note_alive() {
            tracing::info!(host = %site.endpoint.origin, "the host answers again");
        }
    }

    /// `site` did not.
    pub fn failed(&mut self, site: &Site, failure: Failure) {
        if !self.is_alone {
            self.remember(site, &failure);
        }
        self.failures.push(failure);
    }

    fn remember(&self, site: &Site, failure: &Failure) {
        let (standing, repository) = (&site.endpoint.standing, &self.reference.repository);
        let (host, error) = (&site.endpoint.origin, &failure.error);
        match (error, self.blob) {
            (EngineError::Transport { .. } | EngineError::Deadline { .. }, _) => {
                if let Some(wait) = standing.note_dead(self.asked) {
                    let rest_s = wait.as_secs();
                    tracing::warn!(%host, %error, rest_s, "a host of {} does not answer; the others are asked meanwhile", self.reference.registry);
                }
                return;
            }
            (EngineError::Protocol { .. }, Some(blob)) => standing.pass_over(repository, &blob, Passed::Wrong),
            (EngineError::Status { .. }, Some(blob)) if failure.again == Again::Never => {
                standing.pass_over(repository, &blob, Passed::Lacks);
            }
            _ => {}
        }
        tracing::debug!(%host, %error, "another host of {} is asked", self.reference.registry);
    }

    /// What to say when nobody had it: the last host's failure, with those of the others. It is tried again if one of them may pass.
    pub fn into_failure(mut self) -> Failure {
        let Some(last) = self.failures.pop() else {
            let (what, found) = (format!("hosts of {}", self.reference.registry), "none".to_owned());
            return EngineError::Invalid { what, expected: "a host to ask".to_owned(), found }.into();
        };
        if self.failures.is_empty() {
            return last;
        }
        let passing = std::iter::once(&last).chain(&self.failures).map(|failure| failure.again).find(|again| *again != Again::Never);
        let mirrors: Vec<_> = self.failures.iter().map(|failure| failure.error.to_string()).collect();
        let error = EngineError::EveryHost { last: Box::new(last.error), others: mirrors.join("; ") };
        Failure { error, again: passing.unwrap_or(Again::Never) }
    }
}
