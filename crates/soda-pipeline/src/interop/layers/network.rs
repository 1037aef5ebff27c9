//! The tensors that a file has for a network, by weight.

use std::collections::{BTreeMap, BTreeSet};

use burn::tensor::TensorData;
use soda_adapters::Weight;
use soda_models::original_names::Rows;

use super::form::LayerForm;
use super::joined::JoinedLayer;
use crate::error::InteropError;
use crate::interop::architecture::is_on_text;
use crate::interop::key_names::Role;
use crate::interop::layer_tensors::LayerTensors;
use crate::interop::original_names::Place;
use crate::interop::peft::PeftConfig;

/// The tensors that a file has for a network.
#[derive(Default)]
pub(crate) struct Layers {
    /// Those of one weight each, by its path.
    own: BTreeMap<String, LayerTensors>,
    /// Those of layers with other rows than one weight has, by the path of the first weight.
    joined: BTreeMap<String, JoinedLayer>,
}

impl Layers {
    /// Adds a tensor by its name in the file. `module` is its module there, which has the weights at
    /// `places`.
    ///
    /// # Errors
    /// [`InteropError::SameRole`] if another name of the file has the same meaning.
    pub(crate) fn insert(
        &mut self,
        module: &str,
        places: &[Place],
        role: Role,
        key: String,
        data: TensorData,
    ) -> Result<(), InteropError> {
        let Some(Place { weight, rows }) = places.first() else { return Ok(()) };
        let layer = match (places, rows) {
            ([_], Rows::All) => {
                let new = || LayerTensors::new(weight, module);
                self.own.entry(weight.clone()).or_insert_with(new)
            }
            _ => {
                let new = || JoinedLayer {
                    tensors: LayerTensors::new(module, module),
                    places: places.to_vec(),
                };
                &mut self.joined.entry(weight.clone()).or_insert_with(new).tensors
            }
        };
        layer.insert(role, key, data)
    }

    /// The paths of the weights.
    pub(crate) fn weights(&self) -> BTreeSet<&str> {
        let places = self.joined.values().flat_map(|layer| &layer.places);
        let joined = places.map(|place| place.weight.as_str());
        self.own.keys().map(String::as_str).chain(joined).collect()
    }

    /// The width of the text states that the LoRAs of cross-attention take.
    pub(crate) fn text_width(&self) -> Option<usize> {
        let cross = self.own.iter().filter(|(weight, _)| is_on_text(weight));
        cross.filter_map(|(_, layer)| layer.second_axis(Role::Down)).next()
    }

    /// Reads the tensors as an adapter of each weight, by its path.
    ///
    /// # Errors
    /// As [`LayerForm::new`], and [`InteropError::SameRole`] for two adapters of one weight.
    pub(crate) fn forms(
        &self,
        config: Option<&PeftConfig>,
        weights: &BTreeMap<String, Weight>,
    ) -> Result<BTreeMap<String, LayerForm>, InteropError> {
        let mut forms = BTreeMap::new();
        for (path, layer) in &self.own {
            let Some(weight) = weights.get(path) else { continue };
            forms.insert(path.clone(), LayerForm::new(layer, config, weight)?);
        }
        for layer in self.joined.values() {
            let twice = layer.places.iter().find(|place| self.own.contains_key(&place.weight));
            if let Some(Place { weight, .. }) = twice {
                let key =
                    |layer: &LayerTensors| layer.other_than(&[]).unwrap_or_default().to_owned();
                let (first, second) = (key(&self.own[weight]), key(&layer.tensors));
                return Err(InteropError::SameRole { weight: weight.clone(), first, second });
            }
            forms.extend(layer.forms(config, weights)?);
        }
        Ok(forms)
    }
}
