//! Idle connections of one runtime, by whom they speak to and how they were made. A connection comes here only after its last body was read to the end.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::SendRequest;
use tokio::task::AbortHandle;

use super::route::Line;

/// Idle connections older than this are closed rather than used. Source: load balancers close theirs after 60 s (AWS ELB's default).
const IDLE_MAX: Duration = Duration::from_secs(45);

/// One HTTP/1.1 connection. Dropping it closes its socket, whatever it was doing.
pub(super) struct Connection {
    pub line: Line,
    pub sender: SendRequest<Full<Bytes>>,
    /// The task that moves its bytes.
    pub driver: AbortHandle,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Idle connections, the latest used last.
pub(super) struct Pool {
    idle_per_host_max: usize,
    idle: Mutex<HashMap<Line, Vec<(Instant, Connection)>>>,
}

impl Pool {
    pub fn new(idle_per_host_max: usize) -> Self {
        Self { idle_per_host_max, idle: Mutex::default() }
    }

    /// The latest used connection of `line` that is not known to be closed.
    pub fn take(&self, line: &Line) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let stack = idle.get_mut(line)?;
        let mut found = None;
        while let Some((since, connection)) = stack.pop() {
            if since.elapsed() < IDLE_MAX && !connection.sender.is_closed() {
                found = Some(connection);
                break;
            }
        }
        if stack.is_empty() {
            idle.remove(line);
        }
        found
    }

    /// Keeps `connection` for the next request, or closes the oldest where there are too many.
    pub fn put(&self, connection: Connection) {
        if connection.sender.is_closed() || self.idle_per_host_max == 0 {
            return;
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|_, stack| {
            stack.retain(|(since, _)| since.elapsed() < IDLE_MAX);
            !stack.is_empty()
        });
        let stack = idle.entry(connection.line.clone()).or_default();
        if stack.len() >= self.idle_per_host_max {
            stack.remove(0);
        }
        stack.push((Instant::now(), connection));
    }

    /// Closes what is idle of `line`: where one connection has gone silent, those beside it may have, and each would cost a deadline.
    pub fn forget(&self, line: &Line) {
        let forgotten = self.idle.lock().unwrap_or_else(PoisonError::into_inner).remove(line);
        drop(forgotten);
    }

    /// How many are idle now.
    pub fn len(&self) -> usize {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).values().map(Vec::len).sum()
    }
}
