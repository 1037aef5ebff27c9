//! Named targets in the networks of Stable Diffusion, by the parameter names of diffusers and transformers.

use soda_adapters::TargetPreset;

/// The presets that the targets of a pipeline's adapters may name.
///
/// | name | weights |
/// |---|---|
/// | `attention` | all attention projections of a UNet |
/// | `cross-attention` | the projections of cross-attention |
/// | `attention+ff` | all attention projections and the feed-forward layers |
/// | `all-linear`, `conv` | all linear layers; all convolutions |
/// | `text-attention` | the attention projections of a text encoder |
/// | `text-attention+mlp` | these projections and the feed-forward layers |
pub const TARGET_PRESETS: &[TargetPreset] = &[
    by_name("attention", r"\.(to_q|to_k|to_v|to_out\.0)\.weight$"),
    by_name("cross-attention", r"\.attn2\.(to_q|to_k|to_v|to_out\.0)\.weight$"),
    by_name("attention+ff", r"\.(to_q|to_k|to_v|to_out\.0|ff\.net\.0\.proj|ff\.net\.2)\.weight$"),
    TargetPreset::ALL_LINEAR,
    TargetPreset::CONV,
    by_name("text-attention", r"\.self_attn\.(q_proj|k_proj|v_proj|out_proj)\.weight$"),
    by_name(
        "text-attention+mlp",
        r"\.(self_attn\.(q_proj|k_proj|v_proj|out_proj)|mlp\.(fc1|fc2))\.weight$",
    ),
];

const fn by_name(name: &'static str, pattern: &'static str) -> TargetPreset {
    TargetPreset { name, pattern, rank: None }
}
