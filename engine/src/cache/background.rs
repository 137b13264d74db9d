//! Work on the cache directory that nobody waits for, until the directory is given up.

use std::{
    sync::{Mutex, PoisonError},
    thread::{self, JoinHandle},
};

/// How much less than everything else the background threads count, nice(1). Source: judgement: hashing the index of 1,000,000 files
/// (133 MB) takes a core for some 30 ms, which the first readers of the mount need more.
const BACKGROUND_NICE: i32 = 19;

/// The threads of one engine that do such work. Dropping it waits for them: nothing touches the directory once it is another owner's.
#[derive(Default)]
pub(crate) struct Background(Mutex<Vec<JoinHandle<()>>>);

impl Background {
    /// Runs `work` on a thread called `name`, after whatever else wants a core.
    pub(crate) fn run(&self, name: &str, work: impl FnOnce() + Send + 'static) {
        let body = move || {
            // On Linux this is the thread's own; where it is refused, the work is done all the same.
            let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), BACKGROUND_NICE);
            work();
        };
        match thread::Builder::new().name(name.to_owned()).spawn(body) {
            Ok(started) => {
                let mut threads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                threads.retain(|thread| !thread.is_finished());
                threads.push(started);
            }
            Err(error) => tracing::warn!(%error, name, "a thread could not be started; what it was for is left undone"),
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        for thread in self.0.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
            if thread.join().is_err() {
                tracing::error!("a background thread panicked");
            }
        }
    }
}
