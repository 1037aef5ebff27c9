//! Named targets in the networks of Stable Diffusion, FLUX.2 and Z-Image, by the parameter names of
//! diffusers and transformers.

use soda_adapters::TargetPreset;

/// The presets that the targets of a pipeline's adapters may name.
///
/// | name | weights |
/// |---|---|
/// | `attention` | all attention projections of a denoiser |
/// | `cross-attention` | the projections of cross-attention |
/// | `attention+ff` | all attention projections and the feed-forward layers |
/// | `all-linear`, `conv` | all linear layers; all convolutions |
/// | `text-attention` | the attention projections of a text encoder |
/// | `text-attention+mlp` | these projections and the feed-forward layers |
///
/// In the single blocks of FLUX.2 the projections of attention and feed-forward layer are one matrix, which
/// counts as attention.
pub const TARGET_PRESETS: &[TargetPreset] = &[
    by_name(
        "attention",
        concat!(
            r"\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out",
            r"|to_qkv_mlp_proj|attn\.to_out)\.weight$"
        ),
    ),
    by_name("cross-attention", r"\.attn2\.(to_q|to_k|to_v|to_out\.0)\.weight$"),
    by_name(
        "attention+ff",
        concat!(
            r"\.(to_q|to_k|to_v|to_out\.0|ff\.net\.0\.proj|ff\.net\.2|add_q_proj|add_k_proj",
            r"|add_v_proj|to_add_out|to_qkv_mlp_proj|attn\.to_out|linear_in|linear_out",
            r"|feed_forward\.w[123])\.weight$"
        ),
    ),
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
