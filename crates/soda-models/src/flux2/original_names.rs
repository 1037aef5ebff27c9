//! Names of the transformer's layers in the code of Black Forest Labs, which made the model.
//!
//! The two halves of the last modulation, shift and scale, are in opposite order there.

use super::config::Flux2Config;
use crate::original_names::{LayerNames, Rows, TransformerNames};
use crate::weights::ldm::Layout;

/// The names of the transformer in the original code.
pub const ORIGINAL_NAMES: TransformerNames = TransformerNames {
    model: "FLUX.2",
    marks: &["single_stream_modulation.lin.weight"],
    blocks: &[
        ("transformer_blocks", "double_blocks", DOUBLE),
        ("single_transformer_blocks", "single_blocks", SINGLE),
    ],
    outside: OUTSIDE,
    parameters: &[],
    norm_weight: "scale",
    unused: &[],
};

impl Flux2Config {
    /// The layout of the transformer in a file of the original names, in which all keys begin with `prefix`.
    pub(crate) fn original_layout(&self, prefix: &'static str) -> Layout {
        let blocks = [self.num_layers, self.num_single_layers];
        Layout::transformer(&ORIGINAL_NAMES, blocks, prefix)
    }
}

const DOUBLE: LayerNames = &[
    ("attn.to_q", "img_attn.qkv", Rows::Third(0)),
    ("attn.to_k", "img_attn.qkv", Rows::Third(1)),
    ("attn.to_v", "img_attn.qkv", Rows::Third(2)),
    ("attn.norm_q", "img_attn.norm.query_norm", Rows::All),
    ("attn.norm_k", "img_attn.norm.key_norm", Rows::All),
    ("attn.to_out.0", "img_attn.proj", Rows::All),
    ("attn.add_q_proj", "txt_attn.qkv", Rows::Third(0)),
    ("attn.add_k_proj", "txt_attn.qkv", Rows::Third(1)),
    ("attn.add_v_proj", "txt_attn.qkv", Rows::Third(2)),
    ("attn.norm_added_q", "txt_attn.norm.query_norm", Rows::All),
    ("attn.norm_added_k", "txt_attn.norm.key_norm", Rows::All),
    ("attn.to_add_out", "txt_attn.proj", Rows::All),
    ("ff.linear_in", "img_mlp.0", Rows::All),
    ("ff.linear_out", "img_mlp.2", Rows::All),
    ("ff_context.linear_in", "txt_mlp.0", Rows::All),
    ("ff_context.linear_out", "txt_mlp.2", Rows::All),
];

const SINGLE: LayerNames = &[
    ("attn.to_qkv_mlp_proj", "linear1", Rows::All),
    ("attn.to_out", "linear2", Rows::All),
    ("attn.norm_q", "norm.query_norm", Rows::All),
    ("attn.norm_k", "norm.key_norm", Rows::All),
];

const OUTSIDE: LayerNames = &[
    ("x_embedder", "img_in", Rows::All),
    ("context_embedder", "txt_in", Rows::All),
    ("time_guidance_embed.timestep_embedder.linear_1", "time_in.in_layer", Rows::All),
    ("time_guidance_embed.timestep_embedder.linear_2", "time_in.out_layer", Rows::All),
    ("double_stream_modulation_img.linear", "double_stream_modulation_img.lin", Rows::All),
    ("double_stream_modulation_txt.linear", "double_stream_modulation_txt.lin", Rows::All),
    ("single_stream_modulation.linear", "single_stream_modulation.lin", Rows::All),
    ("norm_out.linear", "final_layer.adaLN_modulation.1", Rows::HalvesSwapped),
    ("proj_out", "final_layer.linear", Rows::All),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_have_the_names_of_the_original_code() {
        for (layer, name, rows) in [
            ("transformer_blocks.3.attn.to_v", "double_blocks.3.img_attn.qkv", Rows::Third(2)),
            ("transformer_blocks.0.attn.to_out.0", "double_blocks.0.img_attn.proj", Rows::All),
            (
                "transformer_blocks.0.attn.add_q_proj",
                "double_blocks.0.txt_attn.qkv",
                Rows::Third(0),
            ),
            (
                "transformer_blocks.12.ff_context.linear_out",
                "double_blocks.12.txt_mlp.2",
                Rows::All,
            ),
            ("single_transformer_blocks.11.attn.to_out", "single_blocks.11.linear2", Rows::All),
            ("norm_out.linear", "final_layer.adaLN_modulation.1", Rows::HalvesSwapped),
            ("proj_out", "final_layer.linear", Rows::All),
        ] {
            assert_eq!(ORIGINAL_NAMES.of(layer), Some((name.to_owned(), rows)), "{layer}");
        }
        for other in ["transformer_blocks.0.attn.to_out", "transformer_blocks", "mid_block.to_q"] {
            assert_eq!(ORIGINAL_NAMES.of(other), None, "{other}");
        }
    }
}
