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
    /// The middle convolution of a LoRA in Tucker form.
    Mid,
    /// The bias that PEFT's `lora_bias` trains beside `B`.
    UpBias,
    /// DoRA's magnitude of each output, as PEFT stores it.
    Magnitude,
    /// DoRA's magnitude of each output or each input, as LyCORIS stores it.
    DoraScale,
    /// OFT's packed skew-symmetric blocks, of PEFT and OneTrainer.
    Skew,
    /// OneTrainer's mark that the packed blocks are divided by the root of their size.
    ScaledSkew,
    /// OFT's square blocks, of LyCORIS.
    OftBlocks,
    /// OFT's square blocks, of kohya's scripts, which have another rule for `α`.
    KohyaOftBlocks,
    /// The factor of each output beside LyCORIS' OFT.
    Rescale,
    /// BOFT's square blocks, of PEFT.
    BoftBlocks,
    /// BOFT's scale of each output, of PEFT.
    BoftScale,
    /// HRA's vectors of reflections, of PEFT.
    Reflections,
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
    /// The core of the Tucker decomposition of LoHa's first product.
    HadaT1,
    /// The core of the Tucker decomposition of LoHa's second product.
    HadaT2,
    /// The core of the Tucker decomposition of LoKr's `W1`, which LyCORIS does not use.
    LokrT1,
    /// The core of the Tucker decomposition of LoKr's `W2`.
    LokrT2,
    /// The delta of a weight, whole.
    Diff,
    /// A change of a bias or of a normalization layer, which no method of `soda-adapters` has.
    Vector,
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
    (".lora_B.bias", Role::UpBias),
    (".lora_magnitude_vector.weight", Role::Magnitude),
    (".lora_magnitude_vector", Role::Magnitude),
    (".dora_scale", Role::DoraScale),
    (".oft_R.weight", Role::Skew),
    (".oft_R.scaled_oft", Role::ScaledSkew),
    (".oft_blocks", Role::OftBlocks),
    (".rescale", Role::Rescale),
    (".boft_R", Role::BoftBlocks),
    (".boft_s", Role::BoftScale),
    (".hra_u", Role::Reflections),
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
    (".lora_mid.weight", Role::Mid),
    (".hada_t1", Role::HadaT1),
    (".hada_t2", Role::HadaT2),
    (".lokr_t1", Role::LokrT1),
    (".lokr_t2", Role::LokrT2),
    (".diff", Role::Diff),
    (".diff_b", Role::Vector),
    (".w_norm", Role::Vector),
    (".b_norm", Role::Vector),
    (".scalar", Role::Scalar),
];

/// Prefixes of flat module names, with the network if they name it.
const FLAT: &[(&str, Option<Component>)] = &[
    ("lora_unet_", Some(Component::Unet)),
    ("lora_transformer_", Some(Component::Transformer)),
    ("lora_te_", Some(Component::TextEncoder)),
    ("lora_te1_", Some(Component::TextEncoder)),
    ("lora_te2_", Some(Component::TextEncoder2)),
    (KOHYA_OFT, Some(Component::Unet)),
    // The default of LyCORIS' own wrapper, for whatever network.
    ("lycoris_", None),
];
/// Prefix of OFT's tensor names in kohya's scripts.
const KOHYA_OFT: &str = "oft_unet_";

/// Prefixes of dotted module names other than those of diffusers.
const DOTTED: &[(&str, Component)] = &[
    // ComfyUI's and OneTrainer's names.
    ("diffusion_model.", Component::Unet),
    ("clip_l.", Component::TextEncoder),
    ("clip_g.", Component::TextEncoder2),
    // Names of ComfyUI's node that saves a LoRA.
    ("text_encoders.clip_l.transformer.", Component::TextEncoder),
    ("text_encoders.clip_g.transformer.", Component::TextEncoder2),
];

/// Beginnings of tensor names that are of an adapter, and never the token of an embedding.
const ADAPTER_PREFIXES: &[&str] =
    &["lora_", "oft_", "lycoris_", "unet.", "transformer.", "text_encoder"];
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
        Component::Unet | Component::Transformer => "lora_unet_",
        Component::TextEncoder if two_encoders => "lora_te1_",
        Component::TextEncoder => "lora_te_",
        Component::TextEncoder2 => "lora_te2_",
    }
}

