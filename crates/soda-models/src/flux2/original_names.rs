//! Names of the transformer's layers in the code of Black Forest Labs, which made the model.
//!
//! The files of the original code, and those of ComfyUI, ai-toolkit and kohya's scripts, have these names.
//! The original code has one layer for the queries, keys and values of a stream. diffusers has three. The two
//! halves of the last modulation, shift and scale, are in opposite order.

/// The rows of an original layer's weight `[out, in]` that are a layer of diffusers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// All of them.
    All,
    /// The third with this index.
    Third(usize),
    /// All of them, with the second half before the first.
    HalvesSwapped,
}

/// Names of layers: diffusers', the original one, and its rows.
pub(crate) type LayerNames = &'static [(&'static str, &'static str, Rows)];

/// The blocks: diffusers' name, the original one, and their layers.
pub(crate) const BLOCKS: [(&str, &str, LayerNames); 2] = [
    ("transformer_blocks", "double_blocks", DOUBLE),
    ("single_transformer_blocks", "single_blocks", SINGLE),
];

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

/// The layers outside of the blocks.
pub(crate) const OUTSIDE: LayerNames = &[
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

/// Returns the original name of a layer of the transformer, and the rows of the original layer that it has.
/// `None` for a layer that the transformer lacks.
///
/// ```
/// use soda_models::flux2::{Rows, original_name};
///
/// let found = original_name("transformer_blocks.3.attn.to_v");
/// assert_eq!(found, Some(("double_blocks.3.img_attn.qkv".to_owned(), Rows::Third(2))));
/// ```
pub fn original_name(layer: &str) -> Option<(String, Rows)> {
    let find = |names: LayerNames, layer: &str| {
        names.iter().find(|(own, ..)| *own == layer).map(|(_, original, rows)| (*original, *rows))
    };
    for (blocks, original, names) in BLOCKS {
        let inside = layer.strip_prefix(blocks).and_then(|rest| rest.strip_prefix('.'));
        let Some((block, layer)) = inside.and_then(|rest| rest.split_once('.')) else { continue };
        let (name, rows) = find(names, layer)?;
        return Some((format!("{original}.{block}.{name}"), rows));
    }
    find(OUTSIDE, layer).map(|(name, rows)| (name.to_owned(), rows))
}

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
            assert_eq!(original_name(layer), Some((name.to_owned(), rows)), "{layer}");
        }
        for other in ["transformer_blocks.0.attn.to_out", "transformer_blocks", "mid_block.to_q"] {
            assert_eq!(original_name(other), None, "{other}");
        }
    }
}
