//! The weights of the networks by the module names that files use.

use std::collections::{BTreeSet, HashMap};

use burn::module::Module;
use soda_adapters::named_params;
use soda_models::original_names::Rows;

use super::architecture::{Architecture, Base, is_on_text};
use super::key_names::{ModuleName, TEXT_MODEL, flatten};
use super::original_names::{OriginalNames, Place, fused_name};
use crate::component::Component;

/// Finds weights by component and module name.
pub(super) struct WeightNames {
    weights: HashMap<(Component, String), Vec<Place>>,
    components: BTreeSet<Component>,
    text_width: Option<usize>,
    /// The family of the transformer, if the networks have one.
    transformer: Option<Architecture>,
}

impl WeightNames {
    /// Lists the matrices and kernels of `networks`, a module with a field for each component.
    pub(super) fn from_networks<M: Module>(networks: &M) -> Self {
        let mut names = Self {
            weights: HashMap::new(),
            components: BTreeSet::new(),
            text_width: None,
            transformer: None,
        };
        let original_names = OriginalNames::from_networks(networks);
        let params = named_params(networks).into_iter();
        for param in params.filter(|param| matches!(param.shape.len(), 2 | 4)) {
            let Some((component, weight)) = Component::split_path(&param.path) else { continue };
            let Some(module) = weight.strip_suffix(".weight") else { continue };
            names.components.insert(component);
            if component == Component::Transformer {
                names.transformer =
                    names.transformer.or_else(|| Architecture::of_transformer_layer(module));
            }
            if is_on_text(weight) {
                // burn stores the weight of a linear layer as `[in, out]`.
                names.text_width = param.shape.first().copied();
            }
            let own = [Some(module), module.strip_prefix(TEXT_MODEL)].into_iter().flatten();
            for name in own {
                names.insert(component, name, weight, Rows::All);
            }
            if let Some((original, rows)) = original_names.of(component, module) {
                names.insert(component, &original, weight, rows);
                if let Some(fused) = fused_name(&original, module) {
                    names.insert(component, &fused, weight, rows);
                }
            }
        }
        names
    }

    /// Adds a weight to those of a module, by the module's name with dots and without.
    fn insert(&mut self, component: Component, name: &str, weight: &str, rows: Rows) {
        for name in BTreeSet::from([flatten(name), name.to_owned()]) {
            let places = self.weights.entry((component, name)).or_default();
            // The two names of a module may be equal.
            if places.iter().all(|place| place.weight != weight) {
                places.push(Place { weight: weight.to_owned(), rows });
            }
        }
    }

    /// Returns the component of the base that a tool means. Several tools call every denoiser a UNet.
    pub(super) fn of_base(&self, component: Component) -> Component {
        match component {
            Component::Unet if self.has(Component::Transformer) => Component::Transformer,
            component => component,
        }
    }

    /// What is known of the networks' architecture.
    pub(super) fn base(&self) -> Base {
        Base {
            transformer: self.transformer,
            two_encoders: self.has(Component::TextEncoder2),
            text_width: self.text_width,
        }
    }

    /// Whether the networks have a component.
    pub(super) fn has(&self, component: Component) -> bool {
        self.components.contains(&component)
    }

    /// Whether the transformer has a block, given as `layers_3_`.
    pub(super) fn has_block(&self, block: &str) -> bool {
        let of_block = |(component, name): &(Component, String)| {
            *component == Component::Transformer && name.starts_with(block)
        };
        self.weights.keys().any(of_block)
    }

    /// Finds the weights of a module in `component`, or in the first component that has the module. A module
    /// of the original code may have several.
    pub(super) fn find(
        &self,
        component: Option<Component>,
        name: &ModuleName,
    ) -> Option<(Component, &[Place])> {
        let (ModuleName::Dotted(name) | ModuleName::Flat(name)) = name;
        let candidates =
            Component::ALL.into_iter().filter(|known| component.is_none_or(|own| own == *known));
        let find = |known| Some((known, self.weights.get(&(known, name.clone()))?.as_slice()));
        candidates.into_iter().find_map(find)
    }
}
