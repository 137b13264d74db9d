//! Where the layers come from during a run, for clip and for the plain loops beside it.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    ops::Range,
    sync::OnceLock,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use clip_engine::{
    ImageOptions,
    registry::{Client, ClientConfig, Reference},
    source::BlobSource,
};
use clip_format::{
    digest::Digest,
    storage_info::{Source, StorageInfo},
    units::LayerIndex,
};

use crate::{
    args::Shape,
    corpus::REPOSITORY,
    registry::{Registry, Served},
    relay::Relay,
    shaper::Shaper,
};

/// Where the layers come from.
pub struct Origin {
    /// As the `.clip` names them: one a layer.
    sources: Vec<BlobSource>,
    digests: Vec<Digest>,
    local: bool,
    /// Of every path of a request: `library/alpine`.
    repository: String,
    manifest: Digest,
    shaper: Option<Shaper>,
    /// The same for the plain loops, which have one connection: it is never starved.
    loop_shaper: Option<Shaper>,
    relay: Option<Relay>,
    /// Of the registry of this process, behind the shaper if there is one.
    registry: Option<SocketAddr>,
    /// The layers' blobs in memory, fetched when first asked for.
    blobs: Vec<OnceLock<Bytes>>,
}

impl Origin {
    /// The origin of an image with `info`; `registry` serves it when it was made for the run.
    ///
    /// # Errors
    /// When a local image is not where it was, or has no network that could be shaped.
    pub fn new(info: &StorageInfo, registry: Option<&Registry>, shape: &Shape) -> Result<Self> {
        let (sources, repository, local) = sources(info)?;
        ensure!(!local || shape.is_none(), "the image is local: there is no network between it and clip that could be shaped");
        let own = registry.map(Registry::address);
        let mut relay = None;
        let (shaper, loop_shaper) = if shape.is_none() {
            (None, None)
        } else {
            let upstream = match own {
                Some(own) => own,
                None => {
                    let reference = reference(info).context("a registry to shape")?;
                    relay.insert(Relay::start(reference, &info.layers)?).address()
                }
            };
            let unstarved = Shape { starve: None, ..shape.clone() };
            (Some(Shaper::start(upstream, shape)?), Some(Shaper::start(upstream, &unstarved)?))
        };
        Ok(Self {
            blobs: sources.iter().map(|_| OnceLock::new()).collect(),
            digests: info.layers.iter().map(|layer| layer.digest).collect(),
            sources,
            local,
            repository,
            manifest: info.manifest_digest,
            registry: own,
            relay,
            shaper,
            loop_shaper,
        })
    }

    /// Where plain HTTP gives the layers, through the shaper if there is one; none for a foreign registry without a shaper, or a local
    /// image.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.shaper.as_ref().map(Shaper::address).or(self.registry)
    }

    /// Called before each engine or program that is measured: the connections that it opens next are the first ones again.
    pub fn begin_round(&self) {
        if let Some(shaper) = &self.shaper {
            shaper.begin_round();
        }
    }

    /// Whether a shaper stands before the layers.
    #[must_use]
    pub fn is_shaped(&self) -> bool {
        self.shaper.is_some()
    }

    /// What clip must be told to read from (`--store-ref`); none when the `.clip`'s own reference is right.
    #[must_use]
    pub fn store_ref(&self) -> Option<String> {
        let shaper = self.shaper.as_ref()?;
        Some(format!("{}/{}@{}", shaper.address(), self.repository, self.manifest))
    }

    /// How an engine opens the image.
    ///
    /// # Errors
    /// None in practice: the reference is made here.
    pub fn image_options(&self) -> Result<ImageOptions> {
        Ok(ImageOptions {
            store_ref: self.store_ref().map(|reference| reference.parse()).transpose()?,
            local_blobs: self.local.then(|| self.sources.clone()),
            ..ImageOptions::default()
        })
    }

    /// What shaper and relay have spent on a core so far; they share the cores with what is measured.
    #[must_use]
    pub fn cpu(&self) -> Duration {
        let shapers = [&self.shaper, &self.loop_shaper].into_iter().flatten();
        shapers.map(Shaper::cpu).sum::<Duration>() + self.relay.as_ref().map(Relay::cpu).unwrap_or_default()
    }

    /// The blob of `layer` in memory; fetched past the shaper when first asked for.
    ///
    /// # Errors
    /// The engine's.
    pub fn blob(&self, layer: LayerIndex) -> Result<Bytes> {
        let at = usize::from(layer.get());
        let (slot, source) = (self.blobs.get(at).context("no such layer")?, self.sources.get(at).context("no such layer")?);
        if let Some(blob) = slot.get() {
            return Ok(blob.clone());
        }
        let blob = BlobLoop::new(source.clone())?.read(0..source.size())?;
        Ok(slot.get_or_init(|| Bytes::from(blob)).clone())
    }

    /// What a plain loop reads compressed bytes of `layer` with.
    ///
    /// # Errors
    /// The system's.
    pub fn ranges(&self, layer: LayerIndex) -> Result<Ranges> {
        let at = usize::from(layer.get());
        match self.loop_shaper.as_ref().map(Shaper::address).or(self.registry) {
            Some(address) => {
                let digest = self.digests.get(at).context("no such layer")?;
                Ranges::connect(address, &format!("/v2/{}/blobs/{digest}", self.repository))
            }
            None => Ok(Ranges::Blob(BlobLoop::new(self.sources.get(at).context("no such layer")?.clone())?)),
        }
    }
}

