//! Image preprocessing for CLIP and DINO, as described by `preprocessor_config.json`.
//!
//! The steps are: resize, crop the centre, rescale to [0, 1], subtract the mean, divide by the standard
//! deviation. Mirrors transformers' `CLIPImageProcessor` and `ViTImageProcessor` with Pillow.

use burn::tensor::{Device, Tensor};
use image::{RgbImage, imageops};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::resample::{Filter, resize};
use super::tensor::planes;
use crate::config::bounds::JUDGED;
use crate::config::pretrained::fields;
use crate::config::{ConfigFile, InvalidField, json_text};

/// A `preprocessor_config.json` and the preprocessing that it describes.
#[derive(Debug, Clone, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct ImageProcessor {
    /// The size after the resize.
    pub size: ImageSize,
    /// The resampling filter, by Pillow's number: 1 (Lanczos), 2 (bilinear) or 3 (bicubic).
    pub resample: u8,
    /// Whether the centre is cropped after the resize.
    #[serde(default)]
    pub do_center_crop: bool,
    /// The size of the centre crop.
    pub crop_size: Option<ImageSize>,
    /// The factor from bytes to [0, 1], which is 1/255.
    #[serde(default = "per_byte")]
    pub rescale_factor: f32,
    /// Means of red, green and blue.
    pub image_mean: [f32; 3],
    /// Standard deviations of red, green and blue.
    pub image_std: [f32; 3],
}

/// A size, in one of the three forms that config files use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ImageSize {
    /// A number, from before transformers 4.24: the shortest edge if a crop follows, and otherwise a square.
    Bare(u32),
    /// The length of the shortest edge. The aspect ratio is kept.
    ShortestEdge {
        /// The length in pixels.
        shortest_edge: u32,
    },
    /// Both edges. The aspect ratio is not kept.
    Exact {
        /// Height in pixels.
        height: u32,
        /// Width in pixels.
        width: u32,
    },
}

impl ImageSize {
    fn largest(self) -> u32 {
        match self {
            Self::Bare(edge) | Self::ShortestEdge { shortest_edge: edge } => edge,
            Self::Exact { height, width } => height.max(width),
        }
    }
}

impl<'de> Deserialize<'de> for ImageProcessor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Class names, and arguments of the Python functions.
        let others = [
            "feature_extractor_type",
            "image_processor_type",
            "processor_class",
            "do_convert_rgb",
            "data_format",
            "input_data_format",
            "return_tensors",
            "device",
            "disable_grouping",
        ];
        let fields = fields(deserializer, &others)?;
        Self::deserialize(Value::Object(fields)).map_err(D::Error::custom)
    }
}

impl ConfigFile for ImageProcessor {
    const DESCRIPTION: &'static str = "the judge's preprocessor_config.json";

    const NO_EFFECT: &'static [(&'static str, &'static str)] = &[
        ("default_to_square", "true"),
        ("default_to_square", "false"),
        ("do_normalize", "true"),
        ("do_pad", "false"),
        ("do_pad", "null"),
        ("do_rescale", "true"),
        ("do_resize", "true"),
        ("image_seq_length", "null"),
        ("pad_size", "null"),
    ];

    fn validate(&self) -> Result<(), InvalidField> {
        let refuse =
            |field, value: String, supported| Err(InvalidField { field, value, supported });
        for (field, size) in [("size", Some(self.size)), ("crop_size", self.crop_size)] {
            JUDGED.check(field, size.map_or(0, |size| size.largest() as usize))?;
        }
        if self.filter().is_none() {
            let supported = "1 (Lanczos), 2 (bilinear) or 3 (bicubic)";
            return refuse("resample", self.resample.to_string(), supported);
        }
        let finite = |values: &[f32; 3]| values.iter().all(|value| value.is_finite());
        if !self.rescale_factor.is_finite() {
            return refuse("rescale_factor", self.rescale_factor.to_string(), "a finite number");
        }
        if !finite(&self.image_mean) {
            return refuse("image_mean", json_text(&self.image_mean), "finite numbers");
        }
        if !finite(&self.image_std) || self.image_std.contains(&0.0) {
            return refuse("image_std", json_text(&self.image_std), "deviations above zero");
        }
        let (least_width, least_height) = self.edges(1, 1);
        if least_width == 0 || least_height == 0 {
            return refuse("size", json_text(&self.size), "a size above zero");
        }
        match (self.do_center_crop, self.size, self.crop()) {
            (true, _, None) => {
                refuse("crop_size", json_text(&self.crop_size), "a height and a width")
            }
            // Pillow would pad with black, on which no judge was trained.
            (true, _, Some((width, height))) if width > least_width || height > least_height => {
                let supported = "a crop that is not larger than `size`";
                refuse("crop_size", format!("{width}x{height}"), supported)
            }
            (false, ImageSize::ShortestEdge { .. }, _) => {
                let supported = "a crop after the resize, or images differ in size";
                refuse("do_center_crop", "false".to_string(), supported)
            }
            _ => Ok(()),
        }
    }
}

