//! Both encoders of CLIP with their projections into the joint space.
//!
//! ```text
//! cos(image_features(x), text_features(p))   measures how well image x shows what prompt p says
//! ```
//!
//! Mirrors transformers' `CLIPModel`.

use burn::module::{Module, Param};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Int, Tensor};
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::text::{ClipTextConfig, TextTransformer};
use super::vision::{ClipVisionConfig, VisionTransformer};
use crate::config::bounds::WIDTH;
use crate::config::pretrained::fields;
use crate::config::{ConfigFile, InvalidField};
use crate::layers::project;

/// The `config.json` of a `CLIPModel`.
#[derive(Debug, Clone, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields, default)]
pub struct ClipConfig {
    /// The config of the text encoder.
    pub text_config: ClipTextConfig,
    /// The config of the image encoder.
    pub vision_config: ClipVisionConfig,
    /// Width of the joint space.
    pub projection_dim: usize,
}

impl Default for ClipConfig {
    fn default() -> Self {
        Self {
            text_config: ClipTextConfig::default(),
            vision_config: ClipVisionConfig::default(),
            projection_dim: 512,
        }
    }
}

impl<'de> Deserialize<'de> for ClipConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The initial value of the temperature matters in training only.
        let mut fields = fields(deserializer, &["logit_scale_init_value"])?;
        // OpenAI's own files state the sizes twice. If the two differ, the `_dict` is right.
        for (part, overrides) in
            [("text_config", "text_config_dict"), ("vision_config", "vision_config_dict")]
        {
            if let Some(Value::Object(overrides)) = fields.remove(overrides) {
                let part = fields.entry(part).or_insert_with(|| Value::Object(Default::default()));
                if let Value::Object(part) = part {
                    part.extend(overrides);
                }
            }
        }
        Self::deserialize(Value::Object(fields)).map_err(D::Error::custom)
    }
}

impl ConfigFile for ClipConfig {
    const DESCRIPTION: &'static str = "the CLIP model's config.json";

    const NO_EFFECT: &'static [(&'static str, &'static str)] = &[];

    fn validate(&self) -> Result<(), InvalidField> {
        WIDTH.check("projection_dim", self.projection_dim)?;
        self.text_config.validate()?;
        self.vision_config.validate()
    }
}

impl ClipConfig {
    /// Makes a model with random weights.
    pub fn init(&self, device: &Device) -> ClipModel {
        let project =
            |width| LinearConfig::new(width, self.projection_dim).with_bias(false).init(device);
        ClipModel {
            text_model: self.text_config.init_transformer(device),
            vision_model: self.vision_config.init(device),
            text_projection: project(self.text_config.hidden_size),
            visual_projection: project(self.vision_config.hidden_size),
            logit_scale: Param::from_tensor(Tensor::zeros([1], device)),
        }
    }
}

/// CLIP: texts and images in one space.
#[derive(Module, Debug)]
pub struct ClipModel {
    /// The text encoder.
    pub text_model: TextTransformer,
    /// The image encoder.
    pub vision_model: VisionTransformer,
    /// Projection of texts into the joint space.
    pub text_projection: Linear,
    /// Projection of images into the joint space.
    pub visual_projection: Linear,
    /// The logarithm of the factor on cosines in training, `[1]`. Scores do not use it.
    pub logit_scale: Param<Tensor<1>>,
}

impl ClipModel {
    /// Encodes prompts, given as token `ids` `[b, n]`. Returns features `[b, projection_dim]`, not
    /// normalised.
    pub fn text_features(&self, ids: Tensor<2, Int>) -> Tensor<2> {
        project(&self.text_projection, self.text_model.pooled(ids))
    }

    /// Encodes images. Returns features `[b, projection_dim]`, not normalised.
    ///
    /// `pixels` is `[b, 3, h, w]`, preprocessed by an [`ImageProcessor`](crate::image::ImageProcessor).
    pub fn image_features(&self, pixels: Tensor<4>) -> Tensor<2> {
        project(&self.visual_projection, self.vision_model.pooled(pixels))
    }
}
