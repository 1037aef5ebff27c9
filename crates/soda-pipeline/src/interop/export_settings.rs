//! What an exported file says of itself: its dtype, and metadata by which other tools sort files.
//!
//! | key | value | read by |
//! |---|---|---|
//! | `ss_base_model_version`, `ss_v2` | the family of the base | A1111, which shows no other LoRAs |
//! | `ss_network_module`, `_dim`, `_alpha`, `_args` | the adapter, in kohya's words | kohya's scripts |
//! | `ss_output_name`, `ss_sd_model_name` | the names of the file and of the base | A1111 |
//! | `ss_resolution` | the sides of the images in pixels | nodes of ComfyUI |
//! | `ss_tag_frequency` | the trigger words, each once | A1111, nodes of ComfyUI |
//! | `ss_bucket_info`, `ss_dataset_dirs` | the number of training images, and their size | A1111 |
//! | `sshs_model_hash`, `sshs_legacy_hash` | checksums of the tensors | A1111, Civitai |
//! | `modelspec.*` | Stability's Model Metadata Standard 1.0.1 | ComfyUI, SwarmUI |

use std::collections::HashMap;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use burn::tensor::{DType, FloatDType};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use soda_models::pipeline::{DenoiserConfig, Pipeline};
use soda_models::scheduler::PredictionType;

use super::compress::AlphaRule;
use super::original_names::OriginalNames;
use crate::error::FormatError;
use crate::safetensors_file::{SafetensorsFile, encode};

/// Settings of an exported file, and what its names and metadata tell of the base model.
///
/// [`ExportSettings::new`] takes the base model's part from a pipeline. The fields may be changed.
#[derive(Clone, Debug)]
pub struct ExportSettings {
    /// The title, usually the name of the file.
    pub title: String,
    /// The words that the subject was trained with.
    pub trigger: Vec<String>,
    /// The name of the base model; empty if it is unknown.
    pub base_name: String,
    /// The number of training images, if it is known and all have the size of [`Self::set_resolution`].
    pub images: Option<usize>,
    /// The time at which the adapter was made. [`ExportSettings::new`] takes the present.
    pub created: SystemTime,
    /// The type of the tensors: F32, F16 or BF16.
    pub dtype: FloatDType,
    base: Base,
}

/// The base model.
#[derive(Clone, Debug)]
struct Base {
    family: Family,
    prediction_type: PredictionType,
    /// Whether the noise schedule has zero terminal SNR.
    zero_snr: bool,
    /// Side of the images in pixels.
    resolution: usize,
    /// The names of the denoiser's modules in the original code.
    original_names: OriginalNames,
}

/// The families of base models that other tools tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Sd1,
    Sd2,
    Sdxl,
    Flux2(KleinSize),
    ZImage,
}

/// The sizes of FLUX.2 klein that other tools tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KleinSize {
    /// 3.9 billion parameters.
    Small,
    /// 9.1 billion parameters.
    Large,
    /// Neither, as a small model for tests.
    Unknown,
}

impl KleinSize {
    /// Finds the size by the width of the tokens.
    fn of_width(width: usize) -> Self {
        match width {
            3072 => Self::Small,
            4096 => Self::Large,
            _ => Self::Unknown,
        }
    }
}

/// The adapter of a file in the words of kohya's scripts.
pub(super) struct Network {
    /// The module that loads the file.
    pub(super) module: &'static str,
    /// The rank.
    pub(super) dim: String,
    /// `α`.
    pub(super) alpha: String,
    /// The arguments of the module.
    pub(super) args: Value,
}

/// The word of kohya's scripts for numbers that differ between layers.
pub(super) const DYNAMIC: &str = "Dynamic";

impl ExportSettings {
    /// Makes settings for an adapter of `pipeline`, in f16, without title and trigger words.
    ///
    /// The schedule of `pipeline` must be that of the adapter, as
    /// [`load_adapter`](crate::load_adapter) leaves it.
    pub fn new(pipeline: &Pipeline) -> Self {
        let two_encoders = pipeline.text.clip().is_some_and(|clip| clip.second.is_some());
        let family = match (two_encoders, &pipeline.denoiser_config) {
            (_, DenoiserConfig::Flux2(config)) => {
                Family::Flux2(KleinSize::of_width(config.width()))
            }
            (_, DenoiserConfig::ZImage(_)) => Family::ZImage,
            (true, _) => Family::Sdxl,
            (false, DenoiserConfig::Unet(unet)) if unet.use_linear_projection => Family::Sd2,
            (false, _) => Family::Sd1,
        };
        let base = Base {
            family,
            prediction_type: pipeline.scheduler.prediction_type,
            zero_snr: pipeline.scheduler.rescale_betas_zero_snr,
            resolution: pipeline.image_size(),
            original_names: OriginalNames::from_networks(&pipeline.networks()),
        };
        let (title, trigger, base_name) = (String::new(), Vec::new(), String::new());
        let created = SystemTime::now();
        let (images, dtype) = (None, FloatDType::F16);
        Self { title, trigger, base_name, images, created, dtype, base }
    }

