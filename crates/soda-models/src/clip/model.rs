//! Both of CLIP's towers with their projections into the joint space.
//!
//! ```text
//! cos(image_features(x), text_features(p))   how well picture x shows what prompt p says
//! ```
//!
//! Mirrors transformers' `CLIPModel`.

use burn::module::{Module, Param};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Int, Tensor};
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::pretrained::fields;
use super::text::{ClipTextConfig, TextTransformer};
use super::vision::{ClipVisionConfig, VisionTransformer};
use crate::config::{ConfigFile, Refusal};
use crate::unet::attention::project;

/// The `config.json` of a `CLIPModel`.
#[derive(Debug, Clone, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields, default)]
pub struct ClipConfig {
    /// The text encoder.
    pub text_config: ClipTextConfig,
    /// The picture encoder.
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
        // What training started the temperature from.
        let mut fields = fields(deserializer, &["logit_scale_init_value"])?;
        // OpenAI's own files state the sizes twice; where the two differ, this one is right.
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
    const WHAT: &'static str = "the CLIP model's config.json";

    const NEUTRAL: &'static [(&'static str, &'static str)] = &[];

    fn check(&self) -> Result<(), Refusal> {
        self.text_config.check()?;
        self.vision_config.check()
    }
}

impl ClipConfig {
    /// An untrained model.
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

/// Texts and pictures in one space.
#[derive(Module, Debug)]
pub struct ClipModel {
    /// The text encoder.
    pub text_model: TextTransformer,
    /// The picture encoder.
    pub vision_model: VisionTransformer,
    /// Texts into the joint space.
    pub text_projection: Linear,
    /// Pictures into the joint space.
    pub visual_projection: Linear,
    /// The logarithm of what cosines were multiplied by in training, `[1]`.
    pub logit_scale: Param<Tensor<1>>,
}

impl ClipModel {
    /// The features of prompts, `[b, projection_dim]`, from their `ids` `[b, n]`.
    pub fn text_features(&self, ids: Tensor<2, Int>) -> Tensor<2> {
        project(&self.text_projection, self.text_model.pooled(ids))
    }

    /// The features of pictures, `[b, projection_dim]`, from their `pixels` `[b, 3, h, w]`,
    /// normalised as `preprocessor_config.json` says.
    pub fn image_features(&self, pixels: Tensor<4>) -> Tensor<2> {
        project(&self.visual_projection, self.vision_model.pooled(pixels))
    }
}
