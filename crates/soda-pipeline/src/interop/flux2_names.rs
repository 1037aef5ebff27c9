//! Module names of Black Forest Labs' code, which most files for FLUX.2 have: those of ComfyUI, ai-toolkit
//! and kohya's scripts.
//!
//! The original code holds queries, keys and values of a double block in one layer, `img_attn.qkv`. It is
//! three layers in diffusers. A LoRA of it is three with one `A`, each with a third of the rows of `B`.

use super::key_names::Role;

/// Modules of a double block, by diffusers' name.
const DOUBLE: &[(&str, &str, Rows)] = &[
    ("attn.to_q", "img_attn.qkv", Rows::Third(0)),
    ("attn.to_k", "img_attn.qkv", Rows::Third(1)),
    ("attn.to_v", "img_attn.qkv", Rows::Third(2)),
    ("attn.to_out.0", "img_attn.proj", Rows::All),
    ("attn.add_q_proj", "txt_attn.qkv", Rows::Third(0)),
    ("attn.add_k_proj", "txt_attn.qkv", Rows::Third(1)),
    ("attn.add_v_proj", "txt_attn.qkv", Rows::Third(2)),
    ("attn.to_add_out", "txt_attn.proj", Rows::All),
    ("ff.linear_in", "img_mlp.0", Rows::All),
    ("ff.linear_out", "img_mlp.2", Rows::All),
    ("ff_context.linear_in", "txt_mlp.0", Rows::All),
    ("ff_context.linear_out", "txt_mlp.2", Rows::All),
];

/// Modules of a single block, by diffusers' name.
const SINGLE: &[(&str, &str, Rows)] =
    &[("attn.to_qkv_mlp_proj", "linear1", Rows::All), ("attn.to_out", "linear2", Rows::All)];

/// Modules outside of the blocks, by diffusers' name. The last modulation is not one of them: its halves
/// have another order in the original code.
const OUTSIDE: &[(&str, &str, Rows)] = &[
    ("x_embedder", "img_in", Rows::All),
    ("context_embedder", "txt_in", Rows::All),
    ("time_guidance_embed.timestep_embedder.linear_1", "time_in.in_layer", Rows::All),
    ("time_guidance_embed.timestep_embedder.linear_2", "time_in.out_layer", Rows::All),
    ("time_guidance_embed.guidance_embedder.linear_1", "guidance_in.in_layer", Rows::All),
    ("time_guidance_embed.guidance_embedder.linear_2", "guidance_in.out_layer", Rows::All),
    ("double_stream_modulation_img.linear", "double_stream_modulation_img.lin", Rows::All),
    ("double_stream_modulation_txt.linear", "double_stream_modulation_txt.lin", Rows::All),
    ("single_stream_modulation.linear", "single_stream_modulation.lin", Rows::All),
    ("proj_out", "final_layer.linear", Rows::All),
];

/// The rows of an original layer, `[out, in]`, that are a layer of diffusers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rows {
    /// All of them.
    All,
    /// The third with this index.
    Third(usize),
}

impl Rows {
    /// Whether a tensor with this role has the rows of the layer. `None` if a third of the layer has no such
    /// tensor.
    pub(super) fn cut(self, role: Role) -> Option<bool> {
        match (self, role) {
            (Self::All, _) | (Self::Third(_), Role::Down | Role::Alpha) => Some(false),
            (Self::Third(_), Role::Up | Role::UpBias | Role::Diff) => Some(true),
            (Self::Third(_), _) => None,
        }
    }
}

/// Returns the name of a module of FLUX.2's transformer in the original code, with dots, and which of its
/// rows the module is; `None` for a module that the original code lacks.
pub(super) fn original(module: &str) -> Option<(String, Rows)> {
    let find = |table: &[(&str, &'static str, Rows)], module: &str| {
        table.iter().find(|(name, ..)| *name == module).map(|(_, name, rows)| (*name, *rows))
    };
    for (blocks, original, table) in [
        ("transformer_blocks.", "double_blocks", DOUBLE),
        ("single_transformer_blocks.", "single_blocks", SINGLE),
    ] {
        let Some((block, module)) = module.strip_prefix(blocks).and_then(|m| m.split_once('.'))
        else {
            continue;
        };
        let (name, rows) = find(table, module)?;
        return Some((format!("{original}.{block}.{name}"), rows));
    }
    find(OUTSIDE, module).map(|(name, rows)| (name.to_owned(), rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_have_the_names_of_the_original_code() {
        for (module, name, rows) in [
            ("transformer_blocks.3.attn.to_v", "double_blocks.3.img_attn.qkv", Rows::Third(2)),
            ("transformer_blocks.0.attn.to_out.0", "double_blocks.0.img_attn.proj", Rows::All),
            (
                "transformer_blocks.0.attn.add_q_proj",
                "double_blocks.0.txt_attn.qkv",
                Rows::Third(0),
            ),
            ("transformer_blocks.0.ff_context.linear_out", "double_blocks.0.txt_mlp.2", Rows::All),
            ("single_transformer_blocks.11.attn.to_out", "single_blocks.11.linear2", Rows::All),
            ("proj_out", "final_layer.linear", Rows::All),
        ] {
            assert_eq!(original(module), Some((name.to_owned(), rows)), "{module}");
        }
        for other in ["norm_out.linear", "transformer_blocks.0.attn.norm_q", "mid_block.to_q"] {
            assert_eq!(original(other), None, "{other}");
        }
    }
}
