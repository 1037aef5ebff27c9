//! The architecture that a file is for, which explains why its tensors do not fit a base.

use std::collections::HashMap;

use soda_models::{flux2, z_image};

/// An architecture that files name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Architecture {
    Sd1,
    Sd2,
    Sdxl,
    /// Stable Diffusion of some version, by the names of a UNet.
    Unet,
    Flux2,
    /// FLUX.1 or FLUX.2, most of whose layers have the same names.
    Flux,
    ZImage,
    /// A model that is not supported.
    Other(&'static str),
}

use Architecture::{Flux, Flux2, Other, Sd1, Sd2, Sdxl, Unet, ZImage};

const FLUX1: Architecture = Other("FLUX.1");
const LUMINA2: Architecture = Other("Lumina 2");
const SD3: Architecture = Other("Stable Diffusion 3");

/// Metadata keys of kohya's scripts and of the model specification with the architecture.
const KEYS: [&str; 2] = ["ss_base_model_version", "modelspec.architecture"];

/// Beginnings of the values. The first that fits counts.
const VALUES: &[(&str, Architecture)] = &[
    ("sdxl", Sdxl),
    ("stable-diffusion-xl", Sdxl),
    ("sd_v1", Sd1),
    ("sd_1", Sd1),
    ("stable-diffusion-v1", Sd1),
    ("sd_v2", Sd2),
    ("sd_2", Sd2),
    ("stable-diffusion-v2", Sd2),
    ("sd3", SD3),
    ("stable-diffusion-3", SD3),
    ("flux.2", Flux2),
    ("flux_2", Flux2),
    ("flux-2", Flux2),
    ("flux2", Flux2),
    ("flux.1", FLUX1),
    ("flux-1", FLUX1),
    ("flux1", FLUX1),
    ("flux", Flux),
    ("z-image", ZImage),
    ("z_image", ZImage),
    ("zimage", ZImage),
    ("lumina", LUMINA2),
];

/// Parts of tensor names, which a name has both of. The first that fits counts.
const NAMES: &[([&str; 2], Architecture)] = &[
    (["double_blocks", "img_mod"], FLUX1),
    (["double_blocks", "txt_mod"], FLUX1),
    (["single_blocks", "modulation"], FLUX1),
    (["single_transformer_blocks", "proj_mlp."], FLUX1),
    (["single_transformer_blocks", "to_q."], FLUX1),
    (["single_transformer_blocks", "norm.linear"], FLUX1),
    (["single_transformer_blocks", "norm_linear"], FLUX1),
    (["double_blocks", ""], Flux),
    (["single_blocks", ""], Flux),
    (["single_transformer_blocks", ""], Flux),
    (["joint_blocks", ""], SD3),
    (["noise_refiner", ""], ZImage),
    (["context_refiner", ""], ZImage),
    (["layers.", ".attention.to_"], ZImage),
    (["layers_", "_attention_to_"], ZImage),
    (["layers.", ".attention.qkv"], ZImage),
    (["layers_", "_attention_qkv"], ZImage),
    (["layers.", ".attention.out."], ZImage),
    (["layers_", "_attention_out."], ZImage),
    (["layers.", ".feed_forward.w"], ZImage),
    (["layers_", "_feed_forward_w"], ZImage),
    (["down_blocks", "attentions"], Unet),
    (["up_blocks", "attentions"], Unet),
    (["input_blocks", ""], Unet),
    (["output_blocks", ""], Unet),
];

/// Width of the text states by architecture.
const TEXT_WIDTHS: [(usize, Architecture); 3] = [(768, Sd1), (1024, Sd2), (2048, Sdxl)];

/// What is known of the architecture of a base.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Base {
    /// The family of the transformer; `None` for a UNet.
    pub(super) transformer: Option<Architecture>,
    /// Whether there are two text encoders.
    pub(super) two_encoders: bool,
    /// The width of the text states that a UNet takes.
    pub(super) text_width: Option<usize>,
}

