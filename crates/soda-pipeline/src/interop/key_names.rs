//! Tensor names of other tools: the network, the module and the role of a tensor.

use crate::component::Component;

/// The meaning of a tensor name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TensorName {
    /// The network; `None` for names of PEFT, which do not have it.
    pub(super) component: Option<Component>,
    /// The path of the module.
    pub(super) module: ModuleName,
    /// The role of the tensor.
    pub(super) role: Role,
}

/// The path of a module in a tensor name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ModuleName {
    /// With dots, as `down_blocks.0.attentions.0.proj_in`.
    Dotted(String),
    /// With underscores, as `down_blocks_0_attentions_0_proj_in` in kohya's files.
    Flat(String),
}

/// The role of a tensor in the adapter of its module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    /// LoRA's `A`.
    Down,
    /// LoRA's `B`.
    Up,
    /// `α`, a number.
    Alpha,
    /// DoRA's magnitude.
    Magnitude,
    /// OFT's packed skew-symmetric blocks.
    Skew,
    /// LoHa's `W1a`.
    HadaW1A,
    /// LoHa's `W1b`.
    HadaW1B,
    /// LoHa's `W2a`.
    HadaW2A,
    /// LoHa's `W2b`.
    HadaW2B,
    /// LoKr's `W1`, whole.
    LokrW1,
    /// The first factor of LoKr's `W1`.
    LokrW1A,
    /// The second factor of LoKr's `W1`.
    LokrW1B,
    /// LoKr's `W2`, whole.
    LokrW2,
    /// The first factor of LoKr's `W2`.
    LokrW2A,
    /// The second factor of LoKr's `W2`.
    LokrW2B,
    /// The core of a Tucker decomposition, which no method of `soda-adapters` has.
    Core,
    /// The trained scalar of LyCORIS, which no method of `soda-adapters` has.
    Scalar,
}

/// Suffixes of tensor names.
const SUFFIXES: &[(&str, Role)] = &[
    (".lora_A.weight", Role::Down),
    (".lora_B.weight", Role::Up),
    (".lora.down.weight", Role::Down),
    (".lora.up.weight", Role::Up),
    (".lora_down.weight", Role::Down),
    (".lora_up.weight", Role::Up),
    (".lora_linear_layer.down.weight", Role::Down),
    (".lora_linear_layer.up.weight", Role::Up),
    (".lora_magnitude_vector.weight", Role::Magnitude),
    (".lora_magnitude_vector", Role::Magnitude),
    (".dora_scale", Role::Magnitude),
    (".oft_R.weight", Role::Skew),
    (".alpha", Role::Alpha),
    (".hada_w1_a", Role::HadaW1A),
    (".hada_w1_b", Role::HadaW1B),
    (".hada_w2_a", Role::HadaW2A),
    (".hada_w2_b", Role::HadaW2B),
    (".lokr_w1", Role::LokrW1),
    (".lokr_w1_a", Role::LokrW1A),
    (".lokr_w1_b", Role::LokrW1B),
    (".lokr_w2", Role::LokrW2),
    (".lokr_w2_a", Role::LokrW2A),
    (".lokr_w2_b", Role::LokrW2B),
    (".lora_mid.weight", Role::Core),
    (".hada_t1", Role::Core),
    (".hada_t2", Role::Core),
    (".lokr_t1", Role::Core),
    (".lokr_t2", Role::Core),
    (".scalar", Role::Scalar),
];

/// Prefixes of kohya's tensor names.
const KOHYA: &[(&str, Component)] = &[
    ("lora_unet_", Component::Unet),
    ("lora_te_", Component::TextEncoder),
    ("lora_te1_", Component::TextEncoder),
    ("lora_te2_", Component::TextEncoder2),
];
/// Prefix of PEFT's tensor names.
pub(super) const PEFT: &str = "base_model.model.";

/// The module above the layers of a text encoder, which `CLIPTextModel` lacks since transformers 5.6.
pub(super) const TEXT_MODEL: &str = "text_model.";

