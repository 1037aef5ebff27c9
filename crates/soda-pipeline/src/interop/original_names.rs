//! Module names of the models' original code, which many tools' files have.

use burn::module::Module;
use soda_models::original_names::Rows;
use soda_models::{flux2, z_image};

use super::sgm_names::SgmNames;
use crate::component::Component;

/// A weight that a module of a file is for, and which rows of the module it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Path of the weight.
    pub(super) weight: String,
    /// The rows of the file's module.
    pub(super) rows: Rows,
}

/// The modules of a double block of FLUX.2 that diffusers makes of its three when it fuses projections, by
/// the name in the original code.
const FUSED: [(&str, &str); 2] =
    [(".img_attn.qkv", ".attn.to_qkv"), (".txt_attn.qkv", ".attn.to_added_qkv")];

/// Converts the names of modules from diffusers' to those of the original code.
#[derive(Clone, Debug, Default)]
pub(super) struct OriginalNames {
    sgm: SgmNames,
}

impl OriginalNames {
    /// Makes the names for `networks`, a module with a field for each component.
    pub(super) fn from_networks<M: Module>(networks: &M) -> Self {
        Self { sgm: SgmNames::from_networks(networks) }
    }

    /// Returns the name of a module in the original code, with dots, and the rows of the original module that
    /// it is. `None` for a module that the original code lacks.
    pub(super) fn of(&self, component: Component, module: &str) -> Option<(String, Rows)> {
        match component {
            Component::Unet => self.sgm.original(module).map(|name| (name, Rows::All)),
            // No layer of one transformer has diffusers' name of another's.
            Component::Transformer => [flux2::ORIGINAL_NAMES, z_image::ORIGINAL_NAMES]
                .iter()
                .find_map(|names| names.of(module)),
            Component::TextEncoder | Component::TextEncoder2 => None,
        }
    }
}

/// Returns the name that diffusers gives to the original module of queries, keys and values in a double block
/// of FLUX.2. `block` is diffusers' name of a module in the block.
pub(super) fn fused_name(original: &str, block: &str) -> Option<String> {
    let (block, _) = block.split_once(".attn.")?;
    let found = FUSED.iter().find(|(name, _)| original.ends_with(name));
    found.map(|(_, fused)| format!("{block}{fused}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_keys_and_values_have_one_name_in_diffusers_too() {
        for (module, fused) in [
            ("transformer_blocks.3.attn.to_k", Some("transformer_blocks.3.attn.to_qkv")),
            (
                "transformer_blocks.0.attn.add_v_proj",
                Some("transformer_blocks.0.attn.to_added_qkv"),
            ),
            ("transformer_blocks.0.attn.to_out.0", None),
            ("proj_out", None),
        ] {
            let names = OriginalNames::default();
            let (original, _) = names.of(Component::Transformer, module).expect("a module");
            assert_eq!(fused_name(&original, module).as_deref(), fused, "{module}");
        }
        assert_eq!(OriginalNames::default().of(Component::TextEncoder, "proj_out"), None);
    }
}
