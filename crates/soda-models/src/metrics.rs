//! The three common scores of personalisation (DreamBooth, arXiv 2208.12242).
//!
//! | score | cosine similarity of | question |
//! | --- | --- | --- |
//! | CLIP-T | CLIP's features of image and prompt | Does the image show what the prompt says? |
//! | CLIP-I | CLIP's features of two images | Do the two images look alike? |
//! | DINO | DINO's class tokens of two images | Do the two images show the same object? |
//!
//! All scores are between -1 and 1, and larger is better.

use std::ops::RangeInclusive;
use std::path::Path;

use burn::tensor::{Device, Tensor};
use image::RgbImage;

use crate::clip::{ClipConfig, ClipModel};
use crate::config;
use crate::error::{ConfigError, ModelError};
use crate::image::ImageProcessor;
use crate::tokenizer::Tokenizer;
use crate::vit::{self, VitModel};
use crate::weights;

/// Images or prompts in one forward pass, which bounds the memory.
const AT_ONCE: usize = 32;

/// A CLIP model and a DINO model that score images, with their tokenizer and image processors.
///
/// ```no_run
/// use std::path::Path;
///
/// use burn::tensor::Device;
/// use soda_models::image::read_rgb;
/// use soda_models::metrics::Judges;
///
/// let judges = Judges::load(Path::new("examples/toybox/eval"), &Device::default())?;
/// let images = [read_rgb(Path::new("mug.png"))?];
/// println!("CLIP-T {:?}", judges.clip_t(&images, &["a red mug"])?);
/// # Ok::<(), soda_models::ModelError>(())
/// ```
#[derive(Debug)]
pub struct Judges {
    /// The CLIP model: texts and images in one space.
    pub clip: ClipModel,
    /// The tokenizer of the CLIP model.
    pub tokenizer: Tokenizer,
    /// The image processor of the CLIP model.
    pub clip_processor: ImageProcessor,
    /// The DINO or DINOv2 model.
    pub dino: VitModel,
    /// The image processor of the DINO model.
    pub dino_processor: ImageProcessor,
    /// The device of both models.
    pub device: Device,
}

/// The features of images that others are compared with.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReferenceFeatures {
    /// One row for each image.
    clip: Vec<Vec<f32>>,
    /// One row for each image.
    dino: Vec<Vec<f32>>,
}

impl ReferenceFeatures {
    /// Adds the features of `images`.
    pub fn extend(&mut self, judges: &Judges, images: &[RgbImage]) {
        self.clip.extend(judges.clip_image_features(images));
        self.dino.extend(judges.dino_features(images));
    }
}

impl Judges {
    /// Loads the models from `clip/` and `dino/` in `dir`, each in transformers' layout. `dino/` holds DINO
    /// or DINOv2.
    ///
    /// # Errors
    ///
    /// [`ModelError`] for a file that is missing, broken or not supported, and for an image processor whose
    /// output size the model does not accept.
    pub fn load(dir: &Path, device: &Device) -> Result<Self, ModelError> {
        let (clip, dino) = (dir.join("clip"), dir.join("dino"));
        let clip_config: ClipConfig = config::read(&clip.join("config.json"))?;
        let tokenizer = Tokenizer::from_dir(&clip)?;
        tokenizer.check_fits(&clip, &clip_config.text_config)?;
        let side = clip_config.vision_config.image_size;
        let clip_processor = pixels(&clip, side..=side)?;
        let (dino_model, sides) = vit::load(&dino, device)?;
        Ok(Self {
            tokenizer,
            clip_processor,
            dino_processor: pixels(&dino, sides)?,
            clip: weights::load(clip_config.init(device), &clip.join(WEIGHTS))?,
            dino: dino_model,
            device: device.clone(),
        })
    }

    /// CLIP-T of each pair: the cosine similarity of image `i` and prompt `i`.
    ///
    /// # Errors
    ///
    /// [`ModelError::InvalidRequest`] if there are not as many prompts as images.
    pub fn clip_t<S: AsRef<str>>(
        &self,
        images: &[RgbImage],
        prompts: &[S],
    ) -> Result<Vec<f32>, ModelError> {
        check_pairs("prompts", images.len(), prompts.len())?;
        Ok(pairs(&self.clip_image_features(images), &self.clip_text_features(prompts)))
    }

    /// CLIP-I of each image: the mean cosine similarity with all references.
    ///
    /// # Errors
    ///
    /// [`ModelError::InvalidRequest`] if there are no references.
    pub fn clip_i(
        &self,
        images: &[RgbImage],
        references: &ReferenceFeatures,
    ) -> Result<Vec<f32>, ModelError> {
        means(&self.clip_image_features(images), &references.clip)
    }