    /// Sets the side of the training images in pixels, where it is not that of the pipeline.
    pub fn set_resolution(&mut self, side: usize) {
        self.base.resolution = side;
    }

    /// The family of the base.
    pub(super) fn family(&self) -> Family {
        self.base.family
    }

    /// The names of the denoiser's modules in the original code.
    pub(super) fn original_names(&self) -> &OriginalNames {
        &self.base.original_names
    }

    /// The `α` of a file's layers by [`write_kohya`](super::write_kohya).
    ///
    /// diffusers 0.42 drops the `α` of a UNet's attention layers that differ from the others. It reads each
    /// `α` of FLUX.2 and Z-Image.
    pub fn kohya_alpha(&self) -> AlphaRule {
        match self.base.family {
            Family::Sd1 | Family::Sd2 | Family::Sdxl => AlphaRule::LargestRank,
            Family::Flux2(_) | Family::ZImage => AlphaRule::OwnRank,
        }
    }

    /// The metadata of a file with this adapter.
    ///
    /// `implementation` is the code whose names the tensors have. Values follow
    /// `build_minimum_network_metadata` and `sai_model_spec.py` of kohya's sd-scripts, for FLUX.2 and
    /// Z-Image those of musubi-tuner.
    pub(super) fn metadata(
        &self,
        network: &Network,
        implementation: &'static str,
    ) -> HashMap<String, String> {
        let Base { family, prediction_type, zero_snr, resolution, .. } = &self.base;
        let v = *prediction_type == PredictionType::VPrediction;
        let (version, architecture) = match (family, v) {
            (Family::Sd1, false) => ("sd_v1", "stable-diffusion-v1"),
            (Family::Sd1, true) => ("sd_v1_v", "stable-diffusion-v1"),
            (Family::Sd2, false) => ("sd_v2", "stable-diffusion-v2-512"),
            (Family::Sd2, true) => ("sd_v2_v", "stable-diffusion-v2-768-v"),
            (Family::Sdxl, _) => ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base"),
            (Family::Flux2(KleinSize::Small), _) => ("flux_2_klein_4b", "Flux.2-klein-4b"),
            (Family::Flux2(KleinSize::Large), _) => ("flux_2_klein_9b", "Flux.2-klein-9b"),
            (Family::Flux2(KleinSize::Unknown), _) => ("flux_2_klein", "Flux.2-klein"),
            (Family::ZImage, _) => ("z_image", "Z-Image"),
        };
        let prediction = match prediction_type {
            PredictionType::Epsilon => "epsilon",
            PredictionType::VPrediction => "v",
            PredictionType::Sample => "sample",
            PredictionType::Flow => "flow",
        };
        // A Boolean as Python prints it, which A1111 compares with.
        let v2 = if *family == Family::Sd2 { "True" } else { "False" };
        let mut metadata = HashMap::from([
            ("format", "pt".to_owned()),
            ("ss_base_model_version", version.to_owned()),
            ("ss_v2", v2.to_owned()),
            ("ss_network_module", network.module.to_owned()),
            ("ss_network_dim", network.dim.clone()),
            ("ss_network_alpha", network.alpha.clone()),
            ("ss_network_args", network.args.to_string()),
            ("ss_resolution", format!("({resolution}, {resolution})")),
            ("modelspec.sai_model_spec", "1.0.1".to_owned()),
            ("modelspec.architecture", format!("{architecture}/lora")),
            ("modelspec.implementation", implementation.to_owned()),
            ("modelspec.title", self.title.clone()),
            ("modelspec.date", iso_8601(self.created)),
            ("modelspec.resolution", format!("{resolution}x{resolution}")),
            ("modelspec.prediction_type", prediction.to_owned()),
        ]);
        if *zero_snr {
            metadata.insert("ss_zero_terminal_snr", "True".to_owned());
        }
        for (key, name) in [("ss_output_name", &self.title), ("ss_sd_model_name", &self.base_name)]
        {
            if !name.is_empty() {
                metadata.insert(key, name.clone());
            }
        }
        if let Some(count) = self.images {
            let buckets = json!({ "buckets": { "0": { "resolution": [resolution, resolution], "count": count } } });
            metadata.insert("ss_bucket_info", buckets.to_string());
            let folders = json!({ &self.title: { "n_repeats": 1, "img_count": count } });
            metadata.insert("ss_dataset_dirs", folders.to_string());
        }
        if !self.trigger.is_empty() {
            metadata.insert("modelspec.trigger_phrase", self.trigger.join(", "));
            metadata.insert("ss_tag_frequency", tag_frequency(&self.trigger));
        }
        metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }

