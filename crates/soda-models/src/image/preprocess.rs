//! From a picture to the pixels that a judge was trained on, by its `preprocessor_config.json`.
//!
//! Resize, crop the centre, rescale to [0, 1], subtract the mean and divide by the deviation.
//! Mirrors transformers' `CLIPImageProcessor` and `ViTImageProcessor` with Pillow.

use burn::tensor::{Device, Tensor};
use image::{RgbImage, imageops};
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::planes;
use super::resample::{Filter, resize};
use crate::clip::pretrained::fields;
use crate::config::{ConfigFile, Refusal};

/// A `preprocessor_config.json`.
#[derive(Debug, Clone, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct Preprocessor {
    /// The size that pictures are resized to.
    pub size: Size,
    /// The kernel, by Pillow's number.
    pub resample: u8,
    /// Whether the centre is cut out afterwards.
    #[serde(default)]
    pub do_center_crop: bool,
    /// The size of the centre.
    pub crop_size: Option<Size>,
    /// 1 / 255.
    #[serde(default = "per_byte")]
    pub rescale_factor: f32,
    /// Of red, green and blue.
    pub image_mean: [f32; 3],
    /// Of red, green and blue.
    pub image_std: [f32; 3],
}

/// A size in one of the three ways in which it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Size {
    /// A bare number, from before transformers 4.24: the shortest edge where a crop follows, and
    /// else a square.
    Bare(u32),
    /// The shortest edge; the aspect ratio stays.
    ShortestEdge {
        /// Its length.
        shortest_edge: u32,
    },
    /// Both edges, whatever the aspect ratio was.
    Exact {
        /// Rows.
        height: u32,
        /// Columns.
        width: u32,
    },
}

impl<'de> Deserialize<'de> for Preprocessor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // What the classes are called, and what Python is given and returns.
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

impl ConfigFile for Preprocessor {
    const WHAT: &'static str = "the judge's preprocessor_config.json";

    const NEUTRAL: &'static [(&'static str, &'static str)] = &[
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

    fn check(&self) -> Result<(), Refusal> {
        let refuse = |field, value: String, supported| Err(Refusal { field, value, supported });
        if self.filter().is_none() {
            let supported = "1 (Lanczos), 2 (bilinear) or 3 (bicubic)";
            return refuse("resample", self.resample.to_string(), supported);
        }
        if self.image_std.contains(&0.0) {
            return refuse("image_std", format!("{:?}", self.image_std), "deviations above zero");
        }
        let (least_width, least_height) = self.edges(1, 1);
        if least_width == 0 || least_height == 0 {
            return refuse("size", format!("{:?}", self.size), "a size above zero");
        }
        match (self.do_center_crop, self.size, self.crop()) {
            (true, _, None) => {
                refuse("crop_size", format!("{:?}", self.crop_size), "a height and a width")
            }
            // Pillow would pad with black, on which no judge was trained.
            (true, _, Some((width, height))) if width > least_width || height > least_height => {
                let supported = "a crop that is not larger than `size`";
                refuse("crop_size", format!("{width}x{height}"), supported)
            }
            (false, Size::ShortestEdge { .. }, _) => {
                let supported = "a crop after the resize, or pictures differ in size";
                refuse("do_center_crop", "false".to_string(), supported)
            }
            _ => Ok(()),
        }
    }
}

impl Preprocessor {
    /// `pictures` as the judge reads them, `[b, 3, h, w]`.
    ///
    /// # Panics
    ///
    /// If there are none.
    #[track_caller]
    pub fn apply(&self, pictures: &[RgbImage], device: &Device) -> Tensor<4> {
        let pictures: Vec<_> = pictures.iter().map(|picture| self.frame(picture)).collect();
        let value = |byte: u8, channel: usize| {
            let value = f32::from(byte) * self.rescale_factor;
            (value - self.image_mean[channel]) / self.image_std[channel]
        };
        planes(&pictures, value, device)
    }

    /// Width and height of every preprocessed picture.
    pub fn output(&self) -> (u32, u32) {
        match self.crop() {
            Some(crop) if self.do_center_crop => crop,
            _ => self.edges(1, 1),
        }
    }

    /// The picture in its final size.
    fn frame(&self, picture: &RgbImage) -> RgbImage {
        let (width, height) = self.edges(picture.width(), picture.height());
        let picture = match self.filter() {
            Some(filter) => resize(picture, width, height, filter),
            // `check` refused it.
            None => picture.clone(),
        };
        let (crop_width, crop_height) = self.output();
        let (x, y) = ((width - crop_width) / 2, (height - crop_height) / 2);
        imageops::crop_imm(&picture, x, y, crop_width, crop_height).to_image()
    }

    /// Width and height that a picture of `width` x `height` is resized to.
    fn edges(&self, width: u32, height: u32) -> (u32, u32) {
        let edge = match self.size {
            Size::Exact { height, width } => return (width, height),
            Size::Bare(edge) if !self.do_center_crop => return (edge, edge),
            Size::Bare(edge) | Size::ShortestEdge { shortest_edge: edge } => edge,
        };
        let scale =
            |long: u32, short: u32| (u64::from(edge) * u64::from(long) / u64::from(short)) as u32;
        match width <= height {
            true => (edge, scale(height, width)),
            false => (scale(width, height), edge),
        }
    }

    /// Width and height of the centre.
    fn crop(&self) -> Option<(u32, u32)> {
        match self.crop_size? {
            Size::Exact { height, width } => Some((width, height)),
            Size::Bare(edge) => Some((edge, edge)),
            Size::ShortestEdge { .. } => None,
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

fn per_byte() -> f32 {
    1.0 / 255.0
}
