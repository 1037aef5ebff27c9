//! Module names of Stability's original code (`sgm`), which kohya's files for SDXL have.

/// Converts a flat module name of the original code to that of diffusers. Other names stay as they are.
///
/// The conversion assumes two resnets a level, as all Stable Diffusion UNets have.
pub(super) fn from_sgm(flat: &str) -> String {
    to_diffusers(flat).unwrap_or_else(|| flat.to_owned())
}

fn to_diffusers(flat: &str) -> Option<String> {
    let number = |text: &str| -> Option<(usize, String)> {
        let (number, rest) = text.split_once('_')?;
        Some((number.parse().ok()?, rest.to_owned()))
    };
    if let Some(rest) = flat.strip_prefix("input_blocks_") {
        let (block, rest) = number(rest)?;
        if block == 0 {
            return Some("conv_in".to_owned());
        }
        let (index, rest) = number(&rest)?;
        let (level, layer) = ((block - 1) / 3, (block - 1) % 3);
        return Some(match (layer, index) {
            (2, _) => format!("down_blocks_{level}_downsamplers_0_conv"),
            (_, 0) => format!("down_blocks_{level}_resnets_{layer}_{}", resnet(&rest)),
            _ => format!("down_blocks_{level}_attentions_{layer}_{rest}"),
        });
    }
    if let Some(rest) = flat.strip_prefix("middle_block_") {
        let (index, rest) = number(rest)?;
        return Some(match index {
            1 => format!("mid_block_attentions_0_{rest}"),
            _ => format!("mid_block_resnets_{}_{}", index / 2, resnet(&rest)),
        });
    }
    if let Some(rest) = flat.strip_prefix("output_blocks_") {
        let (block, rest) = number(rest)?;
        let (index, rest) = number(&rest)?;
        let (level, layer) = (block / 3, block % 3);
        // The upsampler follows the attention, or takes its place in a level without attention.
        return Some(match index {
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

/// Converts the name of a layer inside a resnet.
fn resnet(layer: &str) -> &str {
    match layer {
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
    fn sgm_names_convert_to_diffusers_names() {
        // The pairs are from diffusers 0.42, loaders/lora_conversion_utils and convert_from_ckpt.
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