    /// Adds checksums to the metadata, and writes the file as [`ExportSettings::dtype`].
    pub(super) fn write(&self, mut file: SafetensorsFile, path: &Path) -> Result<(), FormatError> {
        let hashes = Hashes::of(&file, self.dtype.into(), path)?;
        file.metadata.extend([
            ("modelspec.hash_sha256".to_owned(), format!("0x{}", hashes.model)),
            ("sshs_model_hash".to_owned(), hashes.model),
            ("sshs_legacy_hash".to_owned(), hashes.legacy),
        ]);
        file.write_as(path, self.dtype.into())
    }
}

/// The trigger words as the tags of kohya's folders of images, whose names begin with a number of repeats.
///
/// Tools show the tags by their frequency. ai-toolkit writes one folder for its trigger word, too.
fn tag_frequency(trigger: &[String]) -> String {
    let folder = |words: &String| (format!("1_{words}"), json!({ words: 1 }));
    Value::Object(trigger.iter().map(folder).collect()).to_string()
}

/// The checksums of kohya's `precalculate_safetensors_hashes`.
///
/// Both are of the file with the metadata of the training alone, whose names begin with `ss_`.
#[derive(Debug, PartialEq, Eq)]
struct Hashes {
    /// SHA-256 of everything after the header.
    model: String,
    /// The first eight digits of the SHA-256 of 64 KiB at 1 MiB.
    legacy: String,
}

impl Hashes {
    fn of(file: &SafetensorsFile, dtype: DType, path: &Path) -> Result<Self, FormatError> {
        let training = file.metadata.iter().filter(|(key, _)| key.starts_with("ss_"));
        let training = training.map(|(key, value)| (key.clone(), value.clone())).collect();
        let bytes = encode(&file.tensors, &training, dtype, path)?;
        let header = bytes.first_chunk().map_or(0, |length| u64::from_le_bytes(*length));
        let header = usize::try_from(header).unwrap_or(usize::MAX).saturating_add(8);
        let sample = bytes.get(1 << 20..).unwrap_or_default();
        let mut legacy = hex(&sample[..sample.len().min(1 << 16)]);
        legacy.truncate(8);
        Ok(Self { model: hex(bytes.get(header..).unwrap_or_default()), legacy })
    }
}

