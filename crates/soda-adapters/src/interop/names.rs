//! The key rules of other tools: whose tensor it is, and which part of it.

use crate::component::Component;

/// A tensor's place in a file of another tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    /// The network, where the name says it: PEFT's do not.
    pub(super) component: Option<Component>,
    /// The module's path, dots as in the network or underscores as in kohya's files.
    pub(super) module: Name,
    pub(super) part: Part,
}

/// How a file names a module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Name {
    /// `down_blocks.0.attentions.0.proj_in`
    Dotted(String),
    /// `down_blocks_0_attentions_0_proj_in`
    Flat(String),
}

/// What a tensor is to its module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    /// LoRA's `A`.
    Down,
    /// LoRA's `B`.
    Up,
    /// A number: `α`.
    Alpha,
    /// DoRA's magnitude.
    Magnitude,
    /// OFT's packed skew blocks.
    Skew,
    /// LoHa's factors.
    HadaW1A,
    HadaW1B,
    HadaW2A,
    HadaW2B,
    /// LoKr's matrices, whole or as products.
    LokrW1,
    LokrW1A,
    LokrW1B,
    LokrW2,
    LokrW2A,
    LokrW2B,
    /// The core of a Tucker decomposition, which no method of ours has.
    Core,
    /// LyCORIS' trained scalar, which no method of ours has.
    Scalar,
}

const SUFFIXES: &[(&str, Part)] = &[
    (".lora_A.weight", Part::Down),
    (".lora_B.weight", Part::Up),
    (".lora.down.weight", Part::Down),
    (".lora.up.weight", Part::Up),
    (".lora_down.weight", Part::Down),
    (".lora_up.weight", Part::Up),
    (".lora_linear_layer.down.weight", Part::Down),
    (".lora_linear_layer.up.weight", Part::Up),
    (".lora_magnitude_vector.weight", Part::Magnitude),
    (".lora_magnitude_vector", Part::Magnitude),
    (".dora_scale", Part::Magnitude),
    (".oft_R.weight", Part::Skew),
    (".alpha", Part::Alpha),
    (".hada_w1_a", Part::HadaW1A),
    (".hada_w1_b", Part::HadaW1B),
    (".hada_w2_a", Part::HadaW2A),
    (".hada_w2_b", Part::HadaW2B),
    (".lokr_w1", Part::LokrW1),
    (".lokr_w1_a", Part::LokrW1A),
    (".lokr_w1_b", Part::LokrW1B),
    (".lokr_w2", Part::LokrW2),
    (".lokr_w2_a", Part::LokrW2A),
    (".lokr_w2_b", Part::LokrW2B),
    (".lora_mid.weight", Part::Core),
    (".hada_t1", Part::Core),
    (".hada_t2", Part::Core),
    (".lokr_t1", Part::Core),
    (".lokr_t2", Part::Core),
    (".scalar", Part::Scalar),
];

/// Prefixes of kohya's names.
const KOHYA: &[(&str, Component)] = &[
    ("lora_unet_", Component::Unet),
    ("lora_te_", Component::TextEncoder),
    ("lora_te1_", Component::TextEncoder),
    ("lora_te2_", Component::TextEncoder2),
];
/// Prefix of PEFT's names.
pub(super) const PEFT: &str = "base_model.model.";

/// The level above a text encoder's layers, which `CLIPTextModel` lacks since transformers 5.6.
pub(super) const TEXT_MODEL: &str = "text_model.";

/// How diffusers named the LoRA layers of attention before it used PEFT, a UNet's and a text encoder's.
const BEFORE_PEFT: &[(&str, &str)] = &[
    (".processor.to_q_lora.", ".to_q.lora."),
    (".processor.to_k_lora.", ".to_k.lora."),
    (".processor.to_v_lora.", ".to_v.lora."),
    (".processor.to_out_lora.", ".to_out.0.lora."),
    (".to_q_lora.", ".q_proj.lora."),
    (".to_k_lora.", ".k_proj.lora."),
    (".to_v_lora.", ".v_proj.lora."),
    (".to_out_lora.", ".out_proj.lora."),
];

