//! Layers of the original code that are several weights here, or one with its rows in another order.
//!
//! The original code of FLUX.2 and Z-Image has one layer `[3 out, in]` for queries, keys and values. Where
//! every tensor is one of each part, or has the rows of the parts one after another, the parts are layers of
//! their own:
//!
//! | tensor | part |
//! |---|---|
//! | LoRA's `A`, LoHa's second factors, LoKr's `W2`, rotations of the inputs, `α` | the same |
//! | LoRA's `B`, LoHa's first factors, magnitudes, factors and deltas of outputs | its rows |
//! | LoKr's `W1`, blocks that turn outputs | its rows, if their number can be divided |
//!
//! Otherwise the delta of the whole layer is computed, and each weight has its rows of it.

use std::collections::BTreeMap;

use burn::tensor::{Tensor, TensorData};
use soda_adapters::Weight;
use soda_models::original_names::Rows;

use super::form::LayerForm;
use crate::error::InteropError;
use crate::interop::key_names::Role;
use crate::interop::layer_tensors::LayerTensors;
use crate::interop::original_names::Place;
use crate::interop::peft::{PeftConfig, PeftInit};

/// What the parts of a joined layer have of a tensor.
enum Share {
    /// All of it.
    Same,
    /// Some rows of it.
    OwnRows,
}

/// The tensors of a joined layer.
pub(crate) struct JoinedLayer {
    pub(crate) tensors: LayerTensors,
    /// The weights that the layer is made of.
    pub(crate) places: Vec<Place>,
}

impl JoinedLayer {
    /// Reads the tensors as an adapter of each weight, by its path. `weights` are those of the network.
    ///
    /// # Errors
    /// As [`LayerForm::new`], and [`InteropError::UnsupportedTensor`] for a base that lacks a weight of the
    /// layer.
    pub(crate) fn forms(
        &self,
        config: Option<&PeftConfig>,
        weights: &BTreeMap<String, Weight>,
    ) -> Result<Vec<(String, LayerForm)>, InteropError> {
        let split = self.split(config).and_then(|parts| {
            let form = |(place, part): (&Place, LayerTensors)| {
                let form = LayerForm::new(&part, config, weights.get(&place.weight)?).ok()?;
                Some((place.weight.clone(), form))
            };
            self.places.iter().zip(parts).map(form).collect::<Option<Vec<_>>>()
        });
        // Tensors that do not fit are refused by the sizes of the whole layer, which are those of the file.
        split.map_or_else(|| self.deltas(config, weights), Ok)
    }

    /// The tensors of each part. `None` if they cannot be divided.
    fn split(&self, config: Option<&PeftConfig>) -> Option<Vec<LayerTensors>> {
        // PiSSA takes singular triples of the whole layer off the base.
        if matches!(config, Some(PeftConfig::Lora(lora)) if lora.init == PeftInit::Pissa) {
            return None;
        }
        let up = self.tensors.get(Role::Up);
        let trained = up.is_some_and(|up| up.iter::<f32>().any(|value| value != 0.0));
        let part = |place: &Place| {
            let mut part = LayerTensors::new(&place.weight, self.tensors.module());
            for (role, key, data) in self.tensors.iter() {
                let data = match self.share(role, data)? {
                    Share::Same => data.clone(),
                    Share::OwnRows => rows(data, place.rows)?,
                };
                part.insert(role, key.to_owned(), data).ok()?;
            }
            // The scale by a configuration is that of the whole rank.
            Some(if trained && config.is_none() { without_zeros(part) } else { part })
        };
        self.places.iter().map(part).collect()
    }

    /// What the parts have of a tensor. `None` if it is of the whole layer.
    fn share(&self, role: Role, data: &TensorData) -> Option<Share> {
        match role {
            Role::Down
            | Role::HadaW1B
            | Role::HadaW2B
            | Role::LokrW1B
            | Role::LokrW2
            | Role::LokrW2A
            | Role::LokrW2B
            | Role::Skew
            | Role::ScaledSkew
            | Role::BoftBlocks
            | Role::Reflections
            | Role::Alpha => Some(Share::Same),
            Role::Up
            | Role::HadaW1A
            | Role::HadaW2A
            | Role::LokrW1
            | Role::LokrW1A
            | Role::Magnitude
            | Role::Rescale
            | Role::BoftScale
            | Role::Diff => Some(Share::OwnRows),
            // The magnitudes of inputs have one row.
            Role::DoraScale => (data.shape().first() != Some(&1)).then_some(Share::OwnRows),
            // `α` bounds the norm of all blocks together. LyCORIS writes 0 for no bound.
            Role::OftBlocks => {
                let bound = self.tensors.number(Role::Alpha).ok()?;
                bound.is_none_or(|bound| bound <= 0.0).then_some(Share::OwnRows)
            }
            // kohya's scripts bound every OFT. Cores are of convolutions. The others are refused by name.
            Role::Mid
            | Role::HadaT1
            | Role::HadaT2
            | Role::LokrT1
            | Role::LokrT2
            | Role::KohyaOftBlocks
            | Role::UpBias
            | Role::Vector
            | Role::Scalar => None,
        }
    }

