//! The weights of networks by the names that other tools have for their modules.

use std::collections::{BTreeSet, HashMap};

use burn::module::Module;
use soda_adapters::named_params;

use super::architecture::is_on_text;
use super::key_names::{ModuleName, TEXT_MODEL, flatten};
use super::sgm_names::SgmNames;
use crate::component::Component;

/// Finds weights by component and module name.
pub(super) struct WeightNames {
    weights: HashMap<(Component, String), String>,
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
                Component::Unet => sgm.original(module),
                Component::TextEncoder | Component::TextEncoder2 | Component::Transformer => None,
            };
            let known = [Some(module), module.strip_prefix(TEXT_MODEL), original.as_deref()];
            for name in known.into_iter().flatten() {
                names.weights.insert((component, flatten(name)), weight.to_owned());
                names.weights.insert((component, name.to_owned()), weight.to_owned());
            }
        }
        names
    }

    /// The width of the text states that the UNet takes, if it has cross-attention.
    pub(super) fn text_width(&self) -> Option<usize> {
        self.text_width
    }

    /// Whether the networks have this component.
    pub(super) fn has(&self, component: Component) -> bool {
        self.components.contains(&component)
    }

    /// Finds the weight of a module in `component`, or in the first component that has the module.
    pub(super) fn find(
        &self,
        component: Option<Component>,
        name: &ModuleName,
    ) -> Option<(Component, &str)> {
        let (ModuleName::Dotted(name) | ModuleName::Flat(name)) = name;
        let candidates =
            Component::ALL.into_iter().filter(|known| component.is_none_or(|own| own == *known));
        let find = |known| Some((known, self.weights.get(&(known, name.clone()))?.as_str()));
        candidates.into_iter().find_map(find)
    }
}