/// Whether a tensor name is of an adapter, be its kind known or not.
pub(super) fn is_of_adapter(key: &str) -> bool {
    let starts = |prefix: &&str| key.starts_with(prefix);
    ADAPTER_PREFIXES.iter().chain(&[PEFT]).any(starts)
        || DOTTED.iter().any(|(prefix, _)| key.starts_with(prefix))
        || [".weight", ".bias"].iter().any(|suffix| key.ends_with(suffix))
        || SUFFIXES.iter().any(|(suffix, _)| key.ends_with(suffix))
}

/// Parses a tensor name; `None` for an unknown one.
pub(super) fn parse(key: &str) -> Option<TensorName> {
    let renamed = BEFORE_PEFT.iter().find(|(old, _)| key.contains(old));
    let key = renamed.map_or_else(|| key.to_owned(), |(old, new)| key.replace(old, new));
    let key = without_adapter_name(key);
    let (module, role) =
        SUFFIXES.iter().find_map(|(suffix, role)| Some((key.strip_suffix(suffix)?, *role)))?;
    let flat = FLAT
        .iter()
        .find_map(|(prefix, component)| Some((*prefix, module.strip_prefix(prefix)?, *component)));
    if let Some((prefix, flat, component)) = flat {
        let role = match role {
            Role::OftBlocks if prefix == KOHYA_OFT => Role::KohyaOftBlocks,
            role => role,
        };
        return Some(TensorName { component, module: ModuleName::Flat(flat.to_owned()), role });
    }
    let dotted = DOTTED
        .iter()
        .find_map(|(prefix, component)| Some((module.strip_prefix(prefix)?, *component)));
    if let Some((module, component)) = dotted {
        // The original names of Stability's code have dots too.
        let module = ModuleName::Flat(flatten(module));
        return Some(TensorName { component: Some(component), module, role });
    }
    let module = module.strip_prefix(PEFT).unwrap_or(module);
    let (component, module) = match Component::split_path(module) {
        Some((component, inside)) => (Some(component), inside),
        None => (None, module),
    };
    Some(TensorName { component, module: ModuleName::Dotted(module.to_owned()), role })
}

/// Removes the adapter's name, which a state dict of PEFT has before the last part, as in
/// `x.lora_A.default.weight`.
fn without_adapter_name(key: String) -> String {
    for part in [".lora_A.", ".lora_B.", ".lora_magnitude_vector.", ".oft_R."] {
        if let Some((module, rest)) = key.rsplit_once(part)
            && let Some((name, last @ ("weight" | "bias"))) = rest.split_once('.')
            && !name.is_empty()
        {
            return format!("{module}{part}{last}");
        }
    }
    match key.strip_suffix(".default") {
        Some(key) => key.to_owned(),
        None => key,
    }
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
            ("lora_unet_conv_in.lora_mid.weight", unet, flat("conv_in"), Role::Mid),
            ("lora_te_text_model_x.lora_up.weight", first, flat("text_model_x"), Role::Up),
            ("lora_te1_text_model_x.dora_scale", first, flat("text_model_x"), Role::DoraScale),
            ("lora_te2_text_model_x.alpha", second, flat("text_model_x"), Role::Alpha),
            ("lycoris_mid_block_to_q.lokr_w1", none, flat("mid_block_to_q"), Role::LokrW1),
            ("oft_unet_x.oft_blocks", unet, flat("x"), Role::KohyaOftBlocks),
            ("lora_unet_x.oft_blocks", unet, flat("x"), Role::OftBlocks),
            (
                "unet.mid_block.to_q.lora_A.default.weight",
                unet,
                dotted("mid_block.to_q"),
                Role::Down,
            ),
            (
                "text_encoders.clip_g.transformer.text_model.x.lora_up.weight",
                second,
                flat("text_model_x"),
                Role::Up,
            ),
            ("base_model.model.to_q.hra_u", none, dotted("to_q"), Role::Reflections),
            ("unet.mid_block.to_q.lora_B.x_1.weight", unet, dotted("mid_block.to_q"), Role::Up),
            ("base_model.model.conv.hada_w1_a.default", none, dotted("conv"), Role::HadaW1A),
            (
                "diffusion_model.middle_block.1.proj_out.lora_up.weight",
                unet,
                flat("middle_block_1_proj_out"),
                Role::Up,
            ),
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
        for key in ["lora_unet_x.bias", "lora_unet_x.diff", "unet.x.foo", "x.hada_w1_a"] {
            assert!(is_of_adapter(key), "{key}");
        }
        for token in ["<mug>", "sks", "emb_params", "clip_l", "my.word"] {
            assert!(!is_of_adapter(token), "{token}");
        }
    }
}
