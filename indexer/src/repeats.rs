//! Layers that stand in one manifest more than once: each is fetched and indexed once. docker's empty layer is the common one.

use std::collections::{BTreeMap, HashMap};

use crate::{
    layer::{LayerCpu, LayerInput, LayerOutput},
    progress::{LayerEvent, Progress},
};

/// For each place in the manifest the first and the last place of the same layer.
pub(crate) struct Repeats {
    places: Vec<(usize, usize)>,
}

impl Repeats {
    /// Layers are the same when blob and diff_id are: one of another diff_id is indexed by itself, and refused.
    pub(crate) fn new(layers: &[LayerInput]) -> Self {
        let mut known = HashMap::new();
        let mut places: Vec<(usize, usize)> = Vec::with_capacity(layers.len());
        for (place, layer) in layers.iter().enumerate() {
            let first = *known.entry((layer.digest, layer.diff_id, layer.blob.size())).or_insert(place);
            places.push((first, place));
        }
        for place in (0..places.len()).rev() {
            let (first, last) = places[place];
            places[first].1 = places[first].1.max(last);
        }
        Self { places }
    }

    /// The layers that are to be indexed.
    pub(crate) fn firsts<'a>(&self, layers: &'a [LayerInput]) -> impl Iterator<Item = &'a LayerInput> {
        layers.iter().zip(&self.places).enumerate().filter(|(place, (_, (first, _)))| place == first).map(|(_, (layer, _))| layer)
    }

    /// Where the layer at `place` stands first.
    pub(crate) fn first(&self, place: usize) -> usize {
        self.places[place].0
    }

    /// What the layer `input` came to, when it is there in `waiting`; it stays there for as long as it is needed again.
    pub(crate) fn take(
        &self,
        waiting: &mut BTreeMap<usize, LayerOutput>,
        input: &LayerInput,
        progress: &dyn Progress,
    ) -> Option<LayerOutput> {
        let place = usize::from(input.index.get());
        let first = self.first(place);
        let mut output = match self.places[first].1 == place {
            true => waiting.remove(&first)?,
            false => waiting.get(&first)?.clone(),
        };
        if place > first {
            output.info.media_type.clone_from(&input.media_type);
            output.warnings.clear();
            output.cpu = LayerCpu::default();
            progress.layer(input.index, LayerEvent::Finished { members: output.members, stream: output.info.stream_size });
        }
        Some(output)
    }
}
