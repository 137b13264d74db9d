//! The registry of a `.clip` or reference: reachable, and does it give us the image?

use std::{path::Path, time::Duration};

use anyhow::{Context, Result};
use clip_engine::{
    EngineError, ErrorKind,
    registry::{Client, ClientConfig, Reference},
};
use clip_format::storage_info::{Source, StorageInfo};
use clip_indexer::ImageRef;

use super::Finding;
use crate::{args::ReadArgs, clip_input, exit::chain_text, resolve};

const NAME: &str = "registry";
/// How long a registry may stay away, unless `--read-timeout` says so. Source: somebody waits for the answer, and a blip is over by then.
const PATIENCE: Duration = Duration::from_secs(10);

/// What of the target's source works.
pub fn examine(target: &str, args: &ReadArgs) -> Vec<Finding> {
    if let Some(store) = &args.store_ref {
        return examine_reference(store, args);
    }
    let path = Path::new(target);
    if path.exists() && !target.starts_with("oci:") {
        return examine_clip(path, args);
    }
    match target.parse::<ImageRef>() {
        Ok(ImageRef::Registry(reference)) => examine_reference(&reference, args),
        Ok(ImageRef::Local { path, .. }) => vec![examine_local(&path)],
        Err(error) => vec![Finding::fail(NAME, error.to_string(), "give a .clip file that exists, or an image reference")],
    }
}

fn examine_local(path: &Path) -> Finding {
    match std::fs::metadata(path) {
        Ok(_) => Finding::ok("source", format!("{} is there", path.display())),
        Err(error) => Finding::fail("source", format!("{}: {error}", path.display()), "say where it is now with --source PATH"),
    }
}

fn examine_clip(path: &Path, args: &ReadArgs) -> Vec<Finding> {
    let info = match read_info(path) {
        Ok(info) => info,
        Err(error) => {
            return vec![Finding::fail(".clip", chain_text(&error), "index the image again: clip index REF -o FILE.clip")];
        }
    };
    let mut findings = vec![Finding::ok(".clip", format!("{}: {} layers", path.display(), info.layers.len()))];
    match &info.source {
        Source::Local { .. } => {
            let recorded = info.source.local_path().unwrap_or_default();
            let at = args.source.as_deref().unwrap_or(&recorded);
            findings.push(match clip_indexer::local_blobs(&info, at) {
                Ok(_) => Finding::ok("source", format!("{} holds every layer", at.display())),
                Err(error) => Finding::fail("source", error.to_string(), "say where the layout or archive is now with --source PATH"),
            });
        }
        Source::Registry { registry, repository, .. } => {
            let recorded = Reference::recorded(registry, repository).map(|reference| reference.at_digest(info.manifest_digest));
            let hint = "index the image again, or say where its layers are with --store-ref REF";
            let recorded = recorded.map_err(|error| Finding::fail(NAME, error.to_string(), hint));
            match recorded.and_then(|reference| Ok((client_config(&reference, args)?, reference))) {
                Ok((config, reference)) => {
                    findings.extend(examine_manifest(&reference, &config));
                    findings.extend(first_blob(&reference, &info, &config));
                }
                Err(finding) => findings.push(finding),
            }
        }
    }
    findings
}

fn read_info(path: &Path) -> Result<StorageInfo> {
    let bytes = clip_input::read_clip(path)?;
    clip_input::parse_clip(path, &bytes)?.storage_info().with_context(|| path.display().to_string())
}

fn examine_reference(reference: &Reference, args: &ReadArgs) -> Vec<Finding> {
    client_config(reference, args).map_or_else(|finding| vec![finding], |config| examine_manifest(reference, &config))
}

/// How the registry of `reference` is spoken to. A password is asked for here, once.
fn client_config(reference: &Reference, args: &ReadArgs) -> Result<ClientConfig, Finding> {
    let config = resolve::client_config(&args.client, args.read_timeout.or(Some(PATIENCE))).and_then(|config| {
        let login = resolve::login(&args.client, || Ok(Some(reference.registry.clone())))?;
        Ok(ClientConfig { login, ..config })
    });
    config.map_err(|error| Finding::fail(NAME, chain_text(&error), "mend what was typed, or leave it out"))
}

fn examine_manifest(reference: &Reference, config: &ClientConfig) -> Vec<Finding> {
    let asked = with_client(config, async |client: &Client| {
        client.ping(reference).await?;
        client.manifest(reference).await
    });
    let mut findings = hosts(reference, config);
    findings.push(match asked {
        Ok(manifest) => Finding::ok(NAME, format!("{reference}: manifest of {} bytes, {}", manifest.bytes.len(), manifest.media_type)),
        Err(error) => Finding::fail(NAME, chain_text(&error), mend(&error)),
    });
    findings
}

/// Who is asked, where that is not the registry alone.
fn hosts(reference: &Reference, config: &ClientConfig) -> Vec<Finding> {
    let found = with_client(config, async |client: &Client| client.hosts(reference));
    match found {
        Ok(hosts) if hosts.len() < 2 => Vec::new(),
        Ok(hosts) => vec![Finding::ok("hosts", format!("{} is asked at {}", reference.registry, hosts.join(", then ")))],
        Err(error) => vec![Finding::fail("hosts", chain_text(&error), "mend the file, or name another directory with --hosts-dir")],
    }
}

/// One byte of the first layer that the registry must have, as one with URLs need not be there: what every read will ask for.
fn first_blob(reference: &Reference, info: &StorageInfo, config: &ClientConfig) -> Option<Finding> {
    let (_, layer) =
        info.layers.iter().enumerate().find(|(number, layer)| layer.compressed_size > 1 && info.urls_of(*number).is_empty())?;
    let asked = with_client(config, async |client: &Client| {
        let mut blob = client.blob(reference, &layer.digest, layer.compressed_size, 0..1).await?;
        blob.chunk().await
    });
    Some(match asked {
        Ok(_) => Finding::ok("ranged reads", format!("layer {} can be read in part", layer.digest)),
        Err(error) => Finding::fail("ranged reads", chain_text(&error), mend(&error)),
    })
}

fn with_client<T>(config: &ClientConfig, ask: impl AsyncFnOnce(&Client) -> Result<T, EngineError>) -> Result<T> {
    let client = Client::new(config.clone())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(ask(&client))?)
}

fn mend(error: &anyhow::Error) -> &'static str {
    match error.downcast_ref::<EngineError>().map(EngineError::kind) {
        Some(ErrorKind::Denied) => {
            "log in (docker login REGISTRY, --creds USER, or --authfile FILE), and check that this account may pull the image"
        }
        Some(ErrorKind::Unavailable) => {
            "check the name and the network; for a registry without TLS give --plain-http, for a private authority --ca FILE"
        }
        Some(ErrorKind::Corrupt) => "the registry, or something between here and it, changes what it sends",
        _ => "check the name of the image and of the registry",
    }
}
