//! The way without clip: fetch every layer, unpack them in order, run.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::mpsc,
};

use anyhow::{Context, Result, ensure};
use clip_format::storage_info::{LayerInfo, Source, StorageInfo};

use crate::{corpus::REPOSITORY, unpack::unpack_layer};

/// Layers that are fetched at a time. Source: containerd's and docker's default.
const FETCHES: usize = 3;

/// Fetches the layers of an image from the plain HTTP registry at `address`, some at a time, and unpacks each over those before it as soon as it is there.
/// Nothing is hashed and no blob is kept, so this is less than what a container store does.
///
/// # Errors
/// When the registry or a layer is not as expected.
pub(super) fn pull(address: SocketAddr, info: &StorageInfo, dir: &Path) -> Result<()> {
    let layers = &info.layers;
    let repository = match &info.source {
        Source::Registry { repository, .. } => repository.as_str(),
        Source::Local { .. } => REPOSITORY,
    };
    std::thread::scope(|scope| {
        let (mut arrivals, mut senders) = (Vec::new(), Vec::new());
        for _ in layers {
            let (sender, arrival) = mpsc::sync_channel(1);
            senders.push(Some(sender));
            arrivals.push(arrival);
        }
        for lane in 0..FETCHES.min(layers.len()) {
            let mine: Vec<_> = (lane..layers.len()).step_by(FETCHES).filter_map(|at| Some((&layers[at], senders[at].take()?))).collect();
            scope.spawn(move || {
                for (layer, sender) in mine {
                    // Nobody listens any more once another layer has failed.
                    let _ = sender.send(fetch(address, repository, layer));
                }
            });
        }
        for (arrival, LayerInfo { digest, .. }) in arrivals.into_iter().zip(layers) {
            let blob = arrival.recv().context("a fetching thread is gone")?.with_context(|| format!("fetch {digest}"))?;
            unpack_layer(&blob, dir).with_context(|| format!("unpack {digest}"))?;
        }
        Ok(())
    })
}

/// A whole blob, over a connection of its own.
fn fetch(address: SocketAddr, repository: &str, layer: &LayerInfo) -> Result<Vec<u8>> {
    let stream = TcpStream::connect(address).context("connect to the registry")?;
    let mut connection = BufReader::with_capacity(1 << 20, stream);
    write!(connection.get_mut(), "GET /v2/{repository}/blobs/{} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n", layer.digest)?;
    let mut line = String::new();
    connection.read_line(&mut line)?;
    ensure!(line.starts_with("HTTP/1.1 200"), "expected 200, found {line:?}");
    while !line.trim_end().is_empty() {
        line.clear();
        connection.read_line(&mut line)?;
    }
    let mut blob = vec![0; usize::try_from(layer.compressed_size)?];
    connection.read_exact(&mut blob)?;
    Ok(blob)
}
