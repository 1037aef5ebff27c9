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

/// The code whose names the layers of a transformer have.
///
/// Tools load one of them or both, which depends on the prefix of the tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LayerNames {
    /// diffusers', where queries, keys and values are three layers.
    Diffusers,
    /// That of the model's authors, where they are one.
    Original,
}

impl LayerNames {
    /// The code that a tensor's name tells. `None` for a layer that has one name in both, and for a UNet's.
    pub(super) fn of(key: &str) -> Option<Self> {
        const PARTS: [(&str, LayerNames); 11] = [
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
        ];
        PARTS.iter().find(|(part, _)| key.contains(part)).map(|(_, names)| *names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_tell_whose_names_they_have() {
        use LayerNames::{Diffusers, Original};
        for (key, found) in [
            ("lora_unet_layers_0_attention_to_q.alpha", Some(Diffusers)),
            ("transformer.layers.0.attention.to_out.0.lora_A.weight", Some(Diffusers)),
            ("diffusion_model.layers.0.attention.qkv.lora_A.weight", Some(Original)),
            ("lora_unet_layers_0_attention_out.alpha", Some(Original)),
            ("lora_unet_layers_0_feed_forward_w1.alpha", None),
            ("lora_unet_double_blocks_0_img_attn_qkv.alpha", Some(Original)),
            ("transformer.single_transformer_blocks.0.attn.to_out.lora_A.weight", Some(Diffusers)),
        ] {
            assert_eq!(LayerNames::of(key), found, "{key}");
        }
    }
}
