//! The family of base models that a file is for.

use std::collections::{BTreeMap, HashMap};

use super::header::Tensor;
use crate::interop::architecture::Architecture;

/// The family by what kohya's scripts, OneTrainer and others write into the metadata.
pub(super) fn family_of_metadata(metadata: &BTreeMap<String, String>) -> Option<&'static str> {
    const PARTS: [(&str, &str); 17] = [
        ("stable-diffusion-xl", "Stable Diffusion XL"),
        ("sdxl", "Stable Diffusion XL"),
        ("stable-diffusion-v1", "Stable Diffusion 1"),
        ("sd_v1", "Stable Diffusion 1"),
        ("stable-diffusion-v2", "Stable Diffusion 2"),
        ("sd_v2", "Stable Diffusion 2"),
        ("stable-diffusion-3", "Stable Diffusion 3"),
        ("sd3", "Stable Diffusion 3"),
        ("flux-2", "FLUX.2"),
        ("flux2", "FLUX.2"),
        ("flux.2", "FLUX.2"),
        ("flux_2", "FLUX.2"),
        ("flux", "FLUX.1"),
        ("z-image", "Z-Image"),
        ("z_image", "Z-Image"),
        ("zimage", "Z-Image"),
        ("lumina", "Lumina 2"),
    ];
    ["modelspec.architecture", "ss_base_model_version"].iter().find_map(|field| {
        let value = metadata.get(*field)?.to_lowercase();
        let found = PARTS.iter().find(|(part, _)| value.contains(part));
        found.map(|(_, family)| *family)
    })
}

/// The family by names that only one family has, and by the width of the text that cross-attention reads.
pub(super) fn family_of_tensors(tensors: &[Tensor<'_>]) -> Option<&'static str> {
    let any =
        |parts: &[&str]| tensors.iter().any(|(key, ..)| parts.iter().any(|p| key.contains(p)));
    if any(&["to_qkv_mlp_proj", "double_stream_modulation"]) {
        return Some("FLUX.2");
    }
    let keys = tensors.iter().map(|(key, ..)| *key);
    if Architecture::of_file(&HashMap::new(), keys) == Some(Architecture::ZImage) {
        return Some("Z-Image");
    }
    if any(&["lora_te2_", "text_encoder_2.", "conditioner.embedders.1"]) {
        return Some("Stable Diffusion XL");
    }
    tensors.iter().find_map(|(key, _, shape)| {
        let single = key.contains("single_blocks") && key.contains("linear1");
        if single && (key.contains("up") || key.contains("lora_B")) {
            // Query, key, value and the MLP: 3 + 4 widths in FLUX.1, and 3 + 6 in FLUX.2.
            let outputs = shape.first().copied()?;
            return Some(if outputs == 21_504 { "FLUX.1" } else { "FLUX.2" });
        }
        let reads_text = key.contains("attn2") && (key.contains("to_k") || key.contains("to_v"));
        let is_down = key.contains("down.weight") || key.contains("lora_A");
        let whole = key.ends_with("to_k.weight") || key.ends_with("to_v.weight");
        if !reads_text || !(is_down || whole || key.contains(".diff")) {
            return None;
        }
        match shape.get(1)? {
            768 => Some("Stable Diffusion 1"),
            1024 => Some("Stable Diffusion 2"),
            2048 => Some("Stable Diffusion XL"),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use safetensors::Dtype;

    use super::*;

    #[test]
    fn the_family_is_that_of_the_text_or_of_a_name() {
        let family = |key, shape: &[usize]| family_of_tensors(&[(key, Dtype::F16, shape)]);
        let to_k = "lora_unet_x_attn2_to_k.lora_down.weight";
        assert_eq!(family(to_k, &[4, 768]), Some("Stable Diffusion 1"));
        assert_eq!(family(to_k, &[4, 2048]), Some("Stable Diffusion XL"));
        assert_eq!(family(to_k, &[4, 160]), None);
        let linear = "lora_unet_single_blocks_0_linear1.lora_up.weight";
        assert_eq!(family(linear, &[21_504, 4]), Some("FLUX.1"));
        assert_eq!(family(linear, &[27_648, 4]), Some("FLUX.2"));
        assert_eq!(family("lora_te2_x.alpha", &[]), Some("Stable Diffusion XL"));
        assert_eq!(family("lora_unet_layers_3_attention_to_q.alpha", &[]), Some("Z-Image"));
        for (value, expected) in [
            ("Flux.2-klein-4b/lora", "FLUX.2"),
            ("flux_2_klein", "FLUX.2"),
            ("flux1", "FLUX.1"),
            ("z_image", "Z-Image"),
            ("lumina-2", "Lumina 2"),
        ] {
            let metadata = ("modelspec.architecture".to_owned(), value.to_owned());
            assert_eq!(family_of_metadata(&BTreeMap::from([metadata])), Some(expected), "{value}");
        }
    }
}
