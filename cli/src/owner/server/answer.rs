//! One request, answered whatever happens.

use std::{os::unix::net::UnixStream, panic::AssertUnwindSafe};

use anyhow::Result;

use super::super::protocol::{self, Reply};
use crate::exit::chain_text;

/// Whoever is at the other end of `stream` gets an answer, also where `handle` panics: that ends this request, and no other.
pub(super) fn answer(stream: UnixStream, handle: impl FnOnce(UnixStream) -> Result<()>) {
    let peer = stream.try_clone();
    // What a panic leaves half done is this request's own; the locks of the owner are taken as they are.
    match std::panic::catch_unwind(AssertUnwindSafe(|| handle(stream))) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!("a request failed: {}", chain_text(&error)),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
            let message = format!("the owner (pid {}) failed at this request: {}", std::process::id(), text.unwrap_or("a panic"));
            tracing::error!("{message}");
            if let Ok(mut peer) = peer {
                let _ = protocol::send(&mut peer, &Reply::Refused { message });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::BufReader;

    use super::*;

    /// Claim: a request whose thread panics is answered with why, and its connection is closed.
    #[test]
    fn a_panic_is_an_answer() {
        let (client, served) = UnixStream::pair().unwrap();
        answer(served, |_| panic!("no such case"));
        let mut from = BufReader::new(client);
        let Some(Reply::Refused { message }) = protocol::receive(&mut from).unwrap() else { panic!("no answer") };
        assert!(message.contains("no such case"), "{message}");
        assert_eq!(protocol::receive::<Reply>(&mut from).unwrap(), None);
    }
}
