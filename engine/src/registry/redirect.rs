//! Where a registry sent us for a blob: followed without credentials, remembered for a while.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use clip_format::digest::Digest;
use hyper::{StatusCode, header::LOCATION};

use super::{
    exchange::{Exchange, Transport},
    location::{Location, Scheme},
    reference::Reference,
};
use crate::error::EngineError;

/// Source: Go's net/http follows 10, docker's registries need 1-2.
pub(super) const REDIRECTS_MAX: usize = 5;
/// How long a target is used again. Source: signed addresses live 5 (GHCR) to 20 (ECR, Docker Hub) minutes.
const REMEMBER_MAX: Duration = Duration::from_secs(3 * 60);
/// Targets remembered; past it all are forgotten, which costs a request each.
const TARGETS_MAX: usize = 4096;

pub(super) fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Whether a redirect's target says that the address has run out.
pub(super) fn is_stale(status: StatusCode) -> bool {
    matches!(status.as_u16(), 401 | 403 | 410)
}

/// Where `exchange` points, if we may go there.
pub(super) fn target(exchange: &Exchange, transport: &Transport) -> Result<Location, EngineError> {
    let text = exchange.header(LOCATION).ok_or_else(|| exchange.contradiction("a redirect with a Location", "none"))?;
    let target = exchange.url.join(text).map_err(|error| exchange.contradiction("a redirect to a URL", error.to_string()))?;
    if target.origin.scheme == Scheme::Http && !transport.allows_plain(&target.origin) {
        let expected = "a redirect to https (--plain-http would allow others)";
        return Err(exchange.contradiction(expected, target.to_string()));
    }
    Ok(target)
}

type Key = (String, String, Digest);

/// Targets by registry, repository and blob.
#[derive(Default)]
pub(super) struct Targets {
    known: Mutex<HashMap<Key, (Instant, Location)>>,
}

fn key(reference: &Reference, blob: &Digest) -> Key {
    (reference.registry.clone(), reference.repository.clone(), *blob)
}

impl Targets {
    pub fn get(&self, reference: &Reference, blob: &Digest) -> Option<Location> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&key(reference, blob)).filter(|(since, _)| since.elapsed() < REMEMBER_MAX).map(|(_, target)| target.clone())
    }

    pub fn remember(&self, reference: &Reference, blob: &Digest, target: Location) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= TARGETS_MAX {
            known.clear();
        }
        known.insert(key(reference, blob), (Instant::now(), target));
    }

    pub fn forget(&self, reference: &Reference, blob: &Digest) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(&key(reference, blob));
    }
}
