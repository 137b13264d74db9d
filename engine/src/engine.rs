//! The engine: shards, cache and open images of one cache directory.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    thread::JoinHandle,
};

use clip_format::{
    checkpoints::SpanTable,
    storage_info::{LayerInfo, Source, StorageInfo},
};

use crate::{
    buffers::Buffers,
    cache::{self, background::Background, image_dir, image_dir::ExpandedImage, layer_file::layer_dir, lock::OwnerLock, room::Room},
    config::EngineConfig,
    core::Core,
    error::EngineError,
    image::{Image, ImageOptions},
    image_layer::ImageLayer,
    layer::LayerStore,
    metrics::Stats,
    registry::{Client, ForeignBlob, LoggedIn, Login, Reference},
    shard,
    source::BlobSource,
    stretch,
    tend::Tended,
};

/// One per cache directory and process; it holds the directory's lock. Dropping the last clone, and the last image, stops the shards.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

struct Inner {
    threads: Arc<Threads>,
    /// By image id.
    images: Mutex<HashMap<[u8; 32], SameId>>,
    /// For indexes that are being expanded.
    room: Room,
    /// By directory.
    stores: Mutex<HashMap<PathBuf, Weak<LayerStore>>>,
}

/// What is known of one image id.
#[derive(Default)]
struct SameId {
    /// Several where options differ.
    images: Vec<Weak<Image>>,
    /// Held while it is opened, so that others of this id wait, and no others.
    opening: Arc<Mutex<()>>,
}

/// The shards' threads. Dropping it stops and joins them.
pub(crate) struct Threads {
    pub(crate) core: Arc<Core>,
    tended: Arc<Tended>,
    background: Background,
    joins: Vec<JoinHandle<()>>,
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.core.stop();
        for thread in self.joins.drain(..) {
            // The last image may be dropped by an answer that a shard gives: that shard cannot wait for itself.
            if thread.thread().id() != std::thread::current().id() && thread.join().is_err() {
                tracing::error!("an engine thread panicked");
            }
        }
        drop(std::mem::take(&mut self.background));
        // What still holds layers goes before the lock: who takes the directory next finds their files closed.
        self.core.clear();
        self.tended.stop();
        self.core.unlock();
    }
}

impl Engine {
    /// Takes the cache directory's lock and starts the shards.
    ///
    /// # Errors
    /// `CacheBusy` when another process owns the directory; `Invalid` when others may write to it; `Io`; `Unsupported` when io_uring was
    /// demanded and is barred.
    pub fn start(config: EngineConfig) -> Result<Self, EngineError> {
        cache::create_dir(&config.cache_dir)?;
        cache::check_owner(&config.cache_dir)?;
        let lock = OwnerLock::take(&config.cache_dir)?;
        image_dir::remove_leftovers(&config.cache_dir);
        let client = Client::new(config.client.clone())?;
        let (handles, queues): (Vec<_>, Vec<_>) = (0..config.shards.max(1)).map(|_| shard::queues(client.with_own_pool())).unzip();
        let tended = Tended::start(Buffers::new(config.bytes_in_flight_max));
        let mut threads = Threads {
            core: Arc::new(Core::new(config, client, handles, lock)),
            tended,
            background: Background::default(),
            joins: Vec::new(),
        };
        for (index, queues) in queues.into_iter().enumerate() {
            threads.joins.push(shard::spawn(threads.core.clone(), queues, index)?);
        }
        Ok(Self(Arc::new(Inner { threads: Arc::new(threads), images: Mutex::default(), room: Room::default(), stores: Mutex::default() })))
    }

