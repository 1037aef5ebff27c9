//! The autoencoder's `config.json`.

use burn::tensor::FloatDType;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::config::bounds::{LAYERS, LEVELS, PIXELS, WIDTH, check_epsilon};
use crate::config::{ConfigFile, InvalidField};
use crate::vae::statistics::PATCH;

/// The class of an autoencoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub enum VaeClass {
    /// The autoencoder of Stable Diffusion: latents are multiplied with a factor.
    #[default]
    #[serde(rename = "AutoencoderKL")]
    Kl,
    /// The autoencoder of FLUX.2: patches of latents are normalized by running statistics.
    #[serde(rename = "AutoencoderKLFlux2")]
    Flux2,
}

/// Fields of `AutoencoderKL` that FLUX.2's autoencoder does not have.
const OF_KL: &[&str] = &["latents_mean", "latents_std", "scaling_factor", "shift_factor"];

/// Fields of FLUX.2's autoencoder that `AutoencoderKL` does not have.
const OF_FLUX2: &[&str] =
    &["batch_norm_eps", "batch_norm_momentum", "decoder_block_out_channels", "patch_size"];

/// Shifts of latents. Published models have 0.1159.
const SHIFTS: std::ops::RangeInclusive<f64> = -1000.0..=1000.0;

/// The kind of an encoder block. All supported models use one kind only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum EncoderBlockType {
    /// Residual blocks, then a convolution of stride 2.
    DownEncoderBlock2D,
}

/// The kind of a decoder block. All supported models use one kind only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum DecoderBlockType {
    /// Residual blocks, then upsampling with a convolution.
    UpDecoderBlock2D,
}

/// The fields of an `AutoencoderKL` or an `AutoencoderKLFlux2` that are honoured. The defaults are diffusers'
/// for `AutoencoderKL`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VaeConfig {
    /// The class.
    #[serde(rename = "_class_name")]
    pub class: VaeClass,
    /// Channels of an image.
    pub in_channels: usize,
    /// Channels of a decoded image.
    pub out_channels: usize,
    /// Kinds of the encoder blocks, one for each resolution.
    pub down_block_types: Vec<EncoderBlockType>,
    /// Kinds of the decoder blocks, one for each resolution.
    pub up_block_types: Vec<DecoderBlockType>,
    /// Channels of each resolution, outermost first.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of an encoder block. A decoder block has one more.
    pub layers_per_block: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Groups of the group norms.
    pub norm_num_groups: usize,
    /// Side of the images that the model was trained on, in pixels.
    pub sample_size: usize,
    /// Factor that gives latents unit variance. 1 for FLUX.2's autoencoder, which has statistics instead.
    pub scaling_factor: f64,
    /// What is subtracted of the latents before `scaling_factor`. `None` for nothing.
    pub shift_factor: Option<f64>,
    /// Whether a convolution follows the encoder.
    pub use_quant_conv: bool,
    /// Whether a convolution precedes the decoder.
    pub use_post_quant_conv: bool,
    /// Epsilon of the variance in FLUX.2's statistics.
    pub batch_norm_eps: f64,
    /// Whether the autoencoder overflows in f16 and is loaded as f32 then.
    pub force_upcast: bool,
}

impl Default for VaeConfig {
    fn default() -> Self {
        Self {
            class: VaeClass::Kl,
            in_channels: 3,
            out_channels: 3,
            down_block_types: vec![EncoderBlockType::DownEncoderBlock2D],
            up_block_types: vec![DecoderBlockType::UpDecoderBlock2D],
            block_out_channels: vec![64],
            layers_per_block: 1,
            latent_channels: 4,
            norm_num_groups: 32,
            sample_size: 32,
            scaling_factor: 0.18215,
            shift_factor: None,
            use_quant_conv: true,
            use_post_quant_conv: true,
            batch_norm_eps: 1e-4,
            force_upcast: true,
        }
    }
}

impl VaeConfig {
    /// The number of pixels for each latent along one side.
    pub fn downscale_factor(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }

    /// The dtype of the autoencoder if the other networks are loaded as `dtype`.
    pub fn dtype(&self, dtype: FloatDType) -> FloatDType {
        // The activations of SDXL's autoencoder exceed 65504, the largest f16.
        if dtype == FloatDType::F16 && self.force_upcast { FloatDType::F32 } else { dtype }
    }

