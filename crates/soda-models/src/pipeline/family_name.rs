//! The family of a model directory, by the class in its `model_index.json`.

use std::fmt;
use std::path::Path;

use serde_json::{Map, Value};

use super::json;
use crate::error::{ConfigError, ModelError};
use crate::original_names::TransformerNames;
use crate::{flux2, z_image};

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

impl fmt::Display for FamilyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.original_names().map_or("Stable Diffusion", |names| names.model))
    }
}

/// The class of FLUX.2 klein in diffusers.
const FLUX2_KLEIN: &str = "Flux2KleinPipeline";

/// The class of Z-Image in diffusers.
const Z_IMAGE: &str = "ZImagePipeline";

impl FamilyName {
    /// The families whose single files are the transformer alone.
    pub(super) const TRANSFORMERS: [Self; 2] = [Self::Flux2Klein, Self::ZImage];

    /// Keys that every such file has, and together no other file. None for a family whose files have all
    /// networks.
    pub(super) fn marks(self) -> &'static [&'static str] {
        self.original_names().map_or(&[], |names| names.marks)
    }

    /// The names of the transformer in such a file.
    fn original_names(self) -> Option<&'static TransformerNames> {
        match self {
            Self::StableDiffusion => None,
            Self::Flux2Klein => Some(&flux2::ORIGINAL_NAMES),
            Self::ZImage => Some(&z_image::ORIGINAL_NAMES),
        }
    }

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
    if dir.is_file() {
        return Err(ModelError::SingleFile { path: dir.to_path_buf() });
    }
    if !dir.is_dir() {
        let what = "a model directory in diffusers' layout";
        return Err(ModelError::Missing { path: dir.to_path_buf(), what });
    }
    json::read(&dir.join("model_index.json"), "the model's model_index.json")
}