/// Names of LoRA layers in diffusers before it used PEFT, of a UNet and of a text encoder, and the later
/// names.
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

/// Returns the prefix of kohya's tensor names for a network of a base with one or two text encoders.
pub(super) fn kohya_prefix(component: Component, two_encoders: bool) -> &'static str {
    match component {
        Component::Unet => "lora_unet_",
        Component::TextEncoder if two_encoders => "lora_te1_",
        Component::TextEncoder => "lora_te_",
        Component::TextEncoder2 => "lora_te2_",
    }
}

/// Parses a tensor name; `None` for an unknown one.
pub(super) fn parse(key: &str) -> Option<TensorName> {
    let renamed = BEFORE_PEFT.iter().find(|(old, _)| key.contains(old));
    let key = renamed.map_or_else(|| key.to_owned(), |(old, new)| key.replace(old, new));
    let (module, role) =
        SUFFIXES.iter().find_map(|(suffix, role)| Some((key.strip_suffix(suffix)?, *role)))?;
    let flat = KOHYA
        .iter()
        .find_map(|(prefix, component)| Some((module.strip_prefix(prefix)?, *component)));
    if let Some((flat, component)) = flat {
        let module = ModuleName::Flat(flat.to_owned());
        return Some(TensorName { component: Some(component), module, role });
    }
    let module = module.strip_prefix(PEFT).unwrap_or(module);
    let (component, module) = match Component::split_path(module) {
        Some((component, inside)) => (Some(component), inside),
        None => (None, module),
    };
    Some(TensorName { component, module: ModuleName::Dotted(module.to_owned()), role })
}

/// Replaces the dots of a module's path by underscores, as in kohya's files.
pub(super) fn flatten(module: &str) -> String {
    module.replace('.', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_every_tool_are_parsed() {
        let dotted = |name: &str| ModuleName::Dotted(name.to_owned());
        let flat = |name: &str| ModuleName::Flat(name.to_owned());
        let (none, unet) = (None, Some(Component::Unet));
        let [first, second] = [Component::TextEncoder, Component::TextEncoder2].map(Some);
        for (key, component, module, role) in [
            ("base_model.model.conv.lora_A.weight", none, dotted("conv"), Role::Down),
            ("base_model.model.to_q.lora_magnitude_vector", none, dotted("to_q"), Role::Magnitude),
            ("unet.mid_block.to_q.lora.up.weight", unet, dotted("mid_block.to_q"), Role::Up),
            ("lora_unet_mid_block_to_q.alpha", unet, flat("mid_block_to_q"), Role::Alpha),
            ("lora_unet_mid_block_to_q.lokr_w2_a", unet, flat("mid_block_to_q"), Role::LokrW2A),
            ("lora_unet_conv_in.lora_mid.weight", unet, flat("conv_in"), Role::Core),
            ("lora_te_text_model_x.lora_up.weight", first, flat("text_model_x"), Role::Up),
            ("lora_te1_text_model_x.dora_scale", first, flat("text_model_x"), Role::Magnitude),
            ("lora_te2_text_model_x.alpha", second, flat("text_model_x"), Role::Alpha),
            (
                "unet.x.attn1.processor.to_out_lora.up.weight",
                unet,
                dotted("x.attn1.to_out.0"),
                Role::Up,
            ),
            (
                "text_encoder.text_model.x.lora_linear_layer.down.weight",
                first,
                dotted("text_model.x"),
                Role::Down,
            ),
            (
                "text_encoder_2.text_model.x.lora_A.weight",
                second,
                dotted("text_model.x"),
                Role::Down,
            ),
            (
                "text_encoder.x.self_attn.to_out_lora.up.weight",
                first,
                dotted("x.self_attn.out_proj"),
                Role::Up,
            ),
        ] {
            assert_eq!(parse(key), Some(TensorName { component, module, role }), "{key}");
        }
        assert_eq!(parse("lora_unet_x.bias"), None);
    }
}
