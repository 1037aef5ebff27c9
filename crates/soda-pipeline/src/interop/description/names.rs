//! The names that an adapter's tensors have.

use crate::interop::key_names::PEFT;

/// The names that an adapter's tensors have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// `lora_unet_…`, of kohya's sd-scripts, also with LyCORIS.
    Kohya,
    /// `lycoris_…`, of LyCORIS' own wrapper.
    Lycoris,
    /// `unet.…`, `transformer.…`.
    Diffusers,
    /// `base_model.model.…`.
    Peft,
    /// `diffusion_model.…`, of ComfyUI, ai-toolkit and OneTrainer.
    ComfyUi,
    /// None of these.
    Other,
}

impl Names {
    /// The tool, as a sentence has it.
    pub fn tool(self) -> &'static str {
        match self {
            Self::Kohya => "kohya's sd-scripts",
            Self::Lycoris => "LyCORIS",
            Self::Diffusers => "diffusers",
            Self::Peft => "PEFT",
            Self::ComfyUi => "ComfyUI",
            Self::Other => "no tool that is known here",
        }
    }

    pub(super) fn of(key: &str) -> Self {
        const PREFIXES: [(&str, Names); 8] = [
            ("lora_", Names::Kohya),
            ("lycoris_", Names::Lycoris),
            ("oft_unet_", Names::Kohya),
            ("unet.", Names::Diffusers),
            ("transformer.", Names::Diffusers),
            ("text_encoder", Names::Diffusers),
            (PEFT, Names::Peft),
            ("diffusion_model.", Names::ComfyUi),
        ];
        let found = PREFIXES.iter().find(|(prefix, _)| key.starts_with(prefix));
        found.map_or(Self::Other, |(_, names)| *names)
    }
}

/// What the names of a transformer's layers tell. Tools differ in which of these they load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LayerNames {
    /// Names of diffusers, where queries, keys and values are three layers.
    Diffusers,
    /// Names of the model's authors, where they are one.
    Original,
    /// The first or the last layer by the names of the authors.
    OriginalEnds,
    /// A layer outside of the blocks, by any name.
    Outside,
}

impl LayerNames {
    /// What a tensor's name tells. A layer with one name in both codes tells nothing of them.
    pub(super) fn of(key: &str) -> impl Iterator<Item = Self> {
        const PARTS: [(&str, LayerNames); 13] = [
            ("transformer_blocks", LayerNames::Diffusers),
            ("attention.to_", LayerNames::Diffusers),
            ("attention_to_", LayerNames::Diffusers),
            ("all_x_embedder", LayerNames::Diffusers),
            ("all_final_layer", LayerNames::Diffusers),
            ("double_blocks", LayerNames::Original),
            ("single_blocks", LayerNames::Original),
            ("attention.qkv", LayerNames::Original),
            ("attention_qkv", LayerNames::Original),
            ("attention.out", LayerNames::Original),
            ("attention_out", LayerNames::Original),
            ("embedder", LayerNames::Outside),
            ("final_layer", LayerNames::Outside),
        ];
        let of_parts = PARTS.iter().filter(|(part, _)| key.contains(part)).map(|(_, names)| *names);
        let ends = ["x_embedder", "final_layer"].iter().any(|end| key.contains(end));
        let original_ends = ends && !key.contains("all_");
        of_parts.chain(original_ends.then_some(Self::OriginalEnds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_tell_whose_names_they_have() {
        use LayerNames::{Diffusers, Original, OriginalEnds, Outside};
        for (key, expected) in [
            ("lora_unet_layers_0_attention_to_q.alpha", &[Diffusers][..]),
            ("transformer.layers.0.attention.to_out.0.lora_A.weight", &[Diffusers]),
            ("diffusion_model.layers.0.attention.qkv.lora_A.weight", &[Original]),
            ("lora_unet_layers_0_attention_out.alpha", &[Original]),
            ("lora_unet_layers_0_feed_forward_w1.alpha", &[]),
            ("lora_unet_cap_embedder_1.alpha", &[Outside]),
            ("lora_unet_x_embedder.alpha", &[Outside, OriginalEnds]),
            ("transformer.all_x_embedder.2-1.lora_A.weight", &[Diffusers, Outside]),
            ("lora_unet_double_blocks_0_img_attn_qkv.alpha", &[Original]),
            ("transformer.single_transformer_blocks.0.attn.to_out.lora_A.weight", &[Diffusers]),
        ] {
            assert_eq!(LayerNames::of(key).collect::<Vec<_>>(), expected, "{key}");
        }
    }
}