impl Base {
    /// The name in messages.
    pub(super) fn name(&self) -> String {
        if let Some(transformer) = self.transformer {
            return transformer.name().to_owned();
        }
        let kind = match self.text_width.and_then(Architecture::of_text_width) {
            _ if self.two_encoders => "SDXL",
            Some(base) => base.name(),
            None => "a model with one text encoder",
        };
        let width = |width| format!(" (with text states of {width})");
        format!("{kind}{}", self.text_width.map_or_else(String::new, width))
    }
}

impl Architecture {
    /// The name in messages.
    pub(super) fn name(self) -> &'static str {
        match self {
            Sd1 => "Stable Diffusion 1",
            Sd2 => "Stable Diffusion 2",
            Sdxl => "SDXL",
            Unet => "Stable Diffusion",
            Flux2 => "FLUX.2",
            Flux => "FLUX",
            ZImage => "Z-Image",
            Other(name) => name,
        }
    }

    /// The architecture that the metadata of a file names, or else that its tensor names tell.
    pub(super) fn of_file<'a>(
        metadata: &HashMap<String, String>,
        keys: impl Iterator<Item = &'a str> + Clone,
    ) -> Option<Self> {
        let named = KEYS.iter().filter_map(|key| metadata.get(*key)).find_map(|value| {
            let value = value.to_lowercase();
            VALUES.iter().find(|(start, _)| value.starts_with(start)).map(|(_, found)| *found)
        });
        let has =
            |parts: &[&str; 2]| keys.clone().any(|key| parts.iter().all(|part| key.contains(part)));
        let told = || NAMES.iter().find(|(parts, _)| has(parts)).map(|(_, found)| *found);
        // A name tells more than `flux` alone.
        match named {
            None | Some(Flux) => told().or(named),
            named => named,
        }
    }

    /// The architecture whose transformer has a layer, by the name that diffusers gives to the layer.
    pub(super) fn of_transformer_layer(layer: &str) -> Option<Self> {
        let names = [(flux2::ORIGINAL_NAMES, Flux2), (z_image::ORIGINAL_NAMES, ZImage)];
        names.iter().find(|(names, _)| names.of(layer).is_some()).map(|(_, found)| *found)
    }

    /// The architecture with text states of this width.
    pub(super) fn of_text_width(width: usize) -> Option<Self> {
        TEXT_WIDTHS.iter().find(|(known, _)| *known == width).map(|(_, found)| *found)
    }

    /// Whether a base may be of this architecture.
    pub(super) fn fits(self, base: &Base) -> bool {
        let by_width = base.text_width.and_then(Self::of_text_width);
        match self {
            Flux | Flux2 => base.transformer == Some(Flux2),
            ZImage => base.transformer == Some(ZImage),
            Sdxl => base.two_encoders,
            Unet => base.transformer.is_none(),
            Other(_) => false,
            // A base of another width, such as a small one of tests, may be of either.
            Sd1 | Sd2 => {
                base.transformer.is_none()
                    && !base.two_encoders
                    && by_width.is_none_or(|base| base == self)
            }
        }
    }
}