/// The registry reference of an image, by digest.
fn reference(info: &StorageInfo) -> Option<Reference> {
    match &info.source {
        Source::Registry { registry, repository, .. } => {
            Some(Reference::recorded(registry, repository).ok()?.at_digest(info.manifest_digest))
        }
        Source::Local { .. } => None,
    }
}

fn sources(info: &StorageInfo) -> Result<(Vec<BlobSource>, String, bool)> {
    if let Some(path) = info.source.local_path() {
        return Ok((clip_indexer::local_blobs(info, &path)?, REPOSITORY.to_owned(), true));
    }
    let reference = reference(info).context("a source that is neither a registry nor local")?;
    let repository = reference.repository.clone();
    let reference = std::sync::Arc::new(reference);
    let source = |layer: &clip_format::storage_info::LayerInfo| BlobSource::Registry {
        repository: reference.clone(),
        digest: layer.digest,
        size: layer.compressed_size,
    };
    Ok((info.layers.iter().map(source).collect(), repository, false))
}

/// Ranges of one blob, one after another, over one connection.
pub enum Ranges {
    /// Plain HTTP by hand.
    Http {
        /// Open.
        connection: BufReader<TcpStream>,
        /// All of the head before the range.
        request: String,
    },
    /// What speaks TLS or reads files.
    Blob(BlobLoop),
}

impl Ranges {
    fn connect(address: SocketAddr, path: &str) -> Result<Self> {
        let stream = TcpStream::connect(address).context("connect to the registry")?;
        stream.set_nodelay(true)?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nRange: bytes=");
        Ok(Self::Http { connection: BufReader::new(stream), request })
    }

    /// Fills `out` with `range` of the blob.
    ///
    /// # Errors
    /// When the registry does not answer as expected.
    pub fn read(&mut self, range: Range<u64>, out: &mut Vec<u8>) -> Result<()> {
        match self {
            Self::Http { connection, request } => {
                write!(connection.get_mut(), "{request}{}-{}\r\n\r\n", range.start, range.end - 1)?;
                let mut line = String::new();
                connection.read_line(&mut line)?;
                ensure!(line.starts_with("HTTP/1.1 206"), "expected 206, found {line:?}");
                while line.trim_end() != "" {
                    line.clear();
                    connection.read_line(&mut line)?;
                }
                out.resize(usize::try_from(range.end - range.start)?, 0);
                Ok(connection.read_exact(out)?)
            }
            Self::Blob(blob) => {
                *out = blob.read(range)?;
                Ok(())
            }
        }
    }
}

/// Reads a blob with clip's own client, on this thread.
pub struct BlobLoop {
    runtime: tokio::runtime::Runtime,
    client: Client,
    source: BlobSource,
}

impl BlobLoop {
    fn new(source: BlobSource) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { runtime, client: Client::new(ClientConfig::default())?, source })
    }

    fn read(&self, range: Range<u64>) -> Result<Vec<u8>> {
        let len = usize::try_from(range.end - range.start)?;
        self.runtime.block_on(async {
            let mut bytes = Vec::with_capacity(len);
            let mut reader = self.source.open(&self.client, range).await?;
            while let Some(chunk) = reader.chunk().await? {
                bytes.extend_from_slice(&chunk);
            }
            ensure!(bytes.len() == len, "expected {len} bytes of a blob, found {}", bytes.len());
            Ok(bytes)
        })
    }
}

/// What the registry of this process has done; zeros for a foreign one.
#[must_use]
pub fn served(registry: Option<&Registry>) -> Served {
    registry.map(Registry::served).unwrap_or_default()
}