    /// The number of latents along one side of a patch. The channels of a patch are those of its latents.
    pub fn patch_size(&self) -> usize {
        match self.class {
            VaeClass::Kl => 1,
            VaeClass::Flux2 => PATCH,
        }
    }

    /// The number of pixels for each patch of latents along one side.
    pub fn pixels_per_patch(&self) -> usize {
        self.downscale_factor() * self.patch_size()
    }

    /// Channels of a patch of latents: those of the latents that a denoiser sees.
    pub fn patch_channels(&self) -> usize {
        self.latent_channels * self.patch_size().pow(2)
    }
}

impl ConfigFile for VaeConfig {
    const DESCRIPTION: &'static str = "the autoencoder's config.json";

    const NO_EFFECT: &'static [(&'static str, &'static str)] = &[
        ("act_fn", "\"silu\""),
        ("act_fn", "\"swish\""),
        ("decoder_block_out_channels", "null"),
        ("latents_mean", "null"),
        ("latents_std", "null"),
        ("mid_block_add_attention", "true"),
        ("patch_size", "[2,2]"),
    ];

    const HAS_CLASS_NAME: bool = true;

    fn prepare(fields: &mut Map<String, Value>) -> Result<(), InvalidField> {
        // Without a name it is the older class. The fields of a class nobody knows are not to blame.
        let class = fields.get("_class_name");
        let flux2 = class == Some(&json!("AutoencoderKLFlux2"));
        if let Some(other) = class.filter(|class| !flux2 && **class != json!("AutoencoderKL")) {
            let supported = "AutoencoderKL or AutoencoderKLFlux2";
            return Err(InvalidField { field: "_class_name", value: other.to_string(), supported });
        }
        let (foreign, supported) = match flux2 {
            true => (OF_KL, "no value, since AutoencoderKLFlux2 has no such field"),
            false => (OF_FLUX2, "no value, since AutoencoderKL has no such field"),
        };
        for field in foreign {
            if let Some(value) = fields.remove(*field).filter(|value| !value.is_null()) {
                return Err(InvalidField { field, value: value.to_string(), supported });
            }
        }
        if flux2 {
            // The momentum is that of training.
            fields.remove("batch_norm_momentum");
            for (field, default) in [
                ("block_out_channels", json!([128, 256, 512, 512])),
                ("down_block_types", json!(vec!["DownEncoderBlock2D"; 4])),
                ("up_block_types", json!(vec!["UpDecoderBlock2D"; 4])),
                ("layers_per_block", json!(2)),
                ("latent_channels", json!(32)),
                ("sample_size", json!(1024)),
                ("scaling_factor", json!(1.0)),
            ] {
                fields.entry(field).or_insert(default);
            }
        }
        Ok(())
    }

    fn validate(&self) -> Result<(), InvalidField> {
        let refuse =
            |field, value: String, supported| Err(InvalidField { field, value, supported });
        if self.block_out_channels.is_empty() {
            return refuse("block_out_channels", "[]".into(), "at least one block");
        }
        let blocks = self.block_out_channels.len();
        LEVELS.check("block_out_channels", blocks)?;
        LAYERS.check("layers_per_block", self.layers_per_block)?;
        WIDTH.check_all("block_out_channels", &self.block_out_channels)?;
        WIDTH.check_fields(&[
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("latent_channels", self.latent_channels),
        ])?;
        PIXELS.check("sample_size", self.sample_size)?;
        let supported = "as many blocks as `block_out_channels`";
        if self.down_block_types.len() != blocks {
            let value = format!("{} blocks", self.down_block_types.len());
            return refuse("down_block_types", value, supported);
        }
        if self.up_block_types.len() != blocks {
            let value = format!("{} blocks", self.up_block_types.len());
            return refuse("up_block_types", value, supported);
        }
        let groups = self.norm_num_groups;
        if groups == 0 || self.block_out_channels.iter().any(|c| !c.is_multiple_of(groups)) {
            return refuse("norm_num_groups", groups.to_string(), "a divisor of every width");
        }
        if self.scaling_factor == 0.0 || !self.scaling_factor.is_finite() {
            return refuse("scaling_factor", self.scaling_factor.to_string(), "a number but 0");
        }
        if let Some(shift) = self.shift_factor.filter(|shift| !SHIFTS.contains(shift)) {
            return refuse("shift_factor", shift.to_string(), "a number from -1000 to 1000");
        }
        check_epsilon("batch_norm_eps", self.batch_norm_eps)
    }
}
