//! The weights of networks by the names that other tools have for their modules.

use std::collections::HashMap;

use burn::module::Module;
use soda_adapters::named_params;

use super::key_names::{ModuleName, TEXT_MODEL, flatten};
use super::sgm_names::SgmNames;
use crate::component::Component;

/// Finds weights by component and module name.
pub(super) struct WeightNames(HashMap<(Component, String), String>);

impl WeightNames {
    /// Lists the matrices and kernels of `networks`, a module with a field for each component.
    pub(super) fn from_networks<M: Module>(networks: &M) -> Self {
        let mut names = HashMap::new();
        let sgm = SgmNames::from_networks(networks);
        let params = named_params(networks).into_iter();
        for param in params.filter(|param| matches!(param.shape.len(), 2 | 4)) {
            let Some((component, weight)) = Component::split_path(&param.path) else { continue };
            let Some(module) = weight.strip_suffix(".weight") else { continue };
            let original = match component {
                Component::Unet => sgm.original(module),
                Component::TextEncoder | Component::TextEncoder2 => None,
            };
            let known = [Some(module), module.strip_prefix(TEXT_MODEL), original.as_deref()];
            for name in known.into_iter().flatten() {
                names.insert((component, flatten(name)), weight.to_owned());
                names.insert((component, name.to_owned()), weight.to_owned());
            }
        }
        Self(names)
    }

    /// Whether the networks have this component.
    pub(super) fn has(&self, component: Component) -> bool {
        self.0.keys().any(|(known, _)| *known == component)
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
        let find = |known| Some((known, self.0.get(&(known, name.clone()))?.as_str()));
        candidates.into_iter().find_map(find)
    }
}