/// The SHA-256 of `bytes` in hexadecimal.
fn hex(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// Writes a time in ISO 8601, to the second, in UTC and without a zone.
pub fn iso_8601(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    // Years begin in March here, so that a leap day is a year's last. An era is 400 years, of 146,097 days
    // each. The first era began on 1 March of the year 0, 719,468 days before 1970.
    let day = days + 719_468;
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = 400 * era + year + u64::from(month <= 2);
    let (hour, minute, second) = (of_day / 3_600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use burn::tensor::TensorData;

    use super::*;

    fn metadata(family: Family, prediction_type: PredictionType) -> HashMap<String, String> {
        let original_names = OriginalNames::default();
        let base =
            Base { family, prediction_type, zero_snr: false, resolution: 768, original_names };
        let settings = ExportSettings {
            title: "mug".to_owned(),
            trigger: vec!["sks mug".to_owned(), "red".to_owned()],
            base_name: "sd15".to_owned(),
            images: Some(5),
            created: UNIX_EPOCH + Duration::from_secs(1_709_210_096),
            dtype: FloatDType::F16,
            base,
        };
        let (module, args) = ("networks.lora", json!({ "conv_dim": "4" }));
        let network = Network { module, dim: "8".into(), alpha: "8".into(), args };
        settings.metadata(&network, "diffusers")
    }

    /// `NetworkOnDisk.detect_version` of A1111 (extensions-builtin/Lora/network.py).
    fn detect_version(metadata: &HashMap<String, String>) -> &'static str {
        let value = |key: &str| metadata.get(key).map_or("", String::as_str);
        if value("ss_base_model_version").starts_with("sdxl_") {
            "SDXL"
        } else if value("ss_v2") == "True" {
            "SD2"
        } else if !metadata.is_empty() {
            "SD1"
        } else {
            "Unknown"
        }
    }

    #[test]
    fn a1111_finds_the_family_of_the_base() {
        use {Family::*, PredictionType::*};
        for (family, prediction, shown, version, architecture) in [
            (Sd1, Epsilon, "SD1", "sd_v1", "stable-diffusion-v1/lora"),
            (Sd2, Epsilon, "SD2", "sd_v2", "stable-diffusion-v2-512/lora"),
            (Sd2, VPrediction, "SD2", "sd_v2_v", "stable-diffusion-v2-768-v/lora"),
            (Sdxl, Epsilon, "SDXL", "sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora"),
            (Sdxl, VPrediction, "SDXL", "sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora"),
        ] {
            let metadata = metadata(family, prediction);
            assert_eq!(detect_version(&metadata), shown);
            assert_eq!(metadata["ss_base_model_version"], version);
            assert_eq!(metadata["modelspec.architecture"], architecture);
            let v = if prediction == VPrediction { "v" } else { "epsilon" };
            assert_eq!(metadata["modelspec.prediction_type"], v);
        }
    }

    #[test]
    fn the_other_fields_are_those_of_kohya() {
        let metadata = metadata(Family::Sd1, PredictionType::Epsilon);
        for (key, value) in [
            ("format", "pt"),
            ("ss_v2", "False"),
            ("ss_network_module", "networks.lora"),
            ("ss_network_dim", "8"),
            ("ss_network_alpha", "8"),
            ("ss_network_args", r#"{"conv_dim":"4"}"#),
            ("ss_output_name", "mug"),
            ("ss_sd_model_name", "sd15"),
            ("ss_resolution", "(768, 768)"),
            ("modelspec.sai_model_spec", "1.0.1"),
            ("modelspec.implementation", "diffusers"),
            ("modelspec.title", "mug"),
            ("modelspec.date", "2024-02-29T12:34:56"),
            ("modelspec.resolution", "768x768"),
            ("modelspec.trigger_phrase", "sks mug, red"),
        ] {
            assert_eq!(metadata[key], value, "{key}");
        }
        let size = json!({ "resolution": [768, 768], "count": 5 });
        for (key, value) in [
            ("ss_tag_frequency", json!({ "1_sks mug": { "sks mug": 1 }, "1_red": { "red": 1 } })),
            ("ss_bucket_info", json!({ "buckets": { "0": size } })),
            ("ss_dataset_dirs", json!({ "mug": { "n_repeats": 1, "img_count": 5 } })),
        ] {
            let found: Value = serde_json::from_str(&metadata[key]).expect("a table");
            assert_eq!(found, value, "{key}");
        }
        assert_eq!(iso_8601(UNIX_EPOCH), "1970-01-01T00:00:00");
        let last = UNIX_EPOCH + Duration::from_secs(4_102_444_799);
        assert_eq!(iso_8601(last), "2099-12-31T23:59:59");
    }

    /// The expected values are those of kohya's function, over files that the safetensors package of Python
    /// wrote.
    #[test]
    fn checksums_are_those_of_kohya() {
        let values: Vec<f32> = (0..600_000).map(|index| (index % 2_048) as f32).collect();
        let alpha = TensorData::new(vec![4f32], [0usize; 0]);
        let tensors = [
            ("lora_unet_x.alpha".to_owned(), alpha),
            ("lora_unet_x.lora_up.weight".to_owned(), TensorData::new(values, [600, 1_000])),
        ];
        let metadata = [("ss_v2", "False"), ("modelspec.title", "not hashed")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()));
        let file = SafetensorsFile { tensors: tensors.into(), metadata: HashMap::from(metadata) };
        for (dtype, model, legacy) in [
            (
                DType::F32,
                "0c64d4e191fb0ceb3bd80816e8c925e8dbcb7794d38f86b9e97e8412524b2d29",
                "da1fa45a",
            ),
            (
                DType::F16,
                "876cc7acce2a2893b2adb8f0291e2c18acec317c65410fe98ad6b1766b95e093",
                "0d701751",
            ),
        ] {
            let hashes = Hashes::of(&file, dtype, Path::new("x")).expect("a file");
            let expected = Hashes { model: model.to_owned(), legacy: legacy.to_owned() };
            assert_eq!(hashes, expected, "{dtype:?}");
        }
    }
}