    /// CLIP-I of each pair: the cosine similarity of image `i` and reference `i`.
    ///
    /// # Errors
    ///
    /// [`ModelError::InvalidRequest`] if there are not as many references as images.
    pub fn clip_i_pairs(
        &self,
        images: &[RgbImage],
        references: &[RgbImage],
    ) -> Result<Vec<f32>, ModelError> {
        check_pairs("references", images.len(), references.len())?;
        Ok(pairs(&self.clip_image_features(images), &self.clip_image_features(references)))
    }

    /// DINO score of each image: the mean cosine similarity with all references.
    ///
    /// # Errors
    ///
    /// As [`Judges::clip_i`].
    pub fn dino(
        &self,
        images: &[RgbImage],
        references: &ReferenceFeatures,
    ) -> Result<Vec<f32>, ModelError> {
        means(&self.dino_features(images), &references.dino)
    }

    /// DINO score of each pair: the cosine similarity of image `i` and reference `i`.
    ///
    /// # Errors
    ///
    /// [`ModelError::InvalidRequest`] if there are not as many references as images.
    pub fn dino_pairs(
        &self,
        images: &[RgbImage],
        references: &[RgbImage],
    ) -> Result<Vec<f32>, ModelError> {
        check_pairs("references", images.len(), references.len())?;
        Ok(pairs(&self.dino_features(images), &self.dino_features(references)))
    }

    /// CLIP's features of prompts, one row for each prompt, not normalised.
    pub fn clip_text_features<S: AsRef<str>>(&self, prompts: &[S]) -> Vec<Vec<f32>> {
        let features =
            |part: &[S]| self.clip.text_features(self.tokenizer.encode_batch(part, &self.device));
        prompts.chunks(AT_ONCE).flat_map(|part| rows(features(part))).collect()
    }

    /// CLIP's features of images, one row for each image, not normalised.
    pub fn clip_image_features(&self, images: &[RgbImage]) -> Vec<Vec<f32>> {
        let features = |part: &[RgbImage]| {
            self.clip.image_features(self.clip_processor.preprocess(part, &self.device))
        };
        images.chunks(AT_ONCE).flat_map(|part| rows(features(part))).collect()
    }

    /// DINO's class tokens of images, one row for each image, not normalised.
    pub fn dino_features(&self, images: &[RgbImage]) -> Vec<Vec<f32>> {
        let embedding = |part: &[RgbImage]| {
            self.dino.embedding(self.dino_processor.preprocess(part, &self.device))
        };
        images.chunks(AT_ONCE).flat_map(|part| rows(embedding(part))).collect()
    }
}

const WEIGHTS: &str = "model.safetensors";

/// Reads the image processor of the model in `dir`. `sides` is the range of image sides that the model
/// accepts.
fn pixels(dir: &Path, sides: RangeInclusive<usize>) -> Result<ImageProcessor, ModelError> {
    let path = dir.join("preprocessor_config.json");
    let pixels: ImageProcessor = config::read(&path)?;
    let (width, height) = pixels.output_size();
    if [width, height].iter().all(|side| sides.contains(&(*side as usize))) {
        return Ok(pixels);
    }
    Err(ConfigError::UnsupportedField {
        path,
        field: "size".to_string(),
        value: format!("{width}x{height}"),
        supported: match (sides.start(), sides.end()) {
            (least, most) if least == most => {
                format!("{least}x{least}, the `image_size` of config.json")
            }
            (least, _) => format!("at least {least}x{least}, the `patch_size` of config.json"),
        },
    }
    .into())
}

fn check_pairs(field: &'static str, images: usize, found: usize) -> Result<(), ModelError> {
    if images == found {
        return Ok(());
    }
    let expected = format!("there must be one for each of the {images} images");
    Err(ModelError::InvalidRequest { field, value: format!("a list of {found}"), expected })
}

fn rows(features: Tensor<2>) -> Vec<Vec<f32>> {
    let width = features.dims()[1];
    let values: Vec<f32> = features.into_data().iter::<f32>().collect();
    values.chunks(width).map(<[f32]>::to_vec).collect()
}

fn pairs(a: &[Vec<f32>], b: &[Vec<f32>]) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| cosine(a, b) as f32).collect()
}

/// The mean similarity of each image with all references, of which there must be one.
fn means(images: &[Vec<f32>], references: &[Vec<f32>]) -> Result<Vec<f32>, ModelError> {
    if references.is_empty() {
        let (value, expected) =
            ("empty".to_string(), "images need at least one to be compared with".to_string());
        return Err(ModelError::InvalidRequest { field: "references", value, expected });
    }
    let mean = |image: &Vec<f32>| {
        let sum: f64 = references.iter().map(|reference| cosine(image, reference)).sum();
        (sum / references.len() as f64) as f32
    };
    Ok(images.iter().map(mean).collect())
}

/// The cosine similarity, in f64 on the host: a score must not depend on the order in which a device sums.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}