impl ImageProcessor {
    /// Preprocesses images to a tensor `[b, 3, h, w]` of [`output_size`](Self::output_size).
    ///
    /// # Panics
    ///
    /// If there are no images.
    #[track_caller]
    pub fn preprocess(&self, images: &[RgbImage], device: &Device) -> Tensor<4> {
        let images: Vec<_> = images.iter().map(|image| self.frame(image)).collect();
        let value = |byte: u8, channel: usize| {
            let value = f32::from(byte) * self.rescale_factor;
            (value - self.image_mean[channel]) / self.image_std[channel]
        };
        planes(&images, value, device)
    }

    /// Width and height of every preprocessed image, in pixels.
    pub fn output_size(&self) -> (u32, u32) {
        match self.crop() {
            Some(crop) if self.do_center_crop => crop,
            _ => self.edges(1, 1),
        }
    }

    /// Resizes and crops one image to its final size.
    fn frame(&self, image: &RgbImage) -> RgbImage {
        // A strip would grow to billions of pixels, of which only the centre is kept.
        let strip = self.do_center_crop.then(|| centre(image)).flatten();
        let image = strip.as_ref().unwrap_or(image);
        let (width, height) = self.edges(image.width(), image.height());
        let image = match self.filter() {
            Some(filter) => resize(image, width, height, filter),
            // `validate` refused such a config.
            None => image.clone(),
        };
        let (crop_width, crop_height) = self.output_size();
        let (x, y) = ((width - crop_width) / 2, (height - crop_height) / 2);
        imageops::crop_imm(&image, x, y, crop_width, crop_height).to_image()
    }

    /// Width and height to which an image of `width` x `height` is resized.
    fn edges(&self, width: u32, height: u32) -> (u32, u32) {
        let edge = match self.size {
            ImageSize::Exact { height, width } => return (width, height),
            ImageSize::Bare(edge) if !self.do_center_crop => return (edge, edge),
            ImageSize::Bare(edge) | ImageSize::ShortestEdge { shortest_edge: edge } => edge,
        };
        let scale =
            |long: u32, short: u32| (u64::from(edge) * u64::from(long) / u64::from(short)) as u32;
        match width <= height {
            true => (edge, scale(height, width)),
            false => (scale(width, height), edge),
        }
    }

    /// Width and height of the centre crop.
    fn crop(&self) -> Option<(u32, u32)> {
        match self.crop_size? {
            ImageSize::Exact { height, width } => Some((width, height)),
            ImageSize::Bare(edge) => Some((edge, edge)),
            ImageSize::ShortestEdge { .. } => None,
        }
    }

    fn filter(&self) -> Option<Filter> {
        match self.resample {
            1 => Some(Filter::Lanczos),
            2 => Some(Filter::Bilinear),
            3 => Some(Filter::Bicubic),
            _ => None,
        }
    }
}

/// The longest edge that is resized, as a multiple of the shorter one.
const LONGEST: u32 = 16;

/// The centre of an image that is longer than [`LONGEST`]. `None` for other images.
fn centre(image: &RgbImage) -> Option<RgbImage> {
    let (width, height) = image.dimensions();
    let [new_width, new_height] =
        [width.min(height.saturating_mul(LONGEST)), height.min(width.saturating_mul(LONGEST))];
    let (x, y) = ((width - new_width) / 2, (height - new_height) / 2);
    let crop = || imageops::crop_imm(image, x, y, new_width, new_height).to_image();
    ((new_width, new_height) != (width, height)).then(crop)
}

fn per_byte() -> f32 {
    1.0 / 255.0
}
