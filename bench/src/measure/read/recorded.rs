//! A trace made of an access profile: what a recorded run first needed, as reads of the files that lie there.

use anyhow::{Context as _, Result, ensure};
use clip_format::{
    digest::Digest,
    profile::{Profile, Run},
    units::LayerIndex,
};

use super::replay::{Op, Plan};
use crate::{
    setup::Clip,
    tree::{self, Piece},
};

/// The bytes of one file that lie in one piece.
struct Held {
    /// Which of the image's files.
    file: usize,
    piece: Piece,
}

/// The reads that need what `profile` names, in its order: of each run, the files from its first byte to its last. Runs of layers that the
/// image has not are left out.
///
/// # Errors
/// When no layer of the profile is the image's, and when the index is damaged.
pub(super) fn plan(profile: &Profile, clip: &Clip) -> Result<Plan> {
    let digests: Vec<Digest> = clip.info.layers.iter().map(|layer| layer.digest).collect();
    let fit = profile.useful_fit(&clip.info.manifest_digest, &digests)?;
    let held = held(clip)?;
    let (mut plan, mut slots) = (Plan { paths: Vec::new(), ops: Vec::new(), opens_each: false }, vec![None; clip.files.len()]);
    for run in profile.runs() {
        let Some(layer) = fit.places[usize::from(run.layer)] else { continue };
        for (file, at, len) in reads(run, layer, &held) {
            let path = *slots[file].get_or_insert_with(|| {
                plan.paths.push(clip.files[file].path.clone());
                plan.paths.len() - 1
            });
            plan.ops.push(Op { path, at, len: usize::try_from(len)? });
        }
    }
    ensure!(!plan.ops.is_empty(), "expected a profile that needs bytes of files of this image, found one that needs none");
    Ok(plan)
}

/// What all files hold, by layer and place; one of several that share a place.
fn held(clip: &Clip) -> Result<Vec<Held>> {
    let mut held = Vec::new();
    for (file, entry) in clip.files.iter().enumerate() {
        let inode = clip.index.inode(entry.nid).with_context(|| String::from_utf8_lossy(&entry.path).into_owned())?;
        held.extend(tree::pieces(&clip.index, &inode)?.into_iter().map(|piece| Held { file, piece }));
    }
    held.sort_by_key(|held| (held.piece.layer, held.piece.stream));
    held.dedup_by_key(|held| (held.piece.layer, held.piece.stream));
    Ok(held)
}

/// File, offset and length of each read of `run`.
fn reads<'a>(run: &'a Run, layer: LayerIndex, held: &'a [Held]) -> impl Iterator<Item = (usize, u64, u64)> + 'a {
    let first = held.partition_point(|held| (held.piece.layer, held.piece.stream + held.piece.len) <= (layer, run.stream.start));
    let in_run = move |held: &&Held| held.piece.layer == layer && held.piece.stream < run.stream.end;
    held[first..].iter().take_while(in_run).filter_map(|held| {
        let Piece { file, stream, len, .. } = held.piece;
        let (start, end) = (stream.max(run.stream.start), (stream + len).min(run.stream.end));
        (start < end).then(|| (held.file, file + (start - stream), end - start))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Claim: a run is read as the parts of the files that lie in it, headers between them left out, in the layer that it names.
    #[test]
    fn a_run_is_the_files_in_it() {
        let held = |file, layer, stream, len, at| Held { file, piece: Piece { file: at, layer: LayerIndex(layer), stream, len } };
        let all = [held(0, 0, 512, 1000, 0), held(1, 1, 512, 1000, 0), held(2, 1, 2048, 100, 4096), held(3, 1, 4096, 50, 0)];
        let run = Run { layer: 7, stream: 1000..4100, ms: 0 };
        let found: Vec<_> = reads(&run, LayerIndex(1), &all).collect();
        assert_eq!(found, [(1, 488, 512), (2, 4096, 100), (3, 0, 4)]);
        assert_eq!(reads(&run, LayerIndex(2), &all).count(), 0);
    }
}
