//! The architecture that a file is for, which explains why its tensors do not fit a base.

use std::collections::HashMap;

use super::key_names::Role;
use super::layer_tensors::Layers;

/// An architecture of Stable Diffusion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Architecture {
    Sd1,
    Sd2,
    Sdxl,
    /// FLUX.1 or FLUX.2, whose files have the same names.
    Flux,
    /// A model that is not supported.
    Other(&'static str),
}

/// Metadata keys of kohya's scripts and of the model specification with the architecture.
const KEYS: [&str; 2] = ["ss_base_model_version", "modelspec.architecture"];

/// Beginnings of the values.
const VALUES: &[(&str, Architecture)] = &[
    ("sdxl", Architecture::Sdxl),
    ("stable-diffusion-xl", Architecture::Sdxl),
    ("sd_v1", Architecture::Sd1),
    ("sd_1", Architecture::Sd1),
    ("stable-diffusion-v1", Architecture::Sd1),
    ("sd_v2", Architecture::Sd2),
    ("sd_2", Architecture::Sd2),
    ("stable-diffusion-v2", Architecture::Sd2),
    ("sd3", Architecture::Other("Stable Diffusion 3")),
    ("stable-diffusion-3", Architecture::Other("Stable Diffusion 3")),
    ("flux", Architecture::Flux),
];

/// Beginnings of tensor names of other models.
const NAMES: &[(&str, Architecture)] = &[
    ("lora_unet_double_blocks_", Architecture::Flux),
    ("lora_unet_single_blocks_", Architecture::Flux),
    ("transformer.single_transformer_blocks.", Architecture::Flux),
    ("diffusion_model.double_blocks.", Architecture::Flux),
    ("lora_unet_joint_blocks_", Architecture::Other("Stable Diffusion 3")),
    ("diffusion_model.joint_blocks.", Architecture::Other("Stable Diffusion 3")),
];

/// Width of the text states by architecture.
const TEXT_WIDTHS: [(usize, Architecture); 3] =
    [(768, Architecture::Sd1), (1024, Architecture::Sd2), (2048, Architecture::Sdxl)];

impl Architecture {
    /// The name in messages.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Sd1 => "Stable Diffusion 1",
            Self::Sd2 => "Stable Diffusion 2",
            Self::Sdxl => "SDXL",
            Self::Flux => "FLUX",
            Self::Other(name) => name,
        }
    }

    /// The architecture that the metadata of a file names, or else that its tensor names tell.
    pub(super) fn of_file<'a>(
        metadata: &HashMap<String, String>,
        mut keys: impl Iterator<Item = &'a String>,
    ) -> Option<Self> {
        let named = KEYS.iter().filter_map(|key| metadata.get(*key)).find_map(|value| {
            let value = value.to_lowercase();
            VALUES.iter().find(|(start, _)| value.starts_with(start)).map(|(_, found)| *found)
        });
        named.or_else(|| {
            keys.find_map(|key| NAMES.iter().find(|(start, _)| key.starts_with(start)))
                .map(|(_, found)| *found)
        })
    }

    /// The architecture with text states of this width.
    pub(super) fn of_text_width(width: usize) -> Option<Self> {
        TEXT_WIDTHS.iter().find(|(known, _)| *known == width).map(|(_, found)| *found)
    }

    /// Whether a base may be of this architecture. `flux` says whether it is FLUX.2, and `width` is that of
    /// the text states of a UNet.
    pub(super) fn fits(self, flux: bool, two_encoders: bool, width: Option<usize>) -> bool {
        let of_base = width.and_then(Self::of_text_width);
        match self {
            // A LoRA for FLUX.1 has other shapes.
            Self::Flux => flux,
            Self::Sdxl => two_encoders && !flux,
            Self::Other(_) => false,
            // A base of another width, such as a small one of tests, may be of either.
            Self::Sd1 | Self::Sd2 => {
                !flux && !two_encoders && of_base.is_none_or(|base| base == self)
            }
        }
    }
}

/// The width of the text states that the LoRAs of a file's cross-attention take.
pub(super) fn text_width(layers: &Layers) -> Option<usize> {
    let cross = layers.iter().filter(|(weight, _)| is_on_text(weight));
    cross.filter_map(|(_, layer)| layer.second_axis(Role::Down)).next()
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
            Architecture::of_file(&metadata, [].iter())
        };
        let (kohya, spec) = ("ss_base_model_version", "modelspec.architecture");
        assert_eq!(of(kohya, "sdxl_base_v1-0"), Some(Architecture::Sdxl));
        assert_eq!(of(kohya, "sd_v1"), Some(Architecture::Sd1));
        assert_eq!(of(kohya, "sd_v2_v"), Some(Architecture::Sd2));
        assert_eq!(of(spec, "stable-diffusion-xl-v1-base/lora"), Some(Architecture::Sdxl));
        assert_eq!(of(spec, "flux-1-dev/lora"), Some(Architecture::Flux));
        assert_eq!(of(kohya, "my own"), None);
        let names = ["lora_unet_double_blocks_0_img_attn_qkv.alpha".to_owned()];
        let found = Architecture::of_file(&HashMap::new(), names.iter());
        assert_eq!(found, Some(Architecture::Flux));
    }

    #[test]
    fn a_base_of_unknown_width_fits_either_version() {
        assert!(
            Architecture::Sd1.fits(false, false, Some(160))
                && Architecture::Sd2.fits(false, false, None)
        );
        assert!(
            Architecture::Sd1.fits(false, false, Some(768))
                && !Architecture::Sd1.fits(false, false, Some(1024))
        );
        assert!(
            Architecture::Sdxl.fits(false, true, Some(2048))
                && !Architecture::Sdxl.fits(false, false, Some(160))
        );
        assert!(!Architecture::Sd1.fits(false, true, Some(2048)));
        assert!(!Architecture::Flux.fits(false, false, None));
        assert!(Architecture::Flux.fits(true, false, None));
        assert!(!Architecture::Sd1.fits(true, false, None));
    }
}
