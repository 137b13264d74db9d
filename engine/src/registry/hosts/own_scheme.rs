//! Whether a registry on this machine that has TLS settings speaks TLS. Its name has no scheme, and plain HTTP is what is spoken on
//! loopback; but whoever names an authority for it expects TLS. It is asked once, by a handshake.

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use super::{
    super::{connect::speaks_tls, exchange::Transport, location::Origin, retry::Failure},
    Endpoint,
};

const UNKNOWN: u8 = 0;
const TLS: u8 = 1;
const PLAIN: u8 = 2;
/// Nothing answers on the port of https, which may change.
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

    pub fn is_known(&self) -> bool {
        matches!(self.found.load(Relaxed), TLS | PLAIN)
    }
}

impl Endpoint {
    /// It is known from now on which scheme the host speaks. Cost: nothing for a host whose scheme is written or that has no TLS settings;
    /// else one connection at the first request.
    ///
    /// # Errors
    /// Passing: no answer.
    pub(in super::super) async fn learn_scheme(&self, transport: &Transport) -> Result<(), Failure> {
        let Some(own) = self.own_scheme.as_ref().filter(|own| !own.is_known()) else { return Ok(()) };
        let found = match speaks_tls(&transport.route, &self.location_of(&self.origin, "/")?, &self.config).await {
            Ok(true) => TLS,
            Ok(false) => {
                tracing::info!(host = %own.plain, "this registry has TLS settings, but speaks plain HTTP, and is asked so");
                PLAIN
            }
            // Without a port in its name the two schemes have two.
            Err(_) if own.plain.port != self.origin.port => PLAIN_FOR_NOW,
            Err(failure) => return Err(failure),
        };
        own.found.store(found, Relaxed);
        Ok(())
    }
}
