//! A server on loopback with a thread of its own, whose time on a core can be stated.

use std::{
    future::Future,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicI32, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::LocalSet,
};

use crate::machine;

/// A running server. Dropping it closes its connections.
pub struct Background {
    address: SocketAddr,
    tid: Arc<AtomicI32>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Background {
    /// Listens on a free port of loopback. `make` runs on the server's thread and gives what serves each connection.
    ///
    /// # Errors
    /// The system's.
    pub fn start<M, S, F>(name: &str, make: M) -> Result<Self>
    where
        M: FnOnce() -> S + Send + 'static,
        S: FnMut(TcpStream) -> F + 'static,
        F: Future<Output = ()> + 'static,
    {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).context("listen on loopback")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let tid = Arc::new(AtomicI32::new(0));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let own_tid = tid.clone();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            own_tid.store(rustix::thread::gettid().as_raw_nonzero().get(), Ordering::Relaxed);
            LocalSet::new().block_on(&runtime, async move {
                tokio::select! {
                    () = accept(listener, make()) => {}
                    _ = stopped => {}
                }
            });
        })?;
        Ok(Self { address, tid, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What its thread has spent on a core so far.
    #[must_use]
    pub fn cpu(&self) -> Duration {
        Duration::from_nanos(machine::thread_cpu_ns(self.tid.load(Ordering::Relaxed)).unwrap_or_default())
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of its thread has shown itself as failing reads.
            let _ = thread.join();
        }
    }
}

async fn accept<S, F>(listener: std::net::TcpListener, mut serve: S)
where
    S: FnMut(TcpStream) -> F,
    F: Future<Output = ()> + 'static,
{
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    loop {
        // A connection that went away before it was accepted is its client's affair.
        let Ok((stream, _)) = listener.accept().await else { continue };
        // Without it the last part of an answer may wait for an acknowledgement. A refusal only costs time.
        let _ = stream.set_nodelay(true);
        tokio::task::spawn_local(serve(stream));
    }
}