/// Prefix of kohya's names for a network of a base with one text encoder or with two.
pub(super) fn kohya(component: Component, two_encoders: bool) -> &'static str {
    match component {
        Component::Unet => "lora_unet_",
        Component::TextEncoder if two_encoders => "lora_te1_",
        Component::TextEncoder => "lora_te_",
        Component::TextEncoder2 => "lora_te2_",
    }
}

/// Reads a key; `None` if it is no part we know.
pub(super) fn parse(key: &str) -> Option<Key> {
    let renamed = BEFORE_PEFT.iter().find(|(old, _)| key.contains(old));
    let key = renamed.map_or_else(|| key.to_owned(), |(old, new)| key.replace(old, new));
    let (module, part) =
        SUFFIXES.iter().find_map(|(suffix, part)| Some((key.strip_suffix(suffix)?, *part)))?;
    let flat = KOHYA.iter().find_map(|(prefix, of)| Some((module.strip_prefix(prefix)?, *of)));
    if let Some((flat, component)) = flat {
        return Some(Key { component: Some(component), module: Name::Flat(from_sgm(flat)), part });
    }
    let module = module.strip_prefix(PEFT).unwrap_or(module);
    let (component, module) = match Component::split(module) {
        Some((component, inside)) => (Some(component), inside),
        None => (None, module),
    };
    Some(Key { component, module: Name::Dotted(module.to_owned()), part })
}

/// A module's path in kohya's files.
pub(super) fn flat(module: &str) -> String {
    module.replace('.', "_")
}

/// diffusers' flat name of a module that kohya names as Stability's original code does (SDXL's files);
/// other names stay as they are. Two resnets a level, as all Stable Diffusion UNets have.
fn from_sgm(flat: &str) -> String {
    sgm(flat).unwrap_or_else(|| flat.to_owned())
}

fn sgm(flat: &str) -> Option<String> {
    let number = |text: &str| -> Option<(usize, String)> {
        let (number, rest) = text.split_once('_')?;
        Some((number.parse().ok()?, rest.to_owned()))
    };
    if let Some(rest) = flat.strip_prefix("input_blocks_") {
        let (block, rest) = number(rest)?;
        if block == 0 {
            return Some("conv_in".to_owned());
        }
        let (part, rest) = number(&rest)?;
        let (level, layer) = ((block - 1) / 3, (block - 1) % 3);
        return Some(match (layer, part) {
            (2, _) => format!("down_blocks_{level}_downsamplers_0_conv"),
            (_, 0) => format!("down_blocks_{level}_resnets_{layer}_{}", resnet(&rest)),
            _ => format!("down_blocks_{level}_attentions_{layer}_{rest}"),
        });
    }
    if let Some(rest) = flat.strip_prefix("middle_block_") {
        let (part, rest) = number(rest)?;
        return Some(match part {
            1 => format!("mid_block_attentions_0_{rest}"),
            _ => format!("mid_block_resnets_{}_{}", part / 2, resnet(&rest)),
        });
    }
    if let Some(rest) = flat.strip_prefix("output_blocks_") {
        let (block, rest) = number(rest)?;
        let (part, rest) = number(&rest)?;
        let (level, layer) = (block / 3, block % 3);
        // The upsampler comes after the attention, or in its place where a level has none.
        return Some(match part {
            0 => format!("up_blocks_{level}_resnets_{layer}_{}", resnet(&rest)),
            _ if rest == "conv" => format!("up_blocks_{level}_upsamplers_0_conv"),
            _ => format!("up_blocks_{level}_attentions_{layer}_{rest}"),
        });
    }
    let renamed = [
        ("time_embed_0", "time_embedding_linear_1"),
        ("time_embed_2", "time_embedding_linear_2"),
        ("label_emb_0_0", "add_embedding_linear_1"),
        ("label_emb_0_2", "add_embedding_linear_2"),
        ("out_2", "conv_out"),
    ];
    renamed.iter().find(|(from, _)| *from == flat).map(|(_, to)| (*to).to_owned())
}

