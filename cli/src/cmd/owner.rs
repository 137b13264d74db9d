//! `clip owner`, hidden: the background process of one cache directory, started by `clip mount`.

use std::io::{BufReader, Write};

use anyhow::{Context, Result};
use clip_engine::{Engine, EngineError};

use crate::{
    exit::{Outcome, chain_text},
    owner::{
        protocol::{self, PROTOCOL, Start, Started},
        server::{Events, Owner},
    },
};

/// Serves mounts until the last one has ended. The settings come on standard input, and how the start went goes to standard output.
pub fn run() -> Result<Outcome> {
    close_inherited();
    // Fails only where this process leads a group already: then it has no terminal to lose.
    let _ = rustix::process::setsid();
    let start: Start = protocol::receive(&mut BufReader::new(std::io::stdin()))
        .context("clip owner is started by clip mount, with its settings on standard input")?
        .context("clip owner is started by clip mount: no settings on standard input")?;
    std::env::set_current_dir("/")?;
    let mut ready = std::io::stdout();
    let begun = if start.protocol == PROTOCOL { begin(&start) } else { Err(other_version(start.protocol)) };
    match begun {
        Ok((owner, events)) => {
            protocol::send(&mut ready, &Started::Ready)?;
            owner.log_cache_room();
            owner.serve(events)?;
            tracing::info!("no mount is left; leaving");
            let _ = std::io::stderr().flush();
            Ok(Outcome::Good)
        }
        Err(answer) => {
            protocol::send(&mut ready, &answer)?;
            Ok(Outcome::Bad)
        }
    }
}

fn begin(start: &Start) -> Result<(std::sync::Arc<Owner>, Events), Started> {
    let failed = |error: anyhow::Error| {
        let message = chain_text(&error);
        tracing::error!("{message}");
        Started::Failed { message }
    };
    clip_engine::memory::keep_little();
    let engine = match Engine::start(start.wish.to_config(start.cache_dir.clone())) {
        Ok(engine) => engine,
        Err(error @ EngineError::CacheBusy { .. }) => return Err(Started::Busy { message: error.to_string() }),
        Err(error) => return Err(failed(error.into())),
    };
    tracing::info!("clip {} owns {} as process {}", env!("CARGO_PKG_VERSION"), start.cache_dir.display(), std::process::id());
    let (owner, events) = Owner::new(engine, start.settings.clone());
    owner.listen().map_err(failed)?;
    Ok((owner, events))
}

fn other_version(asked: u32) -> Started {
    Started::Failed { message: format!("the program changed while it was started (protocol {PROTOCOL}, asked {asked}); try again") }
}

/// Descriptors that a shell or supervisor left open would keep its files, pipes and locks busy for as long as a mount lives.
fn close_inherited() {
    // SAFETY: called first thing in `main`'s thread, before anything of this process has opened a descriptor above stderr.
    let closed = unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
    if closed != 0 {
        tracing::debug!("close_range: {}", std::io::Error::last_os_error());
    }
}
