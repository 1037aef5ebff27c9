//! Names of the transformer's layers in the code of Tongyi-MAI, which made the model, and in ComfyUI.

use super::config::ZImageConfig;
use crate::original_names::{LayerNames, Rows, TransformerNames};
use crate::weights::ldm::Layout;

/// The names of the transformer in the original code.
pub const ORIGINAL_NAMES: TransformerNames = TransformerNames {
    model: "Z-Image",
    // Lumina 2 has the first of them too, and diffusers' names the second.
    marks: &["x_embedder.weight", "x_pad_token"],
    blocks: &[
        ("noise_refiner", "noise_refiner", BLOCK),
        ("context_refiner", "context_refiner", BLOCK),
        ("layers", "layers", BLOCK),
    ],
    outside: OUTSIDE,
    parameters: &["x_pad_token", "cap_pad_token"],
    norm_weight: "weight",
    // A norm after the last block, which the code of Lumina 2 has and no program applies.
    unused: &["norm_final."],
};

impl ZImageConfig {
    /// The layout of the transformer in a file of the original names, in which all keys begin with `prefix`.
    pub(crate) fn original_layout(&self, prefix: &'static str) -> Layout {
        let blocks = [self.n_refiner_layers, self.n_refiner_layers, self.n_layers];
        Layout::transformer(&ORIGINAL_NAMES, blocks, prefix)
    }
}

const BLOCK: LayerNames = &[
    ("attention.to_q", "attention.qkv", Rows::Third(0)),
    ("attention.to_k", "attention.qkv", Rows::Third(1)),
    ("attention.to_v", "attention.qkv", Rows::Third(2)),
    ("attention.norm_q", "attention.q_norm", Rows::All),
    ("attention.norm_k", "attention.k_norm", Rows::All),
    ("attention.to_out.0", "attention.out", Rows::All),
    ("feed_forward.w1", "feed_forward.w1", Rows::All),
    ("feed_forward.w2", "feed_forward.w2", Rows::All),
    ("feed_forward.w3", "feed_forward.w3", Rows::All),
    ("attention_norm1", "attention_norm1", Rows::All),
    ("attention_norm2", "attention_norm2", Rows::All),
    ("ffn_norm1", "ffn_norm1", Rows::All),
    ("ffn_norm2", "ffn_norm2", Rows::All),
    ("adaLN_modulation.0", "adaLN_modulation.0", Rows::All),
];

const OUTSIDE: LayerNames = &[
    ("all_x_embedder.2-1", "x_embedder", Rows::All),
    ("all_final_layer.2-1.linear", "final_layer.linear", Rows::All),
    ("all_final_layer.2-1.adaLN_modulation.1", "final_layer.adaLN_modulation.1", Rows::All),
    ("cap_embedder.0", "cap_embedder.0", Rows::All),
    ("cap_embedder.1", "cap_embedder.1", Rows::All),
    ("t_embedder.mlp.0", "t_embedder.mlp.0", Rows::All),
    ("t_embedder.mlp.2", "t_embedder.mlp.2", Rows::All),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_have_the_names_of_the_original_code() {
        for (layer, name, rows) in [
            ("layers.29.attention.to_k", "layers.29.attention.qkv", Rows::Third(1)),
            ("noise_refiner.1.attention.to_out.0", "noise_refiner.1.attention.out", Rows::All),
            ("context_refiner.0.feed_forward.w2", "context_refiner.0.feed_forward.w2", Rows::All),
            ("all_x_embedder.2-1", "x_embedder", Rows::All),
            ("all_final_layer.2-1.adaLN_modulation.1", "final_layer.adaLN_modulation.1", Rows::All),
        ] {
            assert_eq!(ORIGINAL_NAMES.of(layer), Some((name.to_owned(), rows)), "{layer}");
        }
        for other in ["layers.0.attention.to_out", "layers.0", "x_embedder"] {
            assert_eq!(ORIGINAL_NAMES.of(other), None, "{other}");
        }
    }
}