    /// Reads the tensors as one adapter of the whole layer, and returns the delta of each weight.
    fn deltas(
        &self,
        config: Option<&PeftConfig>,
        weights: &BTreeMap<String, Weight>,
    ) -> Result<Vec<(String, LayerForm)>, InteropError> {
        let mut places: Vec<&Place> = self.places.iter().collect();
        places.sort_by_key(|place| index(place.rows));
        let complete = match places[..] {
            [only] => !matches!(only.rows, Rows::Third(_)),
            _ => places.iter().map(|place| index(place.rows)).eq(0..3),
        };
        let part = |place: &&Place| {
            let matrix = weights.get(&place.weight)?.matrix();
            let swapped = place.rows == Rows::HalvesSwapped;
            Some(if swapped { swap_halves(matrix) } else { matrix })
        };
        let parts = places.iter().map(part).collect::<Option<Vec<_>>>().filter(|_| complete);
        let incomplete = || self.tensors.unsupported("layer of weights that the base lacks");
        let whole = Weight::from_matrix(Tensor::cat(parts.ok_or_else(incomplete)?, 1));
        let form = LayerForm::new(&self.tensors, config, &whole)?;
        let delta = form.delta(self.tensors.weight(), &whole)?;
        let of_place = |place: &Place| {
            let delta = match place.rows {
                Rows::All => delta.clone(),
                Rows::HalvesSwapped => swap_halves(delta.clone()),
                Rows::Third(index) => {
                    let outputs = delta.dims()[1] / 3;
                    delta.clone().narrow(1, index * outputs, outputs)
                }
            };
            (place.weight.clone(), LayerForm::Delta(delta))
        };
        Ok(self.places.iter().map(of_place).collect())
    }
}

/// The place of rows among those of the whole layer.
fn index(rows: Rows) -> usize {
    if let Rows::Third(index) = rows { index } else { 0 }
}

/// Exchanges the halves of a matrix's columns.
pub(super) fn swap_halves(matrix: Tensor<2>) -> Tensor<2> {
    let half = matrix.dims()[1] / 2;
    let [first, second] = [(0, half), (half, matrix.dims()[1] - half)]
        .map(|(start, length)| matrix.clone().narrow(1, start, length));
    Tensor::cat(vec![second, first], 1)
}

/// Some rows of a tensor. `None` if its rows cannot be divided.
fn rows(data: &TensorData, rows: Rows) -> Option<TensorData> {
    let mut shape = data.shape().as_slice().to_vec();
    let values = || data.iter::<f32>();
    let (parts, count) = match rows {
        Rows::All => (1, data.num_elements()),
        Rows::Third(_) => (3, data.num_elements() / 3),
        Rows::HalvesSwapped => (2, data.num_elements() / 2),
    };
    let first = shape.first_mut().filter(|rows| rows.is_multiple_of(parts))?;
    let values: Vec<f32> = match rows {
        Rows::All => values().collect(),
        Rows::Third(index) => {
            *first /= parts;
            values().skip(index * count).take(count).collect()
        }
        Rows::HalvesSwapped => values().skip(count).chain(values().take(count)).collect(),
    };
    Some(TensorData::new(values, shape))
}

/// Removes the columns of LoRA's `B` that are zero, with their rows of `A`. One column stays.
///
/// Tools join LoRAs of queries, keys and values with an `A` each into one LoRA of thrice the rank. Each of
/// the three has zeros for the others then.
fn without_zeros(layer: LayerTensors) -> LayerTensors {
    let (Some(up), Some(down)) = (layer.get(Role::Up), layer.get(Role::Down)) else { return layer };
    let (&[outputs, rank], &[same, inputs]) = (up.shape().as_slice(), down.shape().as_slice())
    else {
        return layer;
    };
    let [up, down] = [up, down].map(|data| data.iter::<f32>().collect::<Vec<_>>());
    let used = |column: &usize| (0..outputs).any(|row| up[row * rank + column] != 0.0);
    let mut kept: Vec<usize> = (0..rank).filter(used).collect();
    if same != rank || kept.len() == rank {
        return layer;
    }
    if kept.is_empty() {
        kept.push(0);
    }
    let up: Vec<f32> =
        up.chunks_exact(rank).flat_map(|row| kept.iter().map(|column| row[*column])).collect();
    let rows = kept.iter().flat_map(|row| &down[row * inputs..(row + 1) * inputs]);
    let down: Vec<f32> = rows.copied().collect();
    // The scale is `α` by the rank.
    let alpha = layer.number(Role::Alpha).ok().flatten();
    let alpha = alpha.map(|alpha| alpha * kept.len() as f64 / rank as f64);
    let layer = layer
        .with(Role::Up, TensorData::new(up, [outputs, kept.len()]))
        .with(Role::Down, TensorData::new(down, [kept.len(), inputs]));
    match alpha {
        Some(alpha) => layer.with(Role::Alpha, TensorData::new(vec![alpha], [0usize; 0])),
        None => layer,
    }
}
