//! Images in registries.

use std::{collections::HashSet, sync::Arc};

use bytes::Bytes;
use clip_engine::{
    registry::{Client, Manifest, Reference},
    source::BlobSource,
};
use clip_format::storage_info::Source;
use tokio::runtime::Runtime;

use super::{CONFIG_BYTES_MAX, Document, Elsewhere, ImageStore, ResolvedImage, Wanted, foreign, manifest::Descriptor};
use crate::error::IndexError;

struct RegistryStore<'a> {
    client: Client,
    runtime: &'a Runtime,
    repository: Arc<Reference>,
}

impl RegistryStore<'_> {
    fn fetch(&self, reference: &Reference) -> Result<Document, IndexError> {
        let Manifest { digest, media_type, bytes } = self.runtime.block_on(self.client.manifest(reference))?;
        Ok(Document { digest, media_type, bytes })
    }
}

impl ImageStore for RegistryStore<'_> {
    fn document(&self, descriptor: &Descriptor) -> Result<Document, IndexError> {
        self.fetch(&Reference { digest: Some(descriptor.digest), ..(*self.repository).clone() })
    }

    fn config(&self, descriptor: &Descriptor) -> Result<Bytes, IndexError> {
        Ok(self.runtime.block_on(self.client.blob_bytes(&self.repository, &descriptor.digest, CONFIG_BYTES_MAX))?)
    }

    fn layer(&self, descriptor: &Descriptor, elsewhere: &Elsewhere) -> Result<BlobSource, IndexError> {
        let repository = self.repository.clone();
        Ok(match elsewhere {
            Elsewhere::Nowhere => BlobSource::Registry { repository, digest: descriptor.digest, size: descriptor.size },
            Elsewhere::At(urls) => foreign(Some(repository), descriptor, urls),
        })
    }
}

/// The image that `reference` names.
///
/// # Errors
/// Every kind.
pub(super) fn resolve(reference: &Reference, wanted: &Wanted, client: &Client, runtime: &Runtime) -> Result<ResolvedImage, IndexError> {
    let store = RegistryStore { client: client.with_own_pool(), runtime, repository: Arc::new(reference.clone()) };
    let document = store.fetch(reference)?;
    super::resolve_document(&store, document, wanted, source_of(reference))
}

/// The registry source that `store` names, when its manifest has every layer of `image`.
///
/// # Errors
/// Every kind; `Image` names the layer that it lacks.
pub(super) fn check_store(
    store: &Reference,
    image: &ResolvedImage,
    wanted: &Wanted,
    client: &Client,
    runtime: &Runtime,
) -> Result<Source, IndexError> {
    let stored = resolve(store, wanted, client, runtime)?;
    let digests: HashSet<_> = stored.layers.iter().map(|layer| layer.digest).collect();
    match image.layers.iter().find(|layer| !digests.contains(&layer.digest)) {
        None => Ok(stored.source),
        Some(missing) => Err(IndexError::Image {
            what: format!("manifest {} of {store}", stored.manifest_digest),
            expected: format!("layer {} of the indexed image", missing.digest),
            found: format!("{} layers, none of them that; push the same image there, byte for byte", digests.len()),
        }),
    }
}

fn source_of(reference: &Reference) -> Source {
    let digest = reference.digest.as_ref().map(ToString::to_string);
    Source::Registry {
        registry: reference.registry.clone(),
        repository: reference.repository.clone(),
        reference: digest.or_else(|| reference.tag.clone()).unwrap_or_else(|| "latest".to_owned()),
    }
}
