//! Loading DINO or DINOv2 from a directory in transformers' layout.

use std::ops::RangeInclusive;
use std::path::Path;

use burn::tensor::Device;
use serde::Deserialize;

use super::config::VitConfig;
use super::dinov2::Dinov2Config;
use super::model::VitModel;
use crate::config::{self, ConfigFile, InvalidField};
use crate::error::ModelError;
use crate::weights;

/// Key renames of DINO's and DINOv2's files, as (regular expression, replacement), for
/// [`crate::weights::load_renamed`]. They map the layers to CLIP's keys.
pub const KEY_RENAMES: &[(&str, &str)] = &[
    (r"^encoder\.layer\.", "encoder.layers."),
    (r"\.attention\.attention\.(q|k|v)(uery|ey|alue)\.", ".self_attn.${1}_proj."),
    (r"\.attention\.output\.dense\.", ".self_attn.out_proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.mlp\.weights_out\.", ".mlp.fc2."),
    (r"\.(layernorm_before|norm1)\.", ".layer_norm1."),
    (r"\.(layernorm_after|norm2)\.", ".layer_norm2."),
    (r"\.layer_scale(1|2)\.lambda1$", ".layer_scale${1}"),
];

/// The field of a `config.json` that tells the models apart.
#[derive(Deserialize)]
struct Kind {
    #[serde(default)]
    model_type: Option<String>,
}

const REGISTERS: &str = "dinov2_with_registers";

impl ConfigFile for Kind {
    const DESCRIPTION: &'static str = VitConfig::DESCRIPTION;

    const NO_EFFECT: &'static [(&'static str, &'static str)] = &[];

    fn validate(&self) -> Result<(), InvalidField> {
        match self.model_type.as_deref() {
            None | Some("vit" | "dinov2" | REGISTERS) => Ok(()),
            Some(other) => {
                let supported = "vit (DINO), dinov2 or dinov2_with_registers";
                Err(InvalidField { field: "model_type", value: format!("\"{other}\""), supported })
            }
        }
    }
}

/// Loads DINO or DINOv2, with or without registers, from `dir` in transformers' layout, as f32.
///
/// Returns the model and the range of image sides that it accepts, in pixels.
///
/// # Errors
///
/// [`ModelError`] for files that are missing, broken or of another model.
pub fn load(dir: &Path, device: &Device) -> Result<(VitModel, RangeInclusive<usize>), ModelError> {
    let path = dir.join("config.json");
    let kind: Kind = config::read(&path)?;
    let (model, sides) = match kind.model_type.as_deref() {
        Some(kind @ ("dinov2" | REGISTERS)) => {
            let mut config: Dinov2Config = config::read(&path)?;
            if kind == REGISTERS {
                // The default of transformers.
                config.num_register_tokens.get_or_insert(4);
            }
            (config.init(device), config.patch_size..=usize::MAX)
        }
        _ => {
            let config: VitConfig = config::read(&path)?;
            (config.init(device), config.image_size..=config.image_size)
        }
    };
    Ok((weights::load_renamed(model, &dir.join("model.safetensors"), KEY_RENAMES)?, sides))
}