/// Whether a weight of the UNet takes the states of the text.
pub(super) fn is_on_text(weight: &str) -> bool {
    weight.ends_with("attn2.to_k.weight") || weight.ends_with("attn2.to_v.weight")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_and_names_tell_the_architecture() {
        let of = |key: &str, value: &str| {
            let metadata = HashMap::from([(key.to_owned(), value.to_owned())]);
            Architecture::of_file(&metadata, std::iter::empty())
        };
        let (kohya, spec) = ("ss_base_model_version", "modelspec.architecture");
        assert_eq!(of(kohya, "sdxl_base_v1-0"), Some(Sdxl));
        assert_eq!(of(kohya, "sd_v1"), Some(Sd1));
        assert_eq!(of(kohya, "sd_v2_v"), Some(Sd2));
        assert_eq!(of(spec, "stable-diffusion-xl-v1-base/lora"), Some(Sdxl));
        assert_eq!(of(spec, "flux-1-dev/lora"), Some(FLUX1));
        assert_eq!(of(spec, "Flux.2-klein-4b/lora"), Some(Flux2));
        assert_eq!(of(kohya, "flux_2_klein_9b"), Some(Flux2));
        assert_eq!(of(kohya, "flux2_klein_4b"), Some(Flux2));
        assert_eq!(of(kohya, "z_image"), Some(ZImage));
        assert_eq!(of(kohya, "zimage:turbo"), Some(ZImage));
        assert_eq!(of(spec, "Z-Image/lora"), Some(ZImage));
        assert_eq!(of(spec, "lumina-2/lora"), Some(LUMINA2));
        assert_eq!(of(kohya, "my own"), None);
        for (name, found) in [
            ("lora_unet_double_blocks_0_img_attn_qkv.alpha", Flux),
            ("lora_unet_double_blocks_0_img_mod_lin.alpha", FLUX1),
            ("lora_unet_single_blocks_3_modulation_lin.alpha", FLUX1),
            ("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight", FLUX1),
            ("transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj.lora_A.weight", Flux),
            ("lora_unet_input_blocks_4_1_proj_in.alpha", Unet),
            ("unet.up_blocks.1.attentions.0.proj_in.lora_A.weight", Unet),
            ("diffusion_model.joint_blocks.0.x.lora_A.weight", SD3),
            ("lora_unet_layers_0_attention_to_q.alpha", ZImage),
            ("lora_unet_layers_29_feed_forward_w1.alpha", ZImage),
            ("diffusion_model.layers.0.attention.qkv.lora_A.weight", ZImage),
            ("transformer.context_refiner.0.attention.to_out.0.lora_A.weight", ZImage),
        ] {
            let names = [name];
            let found_in = Architecture::of_file(&HashMap::new(), names.into_iter());
            assert_eq!(found_in, Some(found), "{name}");
        }
        let names = ["text_encoder.text_model.encoder.layers.0.self_attn.out_proj.lora_A.weight"];
        assert_eq!(Architecture::of_file(&HashMap::new(), names.into_iter()), None);
        // The modulation that all blocks of FLUX.2 share.
        let names = ["diffusion_model.single_stream_modulation.lin.lora_A.weight"];
        assert_eq!(Architecture::of_file(&HashMap::new(), names.into_iter()), None);
    }

    #[test]
    fn a_base_of_unknown_width_fits_either_version() {
        let base = |text_width| Base { text_width, ..Base::default() };
        assert!(Sd1.fits(&base(Some(160))) && Sd2.fits(&base(None)));
        assert!(Sd1.fits(&base(Some(768))) && !Sd1.fits(&base(Some(1024))));
        let two = Base { two_encoders: true, ..base(Some(2048)) };
        assert!(Sdxl.fits(&two) && !Sdxl.fits(&base(Some(160))) && !Sd1.fits(&two));
        assert!(Unet.fits(&two) && Unet.fits(&base(None)));
        let [flux, z_image] = ["proj_out", "layers.0.attention.to_q"].map(|layer| Base {
            transformer: Architecture::of_transformer_layer(layer),
            ..Base::default()
        });
        assert_eq!([flux.name(), z_image.name()], ["FLUX.2", "Z-Image"]);
        for (architecture, fits) in [
            (Flux, [true, false]),
            (Flux2, [true, false]),
            (ZImage, [false, true]),
            (LUMINA2, [false, false]),
            (FLUX1, [false, false]),
            (Sd1, [false, false]),
            (Sdxl, [false, false]),
            (Unet, [false, false]),
        ] {
            let found = [&flux, &z_image].map(|base| architecture.fits(base));
            assert_eq!(found, fits, "{architecture:?}");
        }
        assert!(!Flux.fits(&base(None)) && !Flux2.fits(&two) && !ZImage.fits(&two));
    }
}
