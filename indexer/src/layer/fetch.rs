//! A blob's bytes, from wherever it is, into two bounded channels.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use clip_engine::{
    error::EngineError,
    registry::{Client, ServedBy as Host},
    source::{BlobSource, SourceReader},
};
use crossbeam::channel::Sender;
use tokio::{runtime, sync::watch};

/// Tells every fetch of an image to stop, wherever it waits; and remembers who sent which blob, where others could be asked instead.
pub(crate) struct Cancel {
    stopped: watch::Sender<bool>,
    hosts: Mutex<Vec<Arc<Host>>>,
    /// The blob's digest has agreed: whatever fails, its bytes do not.
    is_right: AtomicBool,
    /// What stops it, too.
    outer: Option<watch::Sender<bool>>,
}

impl Cancel {
    /// Nothing is stopped yet.
    pub(crate) fn new() -> Self {
        Self { stopped: watch::Sender::new(false), hosts: Mutex::default(), is_right: AtomicBool::new(false), outer: None }
    }

    /// One for a single try of a layer, which can be stopped alone, and is when this one is.
    pub(crate) fn within(&self) -> Self {
        Self { outer: Some(self.stopped.clone()), ..Self::new() }
    }

    /// Every fetch under way ends, and none begins.
    pub(crate) fn stop(&self) {
        self.stopped.send_replace(true);
    }

    fn note_host(&self, host: &Arc<Host>) {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(host));
    }

    /// The bytes were wrong: who sent them is asked last from now on, where there is anybody else.
    pub(crate) fn distrust_hosts(&self) {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(|host| host.distrust());
    }

    /// The blob's digest has agreed.
    pub(super) fn note_right(&self) {
        self.is_right.store(true, Ordering::Relaxed);
    }

    /// Whether it has.
    pub(crate) fn is_right(&self) -> bool {
        self.is_right.load(Ordering::Relaxed)
    }

    /// True once `stop` was called.
    pub(crate) fn is_stopped(&self) -> bool {
        *self.stopped.borrow() || self.outer.as_ref().is_some_and(|outer| *outer.borrow())
    }

    /// Waits until it is.
    async fn wait(&self) {
        let wait = async |stopped: &watch::Sender<bool>| drop(stopped.subscribe().wait_for(|stopped| *stopped).await);
        match &self.outer {
            None => wait(&self.stopped).await,
            Some(outer) => tokio::select! {
                () = wait(&self.stopped) => {}
                () = wait(outer) => {}
            },
        }
    }
}

/// What the decoder receives. A channel that closes without `End` means that the fetch failed or was stopped.
pub(super) enum Message {
    Chunk(Bytes),
    End,
}

/// How much of a blob was hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fetched {
    Whole,
    Part,
}

/// Hands each chunk of the blob to the decoder and to the blob's hash, until the end or a stop. A decoder that wants no more has failed; the
/// hash then says whether the blob is what it should be, or somebody sent something else.
///
/// # Errors
/// Every kind, from the source.
pub(super) fn fetch(
    blob: &BlobSource,
    client: &Client,
    cancel: &Cancel,
    decoder: Sender<Message>,
    hash: Sender<Bytes>,
) -> Result<Fetched, EngineError> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| EngineError::io("start a runtime for", "a layer fetch", error))?;
    let client = client.with_own_pool();
    runtime.block_on(async {
        tokio::select! {
            biased;
            () = cancel.wait() => Ok(Fetched::Part),
            end = copy(blob, &client, cancel, &decoder, &hash) => end,
        }
    })
}

async fn copy(
    blob: &BlobSource,
    client: &Client,
    cancel: &Cancel,
    decoder: &Sender<Message>,
    hash: &Sender<Bytes>,
) -> Result<Fetched, EngineError> {
    let size = blob.size();
    if size > 0 {
        let mut reader = blob.open(client, 0..size).await?;
        let mut host = None;
        let mut left = size;
        while let Some(chunk) = reader.chunk().await? {
            note_new_host(&reader, &mut host, cancel);
            left = left.saturating_sub(chunk.len() as u64);
            // Blocking here is what bounds memory: the connection waits with us. The hash job takes all it is given until we end.
            if hash.send(chunk.clone()).is_err() {
                return Ok(Fetched::Part);
            }
            let _ = decoder.send(Message::Chunk(chunk));
            // A reader that is always ready (a local file) never yields by itself: let the stop signal be seen.
            tokio::task::yield_now().await;
        }
        if left > 0 {
            let expected = format!("{size} bytes");
            return Err(EngineError::Invalid { what: "length of a layer blob".to_owned(), expected, found: (size - left).to_string() });
        }
    }
    // A decoder that is gone has failed, and says why itself.
    let _ = decoder.send(Message::End);
    Ok(Fetched::Whole)
}

/// Remembers who sends the blob, when that is another than `host`, the one before.
fn note_new_host(reader: &SourceReader, host: &mut Option<Arc<Host>>, cancel: &Cancel) {
    if let Some(now) = reader.sender().filter(|now| !host.as_ref().is_some_and(|before| Arc::ptr_eq(before, now))) {
        cancel.note_host(now);
        *host = Some(Arc::clone(now));
    }
}
