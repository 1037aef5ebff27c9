//! The field's three scores of personalisation (DreamBooth, arXiv 2208.12242).
//!
//! | score | the cosine of | asks |
//! | --- | --- | --- |
//! | CLIP-T | CLIP's features of picture and prompt | does the picture show what the prompt says? |
//! | CLIP-I | CLIP's features of two pictures | do the two look alike? |
//! | DINO | DINO's class tokens of two pictures | do the two show the same object? |

use std::ops::RangeInclusive;
use std::path::Path;

use burn::tensor::{Device, Tensor};
use image::RgbImage;

use crate::clip::model::{ClipConfig, ClipModel};
use crate::config;
use crate::error::ModelError;
use crate::image::preprocess::Preprocessor;
use crate::tokenizer::Tokenizer;
use crate::vit::{self, VitModel};
use crate::weights;

/// Pictures or prompts judged at once, which bounds the memory.
const AT_ONCE: usize = 32;

/// A CLIP and a DINO model, with what they read pictures and prompts by.
#[derive(Debug)]
pub struct Judges {
    /// Texts and pictures in one space.
    pub clip: ClipModel,
    /// Prompts to CLIP's tokens.
    pub tokenizer: Tokenizer,
    /// Pictures to CLIP's pixels.
    pub clip_pixels: Preprocessor,
    /// Pictures to what makes an object this object.
    pub dino: VitModel,
    /// Pictures to DINO's pixels.
    pub dino_pixels: Preprocessor,
    /// Where they compute.
    pub device: Device,
}

impl Judges {
    /// Reads `clip/` and `dino/` in `dir`, each in transformers' layout; `dino/` is DINO or DINOv2.
    pub fn load(dir: &Path, device: &Device) -> Result<Self, ModelError> {
        let (clip, dino) = (dir.join("clip"), dir.join("dino"));
        let clip_config: ClipConfig = config::read(&clip.join("config.json"))?;
        let tokenizer = Tokenizer::from_dir(&clip)?;
        tokenizer.check_fits(&clip, &clip_config.text_config)?;
        let side = clip_config.vision_config.image_size;
        let clip_pixels = pixels(&clip, side..=side)?;
        let (dino_model, sides) = vit::load(&dino, device)?;
        Ok(Self {
            tokenizer,
            clip_pixels,
            dino_pixels: pixels(&dino, sides)?,
            clip: weights::load(clip_config.init(device), &clip.join(WEIGHTS))?,
            dino: dino_model,
            device: device.clone(),
        })
    }

    /// How well image `i` shows what prompt `i` says.
    pub fn clip_t<S: AsRef<str>>(
        &self,
        images: &[RgbImage],
        prompts: &[S],
    ) -> Result<Vec<f32>, ModelError> {
        check_pairs("prompts", images.len(), prompts.len())?;
        Ok(pairs(&self.clip_images(images), &self.clip_prompts(prompts)))
    }

    /// How much each image looks like the references, on average.
    pub fn clip_i(
        &self,
        images: &[RgbImage],
        references: &[RgbImage],
    ) -> Result<Vec<f32>, ModelError> {
        check_some(references)?;
        Ok(means(&self.clip_images(images), &self.clip_images(references)))
    }

    /// How much image `i` looks like reference `i`.
    pub fn clip_i_pairs(
        &self,
        images: &[RgbImage],
        references: &[RgbImage],
    ) -> Result<Vec<f32>, ModelError> {
        check_pairs("references", images.len(), references.len())?;
        Ok(pairs(&self.clip_images(images), &self.clip_images(references)))
    }

    /// How much what each image shows is what the references show, on average.
    pub fn dino(
        &self,
        images: &[RgbImage],
        references: &[RgbImage],
    ) -> Result<Vec<f32>, ModelError> {
        check_some(references)?;
        Ok(means(&self.dino_images(images), &self.dino_images(references)))
    }

    /// How much what image `i` shows is what reference `i` shows.
    pub fn dino_pairs(
        &self,
        images: &[RgbImage],
        references: &[RgbImage],
    ) -> Result<Vec<f32>, ModelError> {
        check_pairs("references", images.len(), references.len())?;
        Ok(pairs(&self.dino_images(images), &self.dino_images(references)))
    }

    /// CLIP's features of prompts, one row each, not normalised.
    pub fn clip_prompts<S: AsRef<str>>(&self, prompts: &[S]) -> Vec<Vec<f32>> {
        let features =
            |part: &[S]| self.clip.text_features(self.tokenizer.encode_batch(part, &self.device));
        prompts.chunks(AT_ONCE).flat_map(|part| rows(features(part))).collect()
    }

    /// CLIP's features of pictures, one row each, not normalised.
    pub fn clip_images(&self, images: &[RgbImage]) -> Vec<Vec<f32>> {
        let features = |part: &[RgbImage]| {
            self.clip.image_features(self.clip_pixels.apply(part, &self.device))
        };
        images.chunks(AT_ONCE).flat_map(|part| rows(features(part))).collect()
    }

    /// DINO's class tokens of pictures, one row each, not normalised.
    pub fn dino_images(&self, images: &[RgbImage]) -> Vec<Vec<f32>> {
        let embedding =
            |part: &[RgbImage]| self.dino.embedding(self.dino_pixels.apply(part, &self.device));
        images.chunks(AT_ONCE).flat_map(|part| rows(embedding(part))).collect()
    }
}

const WEIGHTS: &str = "model.safetensors";

/// What makes pictures fit for the judge in `dir`, which reads pictures with sides of so many pixels.
fn pixels(dir: &Path, sides: RangeInclusive<usize>) -> Result<Preprocessor, ModelError> {
    let path = dir.join("preprocessor_config.json");
    let pixels: Preprocessor = config::read(&path)?;
    let (width, height) = pixels.output();
    if [width, height].iter().all(|side| sides.contains(&(*side as usize))) {
        return Ok(pixels);
    }
    Err(ModelError::UnsupportedField {
        path,
        field: "size".to_string(),
        value: format!("{width}x{height}"),
        supported: match (sides.start(), sides.end()) {
            (least, most) if least == most => {
                format!("{least}x{least}, the `image_size` of config.json")
            }
            (least, _) => format!("at least {least}x{least}, the `patch_size` of config.json"),
        },
    })
}

fn check_pairs(field: &'static str, images: usize, found: usize) -> Result<(), ModelError> {
    if images == found {
        return Ok(());
    }
    let expected = format!("there must be one for each of the {images} images");
    Err(ModelError::InvalidRequest { field, value: format!("a list of {found}"), expected })
}

fn check_some(references: &[RgbImage]) -> Result<(), ModelError> {
    if !references.is_empty() {
        return Ok(());
    }
    let (value, expected) =
        ("empty".to_string(), "images need at least one to be compared with".to_string());
    Err(ModelError::InvalidRequest { field: "references", value, expected })
}

fn rows(features: Tensor<2>) -> Vec<Vec<f32>> {
    let width = features.dims()[1];
    let values: Vec<f32> = features.into_data().iter::<f32>().collect();
    values.chunks(width).map(<[f32]>::to_vec).collect()
}

fn pairs(a: &[Vec<f32>], b: &[Vec<f32>]) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| cosine(a, b) as f32).collect()
}

fn means(images: &[Vec<f32>], references: &[Vec<f32>]) -> Vec<f32> {
    let mean = |image: &Vec<f32>| {
        let sum: f64 = references.iter().map(|reference| cosine(image, reference)).sum();
        (sum / references.len() as f64) as f32
    };
    images.iter().map(mean).collect()
}

/// In f64 on the host, so that a score does not depend on the order in which a device sums.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}