    /// Opens the `.clip` at `path`: expands and checks its index on the first open ever, maps it on later ones. The same image opened
    /// twice with the same options is the same `Arc`, unless it is to be recorded. Waits for who opens the same image, and on
    /// the first open ever for room: 256 MiB of indexes are expanded at a time.
    ///
    /// # Errors
    /// `Format`, `Io`, `Invalid`.
    pub fn open_image(&self, path: &Path, options: &ImageOptions) -> Result<Arc<Image>, EngineError> {
        let header = image_dir::read_header(path)?;
        let id = header.image_id();
        let opening = self.opening(id);
        let _one_at_a_time = opening.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(image) = self.opened(&id, options) {
            return Ok(image);
        }
        let expanded = image_dir::open(&self.config().cache_dir, path, &header, &self.0.threads.background, &self.0.room)?;
        let layers = self.layers(&expanded, options)?;
        say_slow_stretches(&expanded, &id);
        let image = Arc::new(Image::new(id, options.clone(), expanded, layers, self.0.threads.clone()));
        self.images().entry(id).or_default().images.push(Arc::downgrade(&image));
        Ok(image)
    }

    /// The lock of image `id`, which stays the same one as long as somebody has it.
    fn opening(&self, id: [u8; 32]) -> Arc<Mutex<()>> {
        let mut images = self.images();
        images.retain(|_, same_id| {
            same_id.images.retain(|image| image.strong_count() > 0);
            !same_id.images.is_empty() || Arc::strong_count(&same_id.opening) > 1
        });
        images.entry(id).or_default().opening.clone()
    }

    /// The image that is open with these options, if it may be shared.
    fn opened(&self, id: &[u8; 32], options: &ImageOptions) -> Option<Arc<Image>> {
        // Dropped after the lock: the last holder of an image closes it.
        let open: Vec<Arc<Image>> = self.images().get(id)?.images.iter().filter_map(Weak::upgrade).collect();
        open.into_iter().find(|image| !options.record && image.options() == options)
    }

    fn images(&self) -> MutexGuard<'_, HashMap<[u8; 32], SameId>> {
        self.0.images.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until the result is dropped, `login` is asked first for the credentials that the layers of `image` need; `None` where these are on this
    /// machine. Readers share layers, and so what any of their logins was granted. See [`Client::log_in`].
    #[must_use = "dropping it logs out"]
    pub fn log_in(&self, image: &Image, login: Login) -> Option<LoggedIn> {
        let reference = image.sources().find_map(|source| match source {
            BlobSource::Registry { repository, .. } => Some(repository),
            BlobSource::Foreign(blob) => blob.repository(),
            BlobSource::File { .. } => None,
        })?;
        Some(self.0.threads.core.client.log_in(reference, login))
    }

    /// The settings it was started with.
    #[must_use]
    pub fn config(&self) -> &EngineConfig {
        &self.0.threads.core.config
    }

    /// Counters so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let core = &self.0.threads.core;
        Stats {
            bytes_in_flight_peak: core.budget.held_max(),
            decoder_bytes_peak: core.decoders.held_max(),
            spans_by_shard: core.spans_by_shard(),
            ..core.counters.snapshot(core.client.traffic())
        }
    }

    fn layers(&self, image: &ExpandedImage, options: &ImageOptions) -> Result<Vec<Arc<ImageLayer>>, EngineError> {
        let sources = blob_sources(&image.storage_info, options)?;
        let layers = image.storage_info.layers.iter().zip(image.checkpoints.layers()).zip(sources);
        layers
            .map(|((info, table), source)| {
                let store = self.store(info, table)?;
                Ok(Arc::new(ImageLayer::new(store, table.clone(), source, image.windows.clone())))
            })
            .collect()
    }

    /// The node's copy of a layer with these spans: one, however many images have it.
    fn store(&self, info: &LayerInfo, table: &SpanTable) -> Result<Arc<LayerStore>, EngineError> {
        let core = &self.0.threads.core;
        let dir = layer_dir(&core.config.cache_dir, &info.digest, table);
        let mut stores = self.0.stores.lock().unwrap_or_else(PoisonError::into_inner);
        stores.retain(|_, store| store.strong_count() > 0);
        if let Some(store) = stores.get(&dir).and_then(Weak::upgrade) {
            return Ok(store);
        }
        let (connections_max, tended) = (core.config.connections_per_layer_max, &self.0.threads.tended);
        let store = LayerStore::open(dir.clone(), info.digest, table, connections_max, core.counters.clone(), tended)?;
        let store = Arc::new(store);
        tended.add(&store);
        stores.insert(dir, Arc::downgrade(&store));
        Ok(store)
    }
}

