//! A foreground mount that another process serves: signals end it as they end one that is served here.

use std::{
    os::unix::net::UnixStream,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::HandedOver;

/// Signals of a process that waits for a mount of an owner.
pub struct Foreground {
    /// To the owner, once it has taken the mount.
    connection: Arc<Mutex<Option<UnixStream>>>,
}

impl Foreground {
    /// Before there is a mount a signal ends this process as ever. The first one after that detaches the mount, whose open files are waited
    /// for up to `stop_timeout` (`None`: as long as the owner serves them); then, or at a second one, this process ends well.
    pub fn begin(stop_timeout: Option<Duration>) -> Result<Self> {
        let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP]).context("signal handlers")?;
        let connection: Arc<Mutex<Option<UnixStream>>> = Arc::default();
        let seen = Arc::clone(&connection);
        std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
            let mut told = false;
            for signal in signals.forever() {
                match &*seen.lock().unwrap_or_else(PoisonError::into_inner) {
                    None => std::process::exit(128 + signal),
                    Some(_) if told => std::process::exit(0),
                    Some(owner) => {
                        told = true;
                        // The owner detaches a mount whose asker has nothing more to say; it still says when the mount has ended.
                        let closed = owner.shutdown(std::net::Shutdown::Write);
                        let end_after = |stop_timeout| {
                            std::thread::Builder::new().spawn(move || {
                                std::thread::sleep(stop_timeout);
                                std::process::exit(0);
                            })
                        };
                        if closed.is_err() || stop_timeout.map(end_after).is_some_and(|waiting| waiting.is_err()) {
                            std::process::exit(0);
                        }
                    }
                }
            }
        })?;
        Ok(Self { connection })
    }

    /// As [`HandedOver::wait`].
    pub fn wait(self, mount: HandedOver) -> Result<()> {
        let connection = mount.from.get_ref().try_clone()?;
        *self.connection.lock().unwrap_or_else(PoisonError::into_inner) = Some(connection);
        mount.wait()
    }
}
