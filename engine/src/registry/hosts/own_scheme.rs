//! Whether a registry on this machine that has TLS settings speaks TLS. Its name has no scheme, and plain HTTP is what is spoken on
//! loopback; but whoever names an authority for it expects TLS. It is asked by a handshake, until it has answered one.

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use super::{
    super::{
        connect::{Greeted, greet},
        exchange::Transport,
        location::Origin,
        retry::Failure,
    },
    Endpoint,
};

const UNKNOWN: u8 = 0;
const TLS: u8 = 1;
const PLAIN: u8 = 2;
/// Nobody listens on the port of https, which may change.
const PLAIN_FOR_NOW: u8 = 3;

/// What was found out about the scheme of one host.
pub(super) struct OwnScheme {
    /// The host where it speaks no TLS.
    plain: Origin,
    found: AtomicU8,
}

impl OwnScheme {
    pub fn unknown(plain: Origin) -> Self {
        Self { plain, found: AtomicU8::new(UNKNOWN) }
    }

    /// The host in plain HTTP, if that is what it speaks.
    pub fn plain(&self) -> Option<&Origin> {
        matches!(self.found.load(Relaxed), PLAIN | PLAIN_FOR_NOW).then_some(&self.plain)
    }

    /// Notes what one handshake found, unless another, meanwhile, has had an answer. True when it is noted.
    fn note(&self, found: u8) -> bool {
        let unknown = |known: u8| (!is_answer(known)).then_some(found);
        self.found.fetch_update(Relaxed, Relaxed, unknown).is_ok()
    }

    pub fn is_known(&self) -> bool {
        is_answer(self.found.load(Relaxed))
    }
}

/// Whether `found` came from the host itself and so stays.
fn is_answer(found: u8) -> bool {
    matches!(found, TLS | PLAIN)
}

impl Endpoint {
    /// It is known from now on which scheme the host speaks. Cost: nothing for a host whose scheme is written or that has no TLS settings;
    /// else a connection before the first request, or, while nobody listens on the port of https, a refused one before each.
    ///
    /// # Errors
    /// Passing: no answer.
    pub(in super::super) async fn learn_scheme(&self, transport: &Transport) -> Result<(), Failure> {
        let Some(own) = self.own_scheme.as_ref().filter(|own| !own.is_known()) else { return Ok(()) };
        let found = match greet(&transport.route, &self.location_of(&self.origin, "/")?, &self.config).await? {
            Greeted::InTls => TLS,
            Greeted::InSomethingElse => PLAIN,
            // Without a port in its name the two schemes have two.
            Greeted::Refused(_) if own.plain.port != self.origin.port => PLAIN_FOR_NOW,
            Greeted::Refused(failure) => return Err(failure),
        };
        if own.note(found) && found == PLAIN {
            tracing::info!(host = %own.plain, "this registry has TLS settings, but speaks plain HTTP, and is asked so");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::super::location::Scheme, *};

    /// Claim: a handshake that met nobody changes nothing where another was answered meanwhile, and is forgotten where one is answered later.
    #[test]
    fn an_answer_is_kept() {
        let own = OwnScheme::unknown(Origin { scheme: Scheme::Http, host: "localhost".to_owned(), port: 80 });
        assert!(own.note(PLAIN_FOR_NOW) && !own.is_known() && own.plain().is_some());
        assert!(own.note(TLS) && own.is_known() && own.plain().is_none());
        assert!(!own.note(PLAIN_FOR_NOW) && !own.note(PLAIN) && own.plain().is_none());
    }
}
