//! The family of a model directory, by the class in its `model_index.json`.

use std::path::Path;

use serde_json::{Map, Value};

use super::json;
use crate::error::{ConfigError, ModelError};

/// The families of models that are supported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FamilyName {
    /// All models with a UNet.
    StableDiffusion,
    /// FLUX.2 klein.
    Flux2Klein,
    /// Z-Image.
    ZImage,
}

/// The class of FLUX.2 klein in diffusers.
const FLUX2_KLEIN: &str = "Flux2KleinPipeline";

/// The class of Z-Image in diffusers.
const Z_IMAGE: &str = "ZImagePipeline";

impl FamilyName {
    /// Reads the family of the model in `dir`.
    pub(super) fn read(dir: &Path) -> Result<Self, ModelError> {
        Self::of(dir, &model_index(dir)?)
    }

    /// The family of a `model_index.json`, which is in `dir`.
    ///
    /// # Errors
    ///
    /// [`ConfigError::UnsupportedField`] for the class of another model with a transformer.
    pub(super) fn of(dir: &Path, index: &Map<String, Value>) -> Result<Self, ModelError> {
        let class = index.get("_class_name");
        match class.and_then(Value::as_str) {
            Some(FLUX2_KLEIN) => return Ok(Self::Flux2Klein),
            Some(Z_IMAGE) => return Ok(Self::ZImage),
            _ => {}
        }
        // The many classes with a UNet differ in what they do with it, not in what it is.
        if index.get("transformer").is_none_or(Value::is_null) {
            return Ok(Self::StableDiffusion);
        }
        Err(ConfigError::UnsupportedField {
            path: dir.join("model_index.json"),
            field: "_class_name".to_owned(),
            value: class.unwrap_or(&Value::Null).to_string(),
            supported: format!(
                "{FLUX2_KLEIN}, {Z_IMAGE}, or a class of Stable Diffusion, which has a UNet"
            ),
        }
        .into())
    }
}

/// Reads the directory's `model_index.json`, which has the class of each part.
pub(super) fn model_index(dir: &Path) -> Result<Map<String, Value>, ModelError> {
    if !dir.is_dir() {
        let what = "a model directory in diffusers' layout";
        return Err(ModelError::Missing { path: dir.to_path_buf(), what });
    }
    json::read(&dir.join("model_index.json"), "the model's model_index.json")
}