/// One line for all layers of the image, if there is anything to say.
fn say_slow_stretches(image: &ExpandedImage, id: &[u8; 32]) {
    let found = image.checkpoints.layers().iter().zip(&image.storage_info.layers);
    let slow: Vec<_> = found.filter_map(|(table, info)| Some((stretch::slow_stretch_of(table)?, info.digest))).collect();
    if let Some((longest, layer)) = slow.iter().max_by_key(|(stretch, _)| stretch.end - stretch.start) {
        tracing::warn!(
            image = %hex::encode(id),
            layers = slow.len(),
            longest_mib = (longest.end - longest.start) >> 20,
            longest_in = %layer,
            "layers have long stretches where decoding cannot begin: the first read in one decodes from its start (clip index said why)"
        );
    }
}

/// Where each layer's blob is read from: what the options say, else what the index recorded.
fn blob_sources(info: &StorageInfo, options: &ImageOptions) -> Result<Vec<BlobSource>, EngineError> {
    if let Some(reference) = &options.store_ref {
        return Ok(registry_sources(info, reference.clone()));
    }
    if let Some(blobs) = &options.local_blobs {
        return local_sources(info, blobs);
    }
    match &info.source {
        Source::Registry { registry, repository, .. } => Ok(registry_sources(info, Reference::recorded(registry, repository)?)),
        Source::Local { transport, .. } => {
            let path = options.source.clone().or_else(|| info.source.local_path()).unwrap_or_default();
            let found = format!("{}:{}", transport.as_str(), path.display());
            let expected = "the place of its layers, by --source PATH or --store-ref REF".to_owned();
            Err(EngineError::Invalid { what: "an index made from local files".to_owned(), expected, found })
        }
    }
}

fn registry_sources(info: &StorageInfo, reference: Reference) -> Vec<BlobSource> {
    let repository = Arc::new(reference);
    let source = |(place, layer): (usize, &LayerInfo)| {
        let (repository, digest, size) = (repository.clone(), layer.digest, layer.compressed_size);
        match info.urls_of(place) {
            [] => BlobSource::Registry { repository, digest, size },
            urls => BlobSource::Foreign(Arc::new(ForeignBlob::new(Some(repository), digest, size, urls.to_vec()))),
        }
    };
    info.layers.iter().enumerate().map(source).collect()
}

fn local_sources(info: &StorageInfo, blobs: &[BlobSource]) -> Result<Vec<BlobSource>, EngineError> {
    let invalid = |what: String, expected: String, found: String| Err(EngineError::Invalid { what, expected, found });
    if blobs.len() != info.layers.len() {
        return invalid("local layers".to_owned(), info.layers.len().to_string(), blobs.len().to_string());
    }
    match info.layers.iter().zip(blobs).find(|(layer, blob)| blob.size() != layer.compressed_size) {
        Some((layer, blob)) => {
            invalid(format!("layer {}", layer.digest), format!("{} bytes", layer.compressed_size), format!("{} bytes", blob.size()))
        }
        None => Ok(blobs.to_vec()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// Claim: who opens an image keeps those waiting who want the same one, and nobody else; what was opened and let go leaves nothing.
    #[test]
    fn opening_one_image_does_not_wait_for_another() {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::start(EngineConfig::new(dir.path().join("cache"))).unwrap();
        let opening = engine.opening([1; 32]);
        let held = opening.lock().unwrap();
        assert!(engine.opening([1; 32]).try_lock().is_err());
        assert!(engine.opening([2; 32]).try_lock().is_ok() && engine.opened(&[1; 32], &ImageOptions::default()).is_none());
        drop(held);
        assert!(engine.opening([1; 32]).try_lock().is_ok());
        drop(opening);
        drop(engine.opening([3; 32]));
        assert_eq!(engine.images().keys().copied().collect::<Vec<_>>(), [[3; 32]]);
    }
}
