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
    standing::{Mark, Passed},
};
use crate::error::EngineError;

/// One of several who has sent bytes of a blob, to be told on when they were wrong.
pub struct ServedBy {
    blob: Digest,
    who: Who,
}

enum Who {
    /// Of the hosts of a registry.
    Host { repository: String, endpoint: Arc<Endpoint> },
    /// Of the places where a layer may be; `host` where that is a registry with several.
    Place { of: Arc<ForeignBlob>, place: usize, host: Option<Arc<ServedBy>> },
}

impl ServedBy {
    pub(in super::super) fn new(reference: &Reference, blob: Digest, endpoint: &Arc<Endpoint>) -> Self {
        Self { blob, who: Who::Host { repository: reference.repository.clone(), endpoint: Arc::clone(endpoint) } }
    }

    pub(in super::super) fn at_place(of: &Arc<ForeignBlob>, place: usize, host: Option<Arc<ServedBy>>) -> Self {
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
                if standing.mark(repository, blob).is_none_or(|mark| mark.why != Passed::Wrong) {
                    tracing::warn!(host = %endpoint.origin(), %blob, "a host sent wrong bytes of a layer; the others are asked for it");
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

/// Hosts whose latest body brought one reader nothing, or stood still, and since when.
#[derive(Default)]
pub(in super::super) struct Avoided(Vec<(Arc<Endpoint>, Instant)>);

impl Avoided {
    /// `endpoint` is avoided from now on.
    pub fn add(&mut self, endpoint: &Arc<Endpoint>) {
        self.0.retain(|(known, _)| !Arc::ptr_eq(known, endpoint));
        self.0.push((Arc::clone(endpoint), Instant::now()));
    }

    fn mark(&self, endpoint: &Arc<Endpoint>) -> Option<Mark> {
        let known = self.0.iter().find(|(known, _)| Arc::ptr_eq(known, endpoint));
        known.map(|(_, since)| Mark { why: Passed::Lacks, since: *since })
    }
}

impl Endpoint {
    /// It did not answer what was asked at `asked`, and others can be asked: it rests. True when that is news.
    pub(in super::super) fn note_dead(&self, asked: Instant, registry: &str, error: &EngineError) -> bool {
        let Some(wait) = self.standing.note_dead(asked) else { return false };
        let (host, rest_s) = (self.origin(), wait.as_secs());
        tracing::warn!(%host, %error, rest_s, "a host of {registry} does not answer; the others are asked meanwhile");
        true
    }

    /// It serves: what was held against it as a whole is over.
    pub(in super::super) fn note_alive(&self) {
        if self.standing.note_alive() {
            tracing::info!(host = %self.origin(), "the host answers again");
        }
    }
}

/// Who is still to be asked, and what the others said.
///
/// Whatever a host answers but what was asked for, the next is asked: so does containerd. The order is: hosts against which nothing is held;
/// those that lacked the blob or brought nothing; those found dead; those that had it wrong. Of two in one place the one is first
/// whose mark is older, so that a try and its repeat ask different hosts where there are some.
///
/// The last host is the registry itself, and the only one whose "there is none" counts: dead hosts are asked when it is among them,
/// when there is no other, or when the others failed in a way that may pass.
pub(in super::super) struct Round<'a> {
    client: &'a Client,
    reference: &'a Reference,
    blob: Option<Digest>,
    waiting: VecDeque<Arc<Endpoint>>,
    dead: VecDeque<Arc<Endpoint>>,
    wrong: VecDeque<Arc<Endpoint>>,
    /// Who can say that there is none.
    last: Arc<Endpoint>,
    /// There is one host, which nothing is held against.
    is_alone: bool,
    asked: Instant,
    /// A host that was not known to be dead did not answer: it is asked once more before one that is known to be wrong.
    has_blip: bool,
    failures: Vec<(Arc<Endpoint>, Failure)>,
}

impl Client {
    /// The hosts that can be asked by `need`, for `blob` where that has a digest; those in `avoided` behind others.
    ///
    /// # Errors
    /// `Invalid`: the settings cannot be used, or no host may be asked.
    pub(in super::super) fn round<'a>(
        &'a self,
        reference: &'a Reference,
        need: Need,
        blob: Option<Digest>,
        avoided: &Avoided,
    ) -> Result<Round<'a>, EngineError> {
        let hosts = self.shared.hosts.of(&reference.registry)?;
        let mut waiting: Vec<_> = hosts.able(need).cloned().collect();
        let Some(last) = waiting.last().cloned() else { return Err(nobody(&hosts, need)) };
        let is_alone = waiting.len() == 1;
        let mut wrong = Vec::new();
        if !is_alone {
            let mark = |endpoint: &Arc<Endpoint>| {
                let of_blob = blob.and_then(|blob| endpoint.standing.mark(&reference.repository, &blob));
                of_blob.into_iter().chain(avoided.mark(endpoint)).map(|mark| (mark.why, mark.since)).max()
            };
            let is_wrong = |mark: Option<(Passed, Instant)>| mark.is_some_and(|(why, _)| why == Passed::Wrong);
            // `None`, nothing held against it, sorts first.
            waiting.sort_by_cached_key(mark);
            let at = waiting.iter().position(|endpoint| is_wrong(mark(endpoint))).unwrap_or(waiting.len());
            wrong = waiting.split_off(at);
        }
        let (waiting, wrong, asked) = (waiting.into(), wrong.into(), Instant::now());
        let (dead, failures) = (VecDeque::new(), Vec::new());
        Ok(Round { client: self, reference, blob, waiting, dead, wrong, last, is_alone, asked, has_blip: false, failures })
    }

