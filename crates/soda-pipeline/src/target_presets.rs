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
/// | `peft-image-gen` | the layers of PEFT's benchmark on FLUX.2: no outputs of single blocks |
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
    by_name(
        "peft-image-gen",
        concat!(
            r"\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out",
            r"|to_qkv_mlp_proj|linear_in|linear_out)\.weight$"
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use burn::tensor::Device;
    use soda_adapters::Targets;
    use soda_models::flux2::Flux2Config;
    use soda_models::z_image::ZImageConfig;

    use super::*;

    /// FLUX.2 klein 4B has five double blocks and twenty single ones, and 9B has eight and twenty-four. The
    /// first two counts are those of diffusers' modules by the lists of PEFT's benchmark and of diffusers'
    /// training script.
    #[test]
    fn presets_select_the_layers_of_transformers() {
        let device = Device::default();
        let z_image = ZImageConfig::default().init(&device);
        for (config, [double, single]) in
            [(Flux2Config::klein_4b(), [5, 20]), (Flux2Config::klein_9b(), [8, 24])]
        {
            let klein = config.init(&device);
            let count = |preset: &str| {
                let targets = Targets(vec![preset.to_owned()]);
                targets.matching_paths(&klein, TARGET_PRESETS).unwrap().len()
            };
            assert_eq!(count("peft-image-gen"), double * 12 + single);
            assert_eq!(count("attention"), double * 8 + single * 2);
            assert_eq!(count("attention+ff"), double * 12 + single * 2);
        }
        // 30 layers and two refiners of two each, with four projections and three of the feed-forward layer.
        let targets = Targets(vec!["attention+ff".to_owned()]);
        let paths = targets.matching_paths(&z_image, TARGET_PRESETS).unwrap();
        assert_eq!(paths.len(), 34 * 7);
    }
}
