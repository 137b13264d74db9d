//! Everybody who has logged in, and whom to ask for credentials first.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use super::{
    super::{client::Shared, reference::Reference},
    ImageName,
    login::{Login, Typed},
    name,
    names::Names,
};

/// Logins that are asked for one answer. Source: judgement, not measured: those of one person in one session are equal and count once, so
/// that there are as many as people and kinds of sessions that mount one repository.
pub(super) const CANDIDATES_MAX: usize = 8;

/// The logins of whoever uses a client, by when they came.
pub(in crate::registry) struct Logins {
    /// Asked last.
    own: Arc<Login>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    next_id: u64,
    by_id: BTreeMap<u64, Entry>,
}

struct Entry {
    image: ImageName,
    login: Arc<Login>,
}

/// A login in force. Dropping it forgets the login, and what it was granted in that repository.
pub struct LoggedIn {
    client: Weak<Shared>,
    id: u64,
}

impl std::fmt::Debug for LoggedIn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoggedIn").finish_non_exhaustive()
    }
}

impl Drop for LoggedIn {
    fn drop(&mut self) {
        let Some(client) = self.client.upgrade() else { return };
        let removed = client.auth.logins.known.lock().unwrap_or_else(PoisonError::into_inner).by_id.remove(&self.id);
        if let Some(entry) = removed {
            client.auth.forget(&entry.image);
        }
    }
}

impl Logins {
    pub fn new(own: Login) -> Self {
        Self { own: Arc::new(own), known: Mutex::default() }
    }

    /// `login` is asked about the repository of `reference`, at its registry and at the mirrors of that, until the result is dropped.
    pub fn add(&self, client: &Arc<Shared>, reference: &Reference, login: Login) -> LoggedIn {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let equal = known.by_id.values().find(|entry| *entry.login == login).map(|entry| entry.login.clone());
        let login = equal.unwrap_or_else(|| Arc::new(login));
        let id = known.next_id;
        known.next_id += 1;
        known.by_id.insert(id, Entry { image: name(reference), login });
        LoggedIn { client: Arc::downgrade(client), id }
    }

    /// Whether somebody typed a password for the registry of `image`.
    pub(super) fn has_password_of(&self, image: &Reference) -> bool {
        let names = Names::of(&image.registry, &image.repository);
        let mut candidates = self.candidates(image, 0);
        std::iter::from_fn(|| candidates.next())
            .any(|login| matches!(&login.typed, Typed::Password { registry, .. } if names.is_host(registry)))
    }

    /// Whom to ask about `image`, wherever it is asked for, after `refused` of those who knew credentials were refused.
    pub(super) fn candidates(&self, image: &Reference, refused: usize) -> Candidates {
        let image = name(image);
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let newest_first = known.by_id.values().rev().filter(|entry| entry.image == image);
        let mut entries: Vec<_> = newest_first.collect();
        // A stable sort: the newest stays first among equals.
        entries.sort_by_key(|entry| !is_explicit(&entry.login));
        let mut logins: Vec<Arc<Login>> = Vec::new();
        for login in entries.into_iter().map(|entry| &entry.login).chain([&self.own]) {
            if logins.len() < CANDIDATES_MAX && !logins.contains(login) {
                logins.push(login.clone());
            }
        }
        logins.reverse();
        Candidates { logins, refused: 0, refused_already: refused }
    }
}

/// Whether somebody typed where credentials are.
fn is_explicit(login: &Login) -> bool {
    matches!(login.typed, Typed::Password { .. } | Typed::AuthFile(_))
}

/// Whom to ask, in order.
pub(super) struct Candidates {
    /// The next one last.
    logins: Vec<Arc<Login>>,
    /// Those so far that knew credentials; none of theirs has helped.
    pub refused: usize,
    refused_already: usize,
}

impl Candidates {
    pub fn next(&mut self) -> Option<Arc<Login>> {
        self.logins.pop()
    }

    /// The one that was asked last knew credentials: whether they are to be tried, or were refused before.
    pub fn is_next_to_try(&mut self) -> bool {
        self.refused += 1;
        self.refused > self.refused_already
    }

    /// Nobody knew credentials, and what anybody is granted was not refused before.
    pub fn may_be_anonymous(&self) -> bool {
        self.refused == 0 && self.refused_already == 0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::registry::{Client, ClientConfig, Secret};

    fn typed(user: &str) -> Login {
        let typed = Typed::Password { registry: "h.x".into(), user: user.into(), password: Secret::new("p") };
        Login { typed, ..Login::anonymous() }
    }

    fn asked(client: &Client, reference: &str) -> Vec<String> {
        let mut candidates = client.shared.auth.logins.candidates(&reference.parse().unwrap(), 0);
        let name = |login: Arc<Login>| match &login.typed {
            Typed::Password { user, .. } => user.clone(),
            other => format!("{other:?}"),
        };
        std::iter::from_fn(|| candidates.next()).map(name).collect()
    }

    /// Claim: the newest explicit login of a repository is asked first, equal ones once; those of other registries and of names with the
    /// same end never; a dropped one no more.
    #[test]
    fn the_newest_explicit_login_is_asked_first() {
        let config = ClientConfig { login: Login::anonymous(), ..ClientConfig::default() };
        let client = Client::new(config).unwrap();
        let log_in = |reference: &str, login: Login| client.log_in(&reference.parse().unwrap(), login);
        let _first = log_in("h.x/a/b:1", typed("first"));
        let second = log_in("h.x/a/b:2", typed("second"));
        let _again = log_in("h.x/a/b", typed("first"));
        let _plain = log_in("h.x/a/b", Login { typed: Typed::Nothing, ..Login::anonymous() });
        let _other = log_in("h.x/other", typed("other"));
        assert_eq!(
            asked(&client, "h.x/a/b@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
            ["first", "second", "Nothing", "Anonymous"]
        );
        for other in ["other.x/a/b", "h.x/team/a/b", "h.x/b"] {
            assert_eq!(asked(&client, other), ["Anonymous"], "{other}");
        }
        drop(second);
        assert_eq!(asked(&client, "h.x/a/b"), ["first", "Nothing", "Anonymous"]);
        assert_eq!(asked(&client, "h.x/none"), ["Anonymous"]);
        let many: Vec<_> = (0..20).map(|number| log_in("h.x/many", typed(&number.to_string()))).collect();
        assert_eq!(asked(&client, "h.x/many").len(), CANDIDATES_MAX);
        drop(many);
        assert_eq!(asked(&client, "h.x/many"), ["Anonymous"]);
    }
}
