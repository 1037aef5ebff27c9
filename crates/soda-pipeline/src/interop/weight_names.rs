//! The weights of networks by the names that other tools have for their modules.

use std::collections::{BTreeSet, HashMap};

use burn::module::Module;
use soda_adapters::named_params;

use super::architecture::is_on_text;
use super::flux2_names::{self, Rows};
use super::key_names::{ModuleName, TEXT_MODEL, flatten};
use super::sgm_names::SgmNames;
use crate::component::Component;

/// A weight that a module of a file is for, or a part of it.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// Path of the weight.
    pub(super) weight: String,
    /// The rows of the file's module that are the weight's.
    pub(super) rows: Rows,
}

/// Finds weights by component and module name.
pub(super) struct WeightNames {
    weights: HashMap<(Component, String), Vec<Place>>,
    components: BTreeSet<Component>,
    text_width: Option<usize>,
}

impl WeightNames {
    /// Lists the matrices and kernels of `networks`, a module with a field for each component.
    pub(super) fn from_networks<M: Module>(networks: &M) -> Self {
        let mut names =
            Self { weights: HashMap::new(), components: BTreeSet::new(), text_width: None };
        let sgm = SgmNames::from_networks(networks);
        let params = named_params(networks).into_iter();
        for param in params.filter(|param| matches!(param.shape.len(), 2 | 4)) {
            let Some((component, weight)) = Component::split_path(&param.path) else { continue };
            let Some(module) = weight.strip_suffix(".weight") else { continue };
            names.components.insert(component);
            if is_on_text(weight) {
                // burn stores the weight of a linear layer as `[in, out]`.
                names.text_width = param.shape.first().copied();
            }
            let original = match component {
                Component::Unet => sgm.original(module).map(|name| (name, Rows::All)),
                Component::Transformer => flux2_names::original(module),
                Component::TextEncoder | Component::TextEncoder2 => None,
            };
            let own = [Some(module), module.strip_prefix(TEXT_MODEL)].into_iter().flatten();
            for name in own {
                names.insert(component, name, weight, Rows::All);
            }
            if let Some((name, rows)) = original {
                names.insert(component, &name, weight, rows);
            }
        }
        names
    }

    fn insert(&mut self, component: Component, name: &str, weight: &str, rows: Rows) {
        let mut add = |name: String| {
            let places = self.weights.entry((component, name)).or_default();
            if !places.iter().any(|place| place.weight == weight) {
                places.push(Place { weight: weight.to_owned(), rows });
            }
        };
        add(flatten(name));
        add(name.to_owned());
    }

    /// The component of the base that another tool means: it calls every denoiser a UNet.
    pub(super) fn of_base(&self, component: Component) -> Component {
        let transformer = self.has(Component::Transformer) && !self.has(Component::Unet);
        match component {
            Component::Unet if transformer => Component::Transformer,
            component => component,
        }
    }

    /// The width of the text states that the UNet takes, if it has cross-attention.
    pub(super) fn text_width(&self) -> Option<usize> {
        self.text_width
    }

    /// Whether the networks have this component.
    pub(super) fn has(&self, component: Component) -> bool {
        self.components.contains(&component)
    }

    /// Finds the weights of a module in `component`, or in the first component that has the module. A layer
    /// that holds queries, keys and values together has three.
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