    /// Whether a host of several can be asked for `blob` against which nothing is held.
    pub(crate) fn has_untried_host(&self, reference: &Reference, blob: &Digest) -> bool {
        let Ok(hosts) = self.shared.hosts.of(&reference.registry) else { return false };
        let is_untried =
            |endpoint: &Arc<Endpoint>| !endpoint.standing.is_dead() && endpoint.standing.mark(&reference.repository, blob).is_none();
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
        let endpoint = self.next_waiting().or_else(|| self.next_dead()).or_else(|| self.next_wrong()).or_else(|| self.next_dead())?;
        self.asked = Instant::now();
        Some(Site::new(&endpoint, self.reference, &self.client.transport))
    }

    fn next_waiting(&mut self) -> Option<Arc<Endpoint>> {
        while let Some(endpoint) = self.waiting.pop_front() {
            if self.is_alone || endpoint.standing.claim() {
                return Some(endpoint);
            }
            self.dead.push_back(endpoint);
        }
        None
    }

    fn next_dead(&mut self) -> Option<Arc<Endpoint>> {
        let last = self.dead.iter().position(|endpoint| Arc::ptr_eq(endpoint, &self.last));
        let may_help = last.is_some() || self.failures.is_empty() || self.may_pass().is_some();
        if may_help { self.dead.remove(last.unwrap_or(0)) } else { None }
    }

    fn next_wrong(&mut self) -> Option<Arc<Endpoint>> {
        while let Some(endpoint) = self.wrong.pop_front().filter(|_| !self.has_blip) {
            if endpoint.standing.claim() {
                return Some(endpoint);
            }
            self.dead.push_back(endpoint);
        }
        None
    }

    /// What to do after a failure that another try may mend, if there is one.
    fn may_pass(&self) -> Option<Again> {
        self.failures.iter().rev().map(|(_, failure)| failure.again).find(|again| *again != Again::Never)
    }

    /// Whether there is one host only.
    pub fn is_alone(&self) -> bool {
        self.is_alone
    }

    /// `site` gave what was asked for, whole.
    pub fn answered(&self, site: &Site) {
        if !self.is_alone {
            site.endpoint.note_alive();
        }
    }

    /// `site` did not.
    pub fn failed(&mut self, site: &Site, failure: Failure) {
        if !self.is_alone {
            self.remember(site, &failure);
        }
        self.failures.push((Arc::clone(&site.endpoint), failure));
    }

    fn remember(&mut self, site: &Site, failure: &Failure) {
        let (standing, repository, registry) = (&site.endpoint.standing, &self.reference.repository, &self.reference.registry);
        let (host, error) = (site.endpoint.origin(), &failure.error);
        match (error, self.blob) {
            (EngineError::Transport { .. } | EngineError::Deadline { .. }, _) => {
                self.has_blip |= site.endpoint.note_dead(self.asked, registry, error);
                return;
            }
            (EngineError::Protocol { .. }, Some(blob)) => standing.pass_over(repository, &blob, Passed::Wrong),
            (EngineError::Status { .. }, Some(blob)) if failure.again == Again::Never => {
                standing.pass_over(repository, &blob, Passed::Lacks);
            }
            // A broken file or helper stays so for a while, and asking it costs a request and a program each time.
            (EngineError::Credentials { .. }, Some(blob)) => standing.pass_over(repository, &blob, Passed::Lacks),
            _ => {}
        }
        tracing::debug!(%host, %error, "another host of {registry} is asked");
    }

    /// What to say when nobody had it: the registry's own failure, or else the latest, with those of the others. It is tried again if one of
    /// them may pass.
    pub fn into_failure(mut self) -> Failure {
        let passing = self.may_pass();
        let own = self.failures.iter().position(|(endpoint, _)| Arc::ptr_eq(endpoint, &self.last));
        let at = own.unwrap_or(self.failures.len().saturating_sub(1));
        if self.failures.is_empty() {
            let (what, found) = (format!("hosts of {}", self.reference.registry), "none".to_owned());
            return EngineError::Invalid { what, expected: "a host to ask".to_owned(), found }.into();
        }
        let (_, last) = self.failures.remove(at);
        let unasked = self.dead.iter().map(|endpoint| format!("{} was not asked: it did not answer a moment ago", endpoint.origin()));
        let others: Vec<_> = self.failures.iter().map(|(_, failure)| failure.error.to_string()).chain(unasked).collect();
        if others.is_empty() {
            return last;
        }
        let error = EngineError::EveryHost { last: Box::new(last.error), others: others.join("; ") };
        Failure { error, again: passing.unwrap_or(Again::Never) }
    }
}