fn resnet(part: &str) -> &str {
    match part {
        "in_layers_2" => "conv1",
        "out_layers_3" => "conv2",
        "emb_layers_1" => "time_emb_proj",
        "skip_connection" => "conv_shortcut",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_the_tools_are_read() {
        let dotted = |name: &str| Name::Dotted(name.to_owned());
        let flat = |name: &str| Name::Flat(name.to_owned());
        let (none, unet) = (None, Some(Component::Unet));
        let [first, second] = [Component::TextEncoder, Component::TextEncoder2].map(Some);
        for (key, component, module, part) in [
            ("base_model.model.conv.lora_A.weight", none, dotted("conv"), Part::Down),
            ("base_model.model.to_q.lora_magnitude_vector", none, dotted("to_q"), Part::Magnitude),
            ("unet.mid_block.to_q.lora.up.weight", unet, dotted("mid_block.to_q"), Part::Up),
            ("lora_unet_mid_block_to_q.alpha", unet, flat("mid_block_to_q"), Part::Alpha),
            ("lora_unet_mid_block_to_q.lokr_w2_a", unet, flat("mid_block_to_q"), Part::LokrW2A),
            ("lora_unet_conv_in.lora_mid.weight", unet, flat("conv_in"), Part::Core),
            ("lora_te_text_model_x.lora_up.weight", first, flat("text_model_x"), Part::Up),
            ("lora_te1_text_model_x.dora_scale", first, flat("text_model_x"), Part::Magnitude),
            ("lora_te2_text_model_x.alpha", second, flat("text_model_x"), Part::Alpha),
            (
                "unet.x.attn1.processor.to_out_lora.up.weight",
                unet,
                dotted("x.attn1.to_out.0"),
                Part::Up,
            ),
            (
                "text_encoder.text_model.x.lora_linear_layer.down.weight",
                first,
                dotted("text_model.x"),
                Part::Down,
            ),
            (
                "text_encoder_2.text_model.x.lora_A.weight",
                second,
                dotted("text_model.x"),
                Part::Down,
            ),
            (
                "text_encoder.x.self_attn.to_out_lora.up.weight",
                first,
                dotted("x.self_attn.out_proj"),
                Part::Up,
            ),
        ] {
            assert_eq!(parse(key), Some(Key { component, module, part }), "{key}");
        }
        assert_eq!(parse("lora_unet_x.bias"), None);
    }

    #[test]
    fn sgm_names_become_those_of_diffusers() {
        // Pairs from diffusers 0.42, loaders/lora_conversion_utils and convert_from_ckpt.
        for (sgm, diffusers) in [
            (
                "input_blocks_4_1_transformer_blocks_0_attn1_to_q",
                "down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q",
            ),
            ("input_blocks_8_1_proj_in", "down_blocks_2_attentions_1_proj_in"),
            ("input_blocks_3_0_op", "down_blocks_0_downsamplers_0_conv"),
            ("input_blocks_4_0_skip_connection", "down_blocks_1_resnets_0_conv_shortcut"),
            ("middle_block_1_proj_out", "mid_block_attentions_0_proj_out"),
            ("middle_block_2_in_layers_2", "mid_block_resnets_1_conv1"),
            ("output_blocks_5_1_proj_in", "up_blocks_1_attentions_2_proj_in"),
            ("output_blocks_2_2_conv", "up_blocks_0_upsamplers_0_conv"),
            ("output_blocks_0_0_out_layers_3", "up_blocks_0_resnets_0_conv2"),
            ("down_blocks_0_attentions_0_proj_in", "down_blocks_0_attentions_0_proj_in"),
        ] {
            assert_eq!(from_sgm(sgm), diffusers);
        }
    }
}
